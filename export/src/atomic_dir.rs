//! Folders that appear whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use v2l_runtime::atomic::Unfinished;
use v2l_runtime::pipeline::config::FILE_NAME;

use crate::ExportError;

/// A folder under construction beside its destination. Dropped without [`AtomicDir::commit`], it leaves nothing.
pub(crate) struct AtomicDir {
    temporary: TempDir,
    _unfinished: Unfinished,
    destination: PathBuf,
    // Dropped after `temporary`, so that they are empty.
    _parents: Parents,
}

/// Folders made on the way to the destination, innermost first. Those that are empty when this is dropped go again.
struct Parents(Vec<PathBuf>);

impl Parents {
    fn create(folder: &Path) -> io::Result<Self> {
        let missing = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists());
        let parents = Self(missing.map(Path::to_owned).collect());
        std::fs::create_dir_all(folder)?;
        Ok(parents)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        // One that holds the destination is not empty and stays.
        let _ = self.0.iter().try_for_each(std::fs::remove_dir);
    }
}

impl AtomicDir {
    /// Starts a folder that will be `destination`, which must not exist, be empty, or hold an earlier bundle or engine
    /// directory.
    pub(crate) fn create(destination: &Path) -> Result<Self, ExportError> {
        let fail = ExportError::io(destination);
        let destination = match destination.components().next_back() {
            Some(std::path::Component::Normal(_)) => destination.to_owned(),
            _ => return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "expected the path of a new folder"))),
        };
        let occupied = destination.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if destination.is_file() || (occupied && !destination.join(FILE_NAME).is_file()) {
            return Err(ExportError::Occupied {
                path: destination,
                reason: format!("it exists and is no bundle or engine directory (there is no {FILE_NAME})"),
            });
        }
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let parents = Parents::create(&parent).map_err(ExportError::io(&parent))?;
        let name = destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".partial")
            .tempdir_in(&parent)
            .map_err(ExportError::io(&parent))?;
        let unfinished = Unfinished::new(temporary.path());
        Ok(Self { temporary, _unfinished: unfinished, destination, _parents: parents })
    }

    /// Where to write meanwhile.
    pub(crate) fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Moves the folder to its destination, in place of an earlier one.
    pub(crate) fn commit(self) -> Result<(), ExportError> {
        let destination = self.destination;
        let fail = |e: io::Error| ExportError::Io { path: destination.clone(), source: e };
        #[cfg(unix)]
        std::fs::set_permissions(self.temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(fail)?;
        // The earlier folder is moved aside first and only removed once the new one is in place.
        let aside = self.temporary.path().with_extension("replaced");
        let replaced = destination.exists();
        if replaced {
            std::fs::rename(&destination, &aside).map_err(fail)?;
        }
        if let Err(e) = std::fs::rename(self.temporary.path(), &destination) {
            if replaced {
                let _ = std::fs::rename(&aside, &destination);
            }
            return Err(fail(e));
        }
        let _ = self.temporary.keep();
        if replaced {
            std::fs::remove_dir_all(&aside).map_err(fail)?;
        }
        Ok(())
    }
}
