//! CausalConvWithState, which came with 27: a convolution of each channel over what came before.

use super::made::Made;
use super::site::{Site, Step};
use crate::{Attribute, DataType, Node};

/// Input, weight, bias, state.
const STATE: usize = 3;

pub(super) fn causal(node: &mut Node, site: &mut Site<'_>) -> Step {
    let (Some(channels), [x, weight, ..]) = (site.extent(node, 1, 0), &node.inputs[..]) else { return Step::Stays };
    let active = match node.attributes.get("activation") {
        None => false,
        Some(Attribute::String(name)) => match &name[..] {
            b"none" => false,
            b"silu" | b"swish" => true,
            _ => return Step::Stays,
        },
        Some(_) => return Step::Stays,
    };
    let Ok(channels) = i64::try_from(channels) else { return Step::Stays };
    let mut made = Made::new(node);
    let part = |start: i64| [("start", Attribute::Int(start)), ("end", Attribute::Int(start + 1))];
    let (one, last) = (made.ints(site, &[1]), made.ints(site, &[2]));
    let kernel = made.op(site, "Shape", &[weight], &part(2));
    let before = made.op(site, "Sub", &[&kernel, &one], &[]);
    let state = if node.has_input(STATE) {
        node.inputs[STATE].clone()
    } else {
        let batch = made.op(site, "Shape", &[x], &part(0));
        let width = made.op(site, "Shape", &[x], &part(1));
        let shape = made.op(site, "Concat", &[&batch, &width, &before], &[("axis", Attribute::Int(0))]);
        let zeros = made.op(site, "ConstantOfShape", &[&shape], &[]);
        if site.dtype(node, 0) == Some(DataType::Float) { zeros } else { made.op(site, "CastLike", &[&zeros, x], &[]) }
    };
    let padded = made.op(site, "Concat", &[&state, x], &[("axis", Attribute::Int(2))]);
    let mut operands = vec![&padded[..], &weight[..]];
    operands.extend(node.inputs.get(2).filter(|bias| !bias.is_empty()).map(String::as_str));
    let mut result = made.op(site, "Conv", &operands, &[("group", Attribute::Int(channels))]);
    if active {
        let gate = made.op(site, "Sigmoid", &[&result], &[]);
        result = made.op(site, "Mul", &[&result, &gate], &[]);
    }
    let end = made.op(site, "Shape", &[&padded], &part(2));
    let start = made.op(site, "Sub", &[&end, &before], &[]);
    let kept = made.op(site, "Slice", &[&padded, &start, &end, &last], &[]);
    Step::Instead(made.instead_of(node, &[&result, &kept]))
}
