//! How weights are held, decided before anything is allocated, and what that takes.

use std::collections::BTreeMap;

use super::OrtError;
use super::options::{OrtWeights, WeightMode};
use crate::adapter::Adapter;
use crate::engine::Engine;
use crate::engine::manifest::Graph;
use crate::fuse;
use crate::tensor::Dtype;

/// How the weights will be held, and what that takes.
pub(super) struct WeightPlan {
    pub(super) mode: WeightMode,
    pub(super) reason: String,
    pub(super) private: u64,
}

impl WeightPlan {
    pub(super) fn new(
        engine: &Engine,
        asked: OrtWeights,
        adapters: &[(Adapter, f32)],
        available: Option<u64>,
    ) -> Result<Self, OrtError> {
        let weights = graph_weights(engine)?;
        let widened_total: u64 = weights.values().map(|w| w.widened).sum();
        let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
        let (mode, reason) = match (asked, available) {
            (OrtWeights::Widened, _) => (WeightMode::Widened, "asked for".to_owned()),
            (OrtWeights::Lazy, _) => (WeightMode::Lazy, "asked for".to_owned()),
            (OrtWeights::Auto, None) => {
                (WeightMode::Widened, "the system does not say how much memory there is".to_owned())
            }
            (OrtWeights::Auto, Some(available)) => {
                let (needed, budget) = (widened_total.saturating_mul(2), available / 2);
                let fits = needed <= budget;
                let reason = format!(
                    "twice the f32 weights, {}, {} half of the available memory, {}",
                    mib(needed),
                    if fits { "fit in" } else { "exceed" },
                    mib(budget)
                );
                (if fits { WeightMode::Widened } else { WeightMode::Lazy }, reason)
            }
        };
        let fused = fuse::touched_tensors(engine, adapters.iter().map(|(adapter, _)| adapter));
        let private = match mode {
            // What is not stored in f32 or is fused needs a buffer; prepacking may copy every matrix once more.
            WeightMode::Widened => weights
                .iter()
                .map(|(name, w)| {
                    let buffer = if w.stored_wide && !fused.contains(*name) { 0 } else { w.widened };
                    buffer + if w.matrix { w.widened } else { 0 }
                })
                .sum(),
            WeightMode::Lazy | WeightMode::Plan => {
                weights.iter().filter(|(name, _)| fused.contains(**name)).map(|(_, w)| w.stored).sum()
            }
        };
        Ok(Self { mode, reason, private })
    }
}

/// Refuses what does not fit.
pub(super) fn check_memory(mode: WeightMode, needed: u64, available: Option<u64>) -> Result<(), OrtError> {
    match available {
        Some(available) if needed > available => {
            let way_out = match mode {
                WeightMode::Widened => "use `--ort-weights lazy`, or free memory",
                WeightMode::Lazy | WeightMode::Plan => "free memory, or use an adapter for fewer layers",
            };
            Err(OrtError::Memory { mode, needed, available, way_out })
        }
        _ => Ok(()),
    }
}

pub(super) struct WeightSize {
    pub(super) stored: u64,
    /// Bytes in f32, or as stored if it is no float.
    pub(super) widened: u64,
    pub(super) stored_wide: bool,
    pub(super) matrix: bool,
}

pub(super) fn graph_weights(engine: &Engine) -> Result<BTreeMap<&str, WeightSize>, OrtError> {
    let mut weights = BTreeMap::new();
    let graphs = engine.manifest().graphs.iter().flat_map(Graph::parts);
    for graph in graphs {
        for name in &graph.weights {
            let view = engine.weight(name)?;
            let stored = view.data.len() as u64;
            let float = view.dtype.is_float();
            let widened = if float { stored / view.dtype.size() as u64 * 4 } else { stored };
            let stored_wide = !float || view.dtype == Dtype::F32;
            weights
                .insert(&name[..], WeightSize { stored, widened, stored_wide, matrix: float && view.shape.len() > 1 });
        }
    }
    Ok(weights)
}
