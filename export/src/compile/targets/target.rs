//! What a backend needs of the compiler.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use v2l_calibration::Request;
use v2l_graphs::passes::{Lowered, Passes};
use v2l_graphs::{DataType, Model};
use v2l_runtime::engine::manifest::{Graph, Profile, Slot};

use crate::check::CheckOptions;
use crate::compile::report::TrtPlanReport;
use crate::compile::weights::StoredWeight;
use crate::engine_writer::EngineBlob;
use crate::{ExportError, Progress};

/// A backend that engines are compiled for, with its own options.
pub trait Target: fmt::Debug + Send + Sync {
    /// Its name in manifests and on command lines.
    fn backend(&self) -> &'static str;

    /// True if it can compute with matrices of 8 bits.
    fn takes_int8(&self) -> bool;

    /// Loads what compiling takes. `output` is what is compiled: its folder has room for the weights.
    ///
    /// # Errors
    /// [`ExportError`] if something is missing on this machine.
    fn open<'a>(&'a self, output: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError>;
}

/// A target, ready to compile.
pub trait GraphCompiler {
    /// The types to plan where nobody asks for any and most weights are stored as `stored`; `None` if graphs then stay
    /// in f32 without a plan. A target that has an answer gets every graph with types.
    fn native_types(&self, stored: DataType) -> Option<Request>;

    /// Makes what an engine stores of one graph. The numeric check runs its ONNX forms.
    ///
    /// # Errors
    /// [`ExportError`], naming graph and node.
    fn compile(
        &self,
        task: &GraphTask<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<CompiledGraph, ExportError>;
}

/// One graph to compile.
pub struct GraphTask<'a> {
    /// The component.
    pub(crate) component: &'a str,
    /// What the engine calls the graph.
    pub(crate) name: &'a str,
    /// In f32, in ONNX's own operators, before any backend's passes.
    pub(crate) whole: &'a Model,
    /// The type of each of its nodes, if they are decided.
    pub(crate) types: Option<&'a [DataType]>,
    /// Inputs that change from step to step.
    pub(crate) step: &'a [String],
    /// Which passes run.
    pub(crate) passes: &'a Passes,
    /// Shapes to compile for; empty: any.
    pub(crate) profiles: Vec<Profile>,
    /// With low-rank branches: the largest sum of ranks.
    pub(crate) lora_rank: Option<usize>,
    /// What adapters may change in the component.
    pub(crate) slots: &'a [Slot],
    /// The component's weights as they are stored.
    pub(crate) weights: &'a BTreeMap<String, StoredWeight>,
    /// How the engine will be checked, if it will be.
    pub(crate) check: Option<&'a CheckOptions>,
}

/// What an engine stores of one graph.
pub struct CompiledGraph {
    /// What the manifest says of it; profiles and rank are filled in by the compiler.
    pub(crate) graph: Graph,
    /// Its files, in the order in which they are stored.
    pub(crate) blobs: Vec<EngineBlob>,
    /// What was built of it beside ONNX forms.
    pub(crate) plans: Vec<TrtPlanReport>,
    /// Nodes that every run executes.
    pub(crate) nodes: usize,
    /// What was lowered.
    pub(crate) lowered: Lowered,
    /// FLOPs of the precompute graph for each row of the inputs that it is given.
    pub(crate) precompute_flops: BTreeMap<String, u64>,
}
