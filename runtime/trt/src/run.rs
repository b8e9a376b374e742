//! Plans on a GPU: loading, weights, running. **Never executed on a GPU by v2l's authors**; see `docs/gpu.md`.
//!
//! Memory of the device and streams are the caller's, and come as raw handles of the CUDA driver. TensorRT works on the device that
//! is current on the calling thread.

mod context;
mod engine;
mod error;
mod handle;
mod refitter;
#[cfg(test)]
#[allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "a shim in Rust, with one SAFETY comment for all of it"
)]
mod tests;

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use self::handle::{Messages, Owned};
use crate::ffi::{CreateRefitter, CreateRuntime, INVALID, RunApi, RunEntry};
use crate::library::LibraryError;
use crate::library::opened::{Opened, run_api};
use crate::messages::{is_about_driver, is_about_memory};
use crate::{DataType, Flavour, Version};

pub use self::engine::Engine;
pub use self::error::RunError;
pub use self::refitter::{EngineRefitter, Source};

/// A CUDA stream of the caller's.
///
/// # Safety
/// [`Self::handle`] is a `CUstream` of the current device that lives as long as `self`, and [`Self::synchronize`] returns `Ok` only
/// when all that was enqueued on it before has ended.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
pub unsafe trait Stream {
    /// The `CUstream`.
    fn handle(&self) -> *mut c_void;

    /// Waits for what was enqueued.
    ///
    /// # Errors
    /// The driver's words.
    fn synchronize(&self) -> Result<(), String>;
}

/// An input or output of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// True for an input.
    pub is_input: bool,
    /// Element type.
    pub dtype: DataType,
    /// True if it lies on the device, row-major. False if TensorRT wants its values on the host, because they say what shapes are, or
    /// in another layout.
    pub is_plain: bool,
    /// Extents; `None` where one is free.
    pub shape: Vec<Option<usize>>,
}

/// TensorRT's runtime, which loads plans.
pub struct Runtime(Arc<Inner>);

/// What engines keep alive. Fields are dropped in order: the runtime before what it logs to.
struct Inner {
    runtime: Owned,
    messages: Box<Messages>,
    api: &'static RunApi,
    flavour: Flavour,
    version: Version,
}

// SAFETY: the runtime is used through `&mut Runtime` and, to make refitters, `&mut Engine`; TensorRT lets several threads do that at a
// time. The rest is constant, or behind a lock.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe impl Sync for Inner {}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The library is missing, or not the right one.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It gives no runtime.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Runtime {
    /// Finds and loads a flavour, without its builder and parser; `explicit` is a library, or a folder that holds one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(flavour: Flavour, explicit: Option<&Path>) -> Result<Self, OpenError> {
        let library = Opened::open(flavour, explicit)?;
        let entry = RunEntry {
            create_runtime: library.symbol::<CreateRuntime>(c"createInferRuntime_INTERNAL")?,
            create_refitter: library.symbol::<CreateRefitter>(c"createInferRefitter_INTERNAL")?,
        };
        Ok(Self::with(run_api(flavour), entry, flavour, library.version)?)
    }

    fn with(api: &'static RunApi, entry: RunEntry, flavour: Flavour, version: Version) -> Result<Self, RunError> {
        let messages = Box::<Messages>::default();
        // SAFETY: entry points and shim are of one flavour and version; the messages are dropped behind the runtime, and stay where they
        // are in their box.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let runtime = unsafe { Owned::new((api.runtime)(&entry, &messages.log()), api.free_runtime) };
        match runtime {
            Some(runtime) => Ok(Self(Arc::new(Inner { runtime, messages, api, flavour, version }))),
            None => Err(RunError::NoRuntime { title: flavour.title(), messages: messages.take() }),
        }
    }

    /// The version of TensorRT.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Loads a plan onto the current device. One with placeholders must be given its weights before it can run.
    ///
    /// Costs device memory of the plan's size and of its weights.
    ///
    /// # Errors
    /// [`RunError::NoDevice`], [`RunError::Refused`] if the plan is for another GPU, version or driver, or damaged, or
    /// [`RunError::Failed`].
    pub fn load(&mut self, plan: &[u8]) -> Result<Engine, RunError> {
        let (inner, mut reasons) = (&self.0, 0);
        inner.messages.take();
        // SAFETY: the runtime lives, and the plan is borrowed for the call.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let validity =
            unsafe { (inner.api.validity)(inner.runtime.get(), plan.as_ptr().cast(), plan.len(), &mut reasons) };
        if validity == INVALID {
            return Err(inner.refusal(reasons));
        }
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "TensorRT through its shim")]
        let engine = unsafe {
            let handle = (inner.api.engine)(inner.runtime.get(), plan.as_ptr().cast(), plan.len());
            Owned::new(handle, inner.api.free_engine)
        };
        match engine {
            Some(engine) => Ok(Engine::new(engine, Arc::clone(inner))),
            None => Err(inner.refusal(reasons)),
        }
    }
}

/// What `EngineInvalidityDiagnostics` names, in words, from the lowest bit.
const REASONS: [&str; 7] = [
    "it was built by another version",
    "it was not built for this GPU",
    "the driver is too old",
    "the CUDA runtime is too old",
    "the GPU has too little memory",
    "it is damaged",
    "CUDA reports an error",
];
const LITTLE_MEMORY: u64 = 1 << 4;
const CUDA_ERROR: u64 = 1 << 6;

impl Inner {
    fn failed(&self, what: impl Into<String>) -> RunError {
        let (title, what, messages) = (self.flavour.title(), what.into(), self.messages.take());
        if messages.iter().any(|message| is_about_memory(message)) {
            return RunError::Memory { title, what, messages };
        }
        RunError::Failed { title, what, messages }
    }

    /// Why a plan is not loaded.
    fn refusal(&self, reasons: u64) -> RunError {
        let (title, messages) = (self.flavour.title(), self.messages.take());
        if messages.iter().any(|message| is_about_driver(message)) || (reasons == CUDA_ERROR && messages.is_empty()) {
            return RunError::NoDevice { title, messages };
        }
        if reasons == LITTLE_MEMORY || messages.iter().any(|message| is_about_memory(message)) {
            return RunError::Memory { title, what: "loading the plan".to_owned(), messages };
        }
        let named = REASONS.iter().enumerate().filter(|(bit, _)| reasons >> bit & 1 == 1).map(|(_, name)| *name);
        let named: Vec<&str> = named.collect();
        let reasons = if named.is_empty() { "it does not say why".to_owned() } else { named.join(", ") };
        RunError::Refused { title, version: self.version.to_string(), reasons, messages }
    }
}
