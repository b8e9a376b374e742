//! What a strongly typed graph computes, in float32.

use super::apply::cast;
use super::types::{is_movement, value_types};
use crate::operators::{Kind, kind};
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// Turns a strongly typed graph ([`apply_precision`](super::apply_precision)) into a float32 graph that rounds where it
/// rounds.
///
/// What a 16-bit node makes goes through that type and back, and so do values at casts and weights that are stored in
/// 16 bits: it computes what a backend does that sums in float32 and rounds every result to the type of its node. A
/// value beyond float16's range becomes infinite exactly where it would there. Values keep their names; the nodes
/// added are called after the value that they round, `VALUE/Round` and `VALUE/Widen`. It runs where a backend has no
/// 16-bit arithmetic.
pub fn emulate_precision(model: &mut Model) {
    let types = value_types(&model.graph);
    let low = |name: &String| types.get(name).copied().filter(|t| is_low(*t));
    let graph = &mut model.graph;
    let mut nodes = Vec::with_capacity(graph.nodes.len() * 2);
    for mut node in std::mem::take(&mut graph.nodes) {
        let raising = node.op_type == "Cast" && node.inputs.first().is_some_and(|input| low(input).is_some());
        if raising && !node.outputs.iter().any(|o| low(o).is_some()) && makes_float(&node) {
            node.op_type = "Identity".into();
            node.attributes.clear();
        }
        for attribute in node.attributes.values_mut() {
            if let Attribute::Tensor(tensor) = attribute {
                widen(tensor);
            }
        }
        if is_movement(&node) || kind(&node) == Kind::Constant {
            nodes.push(node);
            continue;
        }
        let mut rounding = Vec::new();
        for output in &mut node.outputs {
            let Some(ty) = low(output) else { continue };
            let (exact, rounded) = (format!("{output}.exact"), format!("{output}.{ty}"));
            let named = |node: Node, what: &str| Node { name: format!("{output}/{what}"), ..node };
            rounding.push(named(cast(&exact, &rounded, ty), "Round"));
            rounding.push(named(cast(&rounded, output, DataType::Float), "Widen"));
            *output = exact;
        }
        if node.op_type == "Cast" && !rounding.is_empty() {
            node.attributes.insert("to".into(), Attribute::Int(DataType::Float.onnx().into()));
        }
        nodes.push(node);
        nodes.append(&mut rounding);
    }
    graph.nodes = nodes;
    graph.initializers.values_mut().for_each(widen);
    widen_infos(graph);
}

fn is_low(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float16 | DataType::Bfloat16)
}

fn makes_float(cast: &Node) -> bool {
    cast.int("to") == Some(i64::from(DataType::Float.onnx()))
}

fn widen(value: &mut Initializer) {
    if is_low(value.dtype) {
        value.data = value.data.clone().converted(value.dtype, DataType::Float);
        value.dtype = DataType::Float;
    }
}

fn widen_infos(graph: &mut Graph) {
    for info in &mut graph.value_info {
        if let Some(ty) = info.ty.as_mut().filter(|ty| is_low(ty.dtype)) {
            ty.dtype = DataType::Float;
        }
    }
}
