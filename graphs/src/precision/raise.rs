//! Bringing a graph to float32.

use std::collections::{HashMap, HashSet};

use super::apply::cast;
use super::types::{value_types, value_types_within};
use crate::operators::{Kind, Operator, is_onnx, kind, operator, result_type};
use crate::read::OWN_MODEL_KEY;
use crate::walk::{defined_names, free_name, rename_uses};
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// True if the graph, or a body in it, has a float16 or bfloat16 value that it names: an input, an output, a weight, a
/// constant, or what a Cast makes.
pub fn uses_narrow_floats(graph: &Graph) -> bool {
    let declared = graph.inputs.iter().chain(&graph.outputs).filter_map(|info| Some(info.ty.as_ref()?.dtype));
    let weights = graph.initializers.values().map(|w| w.dtype);
    let in_node = |node: &Node| {
        let attribute = |a: &Attribute| match a {
            Attribute::Tensor(tensor) => is_low(tensor.dtype),
            Attribute::Graph(body) => uses_narrow_floats(body),
            _ => false,
        };
        low_attributes(node).next().is_some() || node.attributes.values().any(attribute)
    };
    declared.chain(weights).any(is_low) || graph.nodes.iter().any(in_node)
}

/// Brings every float16 and bfloat16 value of a graph, and of the bodies in it, to float32.
///
/// A cast to 16 bits that the graph asks for still rounds: it stays, with a cast back behind it. In a model that v2l
/// wrote, such casts are v2l's own and vanish, as casts between equal types do in every model. Weights are converted
/// while they are read or written, never in memory.
pub fn raise_precision(model: &mut Model) {
    let mut raising =
        Raising { keeps_rounding: !model.metadata.contains_key(OWN_MODEL_KEY), taken: defined_names(&model.graph) };
    raising.graph(&mut model.graph, &HashMap::new());
}

/// True if a node computes in 16 bits; casts, and nodes that only move elements, do not.
pub fn computes_in_16_bits(graph: &Graph) -> bool {
    computes_low(graph, &HashMap::new())
}

fn computes_low(graph: &Graph, outer: &HashMap<String, DataType>) -> bool {
    let types = value_types_within(graph, outer);
    graph.nodes.iter().any(|node| {
        let low = |name: &String| types.get(name).copied().is_some_and(is_low);
        let moves = operator(node).is_some_and(Operator::computes_nothing);
        let bodies =
            node.attributes.values().any(|a| matches!(a, Attribute::Graph(body) if computes_low(body, &types)));
        bodies || (!moves && node.inputs.iter().chain(&node.outputs).any(low))
    })
}

struct Raising {
    keeps_rounding: bool,
    /// Every name of the model.
    taken: HashSet<String>,
}

impl Raising {
    /// `outer` are the types, before, of what a body captures.
    fn graph(&mut self, graph: &mut Graph, outer: &HashMap<String, DataType>) {
        let before = value_types_within(graph, outer);
        for info in graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.value_info) {
            if let Some(ty) = info.ty.as_mut().filter(|ty| is_low(ty.dtype)) {
                ty.dtype = DataType::Float;
            }
        }
        graph.initializers.values_mut().for_each(raise_tensor);
        let mut nodes = Vec::with_capacity(graph.nodes.len());
        for mut node in std::mem::take(&mut graph.nodes) {
            let rounds_to = rounds_to(&node, &before).filter(|_| self.keeps_rounding);
            self.attributes(&mut node, &before);
            match rounds_to {
                Some(low) => nodes.extend(self.rounding(node, low)),
                None => nodes.push(node),
            }
        }
        graph.nodes = nodes;
        drop_idle_casts(graph);
    }

    fn attributes(&mut self, node: &mut Node, before: &HashMap<String, DataType>) {
        for attribute in node.attributes.values_mut() {
            match attribute {
                Attribute::Tensor(tensor) => raise_tensor(tensor),
                Attribute::Graph(body) => self.graph(body, before),
                _ => {}
            }
        }
        let low: Vec<&str> = low_attributes(node).collect();
        for name in low {
            node.attributes.insert(name.to_owned(), Attribute::Int(DataType::Float.onnx().into()));
        }
    }

    /// A cast to `low`, and back to float32 under the name of what the node makes.
    fn rounding(&mut self, node: Node, low: DataType) -> [Node; 2] {
        let made = &node.outputs[0];
        let rounded = free_name(&format!("{made}.rounded"), &mut self.taken);
        let widen = Node { name: format!("{made}/Raise"), ..cast(&rounded, made, DataType::Float) };
        let round = Node { name: node.name, metadata: node.metadata, ..cast(&node.inputs[0], &rounded, low) };
        [round, widen]
    }
}

