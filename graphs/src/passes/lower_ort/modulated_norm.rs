//! Scale and shift behind a layer norm as the norm's own: `LN(x; γ, β) · s + t = LN(x; γ·s, β·s + t)`.

use std::collections::HashMap;

use crate::passes::links::{Links, fixed, is_last, same};
use crate::passes::parts::node;
use crate::walk::replace_nodes;
use crate::{Dim, Model, Node};

/// Rewrites every layer norm of `[batch, tokens, width]` whose result, and nothing else of it, is multiplied by one
/// `[batch, 1, width]` and added to another; returns their number.
pub(super) fn lower(model: &mut Model) -> usize {
    let links = Links::new(&model.graph);
    let found: HashMap<usize, Vec<Node>> =
        model.graph.nodes.iter().enumerate().filter_map(|(at, add)| Some((at, rewrite(&links, add)?))).collect();
    let count = found.len();
    replace_nodes(&mut model.graph, found);
    count
}

fn rewrite<'a>(links: &Links<'a>, add: &'a Node) -> Option<Vec<Node>> {
    if add.op_type != "Add" || !add.domain.is_empty() {
        return None;
    }
    let product = |value| links.made_by(value, "Mul").filter(|_| links.is_read_once(value));
    let norm = |value| links.made_by(value, "LayerNormalization").filter(|_| links.is_read_once(value));
    let ((mul, norm, scale), shift) = Links::either(add, |value| {
        let mul = product(value)?;
        let (norm, scale) = Links::either(mul, norm)?;
        Some((mul, norm, scale))
    })?;
    let (x, gamma) = (norm.inputs.first()?, norm.inputs.get(1)?);
    let [batch, _, width] = links.shape(x)? else { return None };
    fixed(width)?;
    let per_sample = |value| {
        let Some([b, one, d]) = links.shape(value) else { return false };
        (same(b, batch)) && *one == Dim::Fixed(1) && d == width
    };
    if norm.outputs.len() != 1 || !is_last(norm, Some(-1), 3) || !per_sample(scale) || !per_sample(shift) {
        return None;
    }
    let out = &add.outputs[0];
    let (scaled, bias) = (format!("{out}/scale"), norm.inputs.get(2).filter(|bias| !bias.is_empty()));
    let mut nodes = vec![node("Mul", &[gamma, scale], &scaled, &[])];
    let moved = match bias {
        Some(bias) => {
            let (product, sum) = (format!("{out}/bias"), format!("{out}/shift"));
            nodes.push(node("Mul", &[bias, scale], &product, &[]));
            nodes.push(node("Add", &[&product, shift], &sum, &[]));
            sum
        }
        None => shift.to_owned(),
    };
    let inputs = vec![x.clone(), scaled, moved];
    nodes.push(Node { name: mul.name.clone(), inputs, outputs: vec![out.clone()], ..norm.clone() });
    Some(nodes)
}
