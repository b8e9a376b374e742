//! Swish, SwiGLU and Celu.

use super::made::Made;
use super::site::{Site, Step};
use crate::{DataType, Node};

/// `x · sigmoid(α·x)`.
fn swished(node: &Node, site: &mut Site<'_>, made: &mut Made) -> Option<String> {
    let x = &node.inputs.first()?[..];
    let alpha = match node.attributes.get("alpha") {
        None => 1.0,
        Some(crate::Attribute::Float(alpha)) => *alpha,
        Some(_) => return None,
    };
    let scaled = if alpha == 1.0 {
        x.to_owned()
    } else {
        let dtype = site.dtype(node, 0).unwrap_or(DataType::Float);
        let factor = made.float(site, alpha, dtype)?;
        let factor = if site.dtype(node, 0).is_some() { factor } else { made.op(site, "CastLike", &[&factor, x], &[]) };
        made.op(site, "Mul", &[&factor, x], &[])
    };
    let gate = made.op(site, "Sigmoid", &[&scaled], &[]);
    Some(made.op(site, "Mul", &[x, &gate], &[]))
}

/// Swish came with 24.
pub(super) fn swish(node: &mut Node, site: &mut Site<'_>) -> Step {
    let mut made = Made::new(node);
    match swished(node, site, &mut made) {
        Some(swished) => Step::Instead(made.instead_of(node, &[&swished])),
        None => Step::Stays,
    }
}

/// SwiGLU came with 28: Swish of its first input, times the second.
pub(super) fn swiglu(node: &mut Node, site: &mut Site<'_>) -> Step {
    let mut made = Made::new(node);
    let (Some(swished), Some(linear)) = (swished(node, site, &mut made), node.inputs.get(1)) else {
        return Step::Stays;
    };
    let gated = made.op(site, "Mul", &[&swished, linear], &[]);
    Step::Instead(made.instead_of(node, &[&gated]))
}

/// Celu takes float64 since 28.
pub(super) fn celu(node: &mut Node, site: &mut Site<'_>) -> Step {
    if site.dtype(node, 0) == Some(DataType::Double) { Step::Stays } else { Step::Older }
}
