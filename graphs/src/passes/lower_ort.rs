//! Rewrites to what ONNX Runtime's CPU provider runs best.
//!
//! Patterns are found by structure, wherever the graph comes from. Weights keep feeding their MatMul and Gemm directly.
//! Sums are taken in another order than before: results differ by roundings, which the tests of each rewrite bound.

mod attention;
mod modulated_norm;
mod rotary;

use super::{Pass, Passes, infer_shapes, remove_dead_nodes};
use crate::{Attribute, DataType, Initializer, Model, Node};

/// Domain of ONNX Runtime's own operators.
pub(crate) const CONTRIB: &str = "com.microsoft";

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

/// A node under construction, named after its first output.
pub(super) fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Node {
    Node {
        name: format!("{output}/{op_type}"),
        op_type: op_type.to_owned(),
        inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Node::default()
    }
}

/// The name of a constant `[n]` of int64, shared by all that ask for the same one.
fn ints(model: &mut Model, values: &[i64]) -> String {
    let words: Vec<String> = values.iter().map(i64::to_string).collect();
    let name = format!("v2l.ints.{}", words.join("."));
    model.graph.initializers.entry(name.clone()).or_insert_with(|| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Initializer::inline(DataType::Int64, &[values.len()], bytes)
    });
    name
}

#[cfg(test)]
mod tests;
