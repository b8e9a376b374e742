//! Fused weights kept on disk: adapters that come again are neither fused nor held in private memory.
//!
//! An entry is found by a hash over the base, the type of the results, and every update with its strength. It is a file
//! `<key>.fused`: a BLAKE3 hash over the key and the head (32 bytes), the length of the head (u64), the head as JSON, and the
//! weights, each at a multiple of 64 bytes. The head has the report of the fuse and a BLAKE3 hash of the weights. Files
//! appear whole by renaming, so that any number of processes may share a folder. The weights are mapped; their hash is
//! compared when this process first uses an entry. One that is damaged is removed and made again. One that is a pipe or a link, or that
//! others could write to, is passed over with its reason, and made again. Nothing is kept in a folder that others may write to.

use std::collections::HashSet;
use std::fs::{File, FileTimes, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{
    Changed, FuseBase, FuseError, FuseOptions, FuseReport, FuseTarget, Fused, RoundingStats, SlotReport, by_tensor,
    changed, fuse_tensors,
};
use crate::engine::Engine;
use crate::engine::manifest::Hash;
use crate::io::bounded::{is_entry, remove, shrink};
use crate::io::own::{create_own, map_own};
use crate::lora::adapter::Adapter;

const EXTENSION: &str = "fused";
const ALIGNMENT: usize = 64;
const HASH: usize = 32;
/// Largest head that is read, in bytes.
const MAX_HEAD: usize = 64 << 20;

/// Where fused weights are kept, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FusedCache {
    /// The folder, which is made if need be. Machines that share it should have the same version of v2l.
    pub folder: PathBuf,
    /// Bytes that it may take; what was not used for longest goes. Fused weights that are larger are not kept.
    pub bytes: u64,
}

/// [`fuse_with`](super::fuse_with), with results that are kept in a folder, and taken from there if they come again.
///
/// # Errors
/// As there. What cannot be kept is said in the report.
pub fn fuse_kept(
    base: &impl FuseBase,
    adapters: &[(&Adapter, f32)],
    options: &FuseOptions<'_>,
    cache: &FusedCache,
) -> Result<Fused, FuseError> {
    let by_tensor = by_tensor(base, adapters)?;
    let tensors = changed(base, &by_tensor)?;
    let fuse = || fuse_tensors(&tensors, options);
    match base.fingerprint() {
        Some(hash) => cache.kept_or(hash, &tensors, options.target, fuse),
        None => fuse(),
    }
}

/// The hash of all that fused weights depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FusedKey(blake3::Hash);

impl FusedKey {
    /// Of what fusing these adapters into an engine gives.
    ///
    /// # Errors
    /// As [`fuse_with`](super::fuse_with), of an adapter that does not fit.
    pub(crate) fn of(base: &Arc<Engine>, adapters: &[(&Adapter, f32)], target: FuseTarget) -> Result<Self, FuseError> {
        let by_tensor = by_tensor(base, adapters)?;
        Ok(Self::new(Engine::fingerprint(base), &changed(base, &by_tensor)?, target))
    }

