//! QuantizeLinear and DequantizeLinear: since 23 they say in which type they divide and what they give.

use super::low_types;
use super::site::{Site, Step};
use crate::{DataType, Node};

/// Place of the scale of both.
const SCALE: usize = 1;

/// The type that an attribute names; `Some(None)` if it names none.
fn named(node: &Node, attribute: &str) -> Option<Option<DataType>> {
    if !node.attributes.contains_key(attribute) {
        return Some(None);
    }
    match node.int(attribute)? {
        0 => Some(None),
        number => DataType::from_onnx(i32::try_from(number).ok()?).map(Some),
    }
}

/// Before 23 what is quantised had the scale's type, and the division, too.
pub(super) fn quantize(node: &mut Node, site: &mut Site<'_>) -> Step {
    let (x, scale) = (site.dtype(node, 0), site.dtype(node, SCALE));
    let divides = named(node, "precision");
    if scale.is_none() || x != scale || !(divides == Some(None) || divides == Some(scale)) {
        return Step::Stays;
    }
    let step = low_types::before(node, "output_dtype", site);
    if matches!(step, Step::Older) {
        node.attributes.shift_remove("precision");
    }
    step
}

/// It came to give types of fewer bits.
pub(super) fn quantize_to_more_types(node: &mut Node, site: &mut Site<'_>) -> Step {
    low_types::before(node, "output_dtype", site)
}

/// Before 23 the scale's type was what it gave.
pub(super) fn dequantize(node: &mut Node, site: &mut Site<'_>) -> Step {
    match named(node, "output_dtype") {
        Some(None) => {}
        Some(gives) if gives == site.dtype(node, SCALE) => {}
        _ => return Step::Stays,
    }
    node.attributes.shift_remove("output_dtype");
    Step::Older
}
