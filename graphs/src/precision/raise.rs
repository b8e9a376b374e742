//! Bringing a graph to float32.

use std::collections::HashMap;

use super::types::value_types;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// True if the graph, or a body in it, has a float16 or bfloat16 value that it names: an input, an output, a weight, a
/// constant, or what a Cast makes.
pub fn uses_narrow_floats(graph: &Graph) -> bool {
    let low = |t: DataType| matches!(t, DataType::Float16 | DataType::Bfloat16);
    let declared = graph.inputs.iter().chain(&graph.outputs).filter_map(|info| Some(info.ty.as_ref()?.dtype));
    let weights = graph.initializers.values().map(|w| w.dtype);
    let in_node = |node: &Node| {
        let to = node.int("to").and_then(|n| DataType::from_onnx(i32::try_from(n).ok()?));
        let attribute = |a: &Attribute| match a {
            Attribute::Tensor(tensor) => low(tensor.dtype),
            Attribute::Graph(body) => uses_narrow_floats(body),
            _ => false,
        };
        (node.op_type == "Cast" && to.is_some_and(low)) || node.attributes.values().any(attribute)
    };
    declared.chain(weights).any(low) || graph.nodes.iter().any(in_node)
}

/// Brings every float16 and bfloat16 value of a graph to float32; casts between them vanish.
///
/// Weights are converted while they are read or written, never in memory.
pub fn raise_precision(model: &mut Model) {
    let low = |t: DataType| matches!(t, DataType::Float16 | DataType::Bfloat16);
    let graph = &mut model.graph;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.value_info) {
        if let Some(ty) = info.ty.as_mut().filter(|ty| low(ty.dtype)) {
            ty.dtype = DataType::Float;
        }
    }
    let raise = |value: &mut Initializer| {
        if low(value.dtype) {
            value.data = value.data.clone().converted(value.dtype, DataType::Float);
            value.dtype = DataType::Float;
        }
    };
    graph.initializers.values_mut().for_each(raise);
    for node in &mut graph.nodes {
        for attribute in node.attributes.values_mut() {
            if let Attribute::Tensor(tensor) = attribute {
                raise(tensor);
            }
        }
        let to = node.int("to").and_then(|n| DataType::from_onnx(i32::try_from(n).ok()?));
        if node.op_type == "Cast" && to.is_some_and(low) {
            node.attributes.insert("to".into(), Attribute::Int(DataType::Float.onnx().into()));
        }
    }
    drop_idle_casts(graph);
}

/// Removes casts to the type that a value has already, except where the cast makes a graph output.
fn drop_idle_casts(graph: &mut Graph) {
    let types = value_types(graph);
    let outputs: Vec<String> = graph.outputs.iter().map(|o| o.name.clone()).collect();
    let mut renamed: HashMap<String, String> = HashMap::new();
    graph.nodes.retain_mut(|node| {
        for input in &mut node.inputs {
            if let Some(name) = renamed.get(input) {
                name.clone_into(input);
            }
        }
        let idle = node.op_type == "Cast"
            && types.get(&node.inputs[0]).is_some_and(|t| types.get(&node.outputs[0]) == Some(t))
            && !outputs.contains(&node.outputs[0]);
        if idle {
            renamed.insert(node.outputs[0].clone(), node.inputs[0].clone());
        }
        !idle
    });
    // An output that only a cast made takes its value from the cast's source.
    for output in &outputs {
        let Some(at) = graph.nodes.iter().position(|n| n.outputs.first() == Some(output)) else { continue };
        let node = &graph.nodes[at];
        let source = node.inputs.first().cloned().unwrap_or_default();
        let idle = node.op_type == "Cast" && types.get(&source) == types.get(output);
        let produced = graph.nodes.iter().any(|n| n.outputs.contains(&source));
        if idle && produced && !outputs.contains(&source) {
            graph.nodes.remove(at);
            for node in &mut graph.nodes {
                for value in node.inputs.iter_mut().chain(&mut node.outputs).filter(|v| **v == source) {
                    output.clone_into(value);
                }
            }
        }
    }
}
