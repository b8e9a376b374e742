//! Objects of the C API, each freed once.

use std::ffi::{CStr, c_char};
use std::ptr::{NonNull, null_mut};

use openvino_sys::ov_status_e;

use crate::error::{Failure, check};

/// An object of the C API, which this owns.
pub(crate) struct Handle<T> {
    raw: NonNull<T>,
    free: unsafe fn(*mut T),
}

impl<T> Handle<T> {
    /// What `make` puts behind the pointer that it is given.
    ///
    /// # Safety
    /// If `make` gives [`ov_status_e::OK`], it has put an object there that nobody else frees and that `free` frees, or null.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    pub(crate) unsafe fn new(
        make: impl FnOnce(*mut *mut T) -> ov_status_e,
        free: unsafe fn(*mut T),
    ) -> Result<Self, Failure> {
        let mut raw = null_mut();
        check(make(&mut raw))?;
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, free }),
            None => Err(Failure { status: ov_status_e::UNEXPECTED, reason: "OpenVINO gave nothing".to_owned() }),
        }
    }

    /// The object; it is there for as long as `self`.
    pub(crate) const fn raw(&self) -> *mut T {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new` the object is ours and `free` is its function; nothing uses it after `self`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        unsafe {
            (self.free)(self.raw());
        }
    }
}

/// A text that `make` puts behind the pointer that it is given.
///
/// # Safety
/// If `make` gives [`ov_status_e::OK`], it has put a C string there that is to be given to `ov_free`, or null.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
pub(crate) unsafe fn text(make: impl FnOnce(*mut *mut c_char) -> ov_status_e) -> Result<String, Failure> {
    let free: unsafe fn(*mut c_char) = |raw| {
        // SAFETY: the caller's promise.
        unsafe { openvino_sys::ov_free(raw) }
    };
    // SAFETY: as above.
    let text = unsafe { Handle::new(make, free)? };
    // SAFETY: it is a C string, by the same promise.
    Ok(unsafe { CStr::from_ptr(text.raw()) }.to_string_lossy().into_owned())
}
