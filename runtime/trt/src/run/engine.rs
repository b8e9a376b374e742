use std::ffi::{CString, c_void};
use std::sync::Arc;

use indexmap::IndexMap;

use super::context::Context;
use super::handle::Owned;
use super::refitter::EngineRefitter;
use super::{Inner, RunError, Stream, Tensor};
use crate::DataType;
use crate::ffi;
use crate::messages::text;
use crate::refit::Prototype;

/// A loaded plan, its weights, and one way to run it at a time.
pub struct Engine {
    // Dropped in this order.
    context: Option<Context>,
    engine: Owned,
    inner: Arc<Inner>,
}

pub(super) fn c_string(name: &str) -> Result<CString, RunError> {
    CString::new(name)
        .map_err(|_| RunError::Argument { name: name.to_owned(), reason: "it holds a NUL byte; rename it" })
}

impl Engine {
    pub(super) fn new(engine: Owned, inner: Arc<Inner>) -> Self {
        Self { context: None, engine, inner }
    }

    /// Inputs and outputs, in the engine's order.
    ///
    /// # Errors
    /// [`RunError::Type`], [`RunError::Failed`].
    pub fn tensors(&self) -> Result<Vec<Tensor>, RunError> {
        let (api, engine) = (self.inner.api, self.engine.get());
        // SAFETY: the engine lives.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let count = unsafe { (api.tensor_count)(engine) };
        let tensor = |index| {
            let shape = ffi::Shape { rank: -1, extents: [0; ffi::MAX_RANK] };
            let mut found = ffi::Tensor { name: std::ptr::null(), is_input: 0, dtype: -1, is_plain: 0, shape };
            // SAFETY: as above; a name that is given ends with NUL and lives as long as the engine.
            #[allow(unsafe_code, reason = "TensorRT through its shim")]
            let name = unsafe {
                if (api.tensor)(engine, index, &mut found) == 0 {
                    return Err(self.inner.failed(format!("describing input or output {index}")));
                }
                text(found.name)
            };
            let dtype = DataType::of_tensorrt(found.dtype);
            let dtype = dtype.ok_or_else(|| RunError::Type { name: name.clone(), number: found.dtype })?;
            let shape = extents(&found.shape).ok_or_else(|| self.inner.failed(format!("the shape of `{name}`")))?;
            Ok(Tensor { name, is_input: found.is_input != 0, dtype, is_plain: found.is_plain != 0, shape })
        };
        (0..count).map(tensor).collect()
    }

    /// Bytes of device memory that running takes for activations.
    pub fn activation_bytes(&self) -> u64 {
        // SAFETY: the engine lives.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let bytes = unsafe { (self.inner.api.device_memory)(self.engine.get()) };
        bytes.try_into().unwrap_or_default()
    }

    /// Every weight that can be replaced, in the engine's order.
    ///
    /// # Errors
    /// [`RunError::Type`], [`RunError::Failed`].
    pub fn prototypes<S: Stream>(&mut self, stream: &S) -> Result<IndexMap<String, Prototype>, RunError> {
        self.refitter(stream, 1)?.prototypes()
    }

    /// A refitter that uses `threads` threads. Nothing that was enqueued may run meanwhile, unless on `stream`.
    ///
    /// # Errors
    /// [`RunError::Failed`]: the plan cannot be refit.
    pub fn refitter<'a, S: Stream>(
        &'a mut self,
        stream: &'a S,
        threads: usize,
    ) -> Result<EngineRefitter<'a, S>, RunError> {
        let (inner, threads) = (&self.inner, i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
        inner.messages.take();
        // SAFETY: runtime and engine live longer than the refitter, which borrows `self`. Weights are v2l's own, and were looked through for
        // infinities and NaN when they were fused.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let refitter = unsafe {
            let handle = (inner.api.refitter)(inner.runtime.get(), self.engine.get(), threads, 0);
            Owned::new(handle, inner.api.free_refitter)
        };
        let refitter = refitter.ok_or_else(|| inner.failed("making a refitter"))?;
        Ok(EngineRefitter::new(refitter, inner, stream))
    }

    /// Chooses the profile whose ranges the inputs' shapes lie in, from 0; the shapes are then unknown again.
    ///
    /// # Errors
    /// [`RunError::Failed`].
    pub fn set_profile<S: Stream>(&mut self, index: usize, stream: &S) -> Result<(), RunError> {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        let (context, inner) = self.context()?;
        context.set_profile(inner, index, stream)
    }

    /// Gives an input its shape.
    ///
    /// # Errors
    /// [`RunError::Failed`] if it lies outside the profile, [`RunError::Argument`].
    pub fn set_shape(&mut self, input: &str, extents: &[usize]) -> Result<(), RunError> {
        let (context, inner) = self.context()?;
        context.set_shape(inner, input, extents)
    }

    /// The shape of an input or output, with the inputs' shapes as they are; `None` where an extent is free.
    ///
    /// # Errors
    /// [`RunError::Failed`] if there is no such tensor, [`RunError::Argument`].
    pub fn shape(&mut self, name: &str) -> Result<Vec<Option<usize>>, RunError> {
        let (context, inner) = self.context()?;
        context.shape(inner, name)
    }

    /// Inputs that still lack a shape, or an address that their values are needed from.
    ///
    /// # Errors
    /// [`RunError::Failed`].
    pub fn missing_inputs(&mut self) -> Result<Vec<String>, RunError> {
        let (context, inner) = self.context()?;
        context.missing_inputs(inner)
    }

    /// Says where an input or output lies on the device.
    ///
    /// # Safety
    /// `address` is device memory of the tensor's size, and stays so until nothing that was enqueued with it runs any more.
    ///
    /// # Errors
    /// [`RunError::Failed`] if there is no such tensor, [`RunError::Argument`].
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    pub unsafe fn set_address(&mut self, name: &str, address: *mut c_void) -> Result<(), RunError> {
        let (context, inner) = self.context()?;
        // SAFETY: passed on.
        unsafe { context.set_address(inner, name, address) }
    }

    /// Enqueues one run. It has ended when the stream has come to it.
    ///
    /// # Errors
    /// [`RunError::Failed`]: a shape or an address is missing, or CUDA failed.
    pub fn enqueue<S: Stream>(&mut self, stream: &S) -> Result<(), RunError> {
        let (context, inner) = self.context()?;
        context.enqueue(inner, stream)
    }

    /// The context, made when it is first needed: with placeholders there can be none before the weights are set.
    fn context(&mut self) -> Result<(&mut Context, &Inner), RunError> {
        let context = match self.context.take() {
            Some(context) => context,
            None => Context::new(&self.engine, &self.inner)?,
        };
        Ok((self.context.insert(context), &self.inner))
    }
}

/// The extents of a shape, if it has any.
pub(super) fn extents(shape: &ffi::Shape) -> Option<Vec<Option<usize>>> {
    let rank = usize::try_from(shape.rank).ok()?;
    Some(shape.extents.get(..rank)?.iter().map(|extent| usize::try_from(*extent).ok()).collect())
}
