//! ONNX Runtime and ffmpeg, which v2l does not link. [`v2l_search`] says where they are looked for.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use v2l_search::{FileName, LIBRARY_PATH, Places, Product};
pub use v2l_search::{Found, LibraryError};

use crate::error::{Classified, ErrorClass};
use crate::wording::{FFMPEG, ORT_LIBRARY, Supply};

/// The lowest minor version of ONNX Runtime 1.x that the runtime can use.
pub const ORT_MINOR: u32 = ort::MINOR_VERSION;

static ONNX_RUNTIME: Product = Product {
    title: "ONNX Runtime",
    supply: Supply::new(
        "run `bin/setup`",
        "`pip install onnxruntime` and set V2L_ORT_LIB to the folder `onnxruntime/capi` of that package",
    ),
    option: ORT_LIBRARY,
    file: FileName::Library("onnxruntime"),
    places: Places {
        variables: &["V2L_ORT_LIB", "ORT_DYLIB_PATH"],
        vendored: "vendor/ort/onnxruntime/capi",
        package: None,
        list: LIBRARY_PATH,
    },
    by_loader: true,
};

static FFMPEG_PROGRAM: Product = Product {
    title: "ffmpeg",
    supply: Supply::new("run `bin/setup`", "install it, for example with `apt install ffmpeg`"),
    option: FFMPEG,
    file: FileName::Program("ffmpeg"),
    places: Places {
        variables: &["V2L_FFMPEG"],
        vendored: "vendor/ffmpeg/imageio_ffmpeg/binaries",
        package: None,
        list: "PATH",
    },
    by_loader: false,
};

impl Classified for LibraryError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Version
    }
}

/// Finds the ONNX Runtime library; a bare name if only the system's loader may have one. A folder that holds one will do as `explicit`.
///
/// # Errors
/// [`LibraryError::NotThere`] or [`LibraryError::Missing`].
pub fn find_onnxruntime(explicit: Option<&Path>) -> Result<Found, LibraryError> {
    ONNX_RUNTIME.find(explicit)
}

/// Finds the ffmpeg executable. A folder that holds one will do as `explicit`.
///
/// # Errors
/// [`LibraryError::NotThere`] or [`LibraryError::Missing`].
pub fn find_ffmpeg(explicit: Option<&Path>) -> Result<Found, LibraryError> {
    FFMPEG_PROGRAM.find(explicit)
}

/// What was found since the last call and not used, and why: others could have put it there. In words, for warnings.
pub fn passed_over() -> Vec<String> {
    let refused = v2l_search::passed_over().into_iter();
    refused.map(|(path, why)| format!("{} is not used: {why}", path.display())).collect()
}

/// The process's one ONNX Runtime.
static ENVIRONMENT: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Loads ONNX Runtime on the first call, gives the same environment on every later one. A failed call can be repeated.
///
/// # Errors
/// [`LibraryError`]; [`LibraryError::AlreadyLoaded`] if `explicit` is not the library in use.
pub fn onnxruntime(explicit: Option<&Path>) -> Result<Environment, LibraryError> {
    let mut slot = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, environment)) = &*slot {
        ONNX_RUNTIME.check_loaded(explicit, loaded)?;
        return Ok(environment.clone());
    }
    let mut search = ONNX_RUNTIME.search(explicit)?;
    let Some(found) = search.next() else { return Err(search.missing()) };
    let builder = match ort::init_from(&found.path) {
        Err(ort::LoadDynamicError::Dlopen { .. }) if found.is_bare() => return Err(search.missing()),
        other => other.map_err(|error| load_error(found.clone(), &error))?,
    };
    let environment = builder.with_name("v2l").with_telemetry(false).build().map_err(|e| LibraryError::Unloadable {
        of: &ONNX_RUNTIME,
        found: Box::new(found.clone()),
        reason: e.to_string(),
    })?;
    // What fails comes back as an error; ONNX Runtime need not print it as well.
    if env::var_os("ORT_LOG").is_none() {
        environment.set_log_level(ort::logging::LogLevel::Fatal);
    }
    *slot = Some((found.path, environment.clone()));
    Ok(environment)
}

/// The ONNX Runtime that this process uses, once [`onnxruntime`] has loaded it; a bare name if the system's loader found it.
pub fn onnxruntime_path() -> Option<PathBuf> {
    let slot = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    slot.as_ref().map(|(path, _)| path.clone())
}

/// The minor version of the ONNX Runtime 1.x that this process uses, once [`onnxruntime`] has loaded it.
pub fn onnxruntime_minor() -> Option<u32> {
    ort::util::probe(onnxruntime_path()?)
}

fn load_error(found: Found, error: &ort::LoadDynamicError) -> LibraryError {
    let (of, found) = (&ONNX_RUNTIME, Box::new(found));
    match error {
        ort::LoadDynamicError::BadVersion { version_str, .. } => LibraryError::Version {
            of,
            found,
            version: version_str.clone(),
            expected: format!("1.{ORT_MINOR} or newer"),
        },
        other => LibraryError::Unloadable { of, found, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_onnxruntime_with_a_missing_explicit_path_names_flag_and_path() {
        let error = find_onnxruntime(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err().to_string();
        assert!(error.contains("ort.library names /nowhere/libonnxruntime.so"), "{error}");
    }

    #[test]
    fn onnxruntime_after_a_failed_call_can_be_tried_again() {
        for _ in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("libonnxruntime.so");
            std::fs::write(&path, b"not a library").unwrap();
            assert!(onnxruntime(Some(&path)).is_err());
        }
    }

    #[test]
    fn library_error_missing_lists_places_and_the_way_out() {
        let error = LibraryError::Missing { of: &FFMPEG_PROGRAM, looked: vec!["/a".into(), "$PATH".into()] };
        // Tests run in a checkout's `target/`.
        let expected = "ffmpeg was not found; looked at /a, $PATH; run `bin/setup`, or install it, for example with `apt install ffmpeg`; \
                        or name yours with `ffmpeg` or V2L_FFMPEG";
        assert_eq!(error.to_string(), expected);
    }
}