/// The 16-bit type that a cast rounds to; `None` for another node, and for a cast that loses nothing.
fn rounds_to(node: &Node, types: &HashMap<String, DataType>) -> Option<DataType> {
    let input = node.inputs.first().filter(|_| node.outputs.first().is_some_and(|made| !made.is_empty()))?;
    if kind(node) != Kind::Convert {
        return None;
    }
    let to = result_type(node, 0, |at| types.get(node.inputs.get(at)?).copied())?;
    // 8 bits fit into the digits of either type.
    let exact = |from: DataType| from == to || matches!(from, DataType::Bool | DataType::Int8 | DataType::Uint8);
    (is_low(to) && !types.get(input).copied().is_some_and(exact)).then_some(to)
}

fn is_low(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float16 | DataType::Bfloat16)
}

/// The attributes in which a node says that it makes float16 or bfloat16.
fn low_attributes(node: &Node) -> impl Iterator<Item = &'static str> {
    let low = |name: &str| {
        let dtype = node.int(name).and_then(|n| DataType::from_onnx(i32::try_from(n).ok()?));
        is_onnx(node) && dtype.is_some_and(is_low)
    };
    ["dtype", "output_datatype", "output_dtype", "to"].into_iter().filter(move |name| low(name))
}

fn raise_tensor(value: &mut Initializer) {
    if is_low(value.dtype) {
        value.data = value.data.clone().converted(value.dtype, DataType::Float);
        value.dtype = DataType::Float;
    }
}

/// Removes casts to the type that a value has already, except where the cast makes a graph output.
fn drop_idle_casts(graph: &mut Graph) {
    let types = value_types(graph);
    let idle = |node: &Node| {
        let [source, made] = [&node.inputs, &node.outputs].map(|names| types.get(names.first()?));
        node.op_type == "Cast" && is_onnx(node) && source.is_some() && source == made
    };
    let outputs: Vec<String> = graph.outputs.iter().map(|o| o.name.clone()).collect();
    let mut renamed: HashMap<String, String> = HashMap::new();
    graph.nodes.retain(|node| {
        let gone = idle(node) && !outputs.contains(&node.outputs[0]);
        if gone {
            let source = &node.inputs[0];
            let source = renamed.get(source).unwrap_or(source).clone();
            renamed.insert(node.outputs[0].clone(), source);
        }
        !gone
    });
    rename_uses(graph, &renamed);
    // An output that only a cast made takes its value from the cast's source.
    for output in outputs.iter() {
        let Some(at) = graph.nodes.iter().position(|n| n.outputs.first() == Some(output)) else { continue };
        let Some(source) = Some(&graph.nodes[at]).filter(|node| idle(node)).map(|node| node.inputs[0].clone()) else {
            continue;
        };
        let Some(producer) = graph.nodes.iter().position(|n| n.outputs.contains(&source)) else { continue };
        if !outputs.contains(&source) {
            for made in graph.nodes[producer].outputs.iter_mut().filter(|made| **made == source) {
                output.clone_into(made);
            }
            graph.nodes.remove(at);
            rename_uses(graph, &HashMap::from([(source, output.clone())]));
        }
    }
}
