use std::ffi::{CStr, CString, c_char, c_void};

use indexmap::IndexMap;

use super::engine::c_string;
use super::handle::Owned;
use super::{Inner, RunError, Stream};
use crate::DataType;
use crate::ffi;
use crate::messages::text;
use crate::refit::{Outcome, Prototype, RefitError, Refitter};

/// Names of weights that an engine may have.
const MOST: usize = 1 << 20;

/// Where a weight's bytes lie.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// In this process's memory.
    Host(&'a [u8]),
    /// On the device.
    Device {
        /// Its address.
        address: u64,
        /// Its bytes.
        bytes: usize,
    },
}

impl Source<'_> {
    const fn bytes(&self) -> usize {
        match self {
            Self::Host(bytes) => bytes.len(),
            Self::Device { bytes, .. } => *bytes,
        }
    }

    fn pointer(&self) -> *const c_void {
        match self {
            Self::Host(bytes) => bytes.as_ptr().cast(),
            Self::Device { address, .. } => std::ptr::without_provenance(*address as usize),
        }
    }
}

/// Replaces weights of an engine, which it borrows.
pub struct EngineRefitter<'a, S: Stream> {
    refitter: Owned,
    inner: &'a Inner,
    stream: &'a S,
}

/// Weights that TensorRT holds pointers to, until this value is dropped.
struct Given<'a> {
    refitter: &'a Owned,
    inner: &'a Inner,
    names: Vec<CString>,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            // SAFETY: the refitter lives. After a refit TensorRT may have let go of the weight itself; it then says so, and that is all.
            #[allow(unsafe_code, reason = "TensorRT through its shim")]
            unsafe {
                (self.inner.api.unset_weight)(self.refitter.get(), name.as_ptr());
            }
        }
    }
}

impl<'a, S: Stream> EngineRefitter<'a, S> {
    pub(super) fn new(refitter: Owned, inner: &'a Inner, stream: &'a S) -> Self {
        Self { refitter, inner, stream }
    }

    /// Every weight that can be replaced, in the engine's order.
    ///
    /// # Errors
    /// [`RunError::Type`], [`RunError::Failed`].
    pub fn prototypes(&mut self) -> Result<IndexMap<String, Prototype>, RunError> {
        let mut found = IndexMap::new();
        for name in self.names(false)? {
            let form = self.prototype(&c_string(&name)?);
            if let Ok(count) = usize::try_from(form.count) {
                let dtype = DataType::of_tensorrt(form.dtype);
                let dtype = dtype.ok_or_else(|| RunError::Type { name: name.clone(), number: form.dtype })?;
                found.insert(name, Prototype { dtype, count });
            }
        }
        Ok(found)
    }

    /// As [`Refitter::refit`], of weights that may lie on the device.
    ///
    /// # Safety
    /// Device memory is of the current device, has so many bytes, and holds them once the stream has come to what is enqueued now.
    ///
    /// # Errors
    /// As [`Refitter::refit`].
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    pub unsafe fn refit_from(&mut self, weights: &[(&str, Source<'_>)]) -> Result<Outcome, RefitError> {
        self.inner.messages.take();
        let mut given = Given { refitter: &self.refitter, inner: self.inner, names: Vec::new() };
        for (name, source) in weights {
            let refused = |reason: String| RefitError::Refused { weight: (*name).to_owned(), reason };
            let c_name = c_string(name).map_err(|error| refused(error.to_string()))?;
            let form = self.prototype(&c_name);
            let dtype = DataType::of_tensorrt(form.dtype);
            let bytes =
                dtype.zip(usize::try_from(form.count).ok()).map(|(dtype, count)| Prototype { dtype, count }.bytes());
            if bytes != Some(source.bytes()) {
                let expected = bytes.map_or_else(|| "no such weight".to_owned(), |bytes| format!("{bytes} bytes"));
                return Err(refused(format!("expected {expected}, found {} bytes", source.bytes())));
            }
            let on_device = i32::from(matches!(source, Source::Device { .. }));
            // SAFETY: the refitter lives; the bytes are as many as it expects, and it lets go of them when `given` is dropped, which is in
            // this call; for those on the device the caller vouches.
            let set = unsafe {
                (self.inner.api.set_weight)(
                    self.refitter.get(),
                    c_name.as_ptr(),
                    form.dtype,
                    source.pointer(),
                    form.count,
                    on_device,
                )
            };
            if set == 0 {
                return Err(refused(self.inner.messages.take().join("; ")));
            }
            given.names.push(c_name);
        }
        let missing = self.names(true);
        let missing = missing.map_err(|error| RefitError::Failed { reason: error.to_string() })?;
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        // SAFETY: refitter and stream live, and the weights until the stream has come to the refit's end.
        let done = unsafe { (self.inner.api.refit)(self.refitter.get(), self.stream.handle()) };
        // What was enqueued before a failure reads the weights, too.
        let waited = self.stream.synchronize();
        let mut reasons = self.inner.messages.take();
        drop(given);
        // About weights that it had let go of itself.
        self.inner.messages.take();
        match waited {
            Ok(()) if done != 0 => Ok(Outcome::Done),
            waited => {
                reasons.extend(waited.err());
                let reason = if reasons.is_empty() { "it does not say why".to_owned() } else { reasons.join("; ") };
                Err(RefitError::Failed { reason })
            }
        }
    }

    fn prototype(&self, name: &CStr) -> ffi::Prototype {
        let mut form = ffi::Prototype { dtype: -1, count: -1 };
        // SAFETY: the refitter lives; the name is borrowed for the call. Of a weight that cannot be replaced the count is -1.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        unsafe {
            (self.inner.api.prototype)(self.refitter.get(), name.as_ptr(), &mut form);
        }
        form
    }

    /// Names of all weights, or of those that are missing.
    fn names(&self, missing: bool) -> Result<Vec<String>, RunError> {
        let what = if missing { "listing missing weights" } else { "listing weights" };
        let ask = |names: &mut [*const c_char]| {
            let capacity = i32::try_from(names.len()).unwrap_or(i32::MAX);
            let place = if names.is_empty() { std::ptr::null_mut() } else { names.as_mut_ptr() };
            // SAFETY: the refitter lives, and there is room for so many names.
            #[allow(unsafe_code, reason = "TensorRT through its shim")]
            let count = unsafe { (self.inner.api.weights)(self.refitter.get(), missing.into(), capacity, place) };
            usize::try_from(count).ok().filter(|count| *count <= MOST).ok_or_else(|| self.inner.failed(what))
        };
        let mut names = vec![std::ptr::null(); ask(&mut [])?];
        let count = if names.is_empty() { 0 } else { ask(&mut names)? };
        // SAFETY: the names that were written end with NUL and live as long as the refitter.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        Ok(names.iter().take(count).map(|name| unsafe { text(*name) }).collect())
    }
}

impl<S: Stream> Refitter for EngineRefitter<'_, S> {
    fn refit(&mut self, weights: &[(&str, &[u8])]) -> Result<Outcome, RefitError> {
        let weights: Vec<(&str, Source<'_>)> =
            weights.iter().map(|(name, bytes)| (*name, Source::Host(bytes))).collect();
        // SAFETY: none of them is on the device.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        unsafe {
            self.refit_from(&weights)
        }
    }
}
