//! Where CUDA's libraries lie: those that NVIDIA's Python packages bring need no toolkit.

use std::env;
use std::path::{Path, PathBuf};

/// The environment variable that names a folder of CUDA's libraries.
pub const VARIABLE: &str = "V2L_CUDA_LIBS";

/// Every folder that may hold CUDA's libraries, the likeliest first: `explicit` or else [`VARIABLE`], which are never passed over;
/// otherwise next to the executable, `vendor/cuda` in a folder above it or in the checkout that it was built from, the
/// site-packages of a Python environment, `LD_LIBRARY_PATH`. In each the folders `nvidia/*/lib` of NVIDIA's packages, too.
///
/// What is in none of them the loader looks for in its own places. The current directory is not searched.
pub fn folders(explicit: Option<&Path>) -> Vec<PathBuf> {
    let variable = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = explicit.map(Path::to_owned).or(variable) {
        return with_packages(path);
    }
    let executable = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let above = executable.iter().flat_map(|start| start.ancestors()).map(|folder| folder.join("vendor/cuda"));
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(|folder| folder.join("vendor/cuda"));
    let listed = env::var_os("LD_LIBRARY_PATH");
    let listed: Vec<PathBuf> = listed.iter().flat_map(env::split_paths).filter(|path| path.is_absolute()).collect();
    let all = executable.iter().cloned().chain(above).chain(checkout).chain(site_packages()).chain(listed);
    all.flat_map(with_packages).collect()
}

/// The first of `names` in the first folder that holds one.
pub fn find(folders: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))).find(|path| path.is_file())
}

/// The folder, and those of NVIDIA's packages in it, if there are any.
fn with_packages(folder: PathBuf) -> Vec<PathBuf> {
    let mut packages = entries(&folder.join("nvidia"), "");
    packages.iter_mut().for_each(|package| package.push("lib"));
    std::iter::once(folder).chain(packages).filter(|folder| folder.is_dir()).collect()
}

/// What lies in a folder under names that begin with `prefix`, by name; nothing for a folder without a path.
pub(crate) fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok());
    let named = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// `site-packages` of the active environment, of the user and of the system.
fn site_packages() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let roots = active.chain(home).chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let versions = roots.flat_map(|root| entries(&root.join("lib"), "python3").into_iter().rev());
    versions.flat_map(|version| ["site-packages", "dist-packages"].map(|name| version.join(name))).collect()
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
