//! What comes through pointers, checked as far as it can be.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr::NonNull;

use crate::failure::Failure;
use crate::status::{V2L_ERROR_INVALID_UTF8, V2L_ERROR_NULL};

fn checked<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    let wrong = match pointer {
        pointer if pointer.is_null() => "NULL",
        pointer if !pointer.is_aligned() => "not aligned",
        _ => return Ok(()),
    };
    Err(Failure::new(V2L_ERROR_NULL, format!("`{name}` is {wrong}; expected a pointer to a value")))
}

/// A value that must be there. For handles there is [`handles::required`](crate::handles::required).
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn value<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    checked(pointer, name)?;
    // SAFETY: neither NULL nor unaligned, and the caller's promise.
    Ok(unsafe { &*pointer })
}

/// A value that may be left out.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn optional_value<'a, T>(pointer: *const T, name: &str) -> Result<Option<&'a T>, Failure> {
    // SAFETY: the caller's promise.
    if pointer.is_null() { Ok(None) } else { unsafe { value(pointer, name) }.map(Some) }
}

/// `count` values; NULL will do for none.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    checked(pointer, name)?;
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(format!("`{name}`: {count} values do not fit in memory")));
    }
    // SAFETY: neither NULL nor unaligned, not larger than an address space, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A string.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    checked(pointer, name)?;
    // SAFETY: not NULL, and the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|error| {
        Failure::new(V2L_ERROR_INVALID_UTF8, format!("`{name}` is no UTF-8 from byte {} on", error.valid_up_to()))
    })
}

/// A string that may be left out.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    // SAFETY: the caller's promise.
    if pointer.is_null() { Ok(None) } else { unsafe { text(pointer, name) }.map(Some) }
}

/// A path: on Unix any bytes, elsewhere text.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn path<'a>(pointer: *const c_char, name: &str) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's promise.
    let path = unsafe { path_or_empty(pointer, name) }?;
    if path.as_os_str().is_empty() {
        Err(Failure::argument(format!("`{name}` is empty; expected a path")))
    } else {
        Ok(path)
    }
}

/// A path that may be left out, or be empty.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn optional_path<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a Path>, Failure> {
    // SAFETY: the caller's promise.
    if pointer.is_null() { Ok(None) } else { unsafe { path_or_empty(pointer, name) }.map(Some) }
}

/// # Safety
/// The header's promise.
#[cfg(unix)]
unsafe fn path_or_empty<'a>(pointer: *const c_char, name: &str) -> Result<&'a Path, Failure> {
    use std::os::unix::ffi::OsStrExt;
    checked(pointer, name)?;
    // SAFETY: not NULL, and the caller's promise.
    let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
    Ok(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

/// # Safety
/// The header's promise.
#[cfg(not(unix))]
unsafe fn path_or_empty<'a>(pointer: *const c_char, name: &str) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's promise.
    unsafe { text(pointer, name) }.map(Path::new)
}

/// Where a result goes.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    /// The header's promise; the memory may be uninitialised.
    pub(crate) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        checked(pointer, name)?;
        NonNull::new(pointer).map(Self).ok_or_else(|| Failure::new(V2L_ERROR_NULL, name))
    }

    pub(crate) fn set(self, value: T) {
        self.put(value);
    }

    /// What is there until the result is known.
    pub(crate) fn put(&self, value: T) {
        // SAFETY: checked, and promised to be writable, when this was made.
        unsafe { self.0.write(value) }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn path_has_the_bytes_that_were_given_and_text_has_to_be_utf8() {
        let odd = c"/\xff\xfe";
        // SAFETY: a string that lives on.
        let (path, optional, text) =
            unsafe { (path(odd.as_ptr(), "p"), optional_path(odd.as_ptr(), "p"), text(odd.as_ptr(), "p")) };
        for given in [path.ok(), optional.ok().flatten()] {
            assert_eq!(given.map(|path| path.as_os_str().as_bytes()), Some(&b"/\xff\xfe"[..]));
        }
        assert!(text.is_err());
    }
}
