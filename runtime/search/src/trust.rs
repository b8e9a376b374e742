//! Who could have put a file where it lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why nothing is loaded from a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// Others may put something there.
    #[error("others may write to {}", .at.display())]
    Writable {
        /// The folder or file.
        at: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, who is neither you nor root", .at.display())]
    Owner {
        /// The folder or file.
        at: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// Nobody can say.
    #[error("{} cannot be looked at: {reason}", .at.display())]
    Unreadable {
        /// The folder or file.
        at: PathBuf,
        /// The system's words.
        reason: String,
    },
}

/// What was found, and why it was not used.
static PASSED_OVER: Mutex<BTreeMap<PathBuf, Distrust>> = Mutex::new(BTreeMap::new());

/// What [`usable`] refused in this process since the last call, by path.
pub fn passed_over() -> Vec<(PathBuf, Distrust)> {
    let mut refused = PASSED_OVER.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *refused).into_iter().collect()
}

/// As [`trusted`], for what was found and would be used; what is refused is kept for [`passed_over`].
///
/// # Errors
/// As [`trusted`].
pub fn usable(path: &Path) -> Result<(), Distrust> {
    trusted(path).inspect_err(|why| {
        PASSED_OVER.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), why.clone());
    })
}

/// Checks that only the user and root could have put a file or folder where it lies: it, and every folder and link on the way there, belongs to
/// one of them, and no one else may write to it. A group may if it is root's or bears its owner's number, as groups of one user do. A
/// folder on the way that anybody may write to will do if its sticky bit keeps others from replacing what lies there, as in `/tmp`;
/// the last one, which libraries find each other in, will not.
///
/// # Errors
/// [`Distrust`] of the first place that fails.
#[cfg(unix)]
pub fn trusted(path: &Path) -> Result<(), Distrust> {
    use std::os::unix::fs::MetadataExt;
    let ways = walk(path)?;
    let user = rustix::process::geteuid().as_raw();
    let is_file = ways.last().is_some_and(|(_, last)| last.is_file());
    let strict_from = ways.len().saturating_sub(if is_file { 2 } else { 1 });
    for (index, (at, metadata)) in ways.iter().enumerate() {
        let (owner, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode());
        if owner != 0 && owner != user {
            return Err(Distrust::Owner { at: at.clone(), owner });
        }
        let private = group == 0 || group == owner;
        let open = mode & 0o002 != 0 || (mode & 0o020 != 0 && !private);
        let sticky = mode & 0o1000 != 0 && index < strict_from;
        // A link's own mode says nothing.
        if open && !sticky && !metadata.is_symlink() {
            return Err(Distrust::Writable { at: at.clone() });
        }
    }
    Ok(())
}

/// Checks nothing where files have no such owners.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn trusted(_path: &Path) -> Result<(), Distrust> {
    Ok(())
}

/// Everything that is met on the way to `path`, the root first: folders, links, what they lead through, and what lies at the end with the folder
/// that holds it before it.
#[cfg(unix)]
fn walk(path: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>, Distrust> {
    use std::path::Component;

    const LINKS: usize = 40;
    let unreadable =
        |at: &Path, reason: &dyn ToString| Distrust::Unreadable { at: at.to_owned(), reason: reason.to_string() };
    let path = std::path::absolute(path).map_err(|e| unreadable(path, &e))?;
    let reversed = |path: &Path| -> Vec<PathBuf> {
        let parts = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
        parts.map(|part| PathBuf::from(part.as_os_str())).rev().collect()
    };
    let look = |at: &Path| at.symlink_metadata().map_err(|e| unreadable(at, &e));
    let mut at = PathBuf::from("/");
    let mut met = vec![(at.clone(), look(&at)?)];
    let (mut pending, mut links) = (reversed(&path), 0);
    while let Some(part) = pending.pop() {
        if part == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let metadata = look(&next)?;
        if !metadata.is_symlink() {
            at = next;
            met.push((at.clone(), metadata));
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(unreadable(&path, &"too many links"));
        }
        let to = std::fs::read_link(&next).map_err(|e| unreadable(&next, &e))?;
        met.push((next, metadata));
        if to.is_absolute() {
            at = PathBuf::from("/");
        }
        pending.extend(reversed(&to));
    }
    let folder = at.parent().filter(|_| at.is_file());
    let holder = folder.map(|folder| Ok((folder.to_owned(), look(folder)?))).transpose()?;
    let end = look(&at)?;
    met.extend(holder);
    met.push((at, end));
    Ok(met)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn file(folder: &Path, name: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, b"").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn trusted_takes_what_lies_in_a_folder_of_the_users_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder.path().join("a/b"), "lib.so");
        assert_eq!(trusted(&path), Ok(()));
        assert_eq!(trusted(&folder.path().join("a/b")), Ok(()));
    }

    #[test]
    fn trusted_refuses_a_folder_on_the_way_that_others_may_write_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder.path().join("open/inner"), "lib.so");
        let open = folder.path().join("open");
        mode(&open, 0o777);
        assert_eq!(trusted(&path), Err(Distrust::Writable { at: open.clone() }));
        // Nobody can replace `inner` there; the folder of the library itself has to be closed.
        mode(&open, 0o1777);
        assert_eq!(trusted(&path), Ok(()));
        let direct = file(&open, "lib.so");
        assert_eq!(trusted(&direct), Err(Distrust::Writable { at: open.clone() }));
        assert_eq!(trusted(&open), Err(Distrust::Writable { at: open }));
    }

    #[test]
    fn trusted_refuses_a_file_that_others_may_write_to_and_a_missing_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "lib.so");
        mode(&path, 0o666);
        assert_eq!(trusted(&path), Err(Distrust::Writable { at: path.clone() }));
        assert!(matches!(trusted(&folder.path().join("none")), Err(Distrust::Unreadable { .. })));
    }

    #[test]
    fn trusted_follows_links_and_looks_at_what_they_lead_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder.path().join("open/inner"), "lib.so");
        symlink("../open/inner", folder.path().join("open/link")).unwrap();
        let near = folder.path().join("near.so");
        symlink(folder.path().join("open/link/lib.so"), &near).unwrap();
        assert_eq!(trusted(&near), Ok(()));
        let open = path.parent().unwrap().parent().unwrap();
        mode(open, 0o777);
        assert_eq!(trusted(&near), Err(Distrust::Writable { at: open.to_owned() }));
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(matches!(trusted(&folder.path().join("loop")), Err(Distrust::Unreadable { .. })));
    }

    #[test]
    fn usable_keeps_what_it_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), "lib.so");
        assert_eq!(usable(&path), Ok(()));
        mode(&path, 0o666);
        assert!(usable(&path).is_err());
        assert!(passed_over().contains(&(path.clone(), Distrust::Writable { at: path })));
    }
}
