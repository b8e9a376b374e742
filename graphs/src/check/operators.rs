//! The common ONNX operators as data: arities, required attributes, element types. Operator sets 13 and later.

use crate::passes::{CONTRIB, is_onnx};
use crate::{Attribute, DataType, Node};

/// What is known of an operator.
pub(super) struct Operator {
    pub(super) name: &'static str,
    /// Fewest and most inputs.
    pub(super) inputs: (usize, usize),
    /// Fewest and most outputs.
    pub(super) outputs: (usize, usize),
    /// Attributes that must be there.
    pub(super) required: &'static [&'static str],
    /// The inputs from the first number up to the second that must agree in type.
    pub(super) same: (usize, usize),
    /// Type of the first output.
    pub(super) result: Out,
    /// How many of the first inputs may be left out by an empty name.
    pub(super) optional: usize,
}

/// Type of an operator's first output.
#[derive(Clone, Copy)]
pub(super) enum Out {
    /// That of an input.
    Like(usize),
    /// Always this one.
    Is(DataType),
    /// The one that attribute `to` names.
    To,
    /// That of a constant in the attributes.
    Constant,
    /// Not known here.
    Open,
}

const MANY: usize = usize::MAX;
const NONE: (usize, usize) = (0, 0);
const ALL: (usize, usize) = (0, MANY);
const BOOL: Out = Out::Is(DataType::Bool);
const INT64: Out = Out::Is(DataType::Int64);
const LIKE: Out = Out::Like(0);

const fn op(name: &'static str, min: usize, max: usize, same: (usize, usize), result: Out) -> Operator {
    Operator { name, inputs: (min, max), outputs: (1, 1), required: &[], same, result, optional: 0 }
}

impl Operator {
    const fn outputs(self, min: usize, max: usize) -> Self {
        Self { outputs: (min, max), ..self }
    }

    const fn optional(self, optional: usize) -> Self {
        Self { optional, ..self }
    }

    const fn required(self, required: &'static [&'static str]) -> Self {
        Self { required, ..self }
    }
}

