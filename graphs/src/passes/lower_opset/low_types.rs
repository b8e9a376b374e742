//! Element types that came after operator set 22. Nothing is known of them but their numbers.

use super::site::{Site, Step};
use crate::{Attribute, Node};

/// `TensorProto.DataType`, and the operator set and IR version in which it came.
const LOW_TYPES: [(i64, i64, i64); 6] = [
    // float4e2m1
    (23, 23, 11),
    // float8e8m0
    (24, 24, 12),
    // uint2, int2
    (25, 25, 13),
    (26, 25, 13),
    // float6e2m3, float6e3m2
    (27, 28, 14),
    (28, 28, 14),
];

/// Whether a node that makes elements of the type in this attribute, if it has it, can be of the operator set before.
pub(super) fn before(node: &Node, attribute: &str, site: &mut Site<'_>) -> Step {
    if !matches!(node.attributes.get(attribute), None | Some(Attribute::Int(_))) {
        return Step::Stays;
    }
    match note(node, attribute, site) {
        Some(opset) if opset >= site.version => Step::Stays,
        _ => Step::Older,
    }
}

/// Notes which IR version the type in this attribute takes, and gives the operator set in which it came.
pub(super) fn note(node: &Node, attribute: &str, site: &mut Site<'_>) -> Option<i64> {
    let number = node.int(attribute)?;
    let (_, opset, ir_version) = LOW_TYPES.iter().find(|(known, ..)| *known == number)?;
    *site.ir_version = (*site.ir_version).max(*ir_version);
    Some(*opset)
}
