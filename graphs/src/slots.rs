//! Where a graph multiplies by a matrix: what an adapter may change, and what the exporter left of its name.
//!
//! ```text
//! readers  what a node takes a weight for
//! rows     a matrix as one hash per output feature, whatever its orientation and type
//! sharing  one initializer for several equal ones, or several for one; one orientation for all readers
//! ```

mod readers;
mod rows;
mod sharing;

pub use readers::{Reader, Readers, Reading};
pub use rows::row_hashes;
pub use sharing::{drop_unread, merge_initializers, same_matrix, turn_lookups, turn_product, unshare_initializer};

use std::collections::HashMap;

use crate::operators::is_onnx;
use crate::walk::label;
use crate::{DataType, Graph, Node};

/// Node metadata of PyTorch's dynamo exporter: the module paths around a node, outermost first, and then the node.
const NAME_SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// One product by a matrix that is an initializer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearUse {
    /// Index of the node in the graph.
    pub node: usize,
    /// What messages call the node.
    pub label: String,
    /// The initializer.
    pub weight: String,
    /// True if it is stored `[in, out]`, false if `[out, in]` as in PyTorch (`Gemm` with `transB`).
    pub transposed: bool,
    /// Number of input features.
    pub in_features: usize,
    /// Number of output features.
    pub out_features: usize,
    /// The vector that is added to the product and to nothing else.
    pub bias: Option<String>,
    /// Path of the module that the node stands in, as the exporter recorded it.
    pub scope: Option<String>,
}

/// Every product by an initializer of the main graph (`MatMul` and `Gemm` with a matrix of floating point, float64
/// left out, as second input), in the order of the nodes.
pub fn linear_uses(graph: &Graph) -> Vec<LinearUse> {
    let mut readers: HashMap<&str, Vec<&Node>> = HashMap::new();
    for node in &graph.nodes {
        for value in node.uses() {
            readers.entry(value).or_default().push(node);
        }
    }
    let found = |(index, node): (usize, &Node)| {
        let gemm = match node.op_type.as_str() {
            "Gemm" if is_onnx(node) => true,
            "MatMul" if is_onnx(node) => false,
            _ => return None,
        };
        let name = node.inputs.get(1)?;
        let value = graph.initializers.get(name).filter(|v| v.dtype.is_float() && v.dtype != DataType::Double)?;
        let &[rows, cols] = value.shape.as_slice() else { return None };
        let transposed = !(gemm && node.int("transB").unwrap_or(0) != 0);
        let (in_features, out_features) = if transposed { (rows, cols) } else { (cols, rows) };
        Some(LinearUse {
            node: index,
            label: label(node),
            weight: name.clone(),
            transposed,
            in_features,
            out_features,
            bias: bias(graph, node, out_features, &readers),
            scope: scope(node),
        })
    };
    graph.nodes.iter().enumerate().filter_map(found).collect()
}

/// The vector of `width` elements that only this product gets added.
fn bias(graph: &Graph, node: &Node, width: usize, readers: &HashMap<&str, Vec<&Node>>) -> Option<String> {
    let fits = |name: &&String| graph.initializers.get(*name).is_some_and(|v| v.dtype.is_float() && v.shape == [width]);
    let name = match node.inputs.get(2) {
        Some(name) if !name.is_empty() => Some(name).filter(fits)?,
        _ => {
            let [add] = readers.get(node.outputs.first()?.as_str())?.as_slice() else { return None };
            let sum = is_onnx(add) && add.op_type == "Add";
            add.inputs.iter().find(fits).filter(|_| sum)?
        }
    };
    // Exporters share equal vectors: a shared one says nothing about whose it is.
    (readers.get(name.as_str())?.len() == 1).then(|| name.clone())
}

/// The module path around a node: from dynamo's metadata, or from a TorchScript node name such as
/// `/blocks.0/to_q/MatMul`.
fn scope(node: &Node) -> Option<String> {
    let path = match node.metadata.get(NAME_SCOPES) {
        Some(text) => {
            let scopes: Vec<&str> =
                text.trim_matches(['[', ']']).split(',').map(|s| s.trim().trim_matches('\'')).collect();
            scopes.len().checked_sub(2).map(|at| scopes[at].to_owned())?
        }
        None => node.name.strip_prefix('/')?.rsplit_once('/')?.0.replace('/', "."),
    };
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, Initializer};

    fn model(names: [&str; 2], biases: [&str; 2]) -> crate::Model {
        let mut b = Builder::new("g");
        let mut x = b.input("x", DataType::Float, ["n".into(), crate::Dim::Fixed(2)]);
        for (at, name) in ["w", "v"].into_iter().enumerate() {
            let w = b.initializer(name, Initializer::inline(DataType::Float, &[2, 2], vec![0; 16]));
            let product = b.op("MatMul", &[&x, &w]);
            let bias = match at == 1 && biases[0] == biases[1] {
                true => biases[0].into(),
                false => b.initializer(biases[at], Initializer::inline(DataType::Float, &[2], vec![0; 8])),
            };
            x = b.op("Add", &[&product, &bias]);
        }
        b.output("y", &x, DataType::Float, ["n".into(), crate::Dim::Fixed(2)]);
        let mut model = b.finish().unwrap();
        for (node, name) in model.graph.nodes.iter_mut().filter(|n| n.op_type == "MatMul").zip(names) {
            name.clone_into(&mut node.name);
        }
        model
    }

    #[test]
    fn uses_have_the_bias_that_is_theirs_alone_and_the_scope_of_their_name() {
        let uses = linear_uses(&model(["/blocks.0/attn/to_q/MatMul", "node_MatMul_3"], ["a.bias", "b.bias"]).graph);
        let found: Vec<_> = uses.iter().map(|u| (u.bias.as_deref(), u.scope.as_deref(), u.transposed)).collect();
        assert_eq!(found, [(Some("a.bias"), Some("blocks.0.attn.to_q"), true), (Some("b.bias"), None, true)]);
        let shared = linear_uses(&model(["/MatMul", ""], ["a.bias", "a.bias"]).graph);
        assert!(shared.iter().all(|u| u.bias.is_none() && u.scope.is_none()));
    }

    #[test]
    fn scope_of_dynamo_metadata_is_the_module_around_the_operator() {
        let mut model = model(["", ""], ["a.bias", "b.bias"]);
        let scopes = "['', 'blocks.0', 'blocks.0.to_q', 'linear_1']";
        model.graph.nodes[0].metadata.insert(NAME_SCOPES.into(), scopes.into());
        model.graph.nodes[2].metadata.insert(NAME_SCOPES.into(), "['']".into());
        let scopes: Vec<_> = linear_uses(&model.graph).into_iter().map(|u| u.scope).collect();
        assert_eq!(scopes, [Some("blocks.0.to_q".to_owned()), None]);
    }
}
