//! Predictions kept on disk: the second request with the same reference needs neither the autoencoder nor the
//! hypernetwork.
//!
//! A [`Key`] is the hash of everything that determines the tokens, but for the last bits in which processors and versions of
//! ONNX Runtime may differ: machines that differ so should not share a folder. An entry is a file `<key>.tokens`: a BLAKE3
//! hash over the key and the rest (32 bytes), the extents of the tokens (two u64), the tokens (f32), all little-endian. Files
//! appear whole by renaming, so any number of processes may share a folder; one that is damaged is removed and made
//! again. Files of other names are left alone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ndarray::Array2;

use crate::backends::chosen;
use crate::engine::Engine;
use crate::error::{Classified, ErrorClass};
use crate::io::atomic::write_file;
use crate::io::raw;
use crate::options::OpenOptions;
use crate::pipeline::{LatentChoice, PipelineConfig, Reference, ReferenceConfig};
use crate::tensor::{Dtype, Tensor};

const EXTENSION: &str = "tokens";
const HASH: usize = 32;
const EXTENTS: usize = 16;
/// Largest entry that is read, in bytes.
const MAX_ENTRY: u64 = 1 << 30;

/// The hash of what determines a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(blake3::Hash);

/// What determines a prediction.
#[derive(Clone, Copy)]
pub struct Determined<'a> {
    /// The reference, as given.
    pub reference: Reference<'a>,
    /// (width, height) that its frames are brought to.
    pub size: (usize, usize),
    /// The autoencoder's settings.
    pub config: &'a PipelineConfig,
    /// How it is prepared.
    pub knobs: &'a ReferenceConfig,
    /// Seed of the latent, where that is drawn.
    pub seed: u64,
    /// The engine of the encoder.
    pub encoder: &'a Engine,
    /// The engine of the hypernetwork.
    pub hypernetwork: &'a Engine,
    /// How the engines are opened: other arithmetic may change last bits.
    pub options: &'a OpenOptions,
}

impl Key {
    /// The key of a prediction. Reads the reference, no weights: engines are known by their manifests, which hold the hash
    /// of every tensor.
    pub fn new(what: &Determined<'_>) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Every part is preceded by its length, so that no two lists of parts are alike.
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(concat!("v2l prediction 2, ", env!("CARGO_PKG_VERSION")).as_bytes());
        match what.reference {
            Reference::Frames(frames) => {
                part(b"frames");
                part(format!("{} {} {:?}", frames.width(), frames.height(), frames.fps()).as_bytes());
                part(frames.data());
            }
            Reference::Pixels(pixels) => {
                part(b"pixels");
                part(format!("{:?}", pixels.shape()).as_bytes());
                part(&raw::tensor_bytes(&Tensor::F32(pixels.clone().into_dyn())));
            }
        }
        part(format!("{:?}", what.size).as_bytes());
        let knobs = *what.knobs;
        part(format!("{knobs:?}").as_bytes());
        part(format!("{:?}", what.config.family.as_ref().and_then(|family| family.vae())).as_bytes());
        // The mean needs no random number.
        part(&if knobs.latent == LatentChoice::Sample { what.seed } else { 0 }.to_le_bytes());
        part(what.encoder.fingerprint().as_bytes());
        part(what.hypernetwork.fingerprint().as_bytes());
        // What was decided, not `auto`: machines that decide otherwise compute otherwise.
        for engine in [what.encoder, what.hypernetwork] {
            let backend = chosen(engine, what.options);
            let weights = match backend.held_weights(engine, what.options) {
                Ok((mode, _)) => mode.to_string(),
                Err(error) => error.to_string(),
            };
            part(format!("{} {weights} {}", backend.name(), backend.cache_key(what.options)).as_bytes());
        }
        part(format!("{:?}", what.options.threads).as_bytes());
        Self(hasher.finalize())
    }
}

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
        std::fs::create_dir_all(&folder).map_err(error(&folder))?;
        Ok(Self { folder, limit })
    }

    /// The prediction of this key, which then counts as the most recently used. `None` if there is none; an entry that is
    /// damaged is removed.
    ///
    /// # Errors
    /// [`CacheError`] if there is an entry that cannot be read or, damaged, removed: a miss, too, but one to be told of.
    pub fn get(&self, key: &Key) -> Result<Option<Array2<f32>>, CacheError> {
        let path = self.path(key);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            // Opening a pipe would wait for its other end.
            Ok(_) => return Err(error(&path)(io::Error::other("expected a file, found something else"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(&path)(e)),
        }
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(&path)(e)),
        };
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&mut file, MAX_ENTRY), &mut bytes).map_err(error(&path))?;
        let tokens = decode(key, &bytes);
        if tokens.is_some() {
            // Reading must not fail where only reading is allowed.
            let _ = file.set_modified(SystemTime::now());
        } else {
            remove(&path)?;
        }
        Ok(tokens)
    }

    /// Keeps a prediction, and removes those that were not used for longest until the limit is kept. One that is larger
    /// than the limit is not kept.
    ///
    /// # Errors
    /// [`CacheError`] if it cannot be written.
    pub fn put(&self, key: &Key, tokens: &Array2<f32>) -> Result<(), CacheError> {
        let bytes = encode(key, tokens);
        if bytes.len() as u64 > self.limit.min(MAX_ENTRY) {
            return Ok(());
        }
        let path = self.path(key);
        write_file(&path, &bytes).map_err(error(&path))?;
        self.shrink();
        Ok(())
    }

    /// Removes what was not used for longest. Other processes may do so at the same time; what cannot be removed stays.
    fn shrink(&self) {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Some(metadata) =
                entry.metadata().ok().filter(|metadata| metadata.is_file() && is_entry(&entry.path()))
            {
                entries.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total <= self.limit {
                break;
            }
            if remove(&path).is_ok() {
                total -= bytes;
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.{EXTENSION}", key.0.to_hex()))
    }
}

/// True for the name of an entry: a hash and the extension.
fn is_entry(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    path.extension().is_some_and(|extension| extension == EXTENSION) && blake3::Hash::from_hex(stem).is_ok()
}

fn error(path: &Path) -> impl Fn(io::Error) -> CacheError + '_ {
    |source| CacheError { path: path.to_owned(), source }
}

