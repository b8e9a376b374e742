use std::ffi::{c_char, c_void};

use super::engine::{c_string, extents};
use super::handle::Owned;
use super::{Inner, RunError, Stream};
use crate::ffi;
use crate::messages::text;

/// Names of inputs that are asked for at a time.
const MANY: usize = 256;

/// What one run at a time needs: shapes, addresses, activations.
pub(super) struct Context(Owned);

impl Context {
    /// Allocates activations of the largest shapes on the device.
    pub(super) fn new(engine: &Owned, inner: &Inner) -> Result<Self, RunError> {
        inner.messages.take();
        // SAFETY: the engine lives longer than its context, by the order of `Engine`'s fields.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let context = unsafe { Owned::new((inner.api.context)(engine.get()), inner.api.free_context) };
        context.map(Self).ok_or_else(|| inner.failed("making an execution context"))
    }

    pub(super) fn set_profile<S: Stream>(&mut self, inner: &Inner, index: i32, stream: &S) -> Result<(), RunError> {
        // SAFETY: the context and the stream live.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let done = unsafe { (inner.api.set_profile)(self.0.get(), index, stream.handle()) };
        done_or(done, inner, || format!("choosing profile {index}"))
    }

    pub(super) fn set_shape(&mut self, inner: &Inner, input: &str, shape: &[usize]) -> Result<(), RunError> {
        let name = c_string(input)?;
        let refused = |reason| RunError::Argument { name: input.to_owned(), reason };
        let mut given = ffi::Shape { rank: 0, extents: [0; ffi::MAX_RANK] };
        for (axis, extent) in shape.iter().enumerate() {
            let place = given.extents.get_mut(axis).ok_or_else(|| refused("it has more than 8 axes"))?;
            *place = i64::try_from(*extent).map_err(|_| refused("an extent is too large"))?;
            given.rank += 1;
        }
        // SAFETY: the context lives; name and shape are borrowed for the call.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let done = unsafe { (inner.api.set_shape)(self.0.get(), name.as_ptr(), &given) };
        done_or(done, inner, || format!("giving input `{input}` the shape {shape:?}"))
    }

    pub(super) fn shape(&self, inner: &Inner, name: &str) -> Result<Vec<Option<usize>>, RunError> {
        let c_name = c_string(name)?;
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let shape = unsafe { (inner.api.shape)(self.0.get(), c_name.as_ptr()) };
        extents(&shape).ok_or_else(|| inner.failed(format!("the shape of `{name}`")))
    }

    pub(super) fn missing_inputs(&mut self, inner: &Inner) -> Result<Vec<String>, RunError> {
        let mut names: [*const c_char; MANY] = [std::ptr::null(); MANY];
        // SAFETY: the context lives, and there is room for so many names, which end with NUL and live as long as the engine.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        unsafe {
            let count = (inner.api.infer_shapes)(self.0.get(), MANY as i32, names.as_mut_ptr());
            let count = usize::try_from(count).map_err(|_| inner.failed("inferring shapes"))?;
            Ok(names.iter().take(count).map(|name| text(*name)).collect())
        }
    }

    /// # Safety
    /// As [`super::Engine::set_address`].
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    pub(super) unsafe fn set_address(
        &mut self,
        inner: &Inner,
        name: &str,
        address: *mut c_void,
    ) -> Result<(), RunError> {
        let c_name = c_string(name)?;
        // SAFETY: the context lives, and the caller vouches for the address.
        let done = unsafe { (inner.api.set_address)(self.0.get(), c_name.as_ptr(), address) };
        done_or(done, inner, || format!("giving `{name}` its address"))
    }

    pub(super) fn enqueue<S: Stream>(&mut self, inner: &Inner, stream: &S) -> Result<(), RunError> {
        // SAFETY: the context and the stream live; who set the addresses vouched for them, and without one TensorRT refuses.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let done = unsafe { (inner.api.enqueue)(self.0.get(), stream.handle()) };
        done_or(done, inner, || "running".to_owned())
    }
}

fn done_or(done: i32, inner: &Inner, what: impl FnOnce() -> String) -> Result<(), RunError> {
    if done == 0 { Err(inner.failed(what())) } else { Ok(()) }
}
