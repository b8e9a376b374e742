//! What a call that failed leaves behind, and the boundary that no panic crosses.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use v2l_runtime::error::Error;
use v2l_runtime::wording::{self, Speaker};

use crate::log;
use crate::process;
use crate::status::*;
use crate::texts::c_name;

/// Why a call failed. No error type itself, so that every error that knows its class converts into it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: v2l_status,
    pub(crate) message: String,
    /// The field or input of a request that it is about; "" for none.
    pub(crate) field: String,
}

impl Failure {
    pub(crate) fn new(status: v2l_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), field: String::new() }
    }

    /// [`V2L_ERROR_INVALID_ARGUMENT`].
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(V2L_ERROR_INVALID_ARGUMENT, message)
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            let words = error.to_string();
            if !message.contains(&words) {
                message = format!("{message}: {words}");
            }
            cause = error.source();
        }
        let field = error.field().unwrap_or_default().to_owned();
        Self { status: of_class(error.class()), message, field }
    }
}

/// What a failure leaves behind.
#[derive(Default)]
struct Last {
    message: CString,
    field: CString,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Runs the body of a function that neither callbacks nor children of a fork may call.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> v2l_status {
    guard_anywhere(|| {
        if let Some(why) = process::fork() {
            return Err(Failure::new(V2L_ERROR_UNSUPPORTED, why));
        }
        if log::running() {
            return Err(Failure::new(
                V2L_ERROR_REENTRANT,
                "called from a callback; expected a call after the callback has returned",
            ));
        }
        let result = body();
        log::log_passed_over();
        result
    })
}

/// Runs the body of any function: what it fails with, or panics with, becomes the status and the thread's last error.
pub(crate) fn guard_anywhere(body: impl FnOnce() -> Result<(), Failure>) -> v2l_status {
    wording::speak(Speaker::C);
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return V2L_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text =
                payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(|text| &text[..]));
            Failure::new(V2L_ERROR_INTERNAL, format!("a defect of v2l: {}", text.unwrap_or("of unknown cause")))
        }
    };
    let [message, field] = [failure.message, failure.field].map(|text| c_name(&text));
    // A thread that is ending has no message any more.
    let _ = LAST.try_with(|last| last.replace(Last { message, field }));
    failure.status
}

/// What the last call that failed on this thread failed with, in words; "" if none did. Valid until the next failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn v2l_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().message.as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name in a request, of its JSON or of an input, that the last call which failed on this thread is about; "" if it is about none.
/// Valid until the next failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn v2l_last_error_field() -> *const c_char {
    LAST.try_with(|last| last.borrow().field.as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status, such as "V2L_ERROR_IO"; static. "unknown status" for a number that this library does not have.
#[unsafe(no_mangle)]
pub extern "C" fn v2l_status_name(status: v2l_status) -> *const c_char {
    let name = match status {
        V2L_OK => c"V2L_OK",
        V2L_ERROR_INVALID_ARGUMENT => c"V2L_ERROR_INVALID_ARGUMENT",
        V2L_ERROR_BAD_MODEL => c"V2L_ERROR_BAD_MODEL",
        V2L_ERROR_UNSUPPORTED => c"V2L_ERROR_UNSUPPORTED",
        V2L_ERROR_BAD_ADAPTER => c"V2L_ERROR_BAD_ADAPTER",
        V2L_ERROR_VERSION => c"V2L_ERROR_VERSION",
        V2L_ERROR_NUMERIC => c"V2L_ERROR_NUMERIC",
        V2L_ERROR_MEMORY => c"V2L_ERROR_MEMORY",
        V2L_ERROR_IO => c"V2L_ERROR_IO",
        V2L_ERROR_NULL => c"V2L_ERROR_NULL",
        V2L_ERROR_INVALID_UTF8 => c"V2L_ERROR_INVALID_UTF8",
        V2L_ERROR_SIZE => c"V2L_ERROR_SIZE",
        V2L_ERROR_TENSOR => c"V2L_ERROR_TENSOR",
        V2L_ERROR_REENTRANT => c"V2L_ERROR_REENTRANT",
        V2L_ERROR_INTERNAL => c"V2L_ERROR_INTERNAL",
        V2L_ERROR_CANCELLED => c"V2L_ERROR_CANCELLED",
        _ => c"unknown status",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: the message of this thread, which does not fail meanwhile.
        unsafe { CStr::from_ptr(v2l_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn guard_turns_a_panic_into_a_status_and_a_message() {
        let status = guard(|| panic!("slot 7 is\0 missing"));
        assert_eq!(status, V2L_ERROR_INTERNAL);
        assert_eq!(last_error(), "a defect of v2l: slot 7 is\u{fffd} missing");
    }

    #[test]
    fn guard_keeps_the_message_of_its_own_thread() {
        assert_eq!(guard(|| Err(Failure::argument("here"))), V2L_ERROR_INVALID_ARGUMENT);
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
        assert_eq!(guard(|| Ok(())), V2L_OK);
        assert_eq!(last_error(), "here");
    }

    #[test]
    fn failure_of_a_runtime_error_has_its_class_and_its_causes() {
        let missing = v2l_runtime::engine::Engine::open("/nowhere/x.engine").unwrap_err();
        let failure = Failure::from(missing);
        assert_eq!(failure.status, V2L_ERROR_IO);
        assert!(failure.message.contains("/nowhere/x.engine"), "{}", failure.message);
    }
}
