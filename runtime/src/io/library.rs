//! Finding what v2l does not link: ONNX Runtime and ffmpeg.
//!
//! Order: an explicit path, the environment, next to the executable, for an executable in a checkout's `target/` that checkout's `vendor/`
//! (what `bin/setup` fetches), the system's own search path. The first two are never passed over: if they name something
//! that is not there, that is an error. What others could have put where it lies is passed over ([`v2l_search::trusted`]), and
//! [`passed_over`] says so; the current directory is not searched.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use crate::error::{Classified, ErrorClass};
use crate::wording::{FFMPEG, ORT_LIBRARY, Supply, Words};

/// The lowest minor version of ONNX Runtime 1.x that the runtime can use.
pub const ORT_MINOR: u32 = ort::MINOR_VERSION;

const ORT_SUPPLY: &Supply = &Supply::new(
    "run `bin/setup`",
    "`pip install onnxruntime` and set V2L_ORT_LIB to the folder `onnxruntime/capi` of that package",
);
const FFMPEG_SUPPLY: &Supply = &Supply::new("run `bin/setup`", "install it, for example with `apt install ffmpeg`");

/// Why a library or tool cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{what} was not found; looked at {}; {supply}; or name yours with `{option}` or {variable}", looked.join(", "))]
    Missing {
        /// `ONNX Runtime` or `ffmpeg`.
        what: &'static str,
        /// Every place that was tried.
        looked: Vec<String>,
        /// How to come by it.
        supply: &'static Supply,
        /// The option that names it.
        option: Words,
        /// The environment variable that names it.
        variable: &'static str,
    },
    /// An option or variable names something that is not there.
    #[error("{what}: {from} names {path}, which does not exist; correct it, or leave it out and {supply}")]
    NotThere {
        /// `ONNX Runtime` or `ffmpeg`.
        what: &'static str,
        /// The option or variable.
        from: String,
        /// What it names.
        path: PathBuf,
        /// How to come by another.
        supply: &'static Supply,
    },
    /// The library is too old.
    #[error(
        "{path} is ONNX Runtime {found}; expected 1.{minimum} or newer: {ORT_SUPPLY}; or name a newer one with `{ORT_LIBRARY}`"
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// The lowest minor version that works.
        minimum: u32,
        /// What it says of itself.
        found: String,
    },
    /// The system cannot load the library, or it is not ONNX Runtime.
    #[error("{path} cannot be loaded as ONNX Runtime: {reason}; pass another with `{ORT_LIBRARY}`")]
    Unloadable {
        /// The library.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The process already uses another ONNX Runtime; there is one per process.
    #[error("{requested} was asked for, but this process already uses {loaded}; start another process")]
    AlreadyLoaded {
        /// What was asked for.
        requested: PathBuf,
        /// What is in use.
        loaded: PathBuf,
    },
}

impl Classified for LibraryError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Version
    }
}

/// A library or tool, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is; a bare file name is left to the system's loader.
    pub path: PathBuf,
    /// The option, `V2L_ORT_LIB`, `vendor`, …
    pub from: String,
}

struct Search<'a> {
    what: &'static str,
    option: Words,
    variables: &'a [&'static str],
    supply: &'static Supply,
    /// Folder below the checkout, and whether a file name in it will do.
    vendored: &'a str,
    matches: &'a dyn Fn(&str) -> bool,
    /// The system's search path, for files of the exact name.
    system: (&'a str, &'a str),
}

/// Finds the ONNX Runtime library. A folder that holds one will do as `explicit`.
///
/// # Errors
/// [`LibraryError::NotThere`] or [`LibraryError::Missing`].
pub fn find_onnxruntime(explicit: Option<&Path>) -> Result<Found, LibraryError> {
    let exact = format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    Search {
        what: "ONNX Runtime",
        option: ORT_LIBRARY,
        variables: &["V2L_ORT_LIB", "ORT_DYLIB_PATH"],
        supply: ORT_SUPPLY,
        vendored: "vendor/ort/onnxruntime/capi",
        matches: &is_onnxruntime,
        system: (variable, &exact),
    }
    .find(explicit)
}

/// Finds the ffmpeg executable. A folder that holds one will do as `explicit`.
///
/// # Errors
/// [`LibraryError::NotThere`] or [`LibraryError::Missing`].
pub fn find_ffmpeg(explicit: Option<&Path>) -> Result<Found, LibraryError> {
    let exact = format!("ffmpeg{}", env::consts::EXE_SUFFIX);
    Search {
        what: "ffmpeg",
        option: FFMPEG,
        variables: &["V2L_FFMPEG"],
        supply: FFMPEG_SUPPLY,
        vendored: "vendor/ffmpeg/imageio_ffmpeg/binaries",
        matches: &|name| name == exact || name.starts_with("ffmpeg-"),
        system: ("PATH", &exact),
    }
    .find(explicit)
}

/// `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`, `onnxruntime.dll`; not the provider libraries beside it.
fn is_onnxruntime(name: &str) -> bool {
    let stem = format!("{}onnxruntime", env::consts::DLL_PREFIX);
    name.strip_prefix(&stem[..]).is_some_and(|rest| {
        rest.starts_with(env::consts::DLL_SUFFIX) || (rest.starts_with('.') && rest.ends_with(env::consts::DLL_SUFFIX))
    })
}

