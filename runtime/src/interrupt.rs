//! Ending early: temporaries go, child processes end, and nothing new begins.
//!
//! A program calls [`request`] when it is interrupted. What is under way then fails at its next file, and the caller unwinds.
//! [`abandon`] is for a program that cannot wait for that: it cleans up behind the other threads' backs, for the process to end
//! at once. The C library calls neither: its callers cancel calls.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

static REQUESTED: AtomicBool = AtomicBool::new(false);
/// Held for reading while something is made, listed or put in its place, so that [`abandon`] sees all of it or nothing.
static GATE: RwLock<()> = RwLock::new(());
static LIST: Mutex<List> = Mutex::new(List { next: 0, entries: BTreeMap::new() });

struct List {
    next: u64,
    entries: BTreeMap<u64, Leftover>,
}

/// What an end of the process would leave behind.
#[derive(Clone)]
pub enum Leftover {
    /// A file, or a folder with all that is in it.
    Path(PathBuf),
    /// Folders that go if they are empty, innermost first.
    EmptyFolders(Vec<PathBuf>),
    /// A child process: ends it and waits for it.
    Process(Arc<dyn Fn() + Send + Sync>),
}

impl Leftover {
    fn end(&self) {
        if let Self::Process(end) = self {
            end();
        }
    }

    fn remove(&self) {
        match self {
            Self::Path(path) => remove(path),
            Self::EmptyFolders(folders) => {
                // One that something else is in stays, and those around it.
                let _ = folders.iter().try_for_each(std::fs::remove_dir);
            }
            Self::Process(_) => {}
        }
    }
}

/// Something under construction: a temporary, or a child process. Dropped, it goes by itself; [`abandon`] sees to it as well.
pub struct Unfinished<T> {
    // Fields drop in order: the value goes before it is forgotten.
    value: T,
    listed: Listed,
}

struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        list().entries.remove(&self.0);
    }
}

impl<T> Unfinished<T> {
    /// What `make` makes, if there was no interruption; `leftover` says what would be left of it.
    ///
    /// # Errors
    /// Those of `make`, and one that says that the program was interrupted.
    pub fn with(make: impl FnOnce() -> io::Result<T>, leftover: impl FnOnce(&T) -> Leftover) -> io::Result<Self> {
        let _open = open()?;
        let value = make()?;
        let mut list = list();
        let number = list.next;
        list.next += 1;
        list.entries.insert(number, leftover(&value));
        Ok(Self { value, listed: Listed(number) })
    }

    /// Puts it in its place, if there was no interruption; it is then finished.
    ///
    /// # Errors
    /// Those of `place`, and one that says that the program was interrupted; the value has then been dropped.
    pub fn place<R>(self, place: impl FnOnce(T) -> io::Result<R>) -> io::Result<R> {
        let _open = open()?;
        let Self { value, listed } = self;
        let placed = place(value);
        drop(listed);
        placed
    }
}

impl<T: AsRef<Path>> Unfinished<T> {
    /// [`Self::with`] for a temporary file or folder.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn temporary(make: impl FnOnce() -> io::Result<T>) -> io::Result<Self> {
        Self::with(make, |value| Leftover::Path(value.as_ref().to_owned()))
    }
}

impl<T> Deref for Unfinished<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Unfinished<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unfinished").field(&self.value).finish()
    }
}

/// Folders that were missing. Those that are empty when this is dropped go again.
#[derive(Debug)]
pub struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes `folder` and those around it, as far as they are missing.
    ///
    /// # Errors
    /// If one cannot be made, or the program was interrupted.
    pub fn create(folder: &Path) -> io::Result<Unfinished<Self>> {
        let missing = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists());
        // Before any is made, so that those that were go with one that cannot be.
        let made = Self(missing.map(Path::to_owned).collect());
        let listed = |made: &Self| Leftover::EmptyFolders(made.0.clone());
        Unfinished::with(|| std::fs::create_dir_all(folder).map(|()| made), listed)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // One that something is in is not empty and stays.
        let _ = self.0.iter().try_for_each(std::fs::remove_dir);
    }
}

/// Says that the program was interrupted, for good: child processes end now, and what is under way fails at its next file.
pub fn request() {
    REQUESTED.store(true, Ordering::Relaxed);
    // Nothing else is kept waiting while a child ends.
    let children: Vec<Leftover> = list().entries.values().cloned().collect();
    children.iter().for_each(Leftover::end);
}

