//! Which operators there are.

use std::collections::HashSet;

use crate::passes::{is_onnx, label};
use crate::{Attribute, Graph, Model, Node};

/// An operator that nothing here, and no ONNX Runtime, computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedOperator {
    /// The first node that calls it.
    pub node: String,
    /// The operator, with its domain if that is not ONNX's own.
    pub op_type: String,
    /// The nearest supported form, and how to get there.
    pub way_out: String,
}

/// Domains beside ONNX's own whose operators ONNX Runtime brings along.
pub(crate) const DOMAINS: [&str; 2] = ["com.microsoft", "ai.onnx.ml"];

/// The operators of ONNX's own domain and the operator set in which each came, sorted by name.
#[rustfmt::skip]
static KNOWN: &[(&str, i64)] = &[
    ("Abs", 1), ("Acos", 7), ("Acosh", 9), ("Add", 1), ("AffineGrid", 20), ("And", 1), ("ArgMax", 1), ("ArgMin", 1),
    ("Asin", 7), ("Asinh", 9), ("Atan", 7), ("Atanh", 9), ("Attention", 23), ("AveragePool", 1),
    ("BatchNormalization", 1), ("Bernoulli", 15), ("BitCast", 26), ("BitShift", 11), ("BitwiseAnd", 18),
    ("BitwiseNot", 18), ("BitwiseOr", 18), ("BitwiseXor", 18), ("BlackmanWindow", 17), ("Cast", 1), ("CastLike", 15),
    ("CausalConvWithState", 27), ("Ceil", 1), ("Celu", 12), ("CenterCropPad", 18), ("Clip", 1), ("Col2Im", 18),
    ("Compress", 9), ("Concat", 1), ("ConcatFromSequence", 11), ("Constant", 1), ("ConstantOfShape", 9), ("Conv", 1),
    ("ConvInteger", 10), ("ConvTranspose", 1), ("Cos", 7), ("Cosh", 9), ("CumProd", 26), ("CumSum", 11), ("DFT", 17),
    ("DeformConv", 19), ("DepthToSpace", 1), ("DequantizeLinear", 10), ("Det", 11), ("Div", 1), ("Dropout", 1),
    ("DynamicQuantizeLinear", 11), ("Einsum", 12), ("Elu", 1), ("Equal", 1), ("Erf", 9), ("Exp", 1), ("Expand", 8),
    ("EyeLike", 9), ("Flatten", 1), ("Floor", 1), ("GRU", 1), ("Gather", 1), ("GatherElements", 11), ("GatherND", 11),
    ("Gelu", 20), ("Gemm", 1), ("GlobalAveragePool", 1), ("GlobalLpPool", 1), ("GlobalMaxPool", 1), ("Greater", 1),
    ("GreaterOrEqual", 12), ("GridSample", 16), ("GroupNormalization", 18), ("HammingWindow", 17), ("HannWindow", 17),
    ("HardSigmoid", 1), ("HardSwish", 14), ("Hardmax", 1), ("Identity", 1), ("If", 1), ("ImageDecoder", 20),
    ("InstanceNormalization", 1), ("IsInf", 10), ("IsNaN", 9), ("LRN", 1), ("LSTM", 1), ("LayerNormalization", 17),
    ("LeakyRelu", 1), ("Less", 1), ("LessOrEqual", 12), ("LinearAttention", 27), ("Log", 1), ("LogSoftmax", 1),
    ("Loop", 1), ("LpNormalization", 1), ("LpPool", 1), ("MatMul", 1), ("MatMulInteger", 10), ("Max", 1),
    ("MaxPool", 1), ("MaxRoiPool", 1), ("MaxUnpool", 9), ("Mean", 1), ("MeanVarianceNormalization", 9),
    ("MelWeightMatrix", 17), ("Min", 1), ("Mish", 18), ("Mod", 10), ("Mul", 1), ("Multinomial", 7), ("Neg", 1),
    ("NegativeLogLikelihoodLoss", 12), ("NonMaxSuppression", 10), ("NonZero", 9), ("Not", 1), ("OneHot", 9),
    ("Optional", 15), ("OptionalGetElement", 15), ("OptionalHasElement", 15), ("Or", 1), ("PRelu", 1), ("Pad", 1),
    ("Pow", 1), ("QLinearConv", 10), ("QLinearMatMul", 10), ("QuantizeLinear", 10), ("RMSNormalization", 23),
    ("RNN", 1), ("RandomNormal", 1), ("RandomNormalLike", 1), ("RandomUniform", 1), ("RandomUniformLike", 1),
    ("Range", 11), ("Reciprocal", 1), ("ReduceL1", 1), ("ReduceL2", 1), ("ReduceLogSum", 1), ("ReduceLogSumExp", 1),
    ("ReduceMax", 1), ("ReduceMean", 1), ("ReduceMin", 1), ("ReduceProd", 1), ("ReduceSum", 1),
    ("ReduceSumSquare", 1), ("RegexFullMatch", 20), ("Relu", 1), ("Reshape", 1), ("Resize", 10),
    ("ReverseSequence", 10), ("RoiAlign", 10), ("RotaryEmbedding", 23), ("Round", 11), ("STFT", 17), ("Scan", 8),
    ("Scatter", 9), ("ScatterElements", 11), ("ScatterND", 11), ("Selu", 1), ("SequenceAt", 11),
    ("SequenceConstruct", 11), ("SequenceEmpty", 11), ("SequenceErase", 11), ("SequenceInsert", 11),
    ("SequenceLength", 11), ("SequenceMap", 17), ("Shape", 1), ("Shrink", 9), ("Sigmoid", 1), ("Sign", 9), ("Sin", 7),
    ("Sinh", 9), ("Size", 1), ("Slice", 1), ("Softmax", 1), ("SoftmaxCrossEntropyLoss", 12), ("Softplus", 1),
    ("Softsign", 1), ("SpaceToDepth", 1), ("Split", 1), ("SplitToSequence", 11), ("Sqrt", 1), ("Squeeze", 1),
    ("StringConcat", 20), ("StringNormalizer", 10), ("StringSplit", 20), ("Sub", 1), ("Sum", 1), ("SwiGLU", 28),
    ("Swish", 24), ("Tan", 7), ("Tanh", 1), ("TensorScatter", 24), ("TfIdfVectorizer", 9), ("ThresholdedRelu", 10),
    ("Tile", 1), ("TopK", 1), ("Transpose", 1), ("Trilu", 14), ("Unique", 11), ("Unsqueeze", 1), ("Upsample", 1),
    ("Where", 9), ("Xor", 1),
];

