//! Which values are floating-point numbers, and which nodes may compute in 16 bits.

use std::collections::HashMap;

use crate::operators::{Kind, Operator, kind, operator, result_type};
use crate::walk::label;
use crate::{Attribute, DataType, Graph, Node};

/// Element types of all values of a graph in topological order, as far as the operators and the recorded types tell.
pub fn value_types(graph: &Graph) -> HashMap<String, DataType> {
    value_types_within(graph, &HashMap::new())
}

/// As [`value_types`], of a body; `outer` are the types of what it may capture.
pub(crate) fn value_types_within(graph: &Graph, outer: &HashMap<String, DataType>) -> HashMap<String, DataType> {
    let mut types = outer.clone();
    let declared = graph.inputs.iter().chain(&graph.value_info).chain(&graph.outputs);
    for info in declared {
        if let Some(ty) = &info.ty {
            types.insert(info.name.clone(), ty.dtype);
        }
    }
    for (name, value) in &graph.initializers {
        types.insert(name.clone(), value.dtype);
    }
    for node in &graph.nodes {
        for (index, output) in node.outputs.iter().enumerate() {
            let dtype = result_type(node, index, |i| types.get(node.inputs.get(i)?).copied());
            if let (Some(dtype), false) = (dtype, output.is_empty()) {
                types.insert(output.clone(), dtype);
            }
        }
    }
    types
}

/// A name for each node, of which no two are equal: the node's own, or its operator and output where the producer gave
/// none or the same one twice.
pub fn node_labels(graph: &Graph) -> Vec<String> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for node in &graph.nodes {
        *uses.entry(&node.name).or_default() += 1;
    }
    let own = |node: &Node| !node.name.is_empty() && uses.get(&node.name[..]) == Some(&1);
    let unnamed = |node: &Node| label(&Node { name: String::new(), ..node.clone() });
    graph.nodes.iter().map(|node| if own(node) { node.name.clone() } else { unnamed(node) }).collect()
}

/// How far a node may leave float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freedom {
    /// It has nothing to do with floating-point numbers: its type says nothing.
    Typeless,
    /// It must stay in float32: an operator that is not known here, whose results may depend on the type, or that asks
    /// for float32.
    Float32,
    /// It computes in any floating-point type.
    Any,
}

/// The freedom of each node of a float32 graph in topological order.
///
/// A value whose type is not known counts as a float32 number, and so does what is made of it.
pub fn freedom(graph: &Graph) -> Vec<Freedom> {
    let types = value_types(graph);
    graph.nodes.iter().map(|node| node_freedom(node, &types)).collect()
}

fn node_freedom(node: &Node, types: &HashMap<String, DataType>) -> Freedom {
    let type_of = |name: &String| types.get(name).copied();
    let read: Vec<Option<DataType>> = node.inputs.iter().filter(|n| !n.is_empty()).map(type_of).collect();
    let made: Vec<Option<DataType>> = node.outputs.iter().filter(|n| !n.is_empty()).map(type_of).collect();
    let float = |t: &Option<DataType>| t.is_none_or(DataType::is_float);
    if reads_any(node) || !read.iter().chain(&made).any(float) {
        return Freedom::Typeless;
    }
    let unknown = read.iter().chain(&made).any(Option::is_none);
    // A cast to 16 bits rounds what it is given, which must not have been rounded to another type before.
    let narrow = made.iter().flatten().any(|t| t.is_float() && t.size() == 2);
    let bodies = node.attributes.values().any(|a| matches!(a, Attribute::Graph(_)));
    let double = read.iter().chain(&made).any(|t| *t == Some(DataType::Double));
    let sixteen = operator(node).is_some_and(|known| known.is_move() || known.has_narrow_form);
    if unknown || bodies || double || narrow || !sixteen || !made.iter().any(float) {
        return Freedom::Float32;
    }
    Freedom::Any
}

/// True for operators that look at extents only: they take any type as it comes.
pub(super) fn reads_any(node: &Node) -> bool {
    kind(node) == Kind::Extents
}

/// True for operators that only move elements: every element of the result is one of the inputs'.
pub fn is_movement(node: &Node) -> bool {
    operator(node).is_some_and(Operator::is_move)
}
