//! Nodes and constants that take another node's place.

use crate::passes::parts;
use crate::walk::free_name;
use crate::{Attribute, DataType, Initializer, Node, TensorData};

use super::site::Site;

/// The nodes that stand for one node, in order.
pub(super) struct Made {
    /// What they are named after.
    base: String,
    nodes: Vec<Node>,
}

impl Made {
    /// For a node, named after its first output that is there.
    pub(super) fn new(node: &Node) -> Self {
        let base = node.outputs.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
        Self { base, nodes: Vec::new() }
    }

    /// Adds a node; gives the name of what it makes.
    pub(super) fn op(
        &mut self,
        site: &mut Site<'_>,
        op_type: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let output = free_name(&format!("{}.{op_type}", self.base), site.taken);
        self.nodes.push(parts::node(op_type, inputs, &output, attributes));
        output
    }

    /// Adds a node that makes two values; gives their names.
    pub(super) fn pair(
        &mut self,
        site: &mut Site<'_>,
        op_type: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> (String, String) {
        let first = self.op(site, op_type, inputs, attributes);
        let second = free_name(&format!("{}.{op_type}", self.base), site.taken);
        if let Some(made) = self.nodes.last_mut() {
            made.outputs.push(second.clone());
        }
        (first, second)
    }

    /// The nodes as they are.
    pub(super) fn nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// A constant.
    fn constant(&mut self, site: &mut Site<'_>, value: Initializer) -> String {
        self.op(site, "Constant", &[], &[("value", Attribute::Tensor(value))])
    }

    /// A vector of int64.
    pub(super) fn ints(&mut self, site: &mut Site<'_>, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(site, Initializer::inline(DataType::Int64, &[values.len()], bytes))
    }

    /// A number without axes of this type of float; `None` for another type.
    pub(super) fn float(&mut self, site: &mut Site<'_>, value: f32, dtype: DataType) -> Option<String> {
        let single = TensorData::raw(value.to_le_bytes().to_vec());
        let bytes = match dtype {
            DataType::Float => single.to_bytes().ok()?.to_vec(),
            DataType::Double => f64::from(value).to_le_bytes().to_vec(),
            DataType::Float16 | DataType::Bfloat16 => {
                single.converted(DataType::Float, dtype).to_bytes().ok()?.to_vec()
            }
            _ => return None,
        };
        Some(self.constant(site, Initializer::inline(dtype, &[], bytes)))
    }

    /// A whole number without axes.
    pub(super) fn int(&mut self, site: &mut Site<'_>, value: i64) -> String {
        self.constant(site, Initializer::inline(DataType::Int64, &[], value.to_le_bytes().to_vec()))
    }

    /// Lets the nodes make the outputs of `node`: `values` in order, those that it leaves out dropped.
    pub(super) fn instead_of(mut self, node: &Node, values: &[&str]) -> Vec<Node> {
        for (output, value) in node.outputs.iter().zip(values).filter(|(output, _)| !output.is_empty()) {
            let uses = self.nodes.iter_mut().flat_map(|made| made.inputs.iter_mut().chain(&mut made.outputs));
            uses.filter(|name| name.as_str() == *value).for_each(|name| output.clone_into(name));
        }
        for made in &mut self.nodes {
            made.metadata = node.metadata.clone();
            if made.outputs.first() == node.outputs.first() {
                made.name.clone_from(&node.name);
            }
        }
        self.nodes
    }
}
