//! Folders that appear whole or not at all, and sets of files that replace earlier ones together.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::target::{Kind, Place, folder_of};
use super::{prefix, sync_folder};
use crate::interrupt::{MadeFolders, Unfinished};

/// A folder under construction beside its destination. Dropped without [`AtomicFolder::commit`], it leaves nothing.
pub struct AtomicFolder {
    temporary: Unfinished<TempDir>,
    destination: PathBuf,
    // Dropped after `temporary`, so that they are empty.
    _parents: Unfinished<MadeFolders>,
}

impl AtomicFolder {
    /// Starts a folder that will be `destination`; folders above it that are missing are made, and go again if it is dropped.
    /// Symbolic links are followed. What is there already is replaced; whether it may be is for the caller to say.
    ///
    /// # Errors
    /// If there is something that is no folder, or the temporary cannot be made.
    pub fn create(destination: &Path) -> io::Result<Self> {
        let named = destination.components().next_back();
        if !matches!(named, Some(std::path::Component::Normal(_))) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected the path of a new folder"));
        }
        let parents = MadeFolders::create(folder_of(destination))?;
        let place = Place::of(destination)?;
        if !matches!(place.kind, Kind::Nothing | Kind::Folder) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "there is something that is not a folder"));
        }
        let temporary = temporary_in(folder_of(&place.path), place.path.file_name().unwrap_or_default())?;
        Ok(Self { temporary, destination: place.path, _parents: parents })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes one file of it, in folders of their own if `name` has them, and waits until the bytes are on disk.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let path = self.temporary.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Moves the folder to its destination, in place of an earlier one.
    ///
    /// # Errors
    /// The system's; an earlier folder is then where it was.
    pub fn commit(self) -> io::Result<()> {
        let Self { temporary, destination, _parents } = self;
        temporary.place(|temporary| replace(temporary, &destination))?;
        sync_folder(folder_of(&destination));
        Ok(())
    }
}

fn replace(temporary: TempDir, destination: &Path) -> io::Result<()> {
    // The earlier folder is moved aside first and only removed once the new one is in place.
    let aside = temporary.path().with_extension("replaced");
    let replaced = destination.exists();
    if replaced {
        std::fs::rename(destination, &aside)?;
    }
    if let Err(e) = std::fs::rename(temporary.path(), destination) {
        if replaced {
            let _ = std::fs::rename(&aside, destination);
        }
        return Err(e);
    }
    let _ = temporary.keep();
    if replaced { std::fs::remove_dir_all(&aside) } else { Ok(()) }
}

/// Files under construction for a folder, which appear in it together and replace earlier ones. Dropped without
/// [`FileSet::commit`], it leaves the folder as it was, or no folder if there was none.
pub struct FileSet {
    temporary: Unfinished<TempDir>,
    folder: PathBuf,
    // Dropped after `temporary`, so that they are empty.
    _parents: Unfinished<MadeFolders>,
}

impl FileSet {
    /// Starts files that will be in `folder`, which is made if need be.
    ///
    /// # Errors
    /// If there can be no such folder, or it cannot be written to.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let parents = MadeFolders::create(folder)?;
        let folder = folder.canonicalize()?;
        let temporary = temporary_in(&folder, OsStr::new("v2l"))?;
        Ok(Self { temporary, folder, _parents: parents })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Moves `names` into the folder. Files there whose names `replaced` takes leave it, so that no earlier set is mixed with this
    /// one; folders and all else stay.
    ///
    /// # Errors
    /// The system's; the folder is then as it was.
    pub fn commit(self, names: &[String], replaced: impl Fn(&OsStr) -> bool) -> io::Result<()> {
        let mut earlier = Vec::new();
        for entry in self.folder.read_dir()? {
            let entry = entry?;
            let name = entry.file_name();
            if !entry.file_type()?.is_dir() && (replaced(&name) || names.iter().any(|new| name == **new)) {
                earlier.push(name);
            }
        }
        let aside = self.temporary.path().join("replaced");
        std::fs::create_dir(&aside)?;
        let out = earlier.iter().map(|name| (self.folder.join(name), aside.join(name)));
        let into = names.iter().map(|name| (self.temporary.path().join(name), self.folder.join(name)));
        let moves: Vec<(PathBuf, PathBuf)> = out.chain(into).collect();
        // The earlier files go with the temporary folder that they were moved to.
        self.temporary.place(|_temporary| rename_all(&moves))?;
        sync_folder(&self.folder);
        Ok(())
    }
}

/// Renames all, or none.
fn rename_all(moves: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    for (done, (from, to)) in moves.iter().enumerate() {
        if let Err(error) = std::fs::rename(from, to) {
            for (from, to) in moves[..done].iter().rev() {
                let _ = std::fs::rename(to, from);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// A temporary folder with the mode of new ones of this process.
fn temporary_in(folder: &Path, name: &OsStr) -> io::Result<Unfinished<TempDir>> {
    let prefix = prefix(name);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    Unfinished::temporary(|| builder.tempdir_in(folder))
}