impl Search<'_> {
    fn find(&self, explicit: Option<&Path>) -> Result<Found, LibraryError> {
        if let Some(path) = explicit {
            return self.named(path, &self.option.to_string());
        }
        for variable in self.variables {
            if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
                return self.named(Path::new(&path), variable);
            }
        }
        let mut looked: Vec<String> = self.variables.iter().map(|v| format!("${v} (not set)")).collect();
        for (folder, from) in self.folders() {
            let Some(path) = self.inside(&folder) else {
                looked.push(folder.display().to_string());
                continue;
            };
            match v2l_search::usable(&path) {
                Ok(()) => return Ok(Found { path, from: from.to_owned() }),
                Err(why) => looked.push(format!("{} (not used: {why})", path.display())),
            }
        }
        let listed = v2l_search::listed(env::var_os(self.system.0).as_deref()).into_iter();
        if let Some(path) = listed.map(|folder| folder.join(self.system.1)).find(|path| path.is_file()) {
            return Ok(Found { path, from: format!("${}", self.system.0) });
        }
        looked.push(format!("${}", self.system.0));
        let (what, supply, option) = (self.what, self.supply, self.option);
        Err(LibraryError::Missing { what, looked, supply, option, variable: self.variables[0] })
    }

    fn named(&self, path: &Path, from: &str) -> Result<Found, LibraryError> {
        let found = if path.is_dir() { self.inside(path) } else { path.is_file().then(|| path.to_owned()) };
        match found {
            Some(path) => Ok(Found { path, from: from.to_owned() }),
            None => {
                let (what, supply) = (self.what, self.supply);
                Err(LibraryError::NotThere { what, from: from.to_owned(), path: path.to_owned(), supply })
            }
        }
    }

    fn folders(&self) -> impl Iterator<Item = (PathBuf, &'static str)> {
        let executable = v2l_search::executable().map(|folder| (folder, "next to the executable"));
        executable.into_iter().chain(v2l_search::vendored(self.vendored).map(|folder| (folder, "vendor")))
    }

    /// The file to use in `folder`: the exact name first, then the last version by name.
    fn inside(&self, folder: &Path) -> Option<PathBuf> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| (self.matches)(name))
            .collect();
        names.sort_by_key(|name| (OsStr::new(name) == self.system.1, name.clone()));
        names.into_iter().rev().map(|name| folder.join(name)).find(|path| path.is_file())
    }
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
        if let Some(path) = explicit {
            let requested = find_onnxruntime(Some(path))?.path;
            if same_file(&requested, loaded) {
                return Ok(environment.clone());
            }
            return Err(LibraryError::AlreadyLoaded { requested, loaded: loaded.clone() });
        }
        return Ok(environment.clone());
    }
    let (path, builder) = match find_onnxruntime(explicit) {
        Ok(found) => {
            let builder = ort::init_from(&found.path).map_err(|e| load_error(found.path.clone(), &e))?;
            (found.path, builder)
        }
        // The loader's cache and built-in folders cannot be listed; ask the loader itself.
        Err(missing @ LibraryError::Missing { .. }) => {
            let name = PathBuf::from(format!("{}onnxruntime{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX));
            let builder = match ort::init_from(&name) {
                Err(ort::LoadDynamicError::Dlopen { .. }) => return Err(missing),
                other => other.map_err(|e| load_error(name.clone(), &e))?,
            };
            (name, builder)
        }
        Err(error) => return Err(error),
    };
    let environment = builder
        .with_name("v2l")
        .with_telemetry(false)
        .build()
        .map_err(|e| LibraryError::Unloadable { path: path.clone(), reason: e.to_string() })?;
    // What fails comes back as an error; ONNX Runtime need not print it as well.
    if env::var_os("ORT_LOG").is_none() {
        environment.set_log_level(ort::logging::LogLevel::Fatal);
    }
    *slot = Some((path, environment.clone()));
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

fn load_error(path: PathBuf, error: &ort::LoadDynamicError) -> LibraryError {
    match error {
        ort::LoadDynamicError::BadVersion { version_str, .. } => {
            LibraryError::Version { path, minimum: ORT_MINOR, found: version_str.clone() }
        }
        other => LibraryError::Unloadable { path, reason: other.to_string() },
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical(a) == canonical(b)
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
    fn find_ffmpeg_in_an_explicit_folder_takes_the_binary_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ffmpeg-linux-x86_64-v7.0.2"), b"").unwrap();
        std::fs::write(dir.path().join("readme"), b"").unwrap();
        let found = find_ffmpeg(Some(dir.path())).unwrap();
        assert_eq!(found.path.file_name().unwrap(), "ffmpeg-linux-x86_64-v7.0.2");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn is_onnxruntime_takes_versions_and_no_provider_library() {
        assert!(is_onnxruntime("libonnxruntime.so"));
        assert!(is_onnxruntime("libonnxruntime.so.1.31.1"));
        assert!(!is_onnxruntime("libonnxruntime_providers_shared.so"));
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
        let error = LibraryError::Missing {
            what: "ffmpeg",
            looked: vec!["/a".into(), "$PATH".into()],
            supply: FFMPEG_SUPPLY,
            option: FFMPEG,
            variable: "V2L_FFMPEG",
        };
        // Tests run in a checkout's `target/`.
        let expected = "ffmpeg was not found; looked at /a, $PATH; run `bin/setup`, or install it, for example with `apt install ffmpeg`; \
                        or name yours with `ffmpeg` or V2L_FFMPEG";
        assert_eq!(error.to_string(), expected);
    }
}
