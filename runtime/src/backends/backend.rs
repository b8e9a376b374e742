//! What a backend is to the rest of the runtime.

use std::sync::Arc;

use crate::backends::error::BackendError;
use crate::backends::interface::{GraphWeight, Interface};
use crate::components::Needs;
use crate::engine::footprint::Shapes;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::lora::Weighted;
use crate::lora::fuse::{CancelCheck, FuseReport};
use crate::options::{OpenOptions, WeightMode};

/// Something that runs engines. It holds no state: what it opens does.
///
/// Each backend is a folder of [`backends`](crate::backends) and a line of [`BACKENDS`](crate::backends::BACKENDS). Its own options are a
/// member of [`OpenOptions`].
pub trait Backend: Sync {
    /// What users call it, and manifests the graphs that are made for it.
    fn name(&self) -> &'static str;

    /// What it is, in a line of help.
    fn about(&self) -> &'static str;

    /// True if it should run this engine where the user left the choice to v2l: the engine has a form for it, and this machine is worth
    /// it. It is asked each time an engine is opened or estimated, so what is costly to find out must be kept.
    fn suits(&self, engine: &Engine, options: &OpenOptions) -> bool;

    /// Whether it is there and, where the choice is left to v2l, is taken for engines that hold a form for it; and why, in words. It may
    /// load libraries, and time a small graph once for the machine.
    fn on_this_machine(&self, options: &OpenOptions) -> (bool, String);

    /// How the engine's weights will be held, and why, in words. It depends on the engine, the options and the machine, not on what is
    /// free at the moment.
    ///
    /// # Errors
    /// [`EngineError`] if a graph names a weight that the engine lacks.
    fn held_weights(&self, engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError>;

    /// What a graph takes of the machine's memory if it is opened and run on inputs of these shapes, `runs` times with what precomputed graphs
    /// keep; `None` where other memory holds it, or nobody knows.
    ///
    /// # Errors
    /// [`EngineError`] if there is no such graph, or it names a weight that the engine lacks.
    fn needs(
        &self,
        engine: &Engine,
        graph: &str,
        options: &OpenOptions,
        fused: Fused<'_>,
        shapes: &Shapes,
        runs: usize,
    ) -> Result<Option<Needs>, EngineError>;

    /// Its own options that may change a result's bits, in a line. Kept predictions are told apart by it.
    fn cache_key(&self, options: &OpenOptions) -> String;

    /// Opens an engine, with the base weights.
    ///
    /// # Errors
    /// [`BackendError`]: the backend is not there, the engine is not for it, memory does not suffice.
    fn open(&self, engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn BackendEngine>, BackendError>;

    /// Opens a graph that belongs to no engine, over these weights, as it stands; `None` if the backend runs engines alone. The ONNX bytes are
    /// in the backend's own form.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn open_graph(
        &self,
        _interface: &Interface,
        _onnx: &[u8],
        _weights: &[GraphWeight],
        _options: &OpenOptions,
    ) -> Option<Result<Box<dyn Session>, BackendError>> {
        None
    }
}

/// Opens sessions again over other weights, or says why not.
pub type Reopen<'a> = &'a mut dyn FnMut(&mut dyn BackendEngine) -> Result<(), BackendError>;

/// An engine that is open on a backend.
pub trait BackendEngine: Send {
    /// The engine.
    fn engine(&self) -> &Arc<Engine>;

    /// What was decided on opening, and why.
    fn report(&self) -> &OpenReport;

    /// A session of a graph. Sessions of one engine share its weights.
    ///
    /// # Errors
    /// [`BackendError`].
    fn session(&mut self, graph: &str) -> Result<Box<dyn Session>, BackendError>;

    /// Replaces the adapters that are fused, none being the base, as a whole or not at all. `cancelled` is asked now and then, on any
    /// thread.
    ///
    /// Open sessions take the new weights with their next run. A backend whose sessions cannot do that calls `reopen` once, over the
    /// new weights; if that fails, it takes them back.
    ///
    /// # Errors
    /// [`BackendError`]; adapters and sessions are then the former ones, but for what the error names.
    fn set_adapters(
        &mut self,
        adapters: &[Weighted],
        reopen: Reopen<'_>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), BackendError>;
}

/// What was decided on opening, and why.
#[derive(Clone, Debug)]
pub struct OpenReport {
    /// How the weights are held.
    pub mode: WeightMode,
    /// Why, in words.
    pub reason: String,
    /// Upper bound on the private memory of weights: f32, fused and prepacked copies.
    pub private_bytes: u64,
    /// What fusing did.
    pub fused: FuseReport,
}

/// What will be fused into an engine.
#[derive(Clone, Copy, Debug)]
pub enum Fused<'a> {
    /// These adapters, each with its strength.
    These(&'a [Weighted]),
    /// Some that change every slot.
    All,
}
