//! Mod: since 28 the floored remainder is of floats, too.

use super::made::Made;
use super::site::{Site, Step};
use crate::{Attribute, DataType, Node};

pub(super) fn modulo(node: &mut Node, site: &mut Site<'_>) -> Step {
    let truncates = match node.attributes.get("fmod") {
        None | Some(Attribute::Int(0)) => false,
        Some(Attribute::Int(_)) => true,
        Some(_) => return Step::Stays,
    };
    let dtype = site.dtype(node, 0).or_else(|| site.dtype(node, 1));
    match dtype {
        _ if truncates => Step::Older,
        Some(dtype @ (DataType::Float | DataType::Double)) => floored(node, site, dtype),
        Some(dtype) if !dtype.is_float() => Step::Older,
        _ => Step::Stays,
    }
}

/// `r = fmod(a, b)`, and `b` more where its sign is not `b`'s; the result has the sign of `b` throughout. The sign is put on
/// at the end, as ONNX Runtime's Where gives no zero a sign.
fn floored(node: &Node, site: &mut Site<'_>, dtype: DataType) -> Step {
    let [a, b] = &node.inputs[..] else { return Step::Stays };
    let mut made = Made::new(node);
    let Some(zero) = made.float(site, 0.0, dtype) else { return Step::Stays };
    let rest = made.op(site, "Mod", &[a, b], &[("fmod", Attribute::Int(1))]);
    let (sign, divisor_sign) = (made.op(site, "Sign", &[&rest], &[]), made.op(site, "Sign", &[b], &[]));
    let alike = made.op(site, "Mul", &[&sign, &divisor_sign], &[]);
    let apart = made.op(site, "Less", &[&alike, &zero], &[]);
    let moved = made.op(site, "Add", &[&rest, b], &[]);
    let moved = made.op(site, "Where", &[&apart, &moved, &rest], &[]);
    let distance = made.op(site, "Abs", &[&moved], &[]);
    let result = made.op(site, "Mul", &[&divisor_sign, &distance], &[]);
    Step::Instead(made.instead_of(node, &[&result]))
}
