//! What of a prediction does not depend on the prompt, kept on disk.
//!
//! A file `<key>.latents` in a folder: numbers, f32, little-endian, and behind them a BLAKE3 hash over the key and the numbers (32
//! bytes). The key is the hash of the base's weights, of the network and of how it is computed. Files appear whole by renaming, so
//! that several processes may share a folder; one that is damaged or truncated is made again, and so is one that others could have
//! written. They are mapped, so that they take no
//! private memory.

use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;

use super::key::Key;
use crate::events::PhaseProgress;
use crate::io::atomic::AtomicFile;
use crate::io::own::{create_own, map_own};

const HASH: usize = 32;

/// A folder of what is kept; without one nothing is.
pub(super) struct Intermediates(Option<PathBuf>);

impl Intermediates {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(format!("{}.latents", key.0.to_hex())))
    }

    /// The bytes of this many numbers, if they are kept under this key and whole.
    ///
    /// # Errors
    /// Why what is there is passed over.
    pub(super) fn get(&self, key: &Key, numbers: usize) -> io::Result<Option<Bytes>> {
        let Some(path) = self.path(key) else { return Ok(None) };
        let Some((_, file)) = map_own(&path)? else { return Ok(None) };
        let whole =
            numbers.checked_mul(4).and_then(|bytes| file.split_at_checked(bytes)).is_some_and(|(rest, hash)| {
                let mut hasher = begin(key);
                hasher.update(rest);
                hasher.finalize().as_bytes() == hash
            });
        Ok(whole.then(|| file.slice(..file.len() - HASH)))
    }

    /// Begins to keep numbers under this key, in place of what may be there; `None` without a folder.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn put(&self, key: &Key) -> io::Result<Option<Keeping>> {
        let Some(path) = self.path(key) else { return Ok(None) };
        Ok(Some(Keeping { file: create_own(&path)?, hasher: begin(key) }))
    }
}

/// A file under another key's name is damaged.
fn begin(key: &Key) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.0.as_bytes());
    hasher
}

/// A file that is being written. It appears when it is finished.
pub(super) struct Keeping {
    file: AtomicFile,
    hasher: blake3::Hasher,
}

impl Keeping {
    /// Adds numbers.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn add(&mut self, numbers: &[f32]) -> io::Result<()> {
        // A bounded copy, as numbers are little-endian in the file whatever they are in memory.
        for part in numbers.chunks(1 << 16) {
            let bytes: Vec<u8> = part.iter().flat_map(|number| number.to_le_bytes()).collect();
            self.hasher.update(&bytes);
            self.file.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.write_all(self.hasher.finalize().as_bytes())?;
        self.file.commit()
    }
}

/// What a network keeps of a base, under one key.
pub(super) struct OfBase {
    folder: Intermediates,
    key: Key,
}

impl OfBase {
    pub(super) fn new(folder: Intermediates, key: Key) -> Self {
        Self { folder, key }
    }

    /// The bytes of this many numbers, if they are kept and whole; else, if others are there, a warning.
    pub(super) fn get(&self, numbers: usize) -> (Option<Bytes>, Option<String>) {
        match self.folder.get(&self.key, numbers) {
            Ok(kept) => (kept, None),
            Err(error) => (None, Some(format!("what is kept of the base is not used, but made again: {error}"))),
        }
    }

    /// Begins to keep numbers.
    pub(super) fn put(&self, progress: &mut PhaseProgress<'_>) -> Filling {
        let mut filling = Filling::none();
        filling.0 = filling.warned(self.folder.put(&self.key), progress).flatten();
        filling
    }
}

/// Numbers on their way to a file, if there is one. A disk that is full costs the cache alone.
pub(super) struct Filling(Option<Keeping>);

impl Filling {
    /// Of no file.
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// Adds numbers, which lie beside each other.
    pub(super) fn add(&mut self, numbers: Option<&[f32]>, progress: &mut PhaseProgress<'_>) {
        let (Some(mut file), Some(numbers)) = (self.0.take(), numbers) else { return };
        let added = file.add(numbers);
        self.0 = self.warned(added, progress).map(|()| file);
    }

    /// Ends the file.
    pub(super) fn finish(mut self, progress: &mut PhaseProgress<'_>) {
        if let Some(file) = self.0.take() {
            self.warned(file.finish(), progress);
        }
    }

    fn warned<T>(&self, result: io::Result<T>, progress: &mut PhaseProgress<'_>) -> Option<T> {
        result.map_err(|e| progress.warn(format!("what the predictor reads of the base is not kept: {e}"))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Intermediates::new(Some(folder.path().join("made/for/it")));
        let (key, other) = (Key(blake3::hash(b"a")), Key(blake3::hash(b"b")));
        let numbers: Vec<f32> = (0..24).map(|i| i as f32 - 0.5).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let put = || {
            let mut file = kept.put(&key).unwrap().unwrap();
            file.add(&numbers[..5]).unwrap();
            file.add(&numbers[5..]).unwrap();
            file.finish().unwrap();
        };
        assert_eq!(kept.get(&key, 24).unwrap(), None);
        drop(kept.put(&key).unwrap());
        assert_eq!(kept.get(&key, 0).unwrap(), None, "a file that was not finished");
        put();
        assert_eq!(kept.get(&key, 24).unwrap().as_deref(), Some(&bytes[..]));
        assert_eq!(kept.get(&key, 23).unwrap(), None, "another count");
        let path = kept.path(&key).unwrap();
        std::fs::copy(&path, kept.path(&other).unwrap()).unwrap();
        assert_eq!(kept.get(&other, 24).unwrap(), None, "another key's name");
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[60] ^= 1;
        for damaged in [&flipped[..], &good[..70], &good[..10], &[]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(kept.get(&key, 24).unwrap(), None);
            put();
            assert_eq!(kept.get(&key, 24).unwrap().as_deref(), Some(&bytes[..]), "made again");
        }
        let none = Intermediates::new(None);
        assert!(none.put(&key).unwrap().is_none() && none.get(&key, 24).unwrap().is_none());
    }
}
