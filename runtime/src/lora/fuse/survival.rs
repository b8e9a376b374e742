//! How much of adapters survives in the storage type, without keeping the fused weights.

use rayon::prelude::*;

use super::{Changed, FuseError, FuseOptions, FuseReport, FuseTarget, Region, by_tensor, fuse_tensors};
use crate::engine::manifest::Slot;
use crate::engine::{Engine, EngineError};
use crate::io::raw::widen_into;
use crate::lora::adapter::Adapter;

/// What rounding to the storage type does to adapters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survival {
    /// That of [`fuse`](super::fuse) into [`FuseTarget::Storage`], number for number.
    pub report: FuseReport,
    /// `‖W‖`, Frobenius, of every slot of the report before the fuse.
    pub weight_norms: Vec<f64>,
}

impl Survival {
    /// `‖W‖` of all changed slots together.
    pub fn overall_norm(&self) -> f64 {
        self.weight_norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt()
    }
}

/// Fuses adapters, each with its strength, into the storage type, and keeps only what is known of it.
///
/// Costs a fuse and one more pass over the changed weights; private memory for one tensor at a time.
///
/// # Errors
/// [`FuseError`], as [`fuse`](super::fuse).
pub fn survival(engine: &Engine, adapters: &[(&Adapter, f32)]) -> Result<Survival, FuseError> {
    let options = FuseOptions::new(FuseTarget::Storage);
    let mut found = Survival::default();
    for (name, slots) in &by_tensor(engine, adapters)? {
        let tensor = Changed { name, base: engine.weight(name)?, slots };
        let fused = fuse_tensors(std::slice::from_ref(&tensor), &options)?;
        found.report.slots.extend(fused.report.slots);
        found.weight_norms.extend(slots.iter().map(|(slot, _)| norm(&tensor, Region::of(slot))));
    }
    Ok(found)
}

/// Tensors of a sample.
const SAMPLED: usize = 4;

/// What fusing into the storage type does to a few of the tensors that are changed, the first and the last among them.
///
/// # Errors
/// As [`survival`].
pub(crate) fn sampled(engine: &Engine, adapters: &[(&Adapter, f32)]) -> Result<FuseReport, FuseError> {
    let options = FuseOptions::new(FuseTarget::Storage);
    let by_tensor = by_tensor(engine, adapters)?;
    let last = by_tensor.len().saturating_sub(1);
    let mut report = FuseReport::default();
    for (at, (name, slots)) in by_tensor.iter().enumerate() {
        let chosen = last < SAMPLED || (0..SAMPLED).any(|n| at == n * last / (SAMPLED - 1));
        if chosen {
            let tensor = Changed { name, base: engine.weight(name)?, slots };
            report.slots.extend(fuse_tensors(std::slice::from_ref(&tensor), &options)?.report.slots);
        }
    }
    Ok(report)
}

/// Frobenius norm of a slot's weight; `None` of a weight in 8 bits. Costs a pass over the weight.
///
/// # Errors
/// [`EngineError`] if the engine lacks the weight.
pub fn weight_norm(engine: &Engine, slot: &Slot) -> Result<Option<f64>, EngineError> {
    if slot.quantized.is_some() {
        return Ok(None);
    }
    let tensor = Changed { name: &slot.tensor, base: engine.weight(&slot.tensor)?, slots: &[] };
    Ok(Some(norm(&tensor, Region::of(slot))))
}

/// Frobenius norm of a part of a tensor. Rows are summed in order, so that threads do not matter.
fn norm(tensor: &Changed<'_>, region: Region) -> f64 {
    let (dtype, stride) = (tensor.base.dtype, tensor.stride());
    let of_row = |row: usize| {
        let start = (row * stride + region.first_column) * dtype.size();
        let mut values = vec![0f32; region.columns];
        widen_into(dtype, &tensor.base.data[start..][..region.columns * dtype.size()], &mut values);
        values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>()
    };
    let rows: Vec<f64> = (region.first_row..region.first_row + region.rows).into_par_iter().map(of_row).collect();
    rows.iter().sum::<f64>().sqrt()
}
