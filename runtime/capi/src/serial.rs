//! State that calls use one after the other.

use std::sync::{Mutex, MutexGuard};

use crate::failure::Failure;
use crate::status::V2L_ERROR_INTERNAL;

/// A mutex that a panic closes for good.
pub(crate) struct Serial<T>(Mutex<T>);

impl<T> Serial<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the calls before this one.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, T>, Failure> {
        self.0.lock().map_err(|_| {
            Failure::new(
                V2L_ERROR_INTERNAL,
                "an earlier call on this handle met a defect of v2l; free it and make another",
            )
        })
    }
}
