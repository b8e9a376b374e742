//! Adapters as inputs of a graph with low-rank branches: `y = x·Wᵀ + (x·downᵀ)·upᵀ`.
//!
//! Several adapters are concatenated along the rank, in the order of fusion; strength and `alpha / rank` are multiplied
//! into `up`, once. The weights are not touched, so nothing is lost in rounding, and other adapters need no other session.

use std::collections::HashSet;

use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::engine::Engine;
use crate::engine::manifest::{BRANCH_SUFFIX, Graph, Slot};
use crate::lora::adapter::Adapter;
use crate::lora::fuse::{FuseError, Term, all_finite, resolve};
use crate::tensor::{NamedTensors, Tensor};

/// The inputs `<slot>.lora_down` `[rank, in]` and `<slot>.lora_up` `[out, rank]` of every slot of `graph`; the rank is 0 for
/// a slot that no adapter changes.
///
/// Costs a copy of the factors, on all threads. A result that is kept serves again: swapping then costs nothing.
///
/// # Errors
/// [`FuseError::Engine`] if the graph has no branches, [`FuseError::Rank`], or an adapter that does not fit.
pub fn inputs(engine: &Engine, graph: &Graph, adapters: &[(&Adapter, f32)]) -> Result<NamedTensors, FuseError> {
    let Some(max) = graph.lora_rank else {
        // The error lists the graphs that there are.
        engine.graph(&format!("{}{BRANCH_SUFFIX}", graph.name))?;
        return Ok(NamedTensors::new());
    };
    let terms = resolve(engine, adapters)?;
    if let Some(parameter) = engine.parameters().iter().find(|parameter| terms.contains_key(&parameter.name[..])) {
        return Err(FuseError::NoBranch { slot: parameter.name.clone() });
    }
    let declared: HashSet<&str> = graph.inputs.iter().map(|port| &port.name[..]).collect();
    let slots: Vec<&Slot> = engine.manifest().slots.iter().collect();
    let built: Result<Vec<Vec<(String, Tensor)>>, FuseError> = slots
        .into_par_iter()
        .map(|slot| {
            let [down, up] = ["lora_down", "lora_up"].map(|part| format!("{}.{part}", slot.name));
            if !declared.contains(&down[..]) {
                return Ok(Vec::new());
            }
            let terms = terms.get(&slot.name[..]).map_or(&[][..], Vec::as_slice);
            let rank = terms.iter().map(|term| term.update.rank()).sum();
            if rank > max {
                return Err(FuseError::Rank { slot: slot.name.clone(), rank, max });
            }
            let (a, b) = factors(slot, terms, rank);
            // Factors were looked at, differences were not.
            let any_full = terms.iter().any(|term| term.update.factors().is_none());
            let factor = match (all_finite(&b), any_full && !all_finite(&a)) {
                (true, false) => None,
                (_, true) => Some("the difference"),
                (false, false) => Some("strength times up"),
            };
            if let Some(factor) = factor {
                let adapter = terms.iter().map(|term| term.adapter).collect::<Vec<_>>().join(", ");
                return Err(FuseError::NotFinite { adapter, slot: slot.name.clone(), factor });
            }
            Ok(vec![(down, Tensor::F32(a.into_dyn())), (up, Tensor::F32(b.into_dyn()))])
        })
        .collect();
    Ok(built?.into_iter().flatten().collect())
}

/// `[rank, in]` and `[out, rank]` of all terms together.
fn factors(slot: &Slot, terms: &[Term<'_>], rank: usize) -> (Array2<f32>, Array2<f32>) {
    if let [only] = terms {
        let factors = only.update.to_low_rank();
        let up = &factors.up * only.factor();
        return (factors.into_owned().down, up);
    }
    let (mut down, mut up) = (Array2::zeros((rank, slot.in_features)), Array2::zeros((slot.out_features, rank)));
    let mut start = 0;
    for term in terms {
        let factors = term.update.to_low_rank();
        let end = start + factors.rank();
        down.slice_mut(s![start..end, ..]).assign(&factors.down);
        up.slice_mut(s![.., start..end]).assign(&(&factors.up * term.factor()));
        start = end;
    }
    (down, up)
}
