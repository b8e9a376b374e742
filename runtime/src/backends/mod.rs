//! An engine on the backend that it is compiled for.

mod choice;
#[cfg(test)]
mod emulated;
pub mod onnxruntime;
pub mod tensorrt;

use std::sync::Arc;

pub use choice::{Backend, Fused};

use crate::backends::onnxruntime::{
    OpenOptions, OpenReport, OrtEngine, OrtError, Provider, WeightMode, weight_bytes, weight_mode,
};
use crate::backends::tensorrt::{TrtEngine, TrtError};
use crate::components::Needs;
use crate::engine::footprint::{Demand, Shapes};
use crate::engine::recording::Recorder;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::error::{Classified, ErrorClass};
use crate::lora::adapter::Adapter;
use crate::lora::fuse::Cancelled;

/// One part in so many of what a graph computes with is lost in the arena's gaps, about (`docs/memory.md` has measurements).
const ARENA_GAPS: u64 = 4;

/// Bytes that the system's allocator keeps at most, about.
const ALLOCATOR_KEEPS: u64 = 160 << 20;

/// Why an engine could not be opened, or its adapters not be replaced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// On ONNX Runtime.
    #[error(transparent)]
    Ort(#[from] OrtError),
    /// On TensorRT.
    #[error(transparent)]
    Trt(Box<TrtError>),
}

impl Classified for BackendError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Ort(error) => error.class(),
            Self::Trt(error) => error.class(),
        }
    }
}

impl From<TrtError> for BackendError {
    fn from(error: TrtError) -> Self {
        Self::Trt(Box::new(error))
    }
}

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        Self::Ort(error.into())
    }
}

/// How an engine's weights will be held with these options, and why, in words. It depends on the engine, the options and the
/// machine, not on what is free at the moment.
///
/// # Errors
/// [`EngineError`] if a graph names a weight that the engine lacks.
pub fn held_weights(engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
    match options.backend.of(engine) {
        Some(_) => Ok((WeightMode::Plan, "TensorRT's plans hold them".to_owned())),
        None => weight_mode(engine, options),
    }
}

/// What a graph takes if it is opened with these options and run on inputs of these shapes, `runs` times with what stages keep;
/// `None` where a GPU's memory holds it.
///
/// # Errors
/// [`EngineError`] if there is no such graph, or it names a weight that the engine lacks.
pub fn needs(
    engine: &Engine,
    graph: &str,
    options: &OpenOptions,
    fused: Fused<'_>,
    (shapes, runs): (&Shapes, usize),
) -> Result<Option<Needs>, EngineError> {
    let (mode, _) = held_weights(engine, options)?;
    if mode == WeightMode::Plan || options.provider != Provider::Cpu {
        return Ok(None);
    }
    let graph = engine.graph(graph)?;
    let (weights, fused) = weight_bytes(engine, graph, mode, fused)?;
    let lazy = mode == WeightMode::Lazy;
    let run = with_overhead(graph.demand(lazy, !lazy, shapes, runs), lazy);
    Ok(Some(Needs { weights, fused, run }))
}

/// ONNX Runtime's arena has gaps; lazy weights go without it, and the system's allocator keeps some of what was freed.
fn with_overhead(run: Demand, lazy: bool) -> Demand {
    let over = if lazy { run.activations.saturating_mul(2).min(ALLOCATOR_KEEPS) } else { run.activations / ARENA_GAPS };
    let activations = run.activations.saturating_add(over);
    Demand { activations, ..run }
}

/// An engine that is open on some backend.
pub struct OpenEngine {
    on: On,
    record: Option<Recorder>,
}

enum On {
    Ort(Box<OrtEngine>),
    Trt(Box<TrtEngine>),
}

impl OpenEngine {
    /// Opens an engine on what [`OpenOptions::backend`] says, with [`OpenOptions::adapters`] fused.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, BackendError> {
        let on = match options.backend.of(&engine) {
            Some(flavour) => On::Trt(Box::new(TrtEngine::open(engine, flavour, options)?)),
            None => On::Ort(Box::new(OrtEngine::open(engine, options)?)),
        };
        Ok(Self { on, record: options.record.clone() })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        match &self.on {
            On::Ort(ort) => ort.engine(),
            On::Trt(trt) => trt.engine(),
        }
    }

    /// What was decided on opening, and why.
    pub fn report(&self) -> &OpenReport {
        match &self.on {
            On::Ort(ort) => ort.report(),
            On::Trt(trt) => trt.report(),
        }
    }

    /// A session of a graph, recorded if [`OpenOptions::record`] says so.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn session(&mut self, graph: &str) -> Result<Box<dyn Session>, BackendError> {
        let session: Box<dyn Session> = match &mut self.on {
            On::Ort(ort) => Box::new(ort.session(graph)?),
            On::Trt(trt) => Box::new(trt.session(graph)?),
        };
        Ok(match &self.record {
            Some(recorder) => Box::new(recorder.session(session, &self.engine().manifest().component, graph)),
            None => session,
        })
    }

    /// Replaces the adapters that are fused, none being the base. `sessions`, by the names of their graphs, are those that are open:
    /// they have the new weights, too, or are replaced by such. `cancelled` is asked now and then, on any thread.
    ///
    /// # Errors
    /// [`BackendError`]; adapters and sessions are then the former ones, but for the graphs that [`TrtError::Gone`] names.
    pub fn set_adapters<'s>(
        &mut self,
        adapters: &[(Adapter, f32)],
        sessions: impl Iterator<Item = (&'s String, &'s mut Box<dyn Session>)>,
        cancelled: Cancelled<'_>,
    ) -> Result<(), BackendError> {
        let ort = match &mut self.on {
            On::Trt(trt) => return Ok(trt.set_adapters(adapters, cancelled)?),
            On::Ort(ort) => ort,
        };
        let before = ort.set_adapters(adapters, cancelled)?;
        if ort.is_resident() {
            return Ok(());
        }
        let mut opened = Vec::new();
        for (graph, session) in sessions {
            match self.session(graph) {
                Ok(new) => opened.push((session, new)),
                Err(error) => {
                    if let On::Ort(ort) = &mut self.on {
                        ort.restore(before);
                    }
                    return Err(error);
                }
            }
        }
        for (session, new) in opened {
            *session = new;
        }
        Ok(())
    }
}
