//! Where OpenVINO's C library lies.
//!
//! Order: an explicit path, `V2L_OPENVINO_LIB`, next to the executable, for one in a checkout's `target/` that checkout's `vendor/openvino`, a
//! Python environment's package, `LD_LIBRARY_PATH`, the loader's own places. The first two are never passed over. What
//! others could have put where it lies is passed over ([`v2l_search::trusted`]). The current directory is not searched.

use std::env;
use std::path::{Path, PathBuf};

use v2l_search::wording::OPENVINO_LIBRARY;

use crate::library::LibraryError;

/// The environment variable that names a library or the folder of one.
pub const VARIABLE: &str = "V2L_OPENVINO_LIB";
/// The user's own list of folders.
const LIST: &str = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// A library, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is; a bare file name is left to the system's loader.
    pub path: PathBuf,
    /// The option that names it, `V2L_OPENVINO_LIB`, `vendor`, …
    pub from: String,
}

/// The first library there is, and the places that were looked at in vain; the loader's own places come last and hold it or not.
pub(crate) fn find(explicit: Option<&Path>) -> Result<(Found, Vec<String>), LibraryError> {
    let variable = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    for (path, from) in [(explicit.map(Path::to_owned), OPENVINO_LIBRARY.to_string()), (variable, VARIABLE.to_owned())]
    {
        if let Some(path) = path {
            return Ok((named(path, from)?, Vec::new()));
        }
    }
    let mut looked = vec![format!("${VARIABLE} (not set)")];
    for (folder, from) in folders() {
        let Some(path) = inside(&folder) else {
            looked.push(folder.display().to_string());
            continue;
        };
        let usable = if from == LIST { Ok(()) } else { v2l_search::usable(&path) };
        match usable {
            Ok(()) => return Ok((Found { path, from: from.to_owned() }, looked)),
            Err(why) => looked.push(format!("{} (not used: {why})", path.display())),
        }
    }
    looked.push("the loader's own places".into());
    Ok((Found { path: exact().into(), from: "the loader".into() }, looked))
}

/// True for what [`find`] leaves to the loader.
pub(crate) fn is_bare(path: &Path) -> bool {
    path.parent() == Some(Path::new(""))
}

fn named(path: PathBuf, from: String) -> Result<Found, LibraryError> {
    // As a name alone the loader would look for it in its own places.
    let path = std::path::absolute(&path).unwrap_or(path);
    let found = if path.is_dir() { inside(&path) } else { path.is_file().then(|| path.clone()) };
    match found {
        Some(path) => Ok(Found { path, from }),
        None => Err(LibraryError::NotThere { from, path, file: exact() }),
    }
}

fn folders() -> Vec<(PathBuf, &'static str)> {
    let from = |from: &'static str| move |folder| (folder, from);
    let own = v2l_search::executable().into_iter().map(from("next to the executable"));
    let vendored = v2l_search::vendored("vendor/openvino").into_iter().map(from("vendor"));
    let packages = v2l_search::site_packages().into_iter().map(|folder| folder.join("openvino/libs"));
    let packages = packages.filter(|folder| folder.is_dir()).map(from("a Python package"));
    let listed = v2l_search::listed(env::var_os(LIST).as_deref());
    own.chain(vendored).chain(packages).chain(listed.into_iter().map(from(LIST))).collect()
}

/// The library in `folder`: the exact name first, then the last by name; wheels have only the one with a version.
fn inside(folder: &Path) -> Option<PathBuf> {
    let exact = folder.join(exact());
    let versioned = v2l_search::entries(folder, stem()).into_iter().rev();
    let is_library =
        |path: &PathBuf| path.is_file() && path.file_name().is_some_and(|name| is_library(&name.to_string_lossy()));
    Some(exact).into_iter().chain(versioned).find(is_library)
}

/// `libopenvino_c.so`, `libopenvino_c.so.2641`, `libopenvino_c.2641.dylib`, `openvino_c.dll`.
fn is_library(name: &str) -> bool {
    name.strip_prefix(stem()).is_some_and(|rest| {
        rest.starts_with(env::consts::DLL_SUFFIX) || (rest.starts_with('.') && rest.ends_with(env::consts::DLL_SUFFIX))
    })
}

const fn stem() -> &'static str {
    if cfg!(windows) { "openvino_c" } else { "libopenvino_c" }
}

const fn exact() -> &'static str {
    if cfg!(windows) {
        "openvino_c.dll"
    } else if cfg!(target_os = "macos") {
        "libopenvino_c.dylib"
    } else {
        "libopenvino_c.so"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn find_takes_a_named_file_or_the_one_in_a_named_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libopenvino_c.so.2640", "libopenvino_c.so.2641", "libopenvino_c.txt", "libopenvino.so.2641"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let file = folder.path().join("libopenvino_c.so.2641");
        for named in [file.as_path(), folder.path()] {
            let found = find(Some(named)).unwrap().0;
            assert_eq!(found, Found { path: file.clone(), from: OPENVINO_LIBRARY.to_string() });
        }
        let exact = folder.path().join("libopenvino_c.so");
        std::fs::write(&exact, b"").unwrap();
        assert_eq!(find(Some(folder.path())).unwrap().0.path, exact);
    }

    #[test]
    fn find_of_a_path_without_the_library_names_option_path_and_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let message = find(Some(folder.path())).unwrap_err().to_string();
        let start = format!("OpenVINO: openvino.library names {}, where there is no ", folder.path().display());
        assert!(message.starts_with(&start) && message.contains("pip install openvino"), "{message}");
    }
}
