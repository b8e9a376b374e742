//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Bytes held back before they go to the file.
const BUFFER: usize = 1 << 20;

/// A file under construction: written to a temporary sibling of its destination, renamed over it by [`commit`].
///
/// Dropped without a commit, it leaves neither the temporary nor any change to the destination.
///
/// [`commit`]: AtomicFile::commit
#[derive(Debug)]
pub struct AtomicFile {
    out: BufWriter<NamedTempFile>,
    destination: PathBuf,
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
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temporary = builder.tempfile_in(folder_of(destination))?;
        Ok(Self { out: BufWriter::with_capacity(BUFFER, temporary), destination: destination.to_owned() })
    }

    /// Flushes, waits until the bytes are on disk, and renames the temporary over the destination.
    ///
    /// # Errors
    /// If a step fails (a full disk, say); the temporary is then removed and the destination left as it was.
    pub fn commit(self) -> io::Result<()> {
        let temporary = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        temporary.as_file().sync_all()?;
        temporary.persist(&self.destination).map_err(|e| e.error)?;
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

    #[test]
    fn atomic_file_in_a_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(dir.path().join("missing").join("out")).is_err());
    }
}
