//! Rewrites to what ONNX Runtime's CPU provider runs best.
//!
//! Patterns are found by structure, wherever the graph comes from. Weights keep feeding their MatMul and Gemm directly.
//! Sums are taken in another order than before: results differ by roundings, which the tests of each rewrite bound.

mod attention;
mod modulated_norm;
pub(super) mod rotary;

use super::{Pass, Passes, infer_shapes, remove_dead_nodes};
use crate::Model;
use crate::operators::CONTRIB;

/// How often each rewrite was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lowered {
    /// Rotations that became `RotaryEmbedding`.
    pub rotary: usize,
    /// Attentions that became `MultiHeadAttention`.
    pub attention: usize,
    /// Layer norms that took over a scale and a shift.
    pub modulated_norm: usize,
}

/// Rewrites rotations of pairs, attention, and scale and shift behind a layer norm, as far as `passes` has them.
///
/// Needs inferred shapes ([`infer_shapes`]) and brings them up to date. Costs time linear in the graph.
pub fn lower_for_ort(model: &mut Model, passes: &Passes) -> Lowered {
    let mut done = Lowered::default();
    if passes.has(Pass::Rotary) {
        done.rotary = rotary::lower(model);
        refresh(model, done.rotary);
    }
    if passes.has(Pass::Attention) {
        done.attention = attention::lower(model);
        refresh(model, done.attention);
    }
    if passes.has(Pass::ModulatedNorm) {
        done.modulated_norm = modulated_norm::lower(model);
        refresh(model, done.modulated_norm);
    }
    if done.rotary + done.attention > 0 {
        model.opsets.insert(CONTRIB.to_owned(), 1);
    }
    done
}

fn refresh(model: &mut Model, fired: usize) {
    if fired > 0 {
        remove_dead_nodes(model);
        infer_shapes(model);
    }
}

#[cfg(test)]
mod tests;
