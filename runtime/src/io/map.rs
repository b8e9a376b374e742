//! Files as bytes: read-only memory maps, so that pristine weights are read from the page cache and never copied, and small files
//! that are read whole, none of them without an end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::Unusable;
use crate::io::detect::{self, OtherKind};

/// Maps `path` read-only. Clones and slices of the result share the map, which lives as long as the last of them.
///
/// Costs no private memory; pages are read when they are touched. An empty file gives empty bytes.
/// The file must not be truncated or rewritten while it is mapped: v2l itself always writes a sibling and renames it.
///
/// # Errors
/// As [`File::open`]; a directory, a pipe or a device, or a file that the system cannot map, is an error too.
pub fn map_file(path: impl AsRef<Path>) -> io::Result<Bytes> {
    let path = path.as_ref();
    // Looked at by name: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "expected a file, found a directory"));
    }
    if !metadata.is_file() {
        let message = "expected a file that can be read in place, found a pipe or a device; write it to a file first";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    map_opened(&File::open(path)?)
}

/// [`map_file`] of a regular file that is open.
///
/// # Errors
/// As there.
pub(crate) fn map_opened(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process. Everything that v2l writes goes to a new file that is
    // renamed over the old one, which leaves the mapped inode alone; the caller is told that others must do the same.
    #[allow(unsafe_code, reason = "a memory map")]
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

/// Reads a file of at most `limit` bytes; it may be a pipe.
///
/// # Errors
/// As [`File::open`], and [`Unusable`] for one that has more bytes, which are not read, or that stands for another file, such as a
/// pointer of Git LFS.
pub fn read_file(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Unusable(format!("more than {limit} bytes, the most that a file of this kind may have")).into());
    }
    match detect::stand_in(&bytes) {
        Some(found) => Err(Unusable(found.to_string()).into()),
        None => Ok(bytes),
    }
}

/// [`read_file`] of a file that v2l finds by its name in a folder, where a pipe or a device would wait for ever or never end.
///
/// # Errors
/// Those of [`read_file`], and [`Unusable`] for what is no regular file.
pub fn read_member(path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(Unusable("expected a file, found a pipe or a device".to_owned()).into());
    }
    read_file(path, limit)
}

/// [`read_file`] for text.
///
/// # Errors
/// Those of [`read_file`], and [`Unusable`] if it is not UTF-8.
pub fn read_text(path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
    let bytes = read_file(path, limit)?;
    String::from_utf8(bytes).map_err(|_| Unusable("expected text in UTF-8, found other bytes".to_owned()).into())
}

/// [`map_file`] for a file that `kind` may know as one of another format by how it begins.
///
/// # Errors
/// Those of [`map_file`], and [`Unusable`] with what the file is.
pub fn map_known(path: impl AsRef<Path>, kind: impl Fn(&[u8]) -> Option<OtherKind>) -> io::Result<Bytes> {
    let bytes = map_file(path)?;
    match kind(&bytes[..bytes.len().min(detect::START)]) {
        Some(found) => Err(Unusable(found.to_string()).into()),
        None => Ok(bytes),
    }
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
    fn read_file_stops_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read_file(&path, 10).unwrap(), b"0123456789");
        let error = read_file(&path, 9).unwrap_err();
        assert!(error.get_ref().is_some_and(|e| e.is::<Unusable>()), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn files_without_an_end_are_refused() {
        assert!(map_file("/dev/zero").unwrap_err().to_string().contains("a device"));
        assert!(read_file("/dev/zero", 1 << 20).unwrap_err().to_string().contains("more than 1048576 bytes"));
        assert!(read_text("/dev/zero", 1 << 20).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn member_that_is_a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipeline.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read_member(&pipe, 10).unwrap_err().to_string().contains("found a pipe"));
        assert!(map_file(&pipe).unwrap_err().to_string().contains("found a pipe"));
        std::fs::write(dir.path().join("file"), b"text").unwrap();
        assert_eq!(read_member(dir.path().join("file"), 10).unwrap(), b"text");
    }

    #[test]
    fn map_file_of_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(map_file(dir.path()).is_err());
    }
}
