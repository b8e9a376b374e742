//! Adapters as inputs of a graph with low-rank branches: `y = x·Wᵀ + (x·downᵀ)·upᵀ`.
//!
//! Several adapters are concatenated along the rank, in the order of fusion; strength and `alpha / rank` are multiplied
//! into `up`, once. The weights are not touched, so nothing is lost in rounding, and other adapters need no other session.

use ndarray::{Array2, s};

use crate::adapter::Adapter;
use crate::engine::Engine;
use crate::engine::manifest::{Graph, SIDE_SUFFIX};
use crate::fuse::{FuseError, resolve};
use crate::tensor::{NamedTensors, Tensor};

/// The inputs `<slot>.lora_down` `[rank, in]` and `<slot>.lora_up` `[out, rank]` of every slot of `graph`; the rank is 0 for
/// a slot that no adapter changes.
///
/// Costs a copy of the factors.
///
/// # Errors
/// [`FuseError::Engine`] if the graph has no branches, [`FuseError::Rank`], or an adapter that does not fit.
pub fn inputs(engine: &Engine, graph: &Graph, adapters: &[(&Adapter, f32)]) -> Result<NamedTensors, FuseError> {
    let Some(max) = graph.lora_rank else {
        // The error lists the graphs that there are.
        engine.graph(&format!("{}{SIDE_SUFFIX}", graph.name))?;
        return Ok(NamedTensors::new());
    };
    let terms = resolve(engine, adapters)?;
    let mut inputs = NamedTensors::new();
    for slot in &engine.manifest().slots {
        let names = ["lora_down", "lora_up"].map(|part| format!("{}.{part}", slot.name));
        if !graph.inputs.iter().any(|port| port.name == names[0]) {
            continue;
        }
        let terms = terms.get(&slot.name[..]).map_or(&[][..], Vec::as_slice);
        let rank = terms.iter().map(|term| term.update.rank()).sum();
        if rank > max {
            return Err(FuseError::Rank { slot: slot.name.clone(), rank, max });
        }
        let (mut down, mut up) = (Array2::zeros((rank, slot.in_features)), Array2::zeros((slot.out_features, rank)));
        let mut start = 0;
        for term in terms {
            let end = start + term.update.rank();
            down.slice_mut(s![start..end, ..]).assign(&term.update.down);
            up.slice_mut(s![.., start..end]).assign(&(&term.update.up * term.factor()));
            start = end;
        }
        let [down_name, up_name] = names;
        inputs.insert(down_name, Tensor::F32(down.into_dyn()));
        inputs.insert(up_name, Tensor::F32(up.into_dyn()));
    }
    Ok(inputs)
}
