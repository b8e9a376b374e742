//! ONNX Runtime's own operators that the passes write.

use super::domains::CONTRIB;
use super::entry::{Operator, Out, ShapeRule, known};
use super::extents::number;
use crate::Node;
use crate::symbolic::{Facts, Partial};

/// An operator whose first output has the type and shape of its first input.
const fn contrib(name: &'static str) -> Operator {
    known(name, 1).domain(CONTRIB).result(Out::Like(0)).shape(ShapeRule::Like(0))
}

pub(super) static OPERATORS: &[Operator] = &[
    contrib("MatMulNBits").shape(ShapeRule::First(matmul_shape)),
    // Query, key and value head by head.
    contrib("MultiHeadAttention").copies(3),
    contrib("RotaryEmbedding"),
];

fn matmul_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let mut shape = facts.partial(node, 0)?;
    *shape.last_mut()? = number(node.int("N")?);
    Some(shape)
}