/// What a name from elsewhere is called in ONNX: its end, in lower case and without underscores.
const SAME: [(&str, &str); 8] = [
    ("silu", "Sigmoid and Mul"),
    ("swish", "Sigmoid and Mul"),
    ("rmsnorm", "ReduceMean, Sqrt and Div, or RMSNormalization in operator set 23"),
    ("scaleddotproductattention", "MatMul and Softmax"),
    ("flashattention", "MatMul and Softmax"),
    ("linear", "Gemm, or MatMul and Add"),
    ("addmm", "Gemm"),
    ("grouped_mm", "MatMul"),
];

/// Operators of the model, bodies included, that do not exist: of a domain that nobody brings along, of no such name, or of a
/// later operator set than the model imports. One finding per operator, in the order of the graph.
pub fn unsupported_operators(model: &Model) -> Vec<UnsupportedOperator> {
    let functions: HashSet<(&str, &str)> = model.functions.iter().map(|f| (f.0.domain(), f.0.name())).collect();
    let opset = model.opset();
    let mut found: Vec<UnsupportedOperator> = Vec::new();
    visit(&model.graph, &mut |node| {
        let local = functions.contains(&(node.domain.as_str(), node.op_type.as_str()));
        let way_out = if local { None } else { way_out(node, opset) };
        if let Some(way_out) = way_out {
            let op_type =
                if is_onnx(node) { node.op_type.clone() } else { format!("{}::{}", node.domain, node.op_type) };
            if !found.iter().any(|f| f.op_type == op_type) {
                found.push(UnsupportedOperator { node: label(node), op_type, way_out });
            }
        }
    });
    found
}

fn visit<'a>(graph: &'a Graph, each: &mut dyn FnMut(&'a Node)) {
    for node in &graph.nodes {
        each(node);
        for attribute in node.attributes.values() {
            if let Attribute::Graph(body) = attribute {
                visit(body, each);
            }
        }
    }
}

