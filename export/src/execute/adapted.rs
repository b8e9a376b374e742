//! Models on ONNX Runtime with adapters fused into their weights, piece by piece.

use std::borrow::Cow;

use indexmap::IndexMap;
use v2l_calibration::Executor;
use v2l_graphs::{DataType, Model};
use v2l_runtime::engine::EngineError;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::engine::parameters::matrix;
use v2l_runtime::io::raw;
use v2l_runtime::io::weights::{WeightError, WeightView};
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::lora::fuse::{FuseBase, FuseError, FuseOptions, FuseTarget, fuse_with};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{Dtype, Tensor};

use super::{ExecuteError, OrtExecutor};
use crate::types::to_runtime;

/// Why a model did not run with adapters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdaptedError {
    /// The model itself did not run.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// An adapter does not fit.
    #[error(transparent)]
    Fuse(#[from] FuseError),
}

/// Runs pieces of a model with adapters in their weights.
///
/// What a piece reads is fused when it runs, in private memory: as much as the touched weights of one piece take in
/// f32.
pub(crate) struct AdaptedExecutor<'a> {
    options: OpenOptions,
    slots: &'a [Slot],
    adapters: &'a [(Adapter, f32)],
    strength: f32,
    /// The model emulates 16 bits: fused weights are rounded to the type that their own weights were rounded to.
    rounded: bool,
}

impl<'a> AdaptedExecutor<'a> {
    /// `strength` multiplies those of the adapters; at 0 they are left out.
    pub(crate) fn new(
        options: &OpenOptions,
        slots: &'a [Slot],
        adapters: &'a [(Adapter, f32)],
        strength: f32,
        rounded: bool,
    ) -> Self {
        Self { options: options.clone(), slots, adapters, strength, rounded }
    }

    /// The fused weights that `model` reads, in f32.
    fn fused(&self, model: &Model) -> Result<IndexMap<String, bytes::Bytes>, AdaptedError> {
        if self.strength == 0.0 || self.adapters.is_empty() {
            return Ok(IndexMap::new());
        }
        let base = Piece::new(model, self.slots, self.adapters, self.rounded)?;
        let here = |name: &String| base.slots.iter().any(|slot| slot.name == *name || slot.aliases.contains(name));
        let adapters: Vec<(Adapter, f32)> = self
            .adapters
            .iter()
            .map(|(adapter, strength)| {
                let layers = adapter.layers.iter().filter(|(name, _)| here(name));
                let layers = layers.map(|(name, layer)| (name.clone(), layer.clone())).collect();
                (Adapter { name: adapter.name.clone(), layers }, strength * self.strength)
            })
            .collect();
        let borrowed: Vec<(&Adapter, f32)> = adapters.iter().map(|(adapter, strength)| (adapter, *strength)).collect();
        let target = if self.rounded { FuseTarget::Storage } else { FuseTarget::F32 };
        let mut fused = fuse_with(&base, &borrowed, &FuseOptions::new(target))?.weights;
        for (name, data) in &mut fused {
            let dtype = base.weights.get(name).map_or(Dtype::F32, |weight| weight.dtype);
            if self.rounded && dtype != Dtype::F32 {
                *data = raw::widen(dtype, data).map(raw::vec_into_bytes).unwrap_or_else(|| data.clone());
            }
        }
        Ok(fused)
    }
}

impl Executor for AdaptedExecutor<'_> {
    type Value = Tensor;
    type Error = AdaptedError;

    fn run(&mut self, model: &Model, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, AdaptedError> {
        let overrides = self.fused(model)?;
        Ok(OrtExecutor { options: self.options.clone(), overrides }.run(model, inputs)?)
    }

    fn floats(value: &Tensor) -> Option<Cow<'_, [f32]>> {
        OrtExecutor::floats(value)
    }
}

struct PieceWeight {
    dtype: Dtype,
    shape: Vec<usize>,
    data: bytes::Bytes,
}

/// The touched weights that a piece of a model reads.
struct Piece {
    slots: Vec<Slot>,
    weights: IndexMap<String, PieceWeight>,
}

impl Piece {
    fn new(model: &Model, slots: &[Slot], adapters: &[(Adapter, f32)], rounded: bool) -> Result<Self, ExecuteError> {
        let (mut own, mut weights) = (Vec::new(), IndexMap::new());
        let touched = |slot: &Slot| {
            let changes = |name: &String| adapters.iter().any(|(adapter, _)| adapter.layers.contains_key(name));
            changes(&slot.name) || slot.aliases.iter().any(changes)
        };
        for slot in slots.iter().filter(|slot| touched(slot)) {
            let Some(weight) = model.graph.initializers.get(&slot.tensor) else { continue };
            let fail = |reason: String| ExecuteError::Weight { name: slot.tensor.clone(), reason };
            let rows = slot.row_range();
            let (out, inner) = match (&weight.shape[..], slot.transposed) {
                (&[out, inner], false) | (&[inner, out], true) => (out, inner),
                (shape, _) => matrix(shape).ok_or_else(|| fail(format!("slot `{}` is not a matrix", slot.name)))?,
            };
            if rows.start >= rows.end || rows.end > out || inner != slot.in_features {
                return Err(fail(format!("slot `{}` does not fit its shape {:?}", slot.name, weight.shape)));
            }
            own.push(slot.clone());
            if weights.contains_key(&slot.tensor) {
                continue;
            }
            let narrow = weight.data.widened_from().filter(|ty| rounded && ty.size() == 2).unwrap_or(weight.dtype);
            let data = weight.data.clone().converted(DataType::Float, narrow).to_bytes();
            let data = data.map_err(|e| fail(e.to_string()))?;
            weights.insert(
                slot.tensor.clone(),
                PieceWeight { dtype: to_runtime(narrow), shape: weight.shape.clone(), data },
            );
        }
        Ok(Self { slots: own, weights })
    }
}

impl FuseBase for Piece {
    fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn base_weight(&self, name: &str) -> Result<WeightView<'_>, EngineError> {
        let missing = || WeightError::Missing { path: "the model".into(), name: name.to_owned() };
        let weight = self.weights.get(name).ok_or_else(missing)?;
        Ok(WeightView { dtype: weight.dtype, shape: &weight.shape, data: weight.data.clone() })
    }
}
