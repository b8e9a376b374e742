//! Files and folders that appear whole or not at all, even if the process is interrupted. Everything that v2l writes goes through
//! here.
//!
//! An output goes where its path leads: symbolic links are followed. What is no regular file there, such as a pipe, a device or
//! `/dev/stdout`, is written to, never replaced.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::interrupt::{self, Unfinished};

mod folder;
mod target;

pub use folder::{AtomicFolder, FileSet};
use target::{Target, folder_of};
pub use target::{is_special, is_stdout};

/// Bytes held back before they go to the file.
const BUFFER: usize = 1 << 20;
/// Bytes of an output's name that its temporary's name has, too: names have an end.
const PREFIX: usize = 64;

/// A file under construction, put in its place by [`commit`].
///
/// Where there is nothing yet, or a regular file, it is written to a temporary sibling and renamed; the mode of an earlier file is
/// kept, a new one has the process's. What is no regular file gets the bytes at the end, from a temporary in the system's folder
/// for them. Dropped without a commit, it leaves neither the temporary nor any change to the destination.
///
/// [`commit`]: AtomicFile::commit
#[derive(Debug)]
pub struct AtomicFile {
    // Written to directly, so that errors are the system's own and do not name the temporary.
    out: BufWriter<File>,
    temporary: Unfinished<NamedTempFile>,
    target: Target,
}

impl AtomicFile {
    /// Starts a file that will be `destination`; its folder must exist.
    ///
    /// # Errors
    /// If `destination` is a folder or cannot be written to, or the temporary cannot be made.
    pub fn create(destination: impl AsRef<Path>) -> io::Result<Self> {
        Self::with_mode(destination.as_ref(), 0o666)
    }

    /// Starts a file as [`create`](Self::create) does, to which a new one's user alone may write.
    pub(crate) fn create_private(destination: &Path) -> io::Result<Self> {
        Self::with_mode(destination, 0o644)
    }

    /// Starts a file. A new one has what the process's mask leaves of `mode`.
    fn with_mode(destination: &Path, mode: u32) -> io::Result<Self> {
        let target = Target::of_file(destination)?;
        let folder = match &target {
            Target::Replaced(path) => folder_of(path).to_owned(),
            Target::Through(sink) => {
                sink.check()?;
                std::env::temp_dir()
            }
        };
        let prefix = prefix(destination.file_name().unwrap_or_default());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        #[cfg(unix)]
        if matches!(target, Target::Replaced(_)) {
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
        }
        #[cfg(not(unix))]
        let _ = mode;
        let temporary = Unfinished::temporary(|| builder.tempfile_in(folder))?;
        let out = BufWriter::with_capacity(BUFFER, temporary.as_file().try_clone()?);
        Ok(Self { out, temporary, target })
    }

    /// The temporary, for a look at what was written; flush before.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Flushes, waits until the bytes are on disk, and puts the file in its place.
    ///
    /// # Errors
    /// If a step fails (a full disk, say), or the program was interrupted; the temporary is then removed. What is a regular file, or nothing, stays as it was.
    pub fn commit(self) -> io::Result<()> {
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let destination = match self.target {
            Target::Through(sink) => {
                interrupt::check()?;
                file.rewind()?;
                return sink.write(&mut file);
            }
            Target::Replaced(destination) => destination,
        };
        if let Ok(earlier) = std::fs::metadata(&destination) {
            file.set_permissions(earlier.permissions())?;
        }
        file.sync_all()?;
        self.temporary.place(|temporary| temporary.persist(&destination).map_err(|e| e.error))?;
        sync_folder(folder_of(&destination));
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        interrupt::check()?;
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a file as [`AtomicFile`] does.
///
/// # Errors
/// Those of [`AtomicFile`].
pub fn write_file(destination: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(destination)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Finds out whether [`AtomicFile::create`] could begin `destination`, and changes nothing.
///
/// # Errors
/// As [`AtomicFile::create`].
pub fn probe_file(destination: &Path) -> io::Result<()> {
    AtomicFile::create(destination).map(drop)
}

/// The start of a temporary's name: hidden, and the output's own for people who find it.
fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        prefix.push(OsStr::from_bytes(&name.as_bytes()[..name.len().min(PREFIX)]));
    }
    #[cfg(not(unix))]
    prefix.push(name.to_string_lossy().chars().take(PREFIX).collect::<String>());
    prefix.push(".");
    prefix
}

/// A rename reaches the disk with its folder; a file system that cannot sync folders loses nothing else.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests;