/// True if the program was interrupted.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Ends every child process and removes every temporary, while other threads may still be at work on them. From then on whoever
/// would make or place another one waits for ever: the process has to end at once.
pub fn abandon() {
    request();
    std::mem::forget(GATE.write().unwrap_or_else(PoisonError::into_inner));
    let entries = std::mem::take(&mut list().entries);
    clear(entries);
}

/// [`abandon`] for a thread that may not wait, because others might wait for it: if one of them is just making or placing a
/// temporary, none is removed.
pub fn abandon_what_is_free() {
    REQUESTED.store(true, Ordering::Relaxed);
    let Ok(gate) = GATE.try_write() else { return };
    std::mem::forget(gate);
    let Ok(mut list) = LIST.try_lock() else { return };
    let entries = std::mem::take(&mut list.entries);
    drop(list);
    clear(entries);
}

/// Ends and removes all of these.
fn clear(entries: BTreeMap<u64, Leftover>) {
    let left: Vec<Leftover> = entries.into_values().collect();
    left.iter().for_each(Leftover::end);
    // Folders that have to be empty come last.
    let (folders, others): (Vec<_>, Vec<_>) = left.iter().partition(|left| matches!(left, Leftover::EmptyFolders(_)));
    others.iter().chain(&folders).for_each(|left| left.remove());
}

/// An error if the program was interrupted.
pub(crate) fn check() -> io::Result<()> {
    // Not `ErrorKind::Interrupted`, after which writers try again.
    if requested() { Err(io::Error::other("interrupted")) } else { Ok(()) }
}

fn open() -> io::Result<RwLockReadGuard<'static, ()>> {
    let open = GATE.read().unwrap_or_else(PoisonError::into_inner);
    check()?;
    Ok(open)
}

fn list() -> MutexGuard<'static, List> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file, or a folder that others may still write to.
fn remove(path: &Path) {
    if !path.is_dir() {
        let _ = std::fs::remove_file(path);
        return;
    }
    // Under another name nobody adds to it.
    let mut aside = path.as_os_str().to_owned();
    aside.push(".removed");
    let path = if std::fs::rename(path, &aside).is_ok() { Path::new(&aside) } else { path };
    // A thread that is in the middle of removing it, too, may make this fail.
    for _ in 0..5 {
        if std::fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list belongs to the whole process, where other tests have temporaries: it is looked at, not emptied.
    fn listed_below(folder: &Path) -> Vec<PathBuf> {
        let paths = list().entries.values().cloned().collect::<Vec<_>>();
        let below = |left: Leftover| match left {
            Leftover::Path(path) if path.starts_with(folder) => Some(path),
            _ => None,
        };
        paths.into_iter().filter_map(below).collect()
    }

    #[test]
    fn temporary_is_listed_until_it_is_dropped_or_placed() {
        let folder = tempfile::tempdir().unwrap();
        let make = || Unfinished::temporary(|| tempfile::NamedTempFile::new_in(&folder)).unwrap();
        let temporary = make();
        assert_eq!(listed_below(folder.path()), [temporary.path()]);
        drop(temporary);
        assert!(listed_below(folder.path()).is_empty());
        let target = folder.path().join("target");
        make().place(|temporary| temporary.persist(&target).map_err(|e| e.error)).unwrap();
        assert!(listed_below(folder.path()).is_empty());
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "the target, and nothing else");
    }

    #[test]
    fn temporary_that_cannot_be_made_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(Unfinished::temporary(|| tempfile::tempdir_in(&missing)).is_err());
        assert!(listed_below(folder.path()).is_empty());
    }

    #[test]
    fn leftovers_are_removed_with_what_is_in_them_and_folders_only_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (full, outer) = (folder.path().join("full"), folder.path().join("a"));
        std::fs::create_dir_all(full.join("below")).unwrap();
        std::fs::write(full.join("below/file"), "x").unwrap();
        std::fs::create_dir_all(outer.join("b")).unwrap();
        std::fs::write(outer.join("precious"), "x").unwrap();
        Leftover::Path(full.clone()).remove();
        assert!(!full.exists() && !folder.path().join("full.removed").exists());
        Leftover::EmptyFolders(vec![outer.join("b"), outer.clone()]).remove();
        assert!(!outer.join("b").exists() && outer.join("precious").exists());
        std::fs::remove_file(outer.join("precious")).unwrap();
        Leftover::Path(outer.clone()).remove();
        Leftover::Path(outer).remove();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
