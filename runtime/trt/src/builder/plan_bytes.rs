use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::ffi;

/// A serialized plan: in TensorRT's own memory, or read from another process.
pub struct PlanBytes(Kind);

enum Kind {
    Theirs(Theirs),
    Read(Vec<u8>),
}

/// Memory of TensorRT's.
struct Theirs {
    handle: NonNull<c_void>,
    data: *const u8,
    size: usize,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: the bytes are constant, nothing else knows them, and TensorRT lets any thread free them.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe impl Send for Theirs {}
// SAFETY: as above; sharing only reads.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe impl Sync for Theirs {}

impl Deref for PlanBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the shim gave `size` bytes at `data` that live as long as the handle, and a plan is never empty.
            #[allow(unsafe_code, reason = "TensorRT through its shim")]
            Kind::Theirs(theirs) => unsafe { std::slice::from_raw_parts(theirs.data, theirs.size) },
            Kind::Read(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for PlanBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PlanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlanBytes({} bytes)", self.len())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: the handle is the shim's own and is freed once.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        unsafe {
            (self.free)(self.handle.as_ptr());
        }
    }
}

impl PlanBytes {
    /// Takes the plan that the shim gave, if it gave one.
    ///
    /// # Safety
    /// `plan` comes from the shim whose function `free` is, and is given here once.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    pub(super) unsafe fn new(plan: &ffi::Plan, free: unsafe extern "C" fn(*mut c_void)) -> Option<Self> {
        let handle = NonNull::new(plan.handle).filter(|_| plan.status == ffi::OK)?;
        Some(Self(Kind::Theirs(Theirs { handle, data: plan.data.cast(), size: plan.size, free })))
    }

    /// Reads a part of a file.
    pub(super) fn read(file: &File, part: &Range<usize>) -> io::Result<Self> {
        if part.is_empty() || part.end as u64 > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not lie within the file"));
        }
        let mut bytes = vec![0; part.len()];
        file.read_exact_at(&mut bytes, part.start as u64)?;
        Ok(Self(Kind::Read(bytes)))
    }
}
