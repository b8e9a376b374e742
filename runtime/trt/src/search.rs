//! Where TensorRT's libraries lie.
//!
//! Order: an explicit path, `V2L_TRT_LIB`, next to the executable, for one in a checkout's `target/` that checkout's `vendor/`, a Python
//! environment's site-packages, `LD_LIBRARY_PATH`, the loader's own places. The first two are never passed over. What others could
//! have put where it lies is passed over ([`v2l_search::trusted`]). The current directory is not searched.

use std::env;
use std::path::{Path, PathBuf};

use v2l_search::wording::TRT_LIBRARY;

use crate::Flavour;

/// The environment variable that names a library or the folder of one.
pub const VARIABLE: &str = "V2L_TRT_LIB";
/// The user's own list of folders.
const LIST: &str = "$LD_LIBRARY_PATH";

/// A library, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is; a bare file name is left to the system's loader.
    pub path: PathBuf,
    /// The option that names it, `V2L_TRT_LIB`, `vendor`, …
    pub from: String,
}

/// An option or variable names something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {from} names {path}, where there is no {file}; correct it, or leave it out and {way_out}")]
pub struct NotThere {
    title: &'static str,
    from: String,
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
    for (path, from) in [(explicit.map(Path::to_owned), TRT_LIBRARY.to_string()), (variable, VARIABLE.to_owned())] {
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
        if !path.is_file() {
            places.looked.push(folder.display().to_string());
            continue;
        }
        let usable = if from == LIST { Ok(()) } else { v2l_search::usable(&path) };
        match usable {
            Ok(()) => places.candidates.push(Found { path, from: from.to_owned() }),
            Err(why) => places.looked.push(format!("{} (not used: {why})", path.display())),
        }
    }
    places.candidates.push(Found { path: file.into(), from: "the loader".into() });
    places.looked.push("the loader's own places".into());
    Ok(places)
}

fn named(flavour: Flavour, path: &Path, from: String) -> Result<Found, NotThere> {
    let file = flavour.files().library;
    let found = if path.is_dir() { path.join(file) } else { path.to_owned() };
    if found.is_file() {
        return Ok(Found { path: found, from });
    }
    let (title, way_out) = (flavour.title(), flavour.way_out());
    Err(NotThere { title, from, path: path.to_owned(), file, way_out })
}

fn folders(package: &str) -> Vec<(PathBuf, &'static str)> {
    let from = |from: &'static str| move |folder| (folder, from);
    let own = v2l_search::executable().into_iter().map(from("next to the executable"));
    let vendored = v2l_search::vendored(Path::new("vendor/tensorrt").join(package)).into_iter().map(from("vendor"));
    let packages = v2l_search::site_packages().into_iter().map(|folder| folder.join(package));
    let packages = packages.filter(|folder| folder.is_dir()).map(from("a Python package"));
    let listed = v2l_search::listed(env::var_os("LD_LIBRARY_PATH").as_deref());
    own.chain(vendored).chain(packages).chain(listed.into_iter().map(from(LIST))).collect()
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
            assert_eq!(places.candidates, [Found { path: file.clone(), from: TRT_LIBRARY.to_string() }]);
        }
    }

    #[test]
    fn find_of_a_path_without_the_library_names_option_path_and_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let message = find(Flavour::TensorRt, Some(folder.path())).unwrap_err().to_string();
        let expected =
            format!("TensorRT: trt.library names {}, where there is no libnvinfer.so.11", folder.path().display());
        assert!(message.starts_with(&expected) && message.contains("install TensorRT 11.4"), "{message}");
    }
}
