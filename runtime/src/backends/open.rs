//! An engine on the backend that was chosen for it.

use std::sync::Arc;

use super::backend::{Backend, BackendEngine, OpenReport};
use super::chosen;
use super::error::BackendError;
use crate::engine::Engine;
use crate::engine::recording::Recorder;
use crate::engine::session::Session;
use crate::events::Cancelled;
use crate::lora::Weighted;
use crate::lora::fuse::CancelCheck;
use crate::options::OpenOptions;

/// An engine that is open on some backend.
pub struct OpenEngine {
    on: Box<dyn BackendEngine>,
    record: Option<Recorder>,
}

impl OpenEngine {
    /// Opens an engine on what [`OpenOptions::backend`] says, with the base weights.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, BackendError> {
        Self::open_on(chosen(&engine, options), engine, options)
    }

    /// Opens an engine on this backend, which may be one that the registry does not have.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn open_on(backend: &dyn Backend, engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, BackendError> {
        Ok(Self { on: backend.open(engine, options)?, record: options.record.clone() })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        self.on.engine()
    }

    /// What was decided on opening, and why.
    pub fn report(&self) -> &OpenReport {
        self.on.report()
    }

    /// A session of a graph, recorded if [`OpenOptions::record`] says so.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn session(&mut self, graph: &str) -> Result<Box<dyn Session>, BackendError> {
        session(&mut *self.on, self.record.as_ref(), graph)
    }

    /// Replaces the adapters that are fused, none being the base. `sessions`, by the names of their graphs, are those that are open:
    /// they have the new weights, too, or are replaced by such. `cancelled` is asked now and then, on any thread.
    ///
    /// # Errors
    /// [`BackendError`]; adapters and sessions are then the former ones, but for the graphs that
    /// [`TrtError::Gone`](super::tensorrt::TrtError::Gone) names.
    pub fn set_adapters<'s>(
        &mut self,
        adapters: &[Weighted],
        sessions: impl Iterator<Item = (&'s String, &'s mut Box<dyn Session>)>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), BackendError> {
        let (graphs, sessions): (Vec<&String>, Vec<&mut Box<dyn Session>>) = sessions.unzip();
        let mut opened = Vec::new();
        let mut reopen = |on: &mut dyn BackendEngine| {
            for graph in &graphs {
                // A backend that compiles takes seconds for a graph.
                if cancelled.is_some_and(|cancelled| cancelled()) {
                    return Err(Cancelled.into());
                }
                opened.push(session(on, self.record.as_ref(), graph)?);
            }
            Ok(())
        };
        self.on.set_adapters(adapters, &mut reopen, cancelled)?;
        for (session, new) in sessions.into_iter().zip(opened) {
            *session = new;
        }
        Ok(())
    }
}

fn session(
    on: &mut dyn BackendEngine,
    record: Option<&Recorder>,
    graph: &str,
) -> Result<Box<dyn Session>, BackendError> {
    let session = on.session(graph)?;
    Ok(match record {
        Some(recorder) => Box::new(recorder.session(session, &on.engine().manifest().component, graph)),
        None => session,
    })
}