/// Why the node's operator is not there, and what is; `None` if it is there.
fn way_out(node: &Node, opset: Option<i64>) -> Option<String> {
    let name = node.op_type.as_str();
    if DOMAINS.contains(&node.domain.as_str()) {
        return None;
    }
    if is_onnx(node)
        && let Ok(at) = KNOWN.binary_search_by(|(known, _)| (*known).cmp(name))
    {
        let since = KNOWN[at].1;
        let late = opset.filter(|&version| version < since)?;
        return Some(format!(
            "it came with operator set {since}, and the model imports {late}; export it with opset_version={since} or later"
        ));
    }
    // PyTorch's own operators, of which the exporter knew no other form.
    let aten = node.domain.contains("aten") || node.domain.contains("pytorch") || name == "ATen";
    let called = match node.attributes.get("operator") {
        Some(Attribute::String(text)) if aten => String::from_utf8_lossy(text).into_owned(),
        _ => name.to_owned(),
    };
    let nearest = Some(&called)
        .filter(|called| *called != "ATen")
        .and_then(|called| nearest(called))
        .map_or_else(String::new, |n| format!("the nearest that is: {n}; "));
    let how = if aten {
        "it is PyTorch's own, left in place by the exporter: export with dynamo=True or a later opset_version, and without \
         operator_export_type=ONNX_ATEN_FALLBACK"
    } else if name.to_lowercase().contains("fakequant") || node.domain.contains("training") {
        "it belongs to training: export the model in eval mode, before quantisation"
    } else {
        "replace it by operators of ONNX's own domain before the export"
    };
    Some(format!("{nearest}{how}"))
}

/// The operator that a name most resembles.
fn nearest(called: &str) -> Option<String> {
    let plain = |text: &str| text.to_lowercase().replace('_', "");
    let called = plain(called);
    let same = SAME.iter().find(|(name, _)| called.ends_with(&plain(name))).map(|(_, form)| (*form).to_owned());
    let exact = || KNOWN.iter().find(|(name, _)| plain(name) == called).map(|(name, _)| (*name).to_owned());
    let inside = || {
        let alike = |known: &str| known.len() > 3 && (called.contains(known) || known.starts_with(&called));
        let held = KNOWN.iter().filter(|(name, _)| alike(&plain(name)));
        held.max_by_key(|(name, _)| name.len()).map(|(name, _)| (*name).to_owned())
    };
    let close = || super::closest(&called, KNOWN.iter().map(|(name, _)| *name));
    same.or_else(exact).or_else(inside).or_else(close)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType};

    fn found(domain: &str, op_type: &str, opset: i64) -> Vec<UnsupportedOperator> {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [1usize]);
        let y = b.op("Relu", &[&x]);
        b.output("y", &y, DataType::Float, [1usize]);
        let mut model = b.finish().unwrap();
        model.opsets.insert(String::new(), opset);
        let node = &mut model.graph.nodes[0];
        (node.domain, node.op_type) = (domain.into(), op_type.into());
        unsupported_operators(&model)
    }

    #[test]
    fn known_operators_are_sorted_and_hold_those_that_are_checked() {
        assert!(KNOWN.windows(2).all(|w| w[0].0 < w[1].0));
        let missing: Vec<&str> = super::super::operators::names()
            .filter(|name| KNOWN.binary_search_by(|k| k.0.cmp(name)).is_err())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn operators_that_exist_are_not_reported() {
        for (domain, op, opset) in [("", "Relu", 17), ("ai.onnx", "Gelu", 20), ("com.microsoft", "BiasGelu", 17)] {
            assert_eq!(found(domain, op, opset), []);
        }
    }

    #[test]
    fn missing_operators_are_named_with_the_nearest_form() {
        for (domain, op, opset, expected) in [
            ("", "Gelu", 17, "opset_version=20"),
            ("", "Silu", 17, "Sigmoid and Mul"),
            ("", "LayerNorm", 17, "LayerNormalization"),
            ("org.pytorch.aten", "group_norm", 17, "dynamo=True"),
            ("acme", "MyFusedSoftmax", 17, "nearest that is: Softmax"),
            ("", "FakeQuantize", 17, "eval mode"),
        ] {
            let found = found(domain, op, opset);
            assert!(found.len() == 1 && found[0].way_out.contains(expected), "{op}: {found:?}");
        }
    }
}
