//! Where TensorRT's libraries lie.
//!
//! Order: an explicit path, `V2L_TRT_LIB`, next to the executable, `vendor/` in a folder above it or in the checkout that it was
//! built from, a Python environment's site-packages, `LD_LIBRARY_PATH`, the loader's own places. The first two are never passed
//! over. The current directory is not searched.

use std::env;
use std::path::{Path, PathBuf};

use crate::Flavour;

/// The environment variable that names a library or the folder of one.
pub const VARIABLE: &str = "V2L_TRT_LIB";
/// The command-line flag that does.
pub const FLAG: &str = "--trt-lib";

/// A library, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is; a bare file name is left to the system's loader.
    pub path: PathBuf,
    /// `--trt-lib`, `V2L_TRT_LIB`, `vendor`, …
    pub from: String,
}

/// A flag or variable names something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {from} names {path}, where there is no {file}; correct it, or leave it out and {way_out}")]
pub struct NotThere {
    title: &'static str,
    from: &'static str,
    path: PathBuf,
    file: &'static str,
    way_out: &'static str,
}

/// Every place that may hold the library, the likeliest first, and what was looked at in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Files that exist, and last the bare name for the loader.
    pub candidates: Vec<Found>,
    /// Folders without one.
    pub looked: Vec<String>,
}

/// Looks for a flavour's library. `explicit` is a file, or a folder that holds one.
///
/// # Errors
/// [`NotThere`], for `explicit` and [`VARIABLE`].
pub fn find(flavour: Flavour, explicit: Option<&Path>) -> Result<Places, NotThere> {
    let variable = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    for (path, from) in [(explicit.map(Path::to_owned), FLAG), (variable, VARIABLE)] {
        if let Some(path) = path {
            let found = named(flavour, &path, from)?;
            return Ok(Places { candidates: vec![found], looked: Vec::new() });
        }
    }
    let file = flavour.files().library;
    let mut places = Places::default();
    places.looked.push(format!("${VARIABLE} (not set)"));
    for (folder, from) in folders(flavour.files().package) {
        let path = folder.join(file);
        if path.is_file() {
            places.candidates.push(Found { path, from });
        } else {
            places.looked.push(folder.display().to_string());
        }
    }
    places.candidates.push(Found { path: file.into(), from: "the loader".into() });
    places.looked.push("the loader's own places".into());
    Ok(places)
}

fn named(flavour: Flavour, path: &Path, from: &'static str) -> Result<Found, NotThere> {
    let file = flavour.files().library;
    let found = if path.is_dir() { path.join(file) } else { path.to_owned() };
    if found.is_file() {
        return Ok(Found { path: found, from: from.to_owned() });
    }
    let (title, way_out) = (flavour.title(), flavour.way_out());
    Err(NotThere { title, from, path: path.to_owned(), file, way_out })
}

fn folders(package: &str) -> Vec<(PathBuf, String)> {
    let vendored = Path::new("vendor/tensorrt").join(package);
    let executable = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let mut folders = Vec::new();
    if let Some(start) = &executable {
        folders.push((start.clone(), "next to the executable".to_owned()));
        let above = start.ancestors().map(|folder| folder.join(&vendored)).filter(|folder| folder.is_dir());
        folders.extend(above.map(|folder| (folder, "vendor".to_owned())));
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    folders.extend(checkout.map(|folder| (folder.join(&vendored), "vendor".to_owned())));
    let packages = site_packages().into_iter().map(|folder| folder.join(package)).filter(|folder| folder.is_dir());
    folders.extend(packages.map(|folder| (folder, "a Python package".to_owned())));
    if let Some(list) = env::var_os("LD_LIBRARY_PATH") {
        folders.extend(env::split_paths(&list).map(|folder| (folder, "$LD_LIBRARY_PATH".to_owned())));
    }
    folders
}

/// `site-packages` of the active environment, of the user and of the system.
fn site_packages() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let roots = active.chain(home).chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let mut found = Vec::new();
    for lib in roots.map(|root| root.join("lib")) {
        let entries = std::fs::read_dir(&lib).into_iter().flatten().filter_map(|entry| entry.ok());
        let mut versions: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .map(|entry| entry.path())
            .collect();
        versions.sort();
        let both = |version: PathBuf| ["site-packages", "dist-packages"].map(|name| version.join(name));
        found.extend(versions.into_iter().rev().flat_map(both));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_takes_a_named_file_or_the_one_in_a_named_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtensorrt_rtx.so.1");
        std::fs::write(&file, b"").unwrap();
        for named in [file.as_path(), folder.path()] {
            let places = find(Flavour::Rtx, Some(named)).unwrap();
            assert_eq!(places.candidates, [Found { path: file.clone(), from: FLAG.into() }]);
        }
    }

    #[test]
    fn find_of_a_path_without_the_library_names_flag_path_and_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let message = find(Flavour::TensorRt, Some(folder.path())).unwrap_err().to_string();
        let expected =
            format!("TensorRT: --trt-lib names {}, where there is no libnvinfer.so.11", folder.path().display());
        assert!(message.starts_with(&expected) && message.contains("install TensorRT 11.4"), "{message}");
    }
}
