//! Entries of cache folders, which are read only where nobody but this user, or root, could have written them.
//!
//! A folder that others share may hold anything under an entry's name: a pipe, whose opening waits for its other end, a link, or a
//! file that another user changes while it is mapped. Such an entry is passed over with its reason, and made again in its place.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;

use super::atomic::AtomicFile;
use super::map::map_opened;

/// Opens an entry; `None` if there is none. Never waits for another process.
///
/// # Errors
/// The system's, and why an entry, or the folder that it lies in, is not to be trusted.
pub(crate) fn open_own(path: &Path) -> io::Result<Option<File>> {
    let opened = open_at_once(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            // The system's word for a link that is not followed is about too many of them.
            let link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            return Err(if link { passed_over(path, "it is a link") } else { error });
        }
        Ok(file) => file,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(passed_over(path, "it is a folder, a pipe or a device"));
    }
    check_folder(path)?;
    match distrusted(&metadata) {
        None => Ok(Some(file)),
        Some(reason) => Err(passed_over(path, &reason)),
    }
}

/// An entry of [`open_own`] and its bytes, mapped.
///
/// # Errors
/// As there.
pub(crate) fn map_own(path: &Path) -> io::Result<Option<(File, Bytes)>> {
    let Some(file) = open_own(path)? else { return Ok(None) };
    let bytes = map_opened(&file)?;
    Ok(Some((file, bytes)))
}

/// Makes way for an entry that is to be written, and its folder, for this user alone, if need be. What
/// [`open_own`] passes over is removed: a pipe would be written to, a link followed, and the mode of a file kept.
///
/// # Errors
/// The system's, and why nothing is kept in this folder.
fn make_way(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_private(folder)?;
    }
    check_folder(path)?;
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() || distrusted(&metadata).is_some() => std::fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Begins an entry, which nobody else may write to, whatever the process's mask.
///
/// # Errors
/// As [`make_way`] and [`AtomicFile::create`].
pub(crate) fn create_own(path: &Path) -> io::Result<AtomicFile> {
    make_way(path)?;
    AtomicFile::create_private(path)
}

/// Writes an entry as [`create_own`] does.
///
/// # Errors
/// As [`create_own`], and the system's.
pub(crate) fn write_own(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_own(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Makes a folder, and those that it lies in, for this user alone. One that is there stays as it is.
///
/// # Errors
/// The system's.
pub(crate) fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Makes a folder for caches if need be, for this user alone, and refuses one that others may write to.
///
/// # Errors
/// The system's, and why nothing is kept in this folder.
pub fn open_folder(folder: &Path) -> io::Result<()> {
    create_private(folder)?;
    check_own(folder)
}

fn passed_over(path: &Path, reason: &str) -> io::Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    io::Error::other(format!("{name} is passed over: {reason}"))
}

/// Nobody else may put entries into the folder of this one.
fn check_folder(path: &Path) -> io::Result<()> {
    check_own(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn check_own(folder: &Path) -> io::Result<()> {
    if is_writable_by_others(&folder.metadata()?) {
        let message = "others may write to this folder; take that from them (`chmod go-w`), or name another folder";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

#[cfg(unix)]
fn open_at_once(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

#[cfg(not(unix))]
fn open_at_once(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Why a file could be somebody else's work.
#[cfg(unix)]
fn distrusted(metadata: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != user {
        return Some(format!("it belongs to user {owner}, who is neither you nor root"));
    }
    is_writable_by_others(metadata).then(|| "others may write to it".to_owned())
}

#[cfg(not(unix))]
fn distrusted(_: &Metadata) -> Option<String> {
    None
}

/// A group counts as others unless it is root's or bears its owner's number, as groups of one user do.
#[cfg(unix)]
fn is_writable_by_others(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let private = metadata.gid() == 0 || metadata.gid() == metadata.uid();
    metadata.mode() & 0o002 != 0 || metadata.mode() & 0o020 != 0 && !private
}

#[cfg(not(unix))]
fn is_writable_by_others(_: &Metadata) -> bool {
    false
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn refused(path: &Path) -> String {
        open_own(path).unwrap_err().to_string()
    }

    #[test]
    fn entry_is_opened_if_it_is_a_file_of_ones_own_and_else_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(open_own(&at("nothing")).unwrap().is_none());
        std::fs::write(at("own"), b"0123").unwrap();
        assert_eq!(&map_own(&at("own")).unwrap().unwrap().1[..], b"0123");

        let pipe = at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        symlink(at("own"), at("link")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        for (name, reason) in [("pipe", "a pipe"), ("link", "a link"), ("folder", "a folder")] {
            assert!(refused(&at(name)).contains(reason), "{}", refused(&at(name)));
        }
        std::fs::set_permissions(at("own"), Permissions::from_mode(0o666)).unwrap();
        assert!(refused(&at("own")).contains("others may write to it"));
        std::fs::set_permissions(at("own"), Permissions::from_mode(0o644)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(at("own"), Some(12345), None).unwrap();
            assert!(refused(&at("own")).contains("belongs to user 12345"), "{}", refused(&at("own")));
            std::os::unix::fs::chown(at("own"), Some(0), None).unwrap();
        }

        // What is passed over goes; a folder, whatever it holds, stays.
        std::fs::write(at("open"), b"0123").unwrap();
        std::fs::set_permissions(at("open"), Permissions::from_mode(0o666)).unwrap();
        for name in ["pipe", "link", "open"] {
            make_way(&at(name)).unwrap();
            assert!(at(name).symlink_metadata().is_err(), "{name}");
        }
        assert!(make_way(&at("folder")).is_err() && at("folder").is_dir() && at("own").is_file());
        make_way(&at("new/folder/entry")).unwrap();
        for name in ["new", "new/folder"] {
            assert_eq!(at(name).metadata().unwrap().permissions().mode() & 0o777, 0o700, "{name}");
        }
        write_own(&at("new/folder/entry"), b"0123").unwrap();
        assert_eq!(at("new/folder/entry").metadata().unwrap().permissions().mode() & 0o022, 0);
        assert_eq!(&map_own(&at("new/folder/entry")).unwrap().unwrap().1[..], b"0123");

        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(refused(&at("own")).contains("others may write to this folder"));
        assert!(make_way(&at("own")).unwrap_err().to_string().contains("others may write to this folder"));
    }
}
