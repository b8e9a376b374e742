//! An engine on the backend that it is compiled for.

use std::sync::Arc;

use v2l_trt::Flavour;

use crate::adapter::Adapter;
use crate::engine::{Engine, EngineError};
use crate::fuse::Cancelled;
use crate::ort_backend::{OpenOptions, OpenReport, OrtEngine, OrtError};
use crate::recording::Recorder;
use crate::session::Session;
use crate::trt_backend::{TrtEngine, TrtError};

/// What runs an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// What it is compiled for.
    #[default]
    Compiled,
    /// ONNX Runtime, by the ONNX form that every engine holds.
    Ort,
    /// TensorRT, which the engine must be compiled for.
    TensorRt(Flavour),
}

impl Backend {
    /// The one that runs this engine; `None` is ONNX Runtime.
    fn of(self, engine: &Engine) -> Option<Flavour> {
        let compiled = |flavour: &Flavour| engine.manifest().graphs.iter().any(|g| g.backend == flavour.backend());
        match self {
            Self::Compiled => [Flavour::Rtx, Flavour::TensorRt].into_iter().find(compiled),
            Self::Ort => None,
            Self::TensorRt(flavour) => Some(flavour),
        }
    }
}

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
