//! Which weights of a placeholder plan must be set.

use std::collections::HashSet;

use v2l_graphs::{Attribute, Model, Node};
use v2l_trt::builder::Refittable;

use crate::ExportError;

/// The weights for which TensorRT-RTX puts placeholders: external initializers that feed a matrix product or a
/// convolution directly, and that no graph output and no nested graph is.
///
/// `offered` is the parser's list, which is a superset; each weight must be on it under its own name.
///
/// # Errors
/// [`ExportError::Graph`] if the parser does not offer one.
pub(super) fn refittable(graph: &str, model: &Model, offered: &[Refittable]) -> Result<Vec<String>, ExportError> {
    let mut hidden: HashSet<&str> = model.graph.outputs.iter().map(|info| &info.name[..]).collect();
    hidden.extend(model.graph.nodes.iter().filter(|node| has_body(node)).flat_map(Node::uses));
    let direct: HashSet<&str> = model.graph.nodes.iter().flat_map(operands).collect();
    let external = model.graph.initializers.iter().filter(|(_, weight)| weight.external);
    let names: Vec<String> = external
        .map(|(name, _)| name)
        .filter(|name| direct.contains(&name[..]) && !hidden.contains(&name[..]))
        .cloned()
        .collect();
    let is_offered = |name: &str| offered.iter().any(|o| o.name == name && o.initializer.as_deref() == Some(name));
    match names.iter().find(|name| !is_offered(name)) {
        Some(name) => {
            let reason = format!("TensorRT offers no refit of weight `{name}`, which feeds its layer directly");
            Err(ExportError::Graph { graph: graph.to_owned(), reason })
        }
        None => Ok(names),
    }
}

/// The operands of a node that TensorRT-RTX makes placeholders for.
fn operands(node: &Node) -> impl Iterator<Item = &str> {
    let operands = match node.op_type.as_str() {
        "MatMul" => 0..2,
        "Gemm" => 0..3,
        "Conv" => 1..3,
        _ => 0..0,
    };
    operands.filter_map(|at| node.inputs.get(at)).map(String::as_str).filter(|name| !name.is_empty())
}

fn has_body(node: &Node) -> bool {
    node.attributes.values().any(|attribute| matches!(attribute, Attribute::Graph(_)))
}
