//! A graph that is opened when it is first run: a kept prediction does not need it.

use crate::backends::{BackendError, OpenEngine};
use crate::engine::session::Session;

pub(super) enum LazySession {
    Open(Box<dyn Session>),
    Closed { engine: OpenEngine, graph: String },
}

impl LazySession {
    /// The session, opened now if it was not.
    pub(super) fn open(&mut self) -> Result<&mut dyn Session, BackendError> {
        if let Self::Closed { engine, graph } = self {
            *self = Self::Open(engine.session(graph)?);
        }
        match self {
            Self::Open(session) => Ok(&mut **session),
            Self::Closed { .. } => unreachable!("opened above"),
        }
    }
}
