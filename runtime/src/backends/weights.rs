//! What weights take.

use std::collections::BTreeMap;

use super::backend::Fused;
use crate::engine::manifest::Graph;
use crate::engine::{Engine, EngineError};
use crate::lora::Weighted;
use crate::lora::fuse;
use crate::options::WeightMode;
use crate::tensor::Dtype;

/// Bytes of private memory for weights, each with whether it is fused, and those of them that are fused.
fn private<'a>(weights: impl Iterator<Item = (&'a WeightSize, bool)>, mode: WeightMode) -> (u64, u64) {
    let (mut all, mut together) = (0u64, 0u64);
    for (weight, fused) in weights {
        let buffer = match mode {
            WeightMode::F32 => weight.f32_bytes,
            WeightMode::Stored | WeightMode::Plan => weight.stored,
        };
        // What is not stored in f32 or is fused needs a buffer; prepacking may copy every matrix once more.
        let in_f32 = mode == WeightMode::F32;
        all += if fused || (in_f32 && !weight.stored_wide) { buffer } else { 0 };
        all += if in_f32 && weight.matrix { weight.f32_bytes } else { 0 };
        together += if fused { buffer } else { 0 };
    }
    (all, together)
}

/// Bytes of private memory for the weights of a graph and its precomputed graphs, and those of them that are fused, factors that are laid out
/// for that included.
///
/// # Errors
/// [`EngineError`] if the graph names a weight that the engine lacks.
pub(super) fn weight_bytes(
    engine: &Engine,
    graph: &Graph,
    mode: WeightMode,
    fused: Fused<'_>,
) -> Result<(u64, u64), EngineError> {
    let weights = weights_of(engine, graph.parts())?;
    let (touched, laid_out) = match fused {
        Fused::All => (engine.changeable().iter().map(|slot| slot.tensor.clone()).collect(), 0),
        Fused::These(adapters) => {
            let adapters = || adapters.iter().map(|(adapter, _)| &**adapter);
            (fuse::touched_tensors(engine, adapters()), fuse::packed_bytes(engine, adapters()))
        }
    };
    let (all, together) = private(weights.iter().map(|(name, w)| (w, touched.contains(*name))), mode);
    Ok((all.saturating_add(laid_out), together.saturating_add(laid_out)))
}

/// Upper bound on the private memory of all of an engine's weights with these adapters fused.
///
/// # Errors
/// As [`weight_bytes`].
pub(super) fn private_bytes(engine: &Engine, mode: WeightMode, adapters: &[Weighted]) -> Result<u64, EngineError> {
    let weights = graph_weights(engine)?;
    let adapters = || adapters.iter().map(|(adapter, _)| &**adapter);
    let fused = fuse::touched_tensors(engine, adapters());
    let (private, _) = private(weights.iter().map(|(name, w)| (w, fused.contains(*name))), mode);
    Ok(private.saturating_add(fuse::packed_bytes(engine, adapters())))
}

/// What a weight takes.
pub(super) struct WeightSize {
    /// Bytes as it is stored.
    pub(super) stored: u64,
    /// Bytes in f32, or as stored if it is no float.
    pub(super) f32_bytes: u64,
    /// True if it is stored so.
    pub(super) stored_wide: bool,
    /// True for what ONNX Runtime packs.
    pub(super) matrix: bool,
}

/// All weights of an engine's graphs.
///
/// # Errors
/// As [`weight_bytes`].
pub(super) fn graph_weights(engine: &Engine) -> Result<BTreeMap<&str, WeightSize>, EngineError> {
    weights_of(engine, engine.manifest().graphs.iter().flat_map(Graph::parts))
}

fn weights_of<'a>(
    engine: &'a Engine,
    graphs: impl Iterator<Item = &'a Graph>,
) -> Result<BTreeMap<&'a str, WeightSize>, EngineError> {
    let mut weights = BTreeMap::new();
    for graph in graphs {
        for name in &graph.weights {
            let view = engine.weight(name)?;
            let stored = view.data.len() as u64;
            let float = view.dtype.is_float();
            let f32_bytes = if float { stored / view.dtype.size() as u64 * 4 } else { stored };
            let stored_wide = !float || view.dtype == Dtype::F32;
            weights.insert(
                &name[..],
                WeightSize { stored, f32_bytes, stored_wide, matrix: float && view.shape.len() == 2 },
            );
        }
    }
    Ok(weights)
}
