//! Where CUDA's libraries lie: those that NVIDIA's Python packages bring need no toolkit.

use std::path::{Path, PathBuf};

use v2l_search::{LIBRARY_PATH, Places};

/// The environment variable that names a folder of CUDA's libraries.
pub const VARIABLE: &str = "V2L_CUDA_LIBS";

const PLACES: Places =
    Places { variables: &[VARIABLE], vendored: "vendor/cuda", package: Some(""), list: LIBRARY_PATH };

/// Every folder that may hold CUDA's libraries, the likeliest first: `explicit` or else [`VARIABLE`], which are never passed over;
/// otherwise those of [`Places::folders`]. In each the folders `nvidia/*/lib` of NVIDIA's packages, too. What others may put something into
/// is passed over ([`v2l_search::trusted`]), but for what the user's own list names.
///
/// What is in none of them the loader looks for in its own places. The current directory is not searched.
pub fn folders(explicit: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = explicit.map(Path::to_owned).or_else(|| Some(PLACES.variable()?.0)) {
        return with_packages(path);
    }
    let usable = |folder: v2l_search::Folder| {
        with_packages(folder.path).into_iter().filter(move |path| folder.listed || is_usable(path))
    };
    PLACES.folders().into_iter().flat_map(usable).collect()
}

/// The first of `names` in the first folder that holds one.
pub fn find(folders: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))).find(|path| path.is_file())
}

/// True if nobody else may write there; a folder without libraries is not worth a word.
fn is_usable(folder: &Path) -> bool {
    let libraries = !v2l_search::entries(folder, "lib").is_empty();
    if libraries { v2l_search::usable(folder).is_ok() } else { v2l_search::trusted(folder).is_ok() }
}

/// The folder, and those of NVIDIA's packages in it, if there are any.
fn with_packages(folder: PathBuf) -> Vec<PathBuf> {
    let mut packages = v2l_search::entries(&folder.join("nvidia"), "");
    packages.iter_mut().for_each(|package| package.push("lib"));
    std::iter::once(folder).chain(packages).filter(|folder| folder.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_named_one_are_it_and_its_packages_only() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::create_dir_all(folder.path().join("nvidia/empty")).unwrap();
        let found = folders(Some(folder.path()));
        assert_eq!(found, [folder.path(), &lib]);
        assert_eq!(find(&found, &["libnvrtc.so.13", "libnvrtc.so.12"]), None);
        std::fs::write(lib.join("libnvrtc.so.12"), b"").unwrap();
        assert_eq!(find(&found, &["libnvrtc.so.13", "libnvrtc.so.12"]), Some(lib.join("libnvrtc.so.12")));
        assert!(folders(Some(Path::new("/nowhere"))).is_empty());
    }
}
