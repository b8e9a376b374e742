//! Predictions kept on disk: the second request with the same reference needs neither the autoencoder nor the
//! hypernetwork.
//!
//! A [`Key`] is the hash of everything that determines a prediction, but for the last bits in which processors and versions of
//! ONNX Runtime may differ: machines that differ so should not share a folder. An entry is a file `<key>.tokens` or
//! `<key>.adapter`: a BLAKE3 hash over the key and the rest (32 bytes), and the rest, a [`Kept`] as bytes. Files
//! appear whole by renaming, so any number of processes may share a folder; one that is damaged is removed and made
//! again. One that is a pipe or a link, or that others could write to, is passed over with its reason, and made again. Files of other names are left alone.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::entry::{FORMS, Form};
use crate::error::{Classified, ErrorClass};
use crate::io::bounded::{is_entry, remove, shrink};
use crate::io::own::{create_private, open_own, write_own};

pub use super::entry::Kept;
pub use super::key::{Key, KeyParts};

const HASH: usize = 32;
/// Largest entry that is read, in bytes.
const MAX_ENTRY: u64 = 1 << 30;

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
#[error("prediction cache {}: {source}; name another folder, or go without the cache", path.display())]
pub struct CacheError {
    /// The folder or file.
    pub path: PathBuf,
    /// The system's words.
    pub source: io::Error,
}

impl Classified for CacheError {
    fn class(&self) -> ErrorClass {
        self.source.class()
    }
}

/// A folder of predictions of bounded size.
#[derive(Clone, Debug)]
pub struct PredictionCache {
    folder: PathBuf,
    limit: u64,
}

impl PredictionCache {
    /// A cache in `folder`, which is made if need be, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`CacheError`] if there can be no such folder.
    pub fn open(folder: impl Into<PathBuf>, limit: u64) -> Result<Self, CacheError> {
        let folder = folder.into();
        create_private(&folder).map_err(error(&folder))?;
        Ok(Self { folder, limit })
    }

    /// The prediction of this key, which then counts as the most recently used. `None` if there is none; an entry that is
    /// damaged is removed.
    ///
    /// # Errors
    /// [`CacheError`] if there is an entry that cannot be read or, damaged, removed: a miss, too, but one to be told of.
    pub fn get(&self, key: &Key) -> Result<Option<Kept>, CacheError> {
        for form in &FORMS {
            if let Some(kept) = self.read(key, form)? {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    fn read(&self, key: &Key, form: &Form) -> Result<Option<Kept>, CacheError> {
        let path = self.path(key, form);
        let Some(mut file) = open_own(&path).map_err(error(&path))? else { return Ok(None) };
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&mut file, MAX_ENTRY), &mut bytes).map_err(error(&path))?;
        let kept = decode(key, form, &bytes);
        if kept.is_some() {
            // Reading must not fail where only reading is allowed.
            let _ = file.set_modified(SystemTime::now());
        } else {
            remove(&path).map_err(error(&path))?;
        }
        Ok(kept)
    }

    /// True if a prediction of about so many bytes is kept; a larger one is not worth encoding.
    pub(crate) fn keeps(&self, bytes: u64) -> bool {
        bytes <= self.limit.min(MAX_ENTRY)
    }

    /// Keeps a prediction, and removes those that were not used for longest until the limit is kept. One that is larger
    /// than the limit is not kept.
    ///
    /// # Errors
    /// [`CacheError`] if it cannot be written.
    pub fn put(&self, key: &Key, kept: &Kept) -> Result<(), CacheError> {
        let bytes = encode(key, kept);
        if bytes.len() as u64 > self.limit.min(MAX_ENTRY) {
            return Ok(());
        }
        let path = self.path(key, kept.form());
        write_own(&path, &bytes).map_err(error(&path))?;
        let is_entry = |path: &Path| FORMS.iter().any(|form| is_entry(path, form.extension));
        shrink(&self.folder, self.limit, is_entry, Metadata::modified);
        Ok(())
    }

    fn path(&self, key: &Key, form: &Form) -> PathBuf {
        self.folder.join(format!("{}.{}", key.0.to_hex(), form.extension))
    }
}

fn error(path: &Path) -> impl Fn(io::Error) -> CacheError + '_ {
    |source| CacheError { path: path.to_owned(), source }
}

/// What stands at the start of an entry: a file under another key's name is damaged.
fn checksum(key: &Key, rest: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(key.0.as_bytes()).update(rest).finalize()
}

fn encode(key: &Key, kept: &Kept) -> Vec<u8> {
    let rest = kept.encode();
    let mut bytes = checksum(key, &rest).as_bytes().to_vec();
    bytes.extend(rest);
    bytes
}

