//! Loading OpenVINO's C library, once for the process.

use std::error::Error;
use std::ffi::{CStr, c_int};
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use libloading::Library as SharedLibrary;
use openvino_sys::ov_version_t;
use v2l_search::wording::{OPENVINO_LIBRARY, Supply};
use v2l_search::{FileName, Found, LIBRARY_PATH, LibraryError, Places, Product};

/// The lowest version that works: the first whose C API compiles with a list of properties.
pub const MINIMUM: Version = Version { year: 2026, minor: 4, patch: 0 };

/// OpenVINO's C library. Its package's libraries are found where they are installed.
pub(crate) static OPENVINO: Product = Product {
    title: "OpenVINO",
    supply: Supply::new("run `bin/setup --openvino`", "`pip install openvino`"),
    option: OPENVINO_LIBRARY,
    file: FileName::Library("openvino_c"),
    places: Places {
        variables: &["V2L_OPENVINO_LIB"],
        vendored: "vendor/openvino",
        package: Some("openvino/libs"),
        list: LIBRARY_PATH,
    },
    by_loader: true,
};

/// A release of OpenVINO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2026 of 2026.4.1.
    pub year: u32,
    /// 4 of 2026.4.1.
    pub minor: u32,
    /// 1 of 2026.4.1.
    pub patch: u32,
}

impl Version {
    /// Takes what the library says of itself apart: `2026.4.1-22982-e213a147257-releases/2026/4`.
    fn parse(build: &str) -> Option<Self> {
        let release = build.split('-').next()?;
        let mut numbers = release.split('.').map(|number| number.parse().ok());
        let version = Self { year: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        Some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.year, self.minor, self.patch)
    }
}

/// The process's one OpenVINO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    pub(crate) found: Found,
    pub(crate) version: Version,
}

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// Loads OpenVINO on the first call, gives the same library on every later one. A failed call can be repeated.
pub(crate) fn load(explicit: Option<&Path>) -> Result<Library, LibraryError> {
    let mut slot = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*slot {
        OPENVINO.check_loaded(explicit, &loaded.found.path)?;
        return Ok(loaded.clone());
    }
    let mut search = OPENVINO.search(explicit)?;
    let Some(found) = search.next() else { return Err(search.missing()) };
    let unloadable = |reason| LibraryError::Unloadable { of: &OPENVINO, found: Box::new(found.clone()), reason };
    let library = match open(&found.path) {
        Ok(library) => library,
        Err(_) if found.is_bare() => return Err(search.missing()),
        Err(error) => return Err(unloadable(words(&error))),
    };
    let build = build_of(library).map_err(|error| unloadable(words(&error)))?;
    let version = at_least_minimum(&build).ok_or_else(|| {
        let release = build.split('-').next().filter(|release| !release.is_empty());
        let version = release.unwrap_or("of an unknown version").to_owned();
        let expected = format!("{}.{} or newer", MINIMUM.year, MINIMUM.minor);
        LibraryError::Version { of: &OPENVINO, found: Box::new(found.clone()), version, expected }
    })?;
    look_up_functions(library).map_err(|error| unloadable(words(&error)))?;
    openvino_sys::library::load_from(&found.path).map_err(unloadable)?;
    Ok(slot.insert(Library { found, version }).clone())
}

/// The loader's words, which lie behind the error.
fn words(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn at_least_minimum(build: &str) -> Option<Version> {
    Version::parse(build).filter(|version| *version >= MINIMUM)
}

/// Loads a library for a first look. The bindings are given it only after that: once they have one they keep it, and they panic on a function
/// that it lacks. A library that has run its initialisers may have threads and exit handlers: it stays.
fn open(path: &Path) -> Result<&'static SharedLibrary, libloading::Error> {
    // SAFETY: running a library's initialisers is what loading it means; that the file is the user's own choice, and found in no folder
    // that strangers write to, is what `search` sees to.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    let library = unsafe { SharedLibrary::new(path)? };
    Ok(Box::leak(Box::new(library)))
}

