//! What TensorRT says, on whatever thread.

use std::ffi::{CStr, c_char};

/// Messages that are kept of one kind; TensorRT may repeat itself.
const MANY: usize = 64;

/// Keeps a message, if it is new and not one too many.
pub(crate) fn keep(messages: &mut Vec<String>, message: String) {
    if messages.len() < MANY && !messages.contains(&message) {
        messages.push(message);
    }
}

/// The text of a C string, empty for NULL.
///
/// # Safety
/// `text` is NULL or ends with NUL.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
pub(crate) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// True for the complaint about a missing driver.
pub(crate) fn is_about_driver(message: &str) -> bool {
    message.contains("(cudaError 35:")
}

/// True for the complaint about too little memory of the GPU.
#[cfg(feature = "run")]
pub(crate) fn is_about_memory(message: &str) -> bool {
    message.contains("(out of memory)") || message.contains("OutOfMemory")
}
