//! Optional: since 28 of more types.

use super::site::{Site, Step};
use crate::onnx::{TypeProto, type_proto::Value};
use crate::{Attribute, Node};

/// The last type that it took before: complex128.
const LAST: i32 = 15;

pub(super) fn optional(node: &mut Node, _: &mut Site<'_>) -> Step {
    match node.attributes.get("type") {
        None => Step::Older,
        Some(Attribute::Other(other)) if other.0.tp.as_ref().and_then(element).is_some_and(|ty| ty <= LAST) => {
            Step::Older
        }
        Some(_) => Step::Stays,
    }
}

/// What tensors of a type hold.
fn element(ty: &TypeProto) -> Option<i32> {
    match ty.value.as_ref()? {
        Value::TensorType(tensor) => tensor.elem_type,
        Value::SequenceType(sequence) => element(sequence.elem_type.as_deref()?),
        _ => None,
    }
}
