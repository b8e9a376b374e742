//! Writes nodes in the place of one.

use std::collections::HashSet;

use crate::passes::parts::node;
use crate::walk::free_name;
use crate::{Attribute, DataType, Graph, Initializer, Node};

/// Writes nodes in the place of one.
pub(super) struct Writer<'a> {
    graph: &'a mut Graph,
    taken: &'a mut HashSet<String>,
    pub(super) nodes: &'a mut Vec<Node>,
    /// The node that they stand for.
    pub(super) instead: Node,
    /// Its output.
    pub(super) output: String,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        graph: &'a mut Graph,
        taken: &'a mut HashSet<String>,
        nodes: &'a mut Vec<Node>,
        instead: Node,
    ) -> Self {
        let output = instead.outputs.first().cloned().unwrap_or_default();
        Self { graph, taken, nodes, instead, output }
    }

    pub(super) fn free(&mut self, part: &str) -> String {
        free_name(&format!("{}/{part}", self.output), self.taken)
    }

    pub(super) fn constant(&mut self, part: &str, value: Initializer) -> String {
        let name = self.free(part);
        self.graph.initializers.insert(name.clone(), value);
        name
    }

    pub(super) fn int(&mut self, part: &str, value: i64) -> String {
        self.constant(part, Initializer::inline(DataType::Int64, &[], value.to_le_bytes().to_vec()))
    }

    pub(super) fn ints(&mut self, part: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(part, Initializer::inline(DataType::Int64, &[values.len()], bytes))
    }

    pub(super) fn write(&mut self, op: &str, inputs: &[&str], to: &str, attributes: &[(&str, Attribute)]) {
        let metadata = self.instead.metadata.clone();
        self.nodes.push(Node { metadata, ..node(op, inputs, to, attributes) });
    }

    /// As [`Self::write`], to a value of its own.
    pub(super) fn made(&mut self, part: &str, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let to = self.free(part);
        self.write(op, inputs, &to, attributes);
        to
    }

    /// `value` times `factor`, if there is one.
    pub(super) fn scaled(&mut self, value: String, factor: Option<f32>, part: &str) -> String {
        let Some(factor) = factor else { return value };
        let number = Initializer::inline(DataType::Float, &[], factor.to_le_bytes().to_vec());
        let number = self.constant(&format!("{part}_factor"), number);
        let typed = self.made(&format!("{part}_typed"), "CastLike", &[&number, &value], &[]);
        self.made(part, "Mul", &[&value, &typed], &[])
    }

    pub(super) fn turned(&mut self, value: String, attribute: &str, part: &str) -> String {
        if self.instead.int(attribute).unwrap_or(0) == 0 {
            return value;
        }
        self.made(part, "Transpose", &[&value], &[("perm", vec![1, 0].into())])
    }
}
