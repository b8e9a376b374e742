//! Where the libraries lie that v2l loads at run time. The current directory is never among these folders: it may be anybody's.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The executable's folder.
pub fn executable() -> Option<PathBuf> {
    env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned))
}

/// `below` in every folder above the executable, those that exist, and in the checkout that this was built from.
pub fn vendored(below: impl AsRef<Path>) -> Vec<PathBuf> {
    let below = below.as_ref();
    let executable = executable();
    let above = executable.iter().flat_map(|start| start.ancestors()).map(|folder| folder.join(below));
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(|folder| folder.join(below));
    above.filter(|folder| folder.is_dir()).chain(checkout).collect()
}

/// `site-packages` of the active Python environment, of the user and of the system, whether or not they exist.
pub fn site_packages() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let roots = active.chain(home).chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let versions = roots.flat_map(|root| entries(&root.join("lib"), "python3").into_iter().rev());
    versions.flat_map(|version| ["site-packages", "dist-packages"].map(|name| version.join(name))).collect()
}

/// The folders of a list such as `LD_LIBRARY_PATH`; without relative ones, and an empty one, which stand for the current directory.
pub fn listed(list: Option<&OsStr>) -> Vec<PathBuf> {
    list.into_iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute()).collect()
}

/// What lies in a folder under names that begin with `prefix`, by name; nothing if the folder cannot be read.
pub fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok());
    let named = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_leaves_out_what_stands_for_the_current_directory() {
        let list = env::join_paths(["/a", "", "b", ".", "/c/d"]).unwrap();
        assert_eq!(listed(Some(&list)), [Path::new("/a"), Path::new("/c/d")]);
        assert!(listed(None).is_empty());
    }

    #[test]
    fn entries_are_those_of_the_prefix_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["python3.9", "python3.11", "perl"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let expected = ["python3.11", "python3.9"].map(|name| folder.path().join(name));
        assert_eq!(entries(folder.path(), "python3"), expected);
        assert!(entries(Path::new(""), "").is_empty());
    }
}
