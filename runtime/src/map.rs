//! Read-only memory maps of files: pristine weights are read from the page cache, never copied.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps `path` read-only. Clones and slices of the result share the map, which lives as long as the last of them.
///
/// Costs no private memory; pages are read when they are touched. An empty file gives empty bytes.
/// The file must not be truncated or rewritten while it is mapped: v2l itself always writes a sibling and renames it.
///
/// # Errors
/// As [`File::open`]; a directory, or a file that the system cannot map, is an error too.
pub fn map_file(path: impl AsRef<Path>) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, found a directory"));
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process. Everything that v2l writes goes to a new file that is
    // renamed over the old one, which leaves the mapped inode alone; the caller is told that others must do the same.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_file_of_an_empty_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert!(map_file(&path).unwrap().is_empty());
    }

    #[test]
    fn map_file_slices_outlive_the_first_handle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"0123456789").unwrap();
        let slice = map_file(&path).unwrap().slice(3..5);
        assert_eq!(&slice[..], b"34");
    }

    #[test]
    fn map_file_of_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(map_file(dir.path()).is_err());
    }
}
