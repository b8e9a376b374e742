//! Files and folders that appear whole or not at all, even if the process is interrupted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempPath;

/// Bytes held back before they go to the file.
const BUFFER: usize = 1 << 20;

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Remembers a temporary file or folder for [`remove_unfinished`] until dropped.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Remembers `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        Self(path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes every temporary that is under construction: what an interrupted program calls before it exits.
pub fn remove_unfinished() {
    std::mem::take(&mut *UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)).iter().for_each(|p| remove(p));
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// A file under construction: written to a temporary sibling of its destination, renamed over it by [`commit`].
///
/// Dropped without a commit, it leaves neither the temporary nor any change to the destination.
///
/// [`commit`]: AtomicFile::commit
#[derive(Debug)]
pub struct AtomicFile {
    // Written to directly, so that errors are the system's own and do not name the temporary.
    out: BufWriter<File>,
    temporary: TempPath,
    destination: PathBuf,
    /// Dropped last, so that the temporary is gone or in place before it is forgotten.
    _unfinished: Unfinished,
}

impl AtomicFile {
    /// Starts a file that will be `destination`; its folder must exist.
    ///
    /// # Errors
    /// If the temporary cannot be made next to `destination`.
    pub fn create(destination: impl AsRef<Path>) -> io::Result<Self> {
        let destination = destination.as_ref();
        let name = destination
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "expected a file name, found a folder"))?;
        let folder = folder_of(destination);
        if !folder.is_dir() {
            let message = format!("the folder {} does not exist; create it first", folder.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let (file, temporary) = builder.tempfile_in(folder)?.into_parts();
        let unfinished = Unfinished::new(&*temporary);
        let out = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { out, temporary, destination: destination.to_owned(), _unfinished: unfinished })
    }

    /// The temporary, for a look at what was written; flush before.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes, waits until the bytes are on disk, and renames the temporary over the destination.
    ///
    /// # Errors
    /// If a step fails (a full disk, say); the temporary is then removed and the destination left as it was.
    pub fn commit(self) -> io::Result<()> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.temporary.persist(&self.destination).map_err(|e| e.error)?;
        // The rename itself reaches the disk with the folder; a file system that cannot sync folders loses nothing else.
        if let Ok(folder) = File::open(folder_of(&self.destination)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The folder that holds `path`, `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_file_commit_replaces_the_destination() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn atomic_file_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(dir.path().join("out")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// The list belongs to the whole process, where other tests have files: it is looked at, not emptied.
    #[test]
    fn atomic_file_is_listed_for_removal_only_while_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let listed = || {
            let list = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
            list.iter().filter(|p| p.starts_with(dir.path())).cloned().collect::<Vec<_>>()
        };
        let file = AtomicFile::create(dir.path().join("out")).unwrap();
        let [temporary] = &listed()[..] else { panic!("one temporary is listed") };
        assert!(temporary.is_file());
        remove(temporary);
        assert!(!temporary.exists());
        drop(file);
        assert!(listed().is_empty());
    }

    #[test]
    fn atomic_file_in_a_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(dir.path().join("missing").join("out")).is_err());
    }
}