    /// Of tensors in the order of fusion.
    fn new(base: &Hash, tensors: &[Changed<'_>], target: FuseTarget) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(b"v2l fused weights 1");
        part(env!("CARGO_PKG_VERSION").as_bytes());
        part(base.as_bytes());
        part(&[u8::from(target == FuseTarget::F32)]);
        for Changed { name, slots, .. } in tensors {
            part(name.as_bytes());
            for (slot, terms) in *slots {
                part(slot.name.as_bytes());
                for term in terms {
                    part(&term.factor().to_le_bytes());
                    let mut update = blake3::Hasher::new();
                    term.update.hash_matrices(&mut update);
                    part(update.finalize().as_bytes());
                }
            }
        }
        Self(hasher.finalize())
    }
}

/// What stands before the weights.
#[derive(Serialize, Deserialize)]
struct Head {
    /// In the order of the report.
    slots: Vec<KeptSlot>,
    /// Name, where it begins behind the head, and length.
    tensors: Vec<(String, u64, u64)>,
    /// Of all bytes behind the head.
    content: String,
}

#[derive(Serialize, Deserialize)]
struct KeptSlot {
    slot: String,
    rank: usize,
    weights: u64,
    /// `norm`, `dot` and `error` as their bits: the report of an entry is that of the fuse.
    sums: [u64; 3],
    unchanged: u64,
}

impl From<&SlotReport> for KeptSlot {
    fn from(report: &SlotReport) -> Self {
        let RoundingStats { norm, dot, error, unchanged } = report.rounding;
        let sums = [norm, dot, error].map(f64::to_bits);
        Self { slot: report.slot.clone(), rank: report.rank, weights: report.weights, sums, unchanged }
    }
}

impl From<KeptSlot> for SlotReport {
    fn from(kept: KeptSlot) -> Self {
        let KeptSlot { slot, rank, weights, sums, unchanged } = kept;
        let [norm, dot, error] = sums.map(f64::from_bits);
        Self { slot, rank, weights, rounding: RoundingStats { norm, dot, error, unchanged } }
    }
}

impl FusedCache {
    /// What is kept of these tensors over this base, or what `fuse` makes of them, which is kept then.
    ///
    /// # Errors
    /// Those of `fuse`. What cannot be kept is said in the report.
    pub(crate) fn kept_or(
        &self,
        base: &Hash,
        tensors: &[Changed<'_>],
        target: FuseTarget,
        fuse: impl FnOnce() -> Result<Fused, FuseError>,
    ) -> Result<Fused, FuseError> {
        if tensors.is_empty() {
            return fuse();
        }
        let key = FusedKey::new(base, tensors, target);
        let lengths: Vec<(&str, usize)> = tensors.iter().map(|tensor| (tensor.name, tensor.length(target))).collect();
        let named = |error: io::Error| format!("{}: {error}", self.folder.display());
        let passed_over = match self.get(&key, &lengths) {
            Ok(Some(mut fused)) => {
                fused.report.kept = Some(true);
                return Ok(fused);
            }
            Ok(None) => None,
            Err(error) => Some(named(error)),
        };
        let mut fused = fuse()?;
        fused.report.kept = Some(false);
        fused.report.not_kept = self.put(&key, &fused).err().map(named);
        fused.report.passed_over = passed_over.filter(|reason| fused.report.not_kept.as_ref() != Some(reason));
        Ok(fused)
    }

    /// What is kept of this key: exactly these tensors, with their lengths. `None` if there is nothing sound; an entry that is
    /// damaged is removed.
    ///
    /// # Errors
    /// Why an entry, or all of the folder, is passed over.
    pub(super) fn get(&self, key: &FusedKey, expected: &[(&str, usize)]) -> io::Result<Option<Fused>> {
        let path = self.path(key);
        let Some((file, bytes)) = map_own(&path)? else { return Ok(None) };
        let found = read(key, &bytes, expected, (&path, &file));
        match found {
            // Reading must not fail where only reading is allowed. When it was modified tells a file from another.
            Some(_) => drop(file.set_times(FileTimes::new().set_accessed(SystemTime::now()))),
            None => drop(remove(&path)),
        }
        Ok(found)
    }

    /// Keeps fused weights, and removes those that were not used for longest until the limit is kept. What alone is larger is
    /// not kept. Waits until they are on disk.
    ///
    /// # Errors
    /// If they cannot be written; nothing is left of them then.
    pub(super) fn put(&self, key: &FusedKey, fused: &Fused) -> io::Result<()> {
        let (mut tensors, mut end, mut content) = (Vec::with_capacity(fused.weights.len()), 0, blake3::Hasher::new());
        for (name, bytes) in &fused.weights {
            tensors.push((name.clone(), end as u64, bytes.len() as u64));
            content.update_rayon(bytes).update(&PADDING[..padding(bytes.len())]);
            end += bytes.len() + padding(bytes.len());
        }
        if end as u64 > self.bytes {
            return Ok(());
        }
        let slots = fused.report.slots.iter().map(KeptSlot::from).collect();
        let head = serde_json::to_vec(&Head { slots, tensors, content: content.finalize().to_string() })?;
        let path = self.path(key);
        let mut file = create_own(&path)?;
        file.write_all(head_hash(key, &head).as_bytes())?;
        file.write_all(&(head.len() as u64).to_le_bytes())?;
        file.write_all(&head)?;
        file.write_all(&PADDING[..padding(HASH + 8 + head.len())])?;
        for bytes in fused.weights.values() {
            file.write_all(bytes)?;
            file.write_all(&PADDING[..padding(bytes.len())])?;
        }
        file.commit()?;
        shrink(&self.folder, self.bytes, |path| is_entry(path, EXTENSION), Metadata::accessed);
        Ok(())
    }

    fn path(&self, key: &FusedKey) -> PathBuf {
        self.folder.join(format!("{}.{EXTENSION}", key.0.to_hex()))
    }
}

const PADDING: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// Bytes to the next multiple of the alignment.
const fn padding(length: usize) -> usize {
    (ALIGNMENT - length % ALIGNMENT) % ALIGNMENT
}

/// A head under another key's name is damaged.
fn head_hash(key: &FusedKey, head: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(key.0.as_bytes()).update(head).finalize()
}

/// `None` if it is not what [`FusedCache::put`] made.
fn read(key: &FusedKey, bytes: &Bytes, expected: &[(&str, usize)], entry: (&Path, &File)) -> Option<Fused> {
    let (hash, rest) = bytes.split_at_checked(HASH)?;
    let (length, rest) = rest.split_at_checked(8)?;
    let length =
        usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok().filter(|&length| length <= MAX_HEAD)?;
    let head = rest.get(..length)?;
    if head_hash(key, head).as_bytes() != hash {
        return None;
    }
    let head: Head = serde_json::from_slice(head).ok()?;
    let start = HASH + 8 + length;
    let data = bytes.slice(start.checked_add(padding(start))?.min(bytes.len())..);
    let mut weights = IndexMap::with_capacity(head.tensors.len());
    for ((name, offset, length), (expected, bytes)) in head.tensors.into_iter().zip(expected) {
        let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        let end = offset.checked_add(length).filter(|&end| end <= data.len())?;
        if name != *expected || length != *bytes || offset % ALIGNMENT != 0 {
            return None;
        }
        weights.insert(name, data.slice(offset..end));
    }
    if weights.len() != expected.len() || !is_sound(entry, &data, &head.content) {
        return None;
    }
    let slots = head.slots.into_iter().map(SlotReport::from).collect();
    Some(Fused { weights, report: FuseReport { slots, ..FuseReport::default() } })
}

/// Entries whose weights this process has compared with their hash.
static COMPARED: Mutex<Option<HashSet<(PathBuf, Identity)>>> = Mutex::new(None);

/// True if the weights have their hash. They are read whole when the process first sees the file.
fn is_sound((path, file): (&Path, &File), data: &Bytes, content: &str) -> bool {
    let entry = identity(file).map(|identity| (path.to_owned(), identity));
    let mut compared = COMPARED.lock().unwrap_or_else(PoisonError::into_inner);
    let compared = compared.get_or_insert_default();
    if entry.as_ref().is_some_and(|entry| compared.contains(entry)) {
        return true;
    }
    let sound = blake3::Hasher::new().update_rayon(data).finalize().to_string() == content;
    compared.extend(entry.filter(|_| sound));
    sound
}

/// What a file that was renamed over another differs in: device, number, length, and when it was modified.
type Identity = (u64, u64, u64, SystemTime);

#[cfg(unix)]
fn identity(file: &File) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

#[cfg(not(unix))]
fn identity(_: &File) -> Option<Identity> {
    None
}
