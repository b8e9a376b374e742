//! Cache of engines made from models: a folder of bounded size that several processes may share.
//!
//! An entry is a folder `<key>/` with `engines/` and `facts.json`, which appears whole or not at all. Beside it lies `<key>.lock`: who makes
//! an entry or removes it holds the lock alone, who uses it shares it, and its time of change is that of the last use.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use v2l_runtime::engine::manifest::FORMAT_VERSION;
use v2l_runtime::io::atomic::AtomicFolder;
use v2l_runtime::io::own::open_folder;
use v2l_runtime::io::user_cache::user_cache;

/// The variable that names another folder.
pub const VARIABLE: &str = "V2L_CACHE";

/// The folder in an entry that holds the engines.
const ENGINES: &str = "engines";
/// The file in an entry that says what it was made from.
const FACTS: &str = "facts.json";
/// Bytes at the start of a file that are part of its identity: headers of safetensors and GGUF files, whole configurations.
const START: u64 = 64 << 10;
/// Folders within each other that a model may have.
const DEPTH: usize = 8;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineCacheError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no place for it.
    #[error(
        "there is no folder for the cache of engines: neither $XDG_CACHE_HOME nor $HOME is an absolute path; name one with {VARIABLE}"
    )]
    NoFolder,
}

impl EngineCacheError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Identity of what engines are made from: words, and files as far as a look at their starts goes.
pub struct EngineKey {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Default for EngineKey {
    /// The key of this version of v2l.
    fn default() -> Self {
        let key = Self { hasher: blake3::Hasher::new(), bytes: 0 };
        key.word(env!("CARGO_PKG_VERSION").as_bytes()).word(&FORMAT_VERSION.to_le_bytes())
    }
}

impl EngineKey {
    /// Adds a word.
    #[must_use]
    pub fn word(mut self, word: &[u8]) -> Self {
        self.add(word);
        self
    }

    /// Adds a file, or a folder with all that is in it: paths, sizes, times of change, and the first 64 KiB of each file. Names that begin
    /// with a dot are left out.
    ///
    /// # Errors
    /// [`EngineCacheError::Io`].
    pub fn path(mut self, path: &Path) -> Result<Self, EngineCacheError> {
        let path = path.canonicalize().map_err(EngineCacheError::at(path))?;
        self.walk(&path, DEPTH)?;
        Ok(self)
    }

