//! Weights for a plan: pristine ones from the engine's map, others fused when they are asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use v2l_trt::refit::{Change, Content, Staging};

use crate::engine::Engine;
use crate::lora::adapter::Adapter;
use crate::lora::fuse::{
    self, CancelCheck, FuseError, FuseOptions, FuseReport, FuseTarget, Pool, RoundingStats, SlotReport,
};
use crate::lora::{Weighted, borrowed};

/// Adapters for an engine, checked, and the weights with them.
pub(super) struct Fusing {
    engine: Arc<Engine>,
    /// Tensor → the adapters' layers for it, and the strengths.
    by_tensor: HashMap<String, Vec<Weighted>>,
    /// Slot → what identifies what is added to it; slots to which nothing is added have none.
    digests: BTreeMap<String, u64>,
    pool: Pool,
    /// What became of each slot, from when it is fused.
    reports: Mutex<HashMap<String, SlotReport>>,
}

impl Fusing {
    /// Checks the adapters and keeps them. Costs a pass over the factors.
    pub(super) fn new(engine: &Arc<Engine>, adapters: &[Weighted]) -> Result<Self, FuseError> {
        let (mut digests, mut reports) = (BTreeMap::new(), HashMap::new());
        for (slot, terms) in fuse::by_tensor(engine, &borrowed(adapters))?.into_values().flatten() {
            let mut hasher = blake3::Hasher::new();
            for term in &terms {
                hasher.update(&term.factor().to_le_bytes());
                term.update.hash_matrices(&mut hasher);
            }
            let [low, ..] = *hasher.finalize().as_bytes().as_chunks::<8>().0 else { unreachable!("32 bytes") };
            // A product of zero leaves every bit of the weight.
            if terms.iter().any(|term| term.factor() != 0.0) {
                digests.insert(slot.name.clone(), u64::from_le_bytes(low));
                continue;
            }
            let weights = (slot.out_features * slot.in_features) as u64;
            let rank = terms.iter().map(|term| term.update.rank()).sum();
            let rounding = RoundingStats { unchanged: weights, ..RoundingStats::default() };
            reports.insert(slot.name.clone(), SlotReport { slot: slot.name.clone(), rank, weights, rounding });
        }
        let by_tensor = split(engine, adapters);
        Ok(Self { engine: Arc::clone(engine), by_tensor, digests, pool: Pool::default(), reports: Mutex::new(reports) })
    }

    /// Slot → what identifies the sum of the adapters' factors for it; of some slots.
    pub(super) fn digests_of(&self, slots: &HashSet<String>) -> BTreeMap<String, u64> {
        let mine = self.digests.iter().filter(|(slot, _)| slots.contains(*slot));
        mine.map(|(slot, digest)| (slot.clone(), *digest)).collect()
    }

    /// Slots that something is added to.
    pub(super) fn changed(&self) -> impl Iterator<Item = &str> {
        self.digests.keys().map(String::as_str)
    }

    /// Fuses what no plan has asked for yet, and lets go of it: to know what becomes of each slot, and that it fits its type.
    pub(super) fn measure(&self, cancelled: CancelCheck<'_>) -> Result<(), FuseError> {
        for slot in self.engine.changeable() {
            let known = self.reports.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&slot.name);
            if !known && self.digests.contains_key(&slot.name) {
                self.fused(&slot.tensor, cancelled)?;
            }
        }
        Ok(())
    }

    /// The adapters, cut by tensor: fused together they are the same.
    pub(super) fn adapters(&self) -> Vec<Weighted> {
        self.by_tensor.values().flatten().cloned().collect()
    }

    /// Takes over what `earlier` knows of slots that have the same added.
    pub(super) fn inherit(&self, earlier: &Self) {
        let known = earlier.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |slot: &str| self.digests.get(slot).is_some_and(|digest| earlier.digests.get(slot) == Some(digest));
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, report) in known.iter().filter(|(slot, _)| same(slot)) {
            reports.entry(slot.clone()).or_insert_with(|| report.clone());
        }
    }

    /// What was done to each slot, in the engine's order.
    pub(super) fn report(&self) -> FuseReport {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = self.engine.changeable().iter().filter_map(|slot| reports.get(&slot.name).cloned());
        FuseReport { slots: slots.collect(), ..FuseReport::default() }
    }

    fn weight(&self, change: &Change, cancelled: CancelCheck<'_>) -> Result<Bytes, FuseError> {
        match change.content {
            Content::Fused(_) => self.fused(&change.weight, cancelled),
            Content::Pristine => Ok(self.engine.weight(&change.weight)?.data),
        }
    }

    /// A weight with what is added to it.
    fn fused(&self, tensor: &str, cancelled: CancelCheck<'_>) -> Result<Bytes, FuseError> {
        let adapters = self.by_tensor.get(tensor).map_or(&[][..], Vec::as_slice);
        let options = FuseOptions { pool: Some(&self.pool), cancelled, ..FuseOptions::new(FuseTarget::Storage) };
        let mut fused = fuse::fuse_with(&self.engine, &borrowed(adapters), &options)?;
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.extend(fused.report.slots.into_iter().map(|report| (report.slot.clone(), report)));
        match fused.weights.swap_remove(tensor) {
            Some(bytes) => Ok(bytes),
            None => Ok(self.engine.weight(tensor)?.data),
        }
    }
}

/// The adapters, cut into those for each tensor.
fn split(engine: &Engine, adapters: &[Weighted]) -> HashMap<String, Vec<Weighted>> {
    let slots = crate::engine::manifest::slots_by_name(engine.changeable());
    let mut by_tensor: HashMap<String, Vec<Weighted>> = HashMap::new();
    for (adapter, strength) in adapters {
        let mut parts: HashMap<&str, Adapter> = HashMap::new();
        for (name, update) in &adapter.layers {
            let Some(slot) = slots.get(&name[..]) else { continue };
            let empty = || Adapter { name: adapter.name.clone(), layers: indexmap::IndexMap::new() };
            parts.entry(&slot.tensor).or_insert_with(empty).layers.insert(name.clone(), Arc::clone(update));
        }
        for (tensor, part) in parts {
            by_tensor.entry(tensor.to_owned()).or_default().push((Arc::new(part), *strength));
        }
    }
    by_tensor
}

/// [`Fusing`], which somebody may stop.
pub(super) struct Stoppable<'a> {
    pub(super) fusing: &'a Fusing,
    pub(super) cancelled: CancelCheck<'a>,
}

impl Staging for Stoppable<'_> {
    type Error = FuseError;
    type Data = Bytes;

    fn weight(&self, change: &Change) -> Result<Bytes, FuseError> {
        if self.cancelled.is_some_and(|cancelled| cancelled()) {
            return Err(FuseError::Cancelled);
        }
        self.fusing.weight(change, self.cancelled)
    }
}

/// [`Fusing`], as it is kept to bring a lost engine back.
#[derive(Clone)]
pub(super) struct Kept(pub(super) Arc<Fusing>);

impl Staging for Kept {
    type Error = FuseError;
    type Data = Bytes;

    fn weight(&self, change: &Change) -> Result<Bytes, FuseError> {
        self.0.weight(change, None)
    }
}
