//! `softmax(scale · q kᵀ) v` over heads as ONNX Runtime's `MultiHeadAttention`, which never holds the whole product.

use std::collections::HashMap;

use crate::operators::CONTRIB;
use crate::passes::links::{Links, fixed, is_last, same};
use crate::passes::parts::{ints, node};
use crate::walk::replace_nodes;
use crate::{Attribute, Dim, Model, Node};

/// `[B, S, H, D]` and `[B, H, S, D]` into each other.
const SWAP: [i64; 4] = [0, 2, 1, 3];

/// An attention, from its inputs `[B, H, S, D]` to the node that brings its result to `[B, S, H, D]`.
struct Match<'a> {
    q: &'a str,
    k: &'a str,
    v: &'a str,
    heads: usize,
    dim: usize,
    scale: f32,
    transpose: &'a Node,
}

/// Rewrites every attention without mask or bias whose batches, head count and head width are known to agree; returns
/// their number.
pub(super) fn lower(model: &mut Model) -> usize {
    let graph = model.graph.clone();
    let links = Links::new(&graph);
    // Up to operator set 12 it is the first of the axes that are taken together.
    let softmax_axis = model.opset().map(|version| if version < 13 { 1 } else { -1 });
    let mut found = HashMap::new();
    for (at, transpose) in graph.nodes.iter().enumerate() {
        if let Some(matched) = find(&links, softmax_axis, transpose) {
            found.insert(at, rewrite(model, &links, &matched));
        }
    }
    let count = found.len();
    replace_nodes(&mut model.graph, found);
    count
}

fn find<'a>(links: &Links<'a>, softmax_axis: Option<i64>, transpose: &'a Node) -> Option<Match<'a>> {
    let mixed = links.transposed(transpose.outputs.first()?, &SWAP)?;
    let product = links.made_by(mixed, "MatMul").filter(|_| links.is_read_once(mixed))?;
    let (weights, v) = (&product.inputs[0], &product.inputs[1][..]);
    let softmax = links.made_by(weights, "Softmax").filter(|_| links.is_read_once(weights))?;
    if !is_last(softmax, softmax_axis, 4) {
        return None;
    }
    let mut logits = &softmax.inputs[0][..];
    let mut scale = 1.0;
    let strip = |value: &mut &'a str, scale: &mut f32| {
        while let Some((x, factor)) = links.scaled(value) {
            *scale *= factor;
            *value = x;
        }
    };
    if !links.is_read_once(logits) {
        return None;
    }
    strip(&mut logits, &mut scale);
    let product = links.made_by(logits, "MatMul")?;
    let (mut q, mut turned) = (&product.inputs[0][..], &product.inputs[1][..]);
    strip(&mut q, &mut scale);
    strip(&mut turned, &mut scale);
    let mut k = links.transposed(turned, &[0, 1, 3, 2])?;
    strip(&mut k, &mut scale);
    let [batch, heads, _, dim] = links.shape(q)? else { return None };
    let (heads_count, width) = (fixed(heads)?, fixed(dim)?);
    let alike = |value| {
        let Some([b, h, _, d]) = links.shape(value) else { return false };
        same(b, batch) && h == heads && *d == Dim::Fixed(width)
    };
    let usual = scale.is_finite() && scale > 0.0 && [q, k, v].iter().all(|value| links.is_f32(value));
    (alike(k) && alike(v) && usual).then_some(Match { q, k, v, heads: heads_count, dim: width, scale, transpose })
}

fn rewrite(model: &mut Model, links: &Links<'_>, found: &Match<'_>) -> Vec<Node> {
    let out = &found.transpose.outputs[0];
    let (heads, dim) = (found.heads as i64, found.dim as i64);
    let (rows, split) = (ints(model, &[0, 0, heads * dim]), ints(model, &[0, 0, heads, dim]));
    let mut nodes = Vec::new();
    let mut operand = |value: &str, part: &str| {
        let unturned = links.transposed(value, &SWAP).map_or_else(
            || {
                let turned = format!("{out}/{part}_turned");
                nodes.push(node("Transpose", &[value], &turned, &[("perm", SWAP.to_vec().into())]));
                turned
            },
            str::to_owned,
        );
        let flat = format!("{out}/{part}");
        nodes.push(node("Reshape", &[&unturned, &rows], &flat, &[]));
        flat
    };
    let (q, k, v) = (operand(found.q, "q"), operand(found.k, "k"), operand(found.v, "v"));
    let mixed = format!("{out}/mixed");
    let attributes = [("num_heads", Attribute::Int(heads)), ("scale", Attribute::Float(found.scale))];
    nodes.push(Node { domain: CONTRIB.to_owned(), ..node("MultiHeadAttention", &[&q, &k, &v], &mixed, &attributes) });
    nodes.push(node("Reshape", &[&mixed, &split], out, &[]));
    nodes
}