/// `None` if it is not what [`encode`] made.
fn decode(key: &Key, form: &Form, bytes: &[u8]) -> Option<Kept> {
    let (hash, rest) = bytes.split_at_checked(HASH)?;
    if checksum(key, rest).as_bytes() != hash {
        return None;
    }
    (form.decode)(rest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ndarray::Array2;

    use super::*;

    fn key(n: u8) -> Key {
        Key(blake3::hash(&[n]))
    }

    fn tokens(n: u8) -> Kept {
        Kept::Tokens(Array2::from_shape_fn((3, 5), |(i, j)| f32::from(n) + i as f32 - 0.1 * j as f32))
    }

    fn path_of(cache: &PredictionCache, n: u8) -> PathBuf {
        cache.path(&key(n), &FORMS[0])
    }

    /// Bytes of an entry of [`tokens`].
    const ENTRY: u64 = 32 + 16 + 60;

    #[test]
    fn cache_gives_back_what_was_put_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let cache = PredictionCache::open(dir.path().join("made/for/it"), 10 * ENTRY).unwrap();
        assert_eq!(cache.get(&key(1)).unwrap(), None);
        cache.put(&key(1), &tokens(1)).unwrap();
        assert_eq!(cache.get(&key(1)).unwrap(), Some(tokens(1)));
        assert_eq!(cache.get(&key(2)).unwrap(), None);
        let again = PredictionCache::open(dir.path().join("made/for/it"), 10 * ENTRY).unwrap();
        assert_eq!(again.get(&key(1)).unwrap(), Some(tokens(1)), "another process");
    }

    #[test]
    fn cache_removes_damaged_entries() {
        let dir = tempfile::tempdir().unwrap();
        let cache = PredictionCache::open(dir.path(), 10 * ENTRY).unwrap();
        cache.put(&key(1), &tokens(1)).unwrap();
        let path = path_of(&cache, 1);
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, ENTRY);
        let mut flipped = good.clone();
        flipped[70] ^= 1;
        cache.put(&key(2), &tokens(2)).unwrap();
        let other = std::fs::read(path_of(&cache, 2)).unwrap();
        for damaged in [&flipped[..], &good[..50], &good[..10], &[], &other] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&key(1)).unwrap(), None);
            assert!(!path.exists());
        }
        cache.put(&key(1), &tokens(1)).unwrap();
        assert_eq!(cache.get(&key(1)).unwrap(), Some(tokens(1)));
    }

    #[test]
    fn cache_keeps_its_limit_and_what_was_used_last() {
        let dir = tempfile::tempdir().unwrap();
        let cache = PredictionCache::open(dir.path(), 2 * ENTRY).unwrap();
        let age = |n: u8, seconds: u64| {
            let file = std::fs::File::open(path_of(&cache, n)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let foreign = dir.path().join("mine.tokens");
        std::fs::write(&foreign, [0; 1000]).unwrap();
        std::fs::create_dir(path_of(&cache, 9)).unwrap();
        cache.put(&key(1), &tokens(1)).unwrap();
        cache.put(&key(2), &tokens(2)).unwrap();
        age(1, 100);
        age(2, 50);
        cache.get(&key(1)).unwrap();
        cache.put(&key(3), &tokens(3)).unwrap();
        let there: Vec<bool> = (1..4).map(|n| cache.get(&key(n)).unwrap().is_some()).collect();
        assert_eq!(there, [true, false, true]);
        assert!(foreign.exists(), "files of other names are left alone");
        PredictionCache::open(dir.path(), ENTRY - 1).unwrap().put(&key(4), &tokens(4)).unwrap();
        assert_eq!(cache.get(&key(4)).unwrap(), None, "larger than the limit");
    }

    #[test]
    fn cache_removes_what_a_killed_writer_left_a_day_ago() {
        let dir = tempfile::tempdir().unwrap();
        let cache = PredictionCache::open(dir.path(), 10 * ENTRY).unwrap();
        let hours = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
        let put = |name: &str, at: SystemTime| {
            let path = dir.path().join(name);
            std::fs::write(&path, [0; 10]).unwrap();
            std::fs::File::open(&path).unwrap().set_modified(at).unwrap();
            path
        };
        // The name that a writer gives.
        let writer = crate::io::atomic::AtomicFile::create(path_of(&cache, 1)).unwrap();
        let name = writer.path().file_name().unwrap().to_str().unwrap().to_owned();
        drop(writer);
        let left = put(&name, hours(25));
        let busy = put(&format!(".{}.tokens.abcdef.partial", key(2).0.to_hex()), hours(1));
        let foreign = put(".mine.tokens.abcdef.partial", hours(25));
        cache.put(&key(3), &tokens(3)).unwrap();
        assert_eq!([&left, &busy, &foreign].map(|path| path.exists()), [false, true, true]);
    }

    #[test]
    fn cache_is_safe_for_several_writers_and_readers() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for worker in 0..4u8 {
                let cache = PredictionCache::open(dir.path(), 3 * ENTRY).unwrap();
                scope.spawn(move || {
                    for round in 0..50u8 {
                        let n = (worker + round) % 5;
                        cache.put(&key(n), &tokens(n)).unwrap();
                        if let Some(found) = cache.get(&key(round % 5)).unwrap() {
                            assert_eq!(found, tokens(round % 5));
                        }
                    }
                });
            }
        });
    }
}
