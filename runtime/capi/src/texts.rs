//! Text for C.

use std::ffi::CString;

/// A name for C; a NUL in it becomes the replacement character.
pub(crate) fn c_name(name: &str) -> CString {
    CString::new(name.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// JSON for C: it has no NUL.
pub(crate) fn c_json(json: String) -> CString {
    CString::new(json).unwrap_or_default()
}
