//! Weights that several opened engines of one process hold together.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use indexmap::IndexMap;
use ort::session::builder::PrepackedWeights;

use crate::engine::manifest::Hash;
use crate::lora::fuse::{FuseError, FuseReport, Fused, FusedKey};
use crate::tensor::Dtype;

/// Copies of weights in f32, fused weights, and what ONNX Runtime packs of both, held once for all engines that are opened with clones of
/// one value in [`OrtOptions::shared`](super::OrtOptions::shared).
///
/// Copies are shared by all sessions over equal engines, fused and packed weights by those with the same adapters and strengths. What no
/// engine and session holds any more is freed. Results are what they are without it, bit for bit.
#[derive(Clone, Default)]
pub struct SharedWeights(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    /// By engine, weight and type.
    copies: HashMap<(Hash, String, Dtype), Weak<Bytes>>,
    sets: HashMap<FusedKey, Weak<WeightSet>>,
}

impl fmt::Debug for SharedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedWeights")
    }
}

/// What one stack of adapters makes of an engine's weights; none makes nothing.
#[derive(Debug, Default)]
pub(super) struct WeightSet {
    /// Weights that adapters are fused into.
    pub(super) weights: IndexMap<String, Bytes>,
    pub(super) report: FuseReport,
    /// What sessions over these weights pack of them, if they share it.
    pub(super) packed: Option<PrepackedWeights>,
}

impl From<Fused> for WeightSet {
    fn from(fused: Fused) -> Self {
        Self { weights: fused.weights, report: fused.report, packed: None }
    }
}

/// Keeps a shared copy as long as there are bytes of it.
struct Holder(Arc<Bytes>);

impl AsRef<[u8]> for Holder {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl SharedWeights {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copy of a weight that others hold, or a new one. Others wait meanwhile, and make no copy of their own.
    pub(super) fn copy(&self, engine: &Hash, name: &str, dtype: Dtype, make: impl FnOnce() -> Bytes) -> Bytes {
        let key = (*engine, name.to_owned(), dtype);
        let mut tables = self.tables();
        if let Some(held) = tables.copies.get(&key).and_then(Weak::upgrade) {
            return Bytes::from_owner(Holder(held));
        }
        let made = Arc::new(make());
        tables.copies.retain(|_, held| held.strong_count() > 0);
        tables.copies.insert(key, Arc::downgrade(&made));
        Bytes::from_owner(Holder(made))
    }

    /// The set of this key that others hold, or a new one. Two that make the same at once end with that of the first.
    pub(super) fn set(
        &self,
        key: FusedKey,
        make: impl FnOnce() -> Result<Fused, FuseError>,
    ) -> Result<Arc<WeightSet>, FuseError> {
        let held = |tables: &Tables| tables.sets.get(&key).and_then(Weak::upgrade);
        if let Some(set) = held(&self.tables()) {
            return Ok(set);
        }
        let made = make()?;
        let mut tables = self.tables();
        if let Some(set) = held(&tables) {
            return Ok(set);
        }
        let set = Arc::new(WeightSet { packed: Some(PrepackedWeights::new()), ..WeightSet::from(made) });
        tables.sets.retain(|_, held| held.strong_count() > 0);
        tables.sets.insert(key, Arc::downgrade(&set));
        Ok(set)
    }
}
