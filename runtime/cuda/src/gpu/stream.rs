use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::failed;
use crate::CudaError;

/// A stream that waits for the default stream's work, and that for its: what is uploaded before is there when work on it begins.
pub struct Stream {
    stream: sys::CUstream,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's calls on a stream may come from every thread that the context is bound to; each call binds it.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let stream = result::stream::create(result::stream::StreamKind::Default).map_err(failed("cuStreamCreate"))?;
        Ok(Self { stream, context: Arc::clone(context) })
    }

    /// The `CUstream`, as long as `self` lives.
    pub fn handle(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Makes its GPU the calling thread's current one, for libraries that work on that.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn make_current(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    /// Waits until all that was enqueued on it has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`], that of an earlier call among them.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.make_current()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.make_current().is_ok() {
            // SAFETY: made by `new`, and nobody has it any more.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
