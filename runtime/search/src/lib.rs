//! Where the libraries lie that v2l loads at run time.
//!
//! What is loaded is code, so that a place counts only if nobody else could have put something there: [`trusted`]. The current directory is
//! never searched, nor is a folder above an installed program. What the user names, by a flag or by an environment variable that is a path or
//! a list of paths, is the user's own choice, and is not looked into any further.

mod product;
mod trust;
pub mod wording;

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use product::{FileName, Folder, Found, LIBRARY_PATH, LibraryError, Places, Product, Search};
pub use trust::{Distrust, passed_over, trusted, usable};

/// The executable's folder.
pub fn executable() -> Option<PathBuf> {
    env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned))
}

/// `below` in the checkout of v2l whose `target/` the executable lies in; nothing for an installed one.
pub fn vendored(below: impl AsRef<Path>) -> Option<PathBuf> {
    Some(checkout(&executable()?)?.join(below))
}

/// The checkout that a folder of build results lies in: `target/` lies in it, or, for cargo-fuzz, one folder deeper.
fn checkout(built: &Path) -> Option<&Path> {
    let target = built.ancestors().find(|folder| folder.file_name() == Some(OsStr::new("target")))?;
    let is_checkout = |folder: &&Path| ["Cargo.toml", "bin/setup"].iter().all(|name| folder.join(name).is_file());
    target.ancestors().skip(1).take(2).find(is_checkout)
}

/// `site-packages` of the active Python environment, of the user and of the system, whether or not they exist.
pub fn site_packages() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let roots = active.chain(home).chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let roots = roots.filter(|root| root.is_absolute());
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

    #[test]
    fn checkout_is_found_from_its_target_and_from_no_other_folder() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        std::fs::create_dir(root.join("bin")).unwrap();
        for name in ["Cargo.toml", "bin/setup"] {
            std::fs::write(root.join(name), b"").unwrap();
        }
        for built in ["target/debug", "target/debug/deps", "target/x/release", "fuzz/target/x/release"] {
            assert_eq!(checkout(&root.join(built)), Some(root), "{built}");
        }
        for installed in ["", "bin", "usr/bin", "a/b/target/debug"] {
            assert_eq!(checkout(&root.join(installed)), None, "{installed}");
        }
        std::fs::remove_file(root.join("bin/setup")).unwrap();
        assert_eq!(checkout(&root.join("target/debug")), None);
    }
}
