//! Bringing a graph to float32.

use std::collections::HashMap;

use super::types::value_types;
use crate::passes::{is_onnx, rename_uses};
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

/// Brings every float16 and bfloat16 value of a graph, and of the bodies in it, to float32; casts between them vanish.
///
/// Weights are converted while they are read or written, never in memory.
pub fn raise_precision(model: &mut Model) {
    raise(&mut model.graph);
}

fn raise(graph: &mut Graph) {
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.value_info) {
        if let Some(ty) = info.ty.as_mut().filter(|ty| is_low(ty.dtype)) {
            ty.dtype = DataType::Float;
        }
    }
    graph.initializers.values_mut().for_each(raise_tensor);
    for node in &mut graph.nodes {
        for attribute in node.attributes.values_mut() {
            match attribute {
                Attribute::Tensor(tensor) => raise_tensor(tensor),
                Attribute::Graph(body) => raise(body),
                _ => {}
            }
        }
        let low: Vec<&str> = low_attributes(node).collect();
        for name in low {
            node.attributes.insert(name.to_owned(), Attribute::Int(DataType::Float.onnx().into()));
        }
    }
    drop_idle_casts(graph);
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
