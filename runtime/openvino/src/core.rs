//! OpenVINO itself.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openvino_sys::ov_core_t;

use crate::error::Failure;
use crate::handle::{Handle, text};
use crate::library::{Library, Version, load};
use crate::{Found, OpenVinoError};

/// The device that everything runs on.
pub(crate) const DEVICE: &CStr = c"CPU";

/// OpenVINO, loaded, with its plugin for CPUs. Cheap to clone; may be used by several threads at once.
#[derive(Clone)]
pub struct Core {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle<ov_core_t>,
    library: Library,
}

// SAFETY: `ov::Core` may be used on any thread, and by several at once.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Send for Inner {}
// SAFETY: as above; the handle only gives its pointer away.
#[allow(unsafe_code, reason = "OpenVINO's C API")]
unsafe impl Sync for Inner {}

impl Core {
    /// Finds and loads OpenVINO, once for the process; `explicit` is the C library, or a folder that holds one. Takes about 15 ms, and 8 MB of memory.
    ///
    /// # Errors
    /// [`OpenVinoError::Library`], or [`OpenVinoError::MissingFile`] without the plugin for CPUs. A failed call can be repeated.
    pub fn open(explicit: Option<&Path>) -> Result<Self, OpenVinoError> {
        let library = load(explicit)?;
        // SAFETY: the function gives a core that `ov_core_free` frees.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let handle =
            unsafe { Handle::new(|core| openvino_sys::ov_core_create(core), |core| openvino_sys::ov_core_free(core)) };
        let handle = handle.map_err(|failure| failure.during("starts"))?;
        let core = Self { inner: Arc::new(Inner { handle, library }) };
        core.capabilities()?;
        Ok(core)
    }

    /// Where the library lies, and how it was found.
    pub fn found(&self) -> &Found {
        &self.inner.library.found
    }

    /// What the library says of itself.
    pub fn version(&self) -> Version {
        self.inner.library.version
    }

    /// What the CPU has instructions for, and what the plugin does on any: `BF16 WINOGRAD FP32 INT8 …`. Without `BF16`, graphs in bfloat16 run on a
    /// path that is 50 times slower.
    ///
    /// # Errors
    /// [`OpenVinoError::MissingFile`] without the plugin for CPUs.
    pub fn capabilities(&self) -> Result<Vec<String>, OpenVinoError> {
        let all = self.property(c"OPTIMIZATION_CAPABILITIES")?;
        Ok(all.split_whitespace().map(str::to_owned).collect())
    }

    /// The CPU's name.
    ///
    /// # Errors
    /// As [`Self::capabilities`].
    pub fn device_name(&self) -> Result<String, OpenVinoError> {
        self.property(c"FULL_DEVICE_NAME")
    }

    fn property(&self, key: &CStr) -> Result<String, OpenVinoError> {
        // SAFETY: core and strings are there for the call; what it gives is to be given to `ov_free`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let value = unsafe {
            text(|value| openvino_sys::ov_core_get_property(self.raw(), DEVICE.as_ptr(), key.as_ptr(), value))
        };
        value.map_err(|failure| {
            let file = if cfg!(target_arch = "aarch64") {
                "libopenvino_arm_cpu_plugin"
            } else {
                "libopenvino_intel_cpu_plugin"
            };
            self.missing(file, &failure).unwrap_or_else(|| failure.during("looks at the CPU"))
        })
    }

    /// The error of a failure that comes from a missing library, if there is none of that name beside the C library.
    pub(crate) fn missing(&self, file: &'static str, failure: &Failure) -> Option<OpenVinoError> {
        let found = self.found();
        let folder = found.path.parent().filter(|_| !found.is_bare())?;
        let absent = v2l_search::entries(folder, file).is_empty();
        let (folder, reason) = (PathBuf::from(folder), failure.reason.clone());
        absent.then_some(OpenVinoError::MissingFile { file, folder, reason })
    }

    pub(crate) fn raw(&self) -> *mut ov_core_t {
        self.inner.handle.raw()
    }
}
