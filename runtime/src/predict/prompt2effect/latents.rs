//! What does not depend on the prompt, kept on disk.
//!
//! A file `<key>.latents` in a folder: a BLAKE3 hash over the key and the rest (32 bytes), and the latents, f32, little-endian.
//! The key is the hash of the base's weights, of the network and of how it is computed. Files appear whole by renaming, so
//! that several processes may share a folder; one that is damaged or truncated is made again.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use ndarray::Array3;

use super::super::key::Key;
use crate::io::atomic::write_file;
use crate::io::raw;
use crate::tensor::{Dtype, Tensor};

const HASH: usize = 32;

/// A folder of latents; without one nothing is kept.
pub(super) struct LatentCache(Option<PathBuf>);

impl LatentCache {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        Some(self.0.as_ref()?.join(format!("{}.latents", key.0.to_hex())))
    }

    /// The latents of this key and shape, if they are kept and whole.
    pub(super) fn get(&self, key: &Key, shape: [usize; 3]) -> Option<Array3<f32>> {
        let length = (raw::byte_len(Dtype::F32, &shape)? + HASH) as u64;
        let mut bytes = Vec::new();
        File::open(self.path(key)?).ok()?.take(length + 1).read_to_end(&mut bytes).ok()?;
        let (hash, rest) = bytes.split_at_checked(HASH)?;
        if checksum(key, rest).as_bytes() != hash {
            return None;
        }
        raw::tensor_from_bytes(Dtype::F32, &shape, rest)?.into_f32()?.into_dimensionality().ok()
    }

    /// Keeps the latents of this key, in place of what may be there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn put(&self, key: &Key, latents: &Array3<f32>) -> io::Result<()> {
        let (Some(path), Some(folder)) = (self.path(key), &self.0) else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        let tensor = Tensor::F32(latents.clone().into_dyn());
        let rest = raw::tensor_bytes(&tensor);
        let mut bytes = checksum(key, &rest).as_bytes().to_vec();
        bytes.extend_from_slice(&rest);
        write_file(&path, &bytes)
    }
}

/// What stands at the start of a file: one under another key's name is damaged.
fn checksum(key: &Key, rest: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(key.0.as_bytes()).update(rest).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let cache = LatentCache::new(Some(folder.path().join("made/for/it")));
        let (key, other) = (Key(blake3::hash(b"a")), Key(blake3::hash(b"b")));
        let latents = Array3::from_shape_fn((2, 3, 4), |(i, j, k)| (i * 12 + j * 4 + k) as f32 - 0.5);
        let shape = [2, 3, 4];
        assert_eq!(cache.get(&key, shape), None);
        cache.put(&key, &latents).unwrap();
        assert_eq!(cache.get(&key, shape).as_ref(), Some(&latents));
        assert_eq!(cache.get(&key, [2, 3, 5]), None, "another shape");
        let path = cache.path(&key).unwrap();
        std::fs::copy(&path, cache.path(&other).unwrap()).unwrap();
        assert_eq!(cache.get(&other, shape), None, "another key's name");
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[60] ^= 1;
        for damaged in [&flipped[..], &good[..70], &good[..10], &[]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&key, shape), None);
            cache.put(&key, &latents).unwrap();
            assert_eq!(cache.get(&key, shape).as_ref(), Some(&latents), "made again");
        }
        let none = LatentCache::new(None);
        none.put(&key, &latents).unwrap();
        assert_eq!(none.get(&key, shape), None);
    }
}
