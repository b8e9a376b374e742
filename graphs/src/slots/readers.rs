use std::collections::HashMap;

use crate::operators::{Kind, is_onnx, kind};
use crate::walk::label;
use crate::{Attribute, Graph, Node};

/// What a node takes a weight for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A product, the weight second. True: it takes the weight as `[in, out]`, as `MatMul` does.
    Product(bool),
    /// It looks up slices of the weight along this axis: an embedding.
    Lookup(usize),
    /// Anything else, such as arithmetic or a sum.
    Other,
}

/// A node that reads a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// What messages call the node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// What it takes the weight for.
    pub reading: Reading,
}

/// Who reads what in a graph and in bodies; graph outputs are readers, too. Nodes that ask for a shape alone are none.
pub struct Readers {
    by_name: HashMap<String, Vec<Reader>>,
}

impl Readers {
    /// The readers of every value.
    pub fn new(graph: &Graph) -> Self {
        let mut readers = Self { by_name: HashMap::new() };
        readers.add(graph);
        readers
    }

    /// The readers of a value, in the order of the graph; a node is one for each input that it reads it by.
    pub fn of(&self, name: &str) -> &[Reader] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, graph: &Graph) {
        for node in &graph.nodes {
            for (index, input) in node.inputs.iter().enumerate().filter(|(_, input)| !input.is_empty()) {
                if kind(node) == Kind::Extents {
                    continue;
                }
                let (op_type, reading) = (node.op_type.clone(), reading(graph, node, index));
                self.by_name.entry(input.clone()).or_default().push(Reader { node: label(node), op_type, reading });
            }
            for attribute in node.attributes.values() {
                if let Attribute::Graph(body) = attribute {
                    self.add(body);
                }
            }
        }
        for output in &graph.outputs {
            let reader = Reader { node: output.name.clone(), op_type: "output".to_owned(), reading: Reading::Other };
            self.by_name.entry(output.name.clone()).or_default().push(reader);
        }
    }
}

fn reading(graph: &Graph, node: &Node, index: usize) -> Reading {
    match (node.op_type.as_str(), index) {
        _ if !is_onnx(node) => Reading::Other,
        ("MatMul" | "Conv", 1) => Reading::Product(node.op_type == "MatMul"),
        ("Gemm", 1) => Reading::Product(node.int("transB").unwrap_or(0) == 0),
        ("Gather", 0) => {
            let rank = graph.initializers.get(&node.inputs[0]).map_or(2, |w| w.shape.len()) as i64;
            let axis = node.int("axis").unwrap_or(0);
            let axis = if axis < 0 { axis + rank } else { axis };
            usize::try_from(axis).map_or(Reading::Other, Reading::Lookup)
        }
        _ => Reading::Other,
    }
}
