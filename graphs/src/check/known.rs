//! Which operators there are.

use std::collections::HashSet;

use super::closest::closest;
use crate::operators::{has_operators, is_onnx, onnx_names, operator};
use crate::walk::label;
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

/// Operators of the model, bodies included, that do not exist: of a domain that nobody brings along, of no such name,
/// or of a later operator set than the model imports. One finding per operator, in the order of the graph.
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
    if has_operators(&node.domain) && !is_onnx(node) {
        return None;
    }
    if let Some(since) = operator(node).map(|known| known.since) {
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
    let exact = || onnx_names().find(|name| plain(name) == called).map(str::to_owned);
    let inside = || {
        let alike = |known: &str| known.len() > 3 && (called.contains(known) || known.starts_with(&called));
        let held = onnx_names().filter(|name| alike(&plain(name)));
        held.max_by_key(|name| name.len()).map(str::to_owned)
    };
    let close = || closest(&called, onnx_names());
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
