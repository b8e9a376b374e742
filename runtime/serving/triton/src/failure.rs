//! What a call fails with, in Triton's classes, and the boundary that no panic crosses.

use std::error::Error as _;
use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};

use v2l_runtime::error::{Error, ErrorClass};
use v2l_runtime::wording::{self, Speaker};

use crate::ffi;

/// Why a call failed. No error type itself, so that every error of the runtime converts into it.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    /// The request is at fault.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self { code: ffi::ERROR_INVALID_ARG, message: message.into() }
    }

    /// The server or this backend is.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: ffi::ERROR_INTERNAL, message: message.into() }
    }

    /// The same in the server's own form, which the server frees.
    pub(crate) fn into_error(self) -> *mut ffi::Error {
        let message = CString::new(self.message.replace('\0', "\u{fffd}")).unwrap_or_default();
        // SAFETY: a string that ends in NUL; the server copies it.
        unsafe { ffi::TRITONSERVER_ErrorNew(self.code, message.as_ptr()) }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !message.contains(&words) {
                message = format!("{message}: {words}");
            }
            cause = error.source();
        }
        // A client looks for the name that it gave.
        if let Some(field) = error.field().filter(|field| !message.contains(field)) {
            message = format!("{field}: {message}");
        }
        let code = match error.class() {
            ErrorClass::Usage | ErrorClass::BadModel | ErrorClass::BadAdapter => ffi::ERROR_INVALID_ARG,
            ErrorClass::Unsupported => ffi::ERROR_UNSUPPORTED,
            ErrorClass::Memory => ffi::ERROR_UNAVAILABLE,
            ErrorClass::Cancelled => ffi::ERROR_CANCELLED,
            ErrorClass::Version | ErrorClass::Numeric | ErrorClass::Io => ffi::ERROR_INTERNAL,
        };
        Self { code, message }
    }
}

/// What the server says to a call of it.
pub(crate) fn check(error: *mut ffi::Error) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: an error of the server's, which is this function's to delete; its message lives until then.
    unsafe {
        let message = CStr::from_ptr(ffi::TRITONSERVER_ErrorMessage(error)).to_string_lossy().into_owned();
        ffi::TRITONSERVER_ErrorDelete(error);
        Err(Failure::internal(message))
    }
}

/// Runs the body of an entry: what it fails or panics with becomes the server's error.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> *mut ffi::Error {
    caught(body).map_or_else(Failure::into_error, |()| std::ptr::null_mut())
}

/// What a body gives, or fails or panics with.
pub(crate) fn caught<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    wording::speak(Speaker::C);
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(|text| &text[..]));
        Err(Failure::internal(format!("a defect of v2l: {}", text.unwrap_or("of unknown cause"))))
    })
}

/// Puts a line into the server's log; a log that cannot be written is nobody's to hear of.
pub(crate) fn log(message: &str) {
    let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: strings that end in NUL; the server copies them.
    let _ = check(unsafe { ffi::TRITONSERVER_LogMessage(0, c"v2l".as_ptr(), 0, message.as_ptr()) });
}