/// What a library says of its version.
fn build_of(library: &'static SharedLibrary) -> Result<String, libloading::Error> {
    let mut version = ov_version_t { buildNumber: std::ptr::null(), description: std::ptr::null() };
    // SAFETY: in every version of OpenVINO since 2022.1 these functions have these types; the version is filled with two strings that
    // live until the second function is called, or is left as it was.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    let build = unsafe {
        let get = library.get::<unsafe extern "C" fn(*mut ov_version_t) -> c_int>(b"ov_get_openvino_version\0")?;
        let free = library.get::<unsafe extern "C" fn(*mut ov_version_t)>(b"ov_version_free\0")?;
        get(&mut version);
        let build = version.buildNumber;
        let build = (!build.is_null()).then(|| CStr::from_ptr(build).to_string_lossy().into_owned());
        free(&mut version);
        build
    };
    Ok(build.unwrap_or_default())
}

/// Every function of the C API that this crate calls.
const FUNCTIONS: &[&CStr] = &[
    c"ov_get_last_err_msg",
    c"ov_free",
    c"ov_core_create",
    c"ov_core_free",
    c"ov_core_get_property",
    c"ov_core_read_model_from_memory_buffer",
    c"ov_core_compile_model_props",
    c"ov_model_free",
    c"ov_compiled_model_inputs_size",
    c"ov_compiled_model_input_by_index",
    c"ov_compiled_model_input_by_name",
    c"ov_compiled_model_output_by_name",
    c"ov_compiled_model_get_property",
    c"ov_compiled_model_create_infer_request",
    c"ov_compiled_model_free",
    c"ov_output_const_port_free",
    c"ov_port_get_any_name",
    c"ov_infer_request_set_tensor_by_const_port",
    c"ov_infer_request_get_tensor_by_const_port",
    c"ov_infer_request_start_async",
    c"ov_infer_request_wait_for",
    c"ov_infer_request_wait",
    c"ov_infer_request_cancel",
    c"ov_infer_request_get_profiling_info",
    c"ov_infer_request_free",
    c"ov_profiling_info_list_free",
    c"ov_tensor_create_from_host_ptr",
    c"ov_tensor_get_element_type",
    c"ov_tensor_get_byte_size",
    c"ov_tensor_get_shape",
    c"ov_tensor_data",
    c"ov_tensor_free",
    c"ov_shape_free",
];

/// Looks every function up: the bindings panic where one is missing.
fn look_up_functions(library: &'static SharedLibrary) -> Result<(), libloading::Error> {
    for name in FUNCTIONS {
        // SAFETY: the function is looked up, and not called.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        unsafe {
            library.get::<unsafe extern "C" fn()>(name.to_bytes_with_nul())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_that_this_crate_calls_is_looked_up() {
        let sources = [
            include_str!("core.rs"),
            include_str!("model.rs"),
            include_str!("compiled.rs"),
            include_str!("request.rs"),
            include_str!("handle.rs"),
            include_str!("error.rs"),
        ];
        let calls = sources.iter().flat_map(|source| source.split("openvino_sys::ov_").skip(1));
        let names = calls.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
        let mut count = 0;
        for name in names {
            let name = format!("ov_{name}");
            // `ov_status_e` and its like are types.
            let is_type = name.ends_with("_e") || name.ends_with("_t");
            assert!(is_type || FUNCTIONS.iter().any(|listed| listed.to_str() == Ok(&name)), "{name}");
            count += usize::from(!is_type);
        }
        assert!(count >= FUNCTIONS.len(), "{count} calls were found");
    }

    #[test]
    fn version_is_taken_from_what_the_library_says_of_itself() {
        let version = at_least_minimum("2026.4.1-22982-e213a147257-releases/2026/4").unwrap();
        assert_eq!(version.to_string(), "2026.4.1");
        assert_eq!(at_least_minimum("2027.0.0-1-x"), Some(Version { year: 2027, minor: 0, patch: 0 }));
        for old in ["2026.3.0-22451-c", "2024.6.0", "custom_build", "", "2026", "2026.4"] {
            assert_eq!(at_least_minimum(old), None, "{old}");
        }
    }
}
