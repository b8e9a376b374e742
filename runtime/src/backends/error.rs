//! Why a backend failed, as far as others must know.

use std::error::Error;
use std::fmt;

use crate::engine::EngineError;
use crate::error::{Classified, ErrorClass};
use crate::events::Cancelled;

/// A backend's own error.
pub trait BackendFailure: Classified + Send + Sync + 'static {
    /// True for a failure of a fuse that low-rank branches do not have, and that this machine has every time: what is free at the moment
    /// decides nothing.
    fn branches_may_help(&self) -> bool {
        false
    }
}

impl BackendFailure for EngineError {}

impl BackendFailure for Cancelled {}

/// Why an engine could not be opened, or its adapters not be replaced: a backend's own error, in its words.
pub struct BackendError {
    class: ErrorClass,
    branches_may_help: bool,
    inner: Box<dyn Error + Send + Sync>,
}

impl BackendError {
    /// See [`BackendFailure::branches_may_help`].
    pub fn branches_may_help(&self) -> bool {
        self.branches_may_help
    }

    /// The backend's error, if it is an `E`.
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.inner.downcast_ref()
    }
}

// `BackendError` is no `BackendFailure` itself: this conversion could not exist besides `From<T> for T`.
impl<E: BackendFailure> From<E> for BackendError {
    fn from(error: E) -> Self {
        Self { class: error.class(), branches_may_help: error.branches_may_help(), inner: Box::new(error) }
    }
}

impl Classified for BackendError {
    fn class(&self) -> ErrorClass {
        self.class
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}
