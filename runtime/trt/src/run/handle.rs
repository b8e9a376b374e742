use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::ffi::{Free, Handle, Log};
use crate::messages::{keep, text};

/// An object of TensorRT's that is freed with this value.
pub(super) struct Owned {
    handle: NonNull<c_void>,
    free: Free,
}

// SAFETY: TensorRT's objects may be used by any thread, one at a time; nothing here is shared without a lock or `&mut`.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe impl Send for Owned {}

impl Owned {
    /// Takes an object, unless it is none.
    ///
    /// # Safety
    /// `handle` is NULL, or an object that `free` frees and nobody else does.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    pub(super) unsafe fn new(handle: Handle, free: Free) -> Option<Self> {
        NonNull::new(handle).map(|handle| Self { handle, free })
    }

    /// The object, which lives as long as `self`.
    pub(super) const fn get(&self) -> Handle {
        self.handle.as_ptr()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: by the promise of `new`, once.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        unsafe {
            (self.free)(self.handle.as_ptr());
        }
    }
}

/// TensorRT's errors and warnings, which come on whatever thread, until they are taken.
#[derive(Default)]
pub(super) struct Messages(Mutex<Vec<String>>);

impl Messages {
    /// A log that may be used as long as `self` lives and stays where it is.
    pub(super) fn log(&self) -> Log {
        Log { context: std::ptr::from_ref(self).cast(), log }
    }

    /// What was said since the last time.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps errors.
///
/// # Safety
/// `context` is that of [`Messages::log`], and `message` is NULL or ends with NUL.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn log(context: *const c_void, severity: i32, message: *const c_char) {
    if severity > 1 {
        return;
    }
    // SAFETY: as above; the runtime is freed before its messages.
    let (messages, message) = unsafe { (&*context.cast::<Messages>(), text(message)) };
    keep(&mut messages.0.lock().unwrap_or_else(PoisonError::into_inner), message);
}