/// Sorted by name.
static OPERATORS: &[Operator] = &[
    op("Abs", 1, 1, NONE, LIKE),
    op("Add", 2, 2, ALL, LIKE),
    op("And", 2, 2, ALL, BOOL),
    op("ArgMax", 1, 1, NONE, INT64),
    op("ArgMin", 1, 1, NONE, INT64),
    op("Attention", 3, 7, (0, 3), LIKE).outputs(1, 4),
    op("AveragePool", 1, 1, NONE, LIKE).required(&["kernel_shape"]),
    op("BatchNormalization", 5, 5, NONE, LIKE).outputs(1, 3),
    op("Cast", 1, 1, NONE, Out::To).required(&["to"]),
    op("CastLike", 2, 2, NONE, Out::Like(1)),
    op("Ceil", 1, 1, NONE, LIKE),
    op("Clip", 1, 3, ALL, LIKE),
    op("Concat", 1, MANY, ALL, LIKE).required(&["axis"]),
    op("Constant", 0, 0, NONE, Out::Constant),
    op("ConstantOfShape", 1, 1, NONE, Out::Constant),
    op("Conv", 2, 3, ALL, LIKE),
    op("ConvTranspose", 2, 3, ALL, LIKE),
    op("Cos", 1, 1, NONE, LIKE),
    op("CumSum", 2, 2, NONE, LIKE),
    op("DepthToSpace", 1, 1, NONE, LIKE).required(&["blocksize"]),
    op("Div", 2, 2, ALL, LIKE),
    op("Dropout", 1, 3, NONE, LIKE).outputs(1, 2),
    op("Einsum", 1, MANY, ALL, LIKE).required(&["equation"]),
    op("Elu", 1, 1, NONE, LIKE),
    op("Equal", 2, 2, ALL, BOOL),
    op("Erf", 1, 1, NONE, LIKE),
    op("Exp", 1, 1, NONE, LIKE),
    op("Expand", 2, 2, NONE, LIKE),
    op("Flatten", 1, 1, NONE, LIKE),
    op("Floor", 1, 1, NONE, LIKE),
    op("Gather", 2, 2, NONE, LIKE),
    op("GatherElements", 2, 2, NONE, LIKE),
    op("GatherND", 2, 2, NONE, LIKE),
    op("Gelu", 1, 1, NONE, LIKE),
    op("Gemm", 2, 3, ALL, LIKE),
    op("GlobalAveragePool", 1, 1, NONE, LIKE),
    op("Greater", 2, 2, ALL, BOOL),
    op("GreaterOrEqual", 2, 2, ALL, BOOL),
    op("GroupNormalization", 3, 3, ALL, LIKE).required(&["num_groups"]),
    op("HardSigmoid", 1, 1, NONE, LIKE),
    op("HardSwish", 1, 1, NONE, LIKE),
    op("Identity", 1, 1, NONE, LIKE),
    op("If", 1, 1, NONE, Out::Open).outputs(1, MANY).required(&["then_branch", "else_branch"]),
    op("InstanceNormalization", 3, 3, ALL, LIKE),
    op("IsInf", 1, 1, NONE, BOOL),
    op("IsNaN", 1, 1, NONE, BOOL),
    op("LayerNormalization", 2, 3, NONE, LIKE).outputs(1, 3),
    op("LeakyRelu", 1, 1, NONE, LIKE),
    op("Less", 2, 2, ALL, BOOL),
    op("LessOrEqual", 2, 2, ALL, BOOL),
    op("Log", 1, 1, NONE, LIKE),
    op("LogSoftmax", 1, 1, NONE, LIKE),
    // Without a trip count it runs while its condition holds, without a condition it counts.
    op("Loop", 2, MANY, NONE, Out::Open).outputs(1, MANY).required(&["body"]).optional(2),
    op("MatMul", 2, 2, ALL, LIKE),
    op("Max", 1, MANY, ALL, LIKE),
    op("MaxPool", 1, 1, NONE, LIKE).outputs(1, 2).required(&["kernel_shape"]),
    op("Mean", 1, MANY, ALL, LIKE),
    op("Min", 1, MANY, ALL, LIKE),
    op("Mish", 1, 1, NONE, LIKE),
    op("Mod", 2, 2, ALL, LIKE),
    op("Mul", 2, 2, ALL, LIKE),
    op("Neg", 1, 1, NONE, LIKE),
    op("NonZero", 1, 1, NONE, INT64),
    op("Not", 1, 1, NONE, BOOL),
    op("OneHot", 3, 3, NONE, Out::Like(2)),
    op("Or", 2, 2, ALL, BOOL),
    op("PRelu", 2, 2, ALL, LIKE),
    op("Pad", 2, 4, NONE, LIKE),
    op("Pow", 2, 2, NONE, LIKE),
    op("RMSNormalization", 2, 2, NONE, Out::Like(1)),
    op("RandomNormalLike", 1, 1, NONE, Out::Open),
    op("Range", 3, 3, ALL, LIKE),
    op("Reciprocal", 1, 1, NONE, LIKE),
    op("ReduceL1", 1, 2, NONE, LIKE),
    op("ReduceL2", 1, 2, NONE, LIKE),
    op("ReduceLogSum", 1, 2, NONE, LIKE),
    op("ReduceLogSumExp", 1, 2, NONE, LIKE),
    op("ReduceMax", 1, 2, NONE, LIKE),
    op("ReduceMean", 1, 2, NONE, LIKE),
    op("ReduceMin", 1, 2, NONE, LIKE),
    op("ReduceProd", 1, 2, NONE, LIKE),
    op("ReduceSum", 1, 2, NONE, LIKE),
    op("ReduceSumSquare", 1, 2, NONE, LIKE),
    op("Relu", 1, 1, NONE, LIKE),
    op("Reshape", 2, 2, NONE, LIKE),
    op("Resize", 1, 4, NONE, LIKE),
    op("Round", 1, 1, NONE, LIKE),
    op("ScatterElements", 3, 3, NONE, LIKE),
    op("ScatterND", 3, 3, NONE, LIKE),
    op("Shape", 1, 1, NONE, INT64),
    op("Sigmoid", 1, 1, NONE, LIKE),
    op("Sign", 1, 1, NONE, LIKE),
    op("Sin", 1, 1, NONE, LIKE),
    op("Size", 1, 1, NONE, INT64),
    op("Slice", 3, 5, NONE, LIKE),
    op("Softmax", 1, 1, NONE, LIKE),
    op("Softplus", 1, 1, NONE, LIKE),
    op("SpaceToDepth", 1, 1, NONE, LIKE).required(&["blocksize"]),
    op("Split", 1, 2, NONE, LIKE).outputs(1, MANY),
    op("Sqrt", 1, 1, NONE, LIKE),
    op("Squeeze", 1, 2, NONE, LIKE),
    op("Sub", 2, 2, ALL, LIKE),
    op("Sum", 1, MANY, ALL, LIKE),
    op("Tanh", 1, 1, NONE, LIKE),
    op("Tile", 2, 2, NONE, LIKE),
    op("TopK", 2, 2, NONE, LIKE).outputs(2, 2),
    op("Transpose", 1, 1, NONE, LIKE),
    op("Trilu", 1, 2, NONE, LIKE),
    op("Unsqueeze", 2, 2, NONE, LIKE),
    op("Where", 3, 3, (1, 3), Out::Like(1)),
    op("Xor", 2, 2, ALL, BOOL),
];

/// The operator of ONNX's own domain with this name, if it is in the table.
pub(super) fn operator(name: &str) -> Option<&'static Operator> {
    OPERATORS.binary_search_by(|o| o.name.cmp(name)).ok().map(|i| &OPERATORS[i])
}

/// The names of the table.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPERATORS.iter().map(|o| o.name)
}

/// Element type of output `index` of a node, as far as the operator tells; `input` gives those of its inputs.
pub(crate) fn result_type(node: &Node, index: usize, input: impl Fn(usize) -> Option<DataType>) -> Option<DataType> {
    if !is_onnx(node) {
        let known = node.domain == CONTRIB
            && matches!(&node.op_type[..], "MatMulNBits" | "MultiHeadAttention" | "RotaryEmbedding");
        return input(0).filter(|_| known && index == 0);
    }
    let result = match (node.op_type.as_str(), index) {
        (op, 0) => operator(op)?.result,
        ("Split", _) => LIKE,
        ("MaxPool" | "TopK", 1) => INT64,
        ("Dropout", 1) => BOOL,
        _ => Out::Open,
    };
    match result {
        Out::Like(index) => input(index),
        Out::Is(dtype) => Some(dtype),
        Out::To => DataType::from_onnx(i32::try_from(node.int("to")?).ok()?),
        Out::Constant => match node.attributes.values().next() {
            Some(Attribute::Tensor(value)) => Some(value.dtype),
            Some(Attribute::Int(_) | Attribute::Ints(_)) => Some(DataType::Int64),
            Some(Attribute::Float(_) | Attribute::Floats(_)) => Some(DataType::Float),
            None if node.op_type == "ConstantOfShape" => Some(DataType::Float),
            _ => None,
        },
        Out::Open => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_table_is_sorted_without_repeats() {
        assert!(OPERATORS.windows(2).all(|w| w[0].name < w[1].name));
    }
}
