//! Folders for files that ONNX Runtime insists on.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::OrtError;
use crate::interrupt::Unfinished;

/// A temporary folder under a name that is text, since ONNX Runtime takes no other.
#[derive(Debug)]
pub(super) struct Scratch {
    name: String,
    _folder: Unfinished<TempDir>,
    /// What the name leads through, if the folder's own is no text.
    _open: Option<std::fs::File>,
}

impl Scratch {
    /// A folder with these empty files.
    pub(super) fn new(files: &[&str]) -> Result<Self, OrtError> {
        Self::below(&std::env::temp_dir(), files).map_err(|source| OrtError::Placeholder { source })
    }

    fn below(parent: &Path, files: &[&str]) -> std::io::Result<Self> {
        let folder = Unfinished::temporary(|| {
            let folder = tempfile::Builder::new().prefix("v2l-").tempdir_in(parent)?;
            files.iter().try_for_each(|file| std::fs::File::create(folder.path().join(file)).map(drop))?;
            Ok(folder)
        })?;
        let (name, open) = match folder.path().to_str() {
            Some(name) => (name.to_owned(), None),
            None => through_descriptor(folder.path()).map(|(name, open)| (name, Some(open)))?,
        };
        Ok(Self { name, _folder: folder, _open: open })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn join(&self, file: &str) -> PathBuf {
        Path::new(&self.name).join(file)
    }
}

/// A name for a folder by way of a descriptor, valid as long as that is open.
#[cfg(target_os = "linux")]
fn through_descriptor(folder: &Path) -> std::io::Result<(String, std::fs::File)> {
    use std::os::fd::AsRawFd;
    let open = std::fs::File::open(folder)?;
    Ok((format!("/proc/self/fd/{}", open.as_raw_fd()), open))
}

#[cfg(not(target_os = "linux"))]
fn through_descriptor(folder: &Path) -> std::io::Result<(String, std::fs::File)> {
    let message = format!("{} is no Unicode; set TMPDIR to a folder whose name is", folder.display());
    Err(std::io::Error::other(message))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn folder_has_a_name_in_text_wherever_it_is_and_goes_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let odd = parent.path().join(OsStr::from_bytes(b"\xff\xfe"));
        std::fs::create_dir(&odd).unwrap();
        for folder in [parent.path(), &odd] {
            let scratch = Scratch::below(folder, &["empty"]).unwrap();
            assert_eq!(std::fs::read(scratch.join("empty")).unwrap(), b"", "{}", scratch.name());
            let made = folder
                .read_dir()
                .unwrap()
                .filter(|entry| entry.as_ref().unwrap().file_name().as_bytes().starts_with(b"v2l-"));
            assert_eq!(made.count(), 1);
            drop(scratch);
        }
        assert_eq!(odd.read_dir().unwrap().count(), 0);
        assert_eq!(parent.path().read_dir().unwrap().count(), 1, "the odd folder, and nothing else");
    }
}