/// Removes a file that another process may have removed already.
fn remove(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(path)(e)),
        _ => Ok(()),
    }
}

/// What stands at the start of an entry: a file under another key's name is damaged.
fn checksum(key: &Key, rest: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(key.0.as_bytes()).update(rest).finalize()
}

fn encode(key: &Key, tokens: &Array2<f32>) -> Vec<u8> {
    let mut rest = Vec::with_capacity(EXTENTS + tokens.len() * 4);
    for extent in tokens.shape() {
        rest.extend((*extent as u64).to_le_bytes());
    }
    rest.extend_from_slice(&raw::tensor_bytes(&Tensor::F32(tokens.clone().into_dyn())));
    let mut bytes = checksum(key, &rest).as_bytes().to_vec();
    bytes.extend(rest);
    bytes
}

/// `None` if it is not what [`encode`] made.
fn decode(key: &Key, bytes: &[u8]) -> Option<Array2<f32>> {
    let (hash, rest) = bytes.split_at_checked(HASH)?;
    if checksum(key, rest).as_bytes() != hash {
        return None;
    }
    let (extents, values) = rest.split_at_checked(EXTENTS)?;
    let extent = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok();
    let shape = [extent(&extents[..8])?, extent(&extents[8..])?];
    let tokens = raw::tensor_from_bytes(Dtype::F32, &shape, values)?.into_f32()?.into_dimensionality().ok()?;
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(n: u8) -> Key {
        Key(blake3::hash(&[n]))
    }

    fn tokens(n: u8) -> Array2<f32> {
        Array2::from_shape_fn((3, 5), |(i, j)| f32::from(n) + i as f32 - 0.1 * j as f32)
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
        let path = cache.path(&key(1));
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, ENTRY);
        let mut flipped = good.clone();
        flipped[70] ^= 1;
        cache.put(&key(2), &tokens(2)).unwrap();
        let other = std::fs::read(cache.path(&key(2))).unwrap();
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
            let file = std::fs::File::open(cache.path(&key(n))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let foreign = dir.path().join("mine.tokens");
        std::fs::write(&foreign, [0; 1000]).unwrap();
        std::fs::create_dir(cache.path(&key(9))).unwrap();
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
