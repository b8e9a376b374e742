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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backends::onnxruntime::tests::{engine, options, run};
    use crate::backends::onnxruntime::{OrtEngine, OrtOptions};
    use crate::engine::Engine;
    use crate::io::weights::read_tensors;
    use crate::lora::adapter::{Adapter, LowRank};
    use crate::options::{OpenOptions, OrtWeights};
    use crate::tensor::Dtype;
    use crate::testing::engines::{LINEARS, fixture, part};

    /// Copies and sets that somebody holds.
    fn held(shared: &SharedWeights) -> (usize, usize) {
        let tables = shared.tables();
        let copies = tables.copies.values().filter(|held| held.strong_count() > 0).count();
        (copies, tables.sets.values().filter(|held| held.strong_count() > 0).count())
    }

    #[test]
    fn shared_copy_is_made_once_and_freed_with_its_last_bytes() {
        let (shared, hash) = (SharedWeights::default(), Hash::from(blake3::hash(b"engine")));
        let first = shared.copy(&hash, "a", Dtype::F32, || Bytes::from(vec![1; 8]));
        let second = shared.clone().copy(&hash, "a", Dtype::F32, || unreachable!("it is held"));
        assert_eq!(first.as_ptr(), second.as_ptr());
        let other = shared.copy(&hash, "a", Dtype::F16, || Bytes::from(vec![2; 4]));
        assert_ne!(other, first);
        drop(first);
        assert_eq!(held(&shared).0, 2);
        drop((second, other));
        assert_eq!(held(&shared).0, 0);
    }

    #[test]
    fn engines_that_share_weights_compute_what_they_do_alone_and_hold_one_set_for_each_stack() {
        for storage in [Dtype::F32, Dtype::Bf16] {
            let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
            let (pristine, _dir) = engine(&part(&case, "weight."), storage);
            let layer = |&(name, out, inner): &(&str, usize, usize)| {
                let down = ndarray::Array2::from_shape_fn((1, inner), |(_, i)| (i % 3) as f32 - 1.0);
                let up = ndarray::Array2::from_shape_fn((out, 1), |(o, _)| (o % 5) as f32 * 0.1);
                (name.to_owned(), LowRank { down, up, alpha: 1.0 }.into())
            };
            let adapter = Arc::new(Adapter { name: "a".into(), layers: LINEARS.iter().map(layer).collect() });
            let shared = SharedWeights::default();
            let with = |shared: Option<&SharedWeights>, strength: f32| {
                // Mapped again, as another instance does.
                let engine = Arc::new(Engine::open(pristine.path()).unwrap());
                let ort = OrtOptions { shared: shared.cloned(), ..OrtOptions::default() };
                let options = OpenOptions { ort, ..options(OrtWeights::F32) };
                let mut ort = OrtEngine::open(engine, &options).unwrap();
                let adapters: &[_] = if strength == 0.0 { &[] } else { &[(adapter.clone(), strength)] };
                ort.set_adapters(adapters, None).unwrap();
                let session = ort.session("step").unwrap();
                (ort, session)
            };
            let inputs = part(&case, "input.");
            let mut opened = Vec::new();
            for (strength, sets) in [(0.0, 1), (0.0, 1), (0.5, 2), (0.5, 2), (0.25, 3)] {
                let expected = run(&mut with(None, strength).1, &inputs);
                let (ort, mut session) = with(Some(&shared), strength);
                assert_eq!(run(&mut session, &inputs), expected, "{storage} {strength}");
                opened.push((ort, session));
                assert_eq!(held(&shared).1, sets, "{storage} {strength}");
            }
            // Each copy belongs to all; weights that are stored in f32 need none.
            assert_eq!(held(&shared).0 > 0, storage != Dtype::F32);
            // Sessions outlive what they were opened from.
            let sessions: Vec<_> = opened.into_iter().map(|(_, session)| session).collect();
            for mut session in sessions {
                run(&mut session, &inputs);
            }
            assert_eq!(held(&shared), (0, 0));
        }
    }
}
