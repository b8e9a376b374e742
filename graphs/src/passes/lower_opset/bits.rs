//! BitShift: since 28 of signed numbers, and by any amount.

use super::made::Made;
use super::site::{Site, Step};
use crate::{Attribute, DataType, Node};

/// Written with 64 bits, in which every type has room: the bits beyond a type's own are cut off at the end.
pub(super) fn shift(node: &mut Node, site: &mut Site<'_>) -> Step {
    let (Some(dtype), [x, amount]) = (site.dtype(node, 0), &node.inputs[..]) else { return Step::Stays };
    let left = match node.attributes.get("direction") {
        Some(Attribute::String(direction)) if direction[..] == b"LEFT"[..] => true,
        Some(Attribute::String(direction)) if direction[..] == b"RIGHT"[..] => false,
        _ => return Step::Stays,
    };
    let Some(signed) = is_signed(dtype) else { return Step::Stays };
    let mut made = Made::new(node);
    let to = |dtype: DataType| [("to", Attribute::Int(dtype.onnx().into()))];
    let (zero, bits) = (made.int(site, 0), made.int(site, dtype.size() as i64 * 8));
    // Amounts of 2^63 and more become negative, which is out of bounds alike.
    let amount = made.op(site, "Cast", &[amount], &to(DataType::Int64));
    let few = made.op(site, "Less", &[&amount, &bits], &[]);
    let negative = made.op(site, "Less", &[&amount, &zero], &[]);
    let natural = made.op(site, "Not", &[&negative], &[]);
    let within = made.op(site, "And", &[&few, &natural], &[]);
    let amount = made.op(site, "Where", &[&within, &amount, &zero], &[]);
    let amount = made.op(site, "Cast", &[&amount], &to(DataType::Uint64));
    let wide = made.op(site, "Cast", &[x], &to(DataType::Int64));
    // Of a negative number the bits are turned before and behind, so that ones move in.
    let turn = (signed && !left).then(|| (made.op(site, "Less", &[&wide, &zero], &[]), made.int(site, -1)));
    let turned = |made: &mut Made, site: &mut Site<'_>, value: String| match &turn {
        None => value,
        Some((below, ones)) => {
            let other = made.op(site, "Sub", &[ones, &value], &[]);
            made.op(site, "Where", &[below, &other, &value], &[])
        }
    };
    let wide = turned(&mut made, site, wide);
    let wide = made.op(site, "Cast", &[&wide], &to(DataType::Uint64));
    let direction = Attribute::from(if left { "LEFT" } else { "RIGHT" });
    let moved = made.op(site, "BitShift", &[&wide, &amount], &[("direction", direction)]);
    let moved = made.op(site, "Cast", &[&moved], &to(DataType::Int64));
    let moved = made.op(site, "Where", &[&within, &moved, &zero], &[]);
    let moved = turned(&mut made, site, moved);
    let result = made.op(site, "Cast", &[&moved], &to(dtype));
    Step::Instead(made.instead_of(node, &[&result]))
}

/// `None` for what is no integer.
fn is_signed(dtype: DataType) -> Option<bool> {
    match dtype {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(true),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => Some(false),
        _ => None,
    }
}
