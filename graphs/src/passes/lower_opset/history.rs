//! Which operators changed with which operator set, from 23 on: the schema history of the `onnx` package.

use super::site::{Site, Step};
use super::{
    activations, attention, bits, blocks, casts, convolution, linear_attention, modulo, options, quantization, ranges,
};
use crate::{NEWEST_OPSET, Node};

/// How to undo a change.
pub(super) enum Rule {
    /// The operator took other element types from then on, and nothing else changed. None of these types is here: floats
    /// of 16 bits were raised, and what makes a type of few bits counts for all who read it.
    Types,
    /// As this says.
    By(fn(&mut Node, &mut Site<'_>) -> Step),
}

/// Operators of which only the element types changed.
const TYPES: [(i64, &str); 4] = [
    (
        23,
        "CastLike Constant ConstantOfShape Flatten Identity If Loop Pad Reshape Scan Shape Size Squeeze \
         Transpose Unsqueeze",
    ),
    (
        24,
        "Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad Reshape Scan Shape Size \
         SplitToSequence Squeeze TopK Transpose Unsqueeze",
    ),
    (
        25,
        "CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad Reshape Scan Shape \
         Size Squeeze Transpose Unsqueeze",
    ),
    (
        28,
        "Compress DepthToSpace DequantizeLinear Einsum OneHot OptionalGetElement OptionalHasElement \
         ReduceLogSum ReduceLogSumExp ReverseSequence Unique",
    ),
];

type Lower = fn(&mut Node, &mut Site<'_>) -> Step;

/// Operators of which more changed, and new ones that older operators can say.
const RULES: [(i64, &str, Lower); 23] = [
    (23, "Cast", casts::cast),
    (23, "DequantizeLinear", quantization::dequantize),
    (23, "QuantizeLinear", quantization::quantize),
    (24, "Attention", attention::without_lengths),
    (24, "Cast", casts::cast),
    (24, "CastLike", casts::cast_like),
    (24, "QuantizeLinear", quantization::quantize_to_more_types),
    (24, "Swish", activations::swish),
    (25, "Attention", attention::without_windows),
    (25, "Cast", casts::cast),
    (25, "QuantizeLinear", quantization::quantize_to_more_types),
    (26, "BitCast", casts::bit_cast),
    (27, "CausalConvWithState", convolution::causal),
    (27, "LinearAttention", linear_attention::by_scan),
    (27, "Range", ranges::range),
    (28, "BitShift", bits::shift),
    (28, "Cast", casts::cast),
    (28, "Celu", activations::celu),
    (28, "Mod", modulo::modulo),
    (28, "Optional", options::optional),
    (28, "QuantizeLinear", quantization::quantize_to_more_types),
    (28, "SpaceToDepth", blocks::space_to_depth),
    (28, "SwiGLU", activations::swiglu),
];

/// The changes of an operator up to the operator set `given`, the last one first.
pub(super) fn changes(op_type: &str, given: i64) -> impl Iterator<Item = (i64, Rule)> {
    let versions = (crate::OPSET + 1..=given.min(NEWEST_OPSET)).rev();
    versions.filter_map(move |version| {
        let types = TYPES.iter().any(|(at, names)| *at == version && names.split(' ').any(|name| name == op_type));
        let rule = RULES.iter().find(|(at, name, _)| *at == version && *name == op_type);
        rule.map(|(_, _, lower)| (version, Rule::By(*lower))).or(types.then_some((version, Rule::Types)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_of_an_operator_that_is_known_and_stands_once() {
        let types = TYPES.iter().flat_map(|(version, names)| names.split(' ').map(|name| (*version, name)));
        let mut all: Vec<(i64, &str)> = types.chain(RULES.iter().map(|(version, name, _)| (*version, *name))).collect();
        for (version, name) in &all {
            assert!(crate::operators::onnx_names().any(|known| known == *name), "{name} {version}");
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn changes_go_back_from_the_operator_set_given() {
        let versions = |op, given| changes(op, given).map(|(version, _)| version).collect::<Vec<_>>();
        assert_eq!(versions("Cast", 28), [28, 25, 24, 23]);
        assert_eq!(versions("Cast", 24), [24, 23]);
        assert_eq!(versions("Relu", 28), [0i64; 0]);
    }
}