    /// Bytes of all files that were added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, bytes: &[u8]) {
        // With its length, so that no two lists of words are alike.
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    fn walk(&mut self, path: &Path, depth: usize) -> Result<(), EngineCacheError> {
        let failed = || EngineCacheError::at(path);
        self.add(path.as_os_str().as_encoded_bytes());
        let metadata = fs::metadata(path).map_err(failed())?;
        if metadata.is_dir() {
            let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed())?;
            let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
            paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
            paths.sort();
            return match depth.checked_sub(1) {
                Some(depth) => paths.iter().try_for_each(|path| self.walk(path, depth)),
                None => Ok(()),
            };
        }
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        self.add(&metadata.len().to_le_bytes());
        self.add(&modified.as_nanos().to_le_bytes());
        self.bytes += metadata.len();
        if metadata.is_file() {
            let mut start = Vec::new();
            File::open(path).and_then(|file| file.take(START).read_to_end(&mut start)).map_err(failed())?;
            self.add(&start);
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// What an entry was made from.
#[derive(Serialize, Deserialize)]
struct Facts {
    model: PathBuf,
    bytes: u64,
}

/// Engines of the cache, as they are listed.
#[derive(Clone, Debug)]
pub struct CachedEngines {
    /// The model that they were made from.
    pub model: PathBuf,
    /// The engine directory.
    pub engines: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// When they were used last.
    pub used: SystemTime,
    /// True while a process uses them.
    pub in_use: bool,
    key: String,
}

/// Engines in use: as long as it lives they stay.
#[derive(Debug)]
pub struct EngineLease {
    /// The engine directory.
    pub engines: PathBuf,
    /// Bytes on disk, if they were made just now.
    pub made: Option<u64>,
    _lock: File,
}

/// The folder of the cache.
#[derive(Clone, Debug)]
pub struct EngineCache {
    root: PathBuf,
}

impl EngineCache {
    /// The cache in `folder`, or where [`VARIABLE`] says, or in `v2l/engines` of the user's folder for caches. It need not be there.
    ///
    /// # Errors
    /// [`EngineCacheError::NoFolder`].
    pub fn open(folder: Option<&Path>) -> Result<Self, EngineCacheError> {
        let named = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = folder.map(Path::to_owned).or_else(named).or_else(|| user_cache("engines"));
        Ok(Self { root: root.ok_or(EngineCacheError::NoFolder)? })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The engines of this key, for use. If they are not there, `make` makes them in the folder that it is given, below a name of its own
    /// choice for all but `engines/`; of several processes that ask at the same time one does. `waiting` is told if another does.
    ///
    /// # Errors
    /// What `make` says, and the system's; nothing is then left of the entry.
    pub fn get_or_make<E: From<EngineCacheError>>(
        &self,
        key: &EngineKey,
        model: &Path,
        mut waiting: impl FnMut(),
        mut make: impl FnMut(&Path, &Path) -> Result<(), E>,
    ) -> Result<EngineLease, E> {
        open_folder(&self.root).map_err(EngineCacheError::at(&self.root))?;
        let name = key.name();
        let entry = self.root.join(&name);
        let engines = entry.join(ENGINES);
        let mut made = None;
        loop {
            let lock = self.lock(&name, true, &mut waiting)?;
            if engines.is_dir() {
                open_folder(&entry).map_err(EngineCacheError::at(&entry))?;
                // An entry that cannot be marked as used only goes earlier.
                let _ = lock.set_modified(SystemTime::now());
                return Ok(EngineLease { engines, made, _lock: lock });
            }
            drop(lock);
            let lock = self.lock(&name, false, &mut waiting)?;
            if !engines.is_dir() {
                self.remove_unfinished(&name);
                let failed = || EngineCacheError::at(&entry);
                let folder = AtomicFolder::create(&entry).map_err(failed())?;
                let bundle = folder.path().join("bundle");
                make(&bundle, &folder.path().join(ENGINES))?;
                if bundle.is_dir() {
                    fs::remove_dir_all(&bundle).map_err(failed())?;
                }
                let facts = Facts { model: model.to_owned(), bytes: size(folder.path()) };
                let text = serde_json::to_vec(&facts).map_err(|error| failed()(error.into()))?;
                folder.write(FACTS, &text).map_err(failed())?;
                keep_private(folder.path()).map_err(failed())?;
                folder.commit().map_err(failed())?;
                made = Some(facts.bytes);
            }
            // Shared again in the next round, in which the entry is there, unless somebody removed it meanwhile.
            drop(lock);
        }
    }

    /// All entries, those first that were used last.
    ///
    /// # Errors
    /// [`EngineCacheError::Io`].
    pub fn entries(&self) -> Result<Vec<CachedEngines>, EngineCacheError> {
        let mut found = Vec::new();
        for key in self.names()? {
            let entry = self.root.join(&key);
            let facts = fs::read(entry.join(FACTS)).ok().and_then(|text| serde_json::from_slice::<Facts>(&text).ok());
            let Some(Facts { model, bytes }) = facts.filter(|_| is_key(&key)) else { continue };
            let metadata = fs::metadata(self.lock_path(&key)).or_else(|_| fs::metadata(&entry));
            let used = metadata.and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
            let in_use = !matches!(self.try_lock(&key), Ok(Some(_)));
            found.push(CachedEngines { model, engines: entry.join(ENGINES), bytes, used, in_use, key });
        }
        found.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(found)
    }

    /// Removes entries until they come to at most `limit` bytes, those first that were not used for longest, and none that is in use; and
    /// what was left of entries whose making was killed. What went.
    ///
    /// # Errors
    /// [`EngineCacheError::Io`].
    pub fn shrink(&self, limit: u64) -> Result<Vec<CachedEngines>, EngineCacheError> {
        for name in self.names()? {
            let key = name.strip_prefix('.').and_then(|name| name.split('.').next()).unwrap_or_default();
            if is_key(key)
                && let Some(_lock) = self.try_lock(key)?
            {
                self.remove_unfinished(key);
            }
        }
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let mut removed = Vec::new();
        while total > limit
            && let Some(entry) = entries.pop()
        {
            // Another process may have begun to use it, or have removed it.
            let Some(_lock) = self.try_lock(&entry.key)? else { continue };
            let from = self.root.join(&entry.key);
            // Gone at once for all who look for it; what is left of it if this process ends goes with the next call.
            let aside = self.root.join(format!(".{}.removed.partial", entry.key));
            if fs::rename(&from, &aside).is_ok() {
                fs::remove_dir_all(&aside).map_err(EngineCacheError::at(&from))?;
                let _ = fs::remove_file(self.lock_path(&entry.key));
            }
            total -= entry.bytes;
            removed.push(entry);
        }
        Ok(removed)
    }

    /// Bytes that are free where the cache lies, if the system says.
    pub fn free(&self) -> Option<u64> {
        let there = self.root.ancestors().find(|folder| folder.is_dir())?;
        let found = rustix::fs::statvfs(there).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    fn names(&self) -> Result<Vec<String>, EngineCacheError> {
        match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            found => {
                let entries = found.and_then(Iterator::collect::<io::Result<Vec<_>>>);
                let entries = entries.map_err(EngineCacheError::at(&self.root))?;
                Ok(entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
            }
        }
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.root.join(format!("{key}.lock"))
    }

    /// Holds an entry's lock, shared or alone.
    fn lock(&self, key: &str, shared: bool, waiting: &mut impl FnMut()) -> Result<File, EngineCacheError> {
        let path = self.lock_path(key);
        let failed = || EngineCacheError::at(&path);
        loop {
            let file = open_lock(&path).map_err(failed())?;
            let tried = if shared { file.try_lock_shared() } else { file.try_lock() };
            match tried {
                Ok(()) => {}
                Err(TryLockError::Error(error)) => return Err(failed()(error)),
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    if shared { file.lock_shared() } else { file.lock() }.map_err(failed())?;
                }
            }
            if is_at(&file, &path) {
                return Ok(file);
            }
        }
    }

    /// An entry's lock, alone, if nobody holds it.
    fn try_lock(&self, key: &str) -> Result<Option<File>, EngineCacheError> {
        let path = self.lock_path(key);
        // Opened as it is: its time of change is that of the last use.
        let file = open_lock(&path).map_err(EngineCacheError::at(&path))?;
        Ok((file.try_lock().is_ok() && is_at(&file, &path)).then_some(file))
    }

    /// Removes what processes that were killed left of an entry, whose lock the caller holds alone. What cannot be removed stays.
    fn remove_unfinished(&self, key: &str) {
        for name in self.names().unwrap_or_default() {
            let begun = name
                .strip_prefix('.')
                .and_then(|name| name.strip_prefix(key))
                .is_some_and(|rest| rest.starts_with('.'));
            if begun && name.ends_with(".partial") {
                let _ = fs::remove_dir_all(self.root.join(name));
            }
        }
    }
}

/// Takes a folder from all others, whatever the process's mask: what is in it is used without another look.
fn keep_private(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// True if the file has this path still: its entry may have been removed with it.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (held, there) = (file.metadata().map(of), fs::metadata(path).map(of));
        held.is_ok_and(|held| there.is_ok_and(|there| held == there))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, EngineCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = EngineCache::open(Some(&folder.path().join("cache"))).unwrap();
        (folder, cache)
    }

    fn key(word: &str) -> EngineKey {
        EngineKey::default().word(word.as_bytes())
    }

    fn put(cache: &EngineCache, word: &str, bytes: usize) -> EngineLease {
        let write = |_: &Path, engines: &Path| {
            fs::create_dir(engines).unwrap();
            fs::write(engines.join("x.engine"), vec![0; bytes]).unwrap();
            Ok::<(), EngineCacheError>(())
        };
        cache.get_or_make(&key(word), Path::new(word), || {}, write).unwrap()
    }

    #[test]
    fn engines_are_made_once_and_found_again() {
        let (_folder, cache) = cache();
        let lease = put(&cache, "a", 10);
        assert_eq!(lease.made, Some(10));
        assert!(lease.engines.join("x.engine").is_file());
        let never = |_: &Path, _: &Path| -> Result<(), EngineCacheError> { panic!("made again") };
        let again = cache.get_or_make(&key("a"), Path::new("a"), || panic!("waits"), never).unwrap();
        assert_eq!((again.made, again.engines), (None, lease.engines));
    }

    #[test]
    fn making_that_fails_leaves_nothing_but_the_lock() {
        let (_folder, cache) = cache();
        let fail = |bundle: &Path, _: &Path| {
            fs::create_dir(bundle).unwrap();
            Err(EngineCacheError::NoFolder)
        };
        assert!(cache.get_or_make(&key("a"), Path::new("a"), || {}, fail).is_err());
        let names = cache.names().unwrap();
        assert!(names.len() == 1 && names[0].ends_with(".lock"), "{names:?}");
        assert!(cache.entries().unwrap().is_empty());
    }

    #[test]
    fn shrink_removes_what_was_used_first_and_nothing_in_use() {
        let (_folder, cache) = cache();
        for (at, word) in ["a", "b", "c"].into_iter().enumerate() {
            let lease = put(&cache, word, 100);
            lease._lock.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(1000 + at as u64)).unwrap();
        }
        let held = put(&cache, "a", 100);
        held._lock.set_modified(UNIX_EPOCH).unwrap();
        let of =
            |entries: Vec<CachedEngines>| -> Vec<PathBuf> { entries.into_iter().map(|entry| entry.model).collect() };
        assert_eq!(of(cache.entries().unwrap().into_iter().filter(|entry| entry.in_use).collect()), [Path::new("a")]);
        assert_eq!(of(cache.shrink(250).unwrap()), [Path::new("b")]);
        assert_eq!(of(cache.shrink(0).unwrap()), [Path::new("c")]);
        assert_eq!(of(cache.entries().unwrap()), [Path::new("a")]);
        drop(held);
        cache.shrink(0).unwrap();
        assert!(cache.names().unwrap().is_empty());
    }

    #[test]
    fn shrink_removes_what_a_killed_process_left() {
        let (_folder, cache) = cache();
        drop(put(&cache, "a", 10));
        let left = cache.root().join(format!(".{}.x1.partial", key("a").name()));
        fs::create_dir(&left).unwrap();
        cache.shrink(u64::MAX).unwrap();
        assert!(!left.exists() && cache.entries().unwrap().len() == 1);
    }

    #[test]
    #[cfg(unix)]
    fn folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, cache) = cache();
        drop(put(&cache, "a", 10));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let entry = cache.root().join(key("a").name());
        assert_eq!((mode(cache.root()), mode(&entry)), (0o700, 0o700));
        let never = |_: &Path, _: &Path| -> Result<(), EngineCacheError> { panic!("made again") };
        for folder in [cache.root(), &entry] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o707)).unwrap();
            let refused = cache.get_or_make(&key("a"), Path::new("a"), || {}, never).unwrap_err().to_string();
            assert!(refused.contains("others may write to this folder"), "{refused}");
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn key_changes_with_words_files_and_their_starts_and_not_with_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let of = || EngineKey::default().path(folder.path()).unwrap();
        let time = UNIX_EPOCH + std::time::Duration::from_secs(1);
        let write = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        };
        write(b"one");
        let first = of();
        assert_eq!(first.bytes(), 3);
        fs::write(folder.path().join(".hidden"), b"x").unwrap();
        assert_eq!(of().name(), first.name());
        write(b"two");
        assert_ne!(of().name(), first.name());
        write(b"one");
        assert_eq!(of().name(), first.name());
        assert_ne!(of().word(b"--flag").name(), first.name());
        assert_ne!(key("ab").word(b"c").name(), key("a").word(b"bc").name());
    }
}
