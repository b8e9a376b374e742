use std::path::Path;

use libloading::Library as SharedLibrary;

use super::{Found, LibraryError};
use crate::ffi::LibraryVersion;
use crate::{Flavour, Version};

/// TensorRT, loaded and of the right version. Once loaded it stays until the process ends: it has threads and exit handlers of its
/// own.
pub(crate) struct Opened {
    pub(crate) flavour: Flavour,
    pub(crate) version: Version,
    pub(crate) found: Found,
    pub(crate) library: &'static SharedLibrary,
}

impl Opened {
    /// Finds and loads a flavour; `explicit` is a library, or a folder that holds one.
    pub(crate) fn open(flavour: Flavour, explicit: Option<&Path>) -> Result<Self, LibraryError> {
        let mut search = flavour.product().search(explicit)?;
        for found in search.by_ref() {
            match load(&found.path) {
                Ok(library) => return Self::with(flavour, library, found),
                Err(_) if found.is_bare() => {}
                Err(error) => return Err(unloadable(flavour, &found.path, &found, &error)),
            }
        }
        Err(search.missing())
    }

    /// Loads what another process found.
    #[cfg(feature = "build")]
    pub(crate) fn open_found(flavour: Flavour, found: Found) -> Result<Self, LibraryError> {
        let library = load(&found.path).map_err(|error| unloadable(flavour, &found.path, &found, &error))?;
        Self::with(flavour, library, found)
    }

    fn with(flavour: Flavour, library: &'static SharedLibrary, found: Found) -> Result<Self, LibraryError> {
        let version = version_of(library, c"getInferLibVersion");
        let version = version.map_err(|e| unloadable(flavour, &found.path, &found, &e))?;
        check(flavour, headers(flavour), &found.path, &found.from, version)?;
        Ok(Self { flavour, version, found, library })
    }

    /// A function of the library. `T` must be its own type.
    pub(crate) fn symbol<T: Copy>(&self, name: &'static std::ffi::CStr) -> Result<T, LibraryError> {
        symbol(self.library, name).map_err(|e| unloadable(self.flavour, &self.found.path, &self.found, &e))
    }
}

/// The version of the headers that the shim is compiled against.
#[cfg(feature = "run")]
fn headers(flavour: Flavour) -> i32 {
    run_api(flavour).version
}

/// As above.
#[cfg(not(feature = "run"))]
fn headers(flavour: Flavour) -> i32 {
    build_api(flavour).version
}

/// The part of the shim that builds plans of a flavour.
#[cfg(feature = "build")]
pub(crate) fn build_api(flavour: Flavour) -> &'static crate::ffi::Api {
    match flavour {
        Flavour::Rtx => crate::ffi::v2l_api_rtx(),
        Flavour::TensorRt => crate::ffi::v2l_api_tensorrt(),
    }
}

/// The part of the shim that runs plans of a flavour.
#[cfg(feature = "run")]
pub(crate) fn run_api(flavour: Flavour) -> &'static crate::ffi::RunApi {
    match flavour {
        Flavour::Rtx => crate::ffi::v2l_run_api_rtx(),
        Flavour::TensorRt => crate::ffi::v2l_run_api_tensorrt(),
    }
}

/// `path` is the library, or another beside it.
pub(super) fn unloadable(flavour: Flavour, path: &Path, found: &Found, error: &libloading::Error) -> LibraryError {
    let found = Found { path: path.to_owned(), from: found.from.clone() };
    LibraryError::Unloadable { of: flavour.product(), found: Box::new(found), reason: error.to_string() }
}

pub(super) fn check(
    flavour: Flavour,
    headers: i32,
    path: &Path,
    from: &str,
    version: Version,
) -> Result<(), LibraryError> {
    let expected = Version::of_number(headers.unsigned_abs());
    if expected.fits(version) {
        return Ok(());
    }
    let Version { major, minor, .. } = expected;
    let expected = format!("{major}.{minor}, since every minor version has another layout");
    let found = Found { path: path.to_owned(), from: from.to_owned() };
    Err(LibraryError::Version { of: flavour.product(), found: Box::new(found), version: version.to_string(), expected })
}

pub(super) fn load(path: &Path) -> Result<&'static SharedLibrary, libloading::Error> {
    // SAFETY: running a library's initialisers is what loading it means; that the file is the user's own choice, and found in no
    // folder that strangers write to, is what `search` sees to.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    let library = unsafe { SharedLibrary::new(path)? };
    Ok(Box::leak(Box::new(library)))
}

pub(super) fn version_of(
    library: &'static SharedLibrary,
    name: &'static std::ffi::CStr,
) -> Result<Version, libloading::Error> {
    let version = symbol::<LibraryVersion>(library, name)?;
    // SAFETY: in every version of TensorRT this function takes nothing and returns an `int32_t`.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    let number = unsafe { version() };
    Ok(Version::of_number(number.unsigned_abs()))
}

/// A function of a library that is never unloaded. `T` must be the function's own type.
pub(super) fn symbol<T: Copy>(
    library: &'static SharedLibrary,
    name: &'static std::ffi::CStr,
) -> Result<T, libloading::Error> {
    // SAFETY: every caller pairs a name with the type that NVIDIA's headers declare for it.
    #[allow(unsafe_code, reason = "TensorRT through its shim")]
    unsafe { library.get::<T>(name.to_bytes_with_nul()) }.map(|symbol| *symbol)
}
