//! Bringing a graph into another floating-point type.

use std::collections::HashMap;

use crate::builder::ISLAND;
use crate::check::result_type;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node, TensorData};

/// Element types of all values of a graph in topological order, as far as the operators tell.
pub(crate) fn infer_types(graph: &Graph) -> HashMap<String, DataType> {
    let mut types: HashMap<String, DataType> = HashMap::new();
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

/// Brings a float32 graph into `to` (`float16` or `bfloat16`): weights, constants and arithmetic.
///
/// Graph inputs and outputs stay float32, with a Cast behind or before them; so do the nodes of an island
/// ([`Builder::island`](crate::Builder::island)) and one-dimensional weights whose own values are float32, which would
/// lose something. Matrices feed their consumers directly. `float32` changes nothing.
pub fn lower_precision(model: &mut Model, to: DataType) {
    if to == DataType::Float {
        return;
    }
    let types = infer_types(&model.graph);
    let graph = &mut model.graph;
    let mut lowering =
        Lowering { to, actual: HashMap::new(), casts: HashMap::new(), nodes: Vec::new(), constants: Vec::new() };
    for (name, value) in &mut graph.initializers {
        if value.external
            && value.dtype == DataType::Float
            && (value.shape.len() > 1 || value.data.widened_from() == Some(to))
        {
            value.dtype = to;
            value.data = value.data.clone().converted(DataType::Float, to);
        }
        lowering.actual.insert(name.clone(), value.dtype);
    }
    for mut node in std::mem::take(&mut graph.nodes) {
        let island = node.metadata.contains_key(ISLAND);
        let wanted = if island { DataType::Float } else { to };
        for input in &mut node.inputs {
            if types.get(input) == Some(&DataType::Float) {
                *input = lowering.value(input, wanted, &graph.initializers);
            }
        }
        if !island && node.op_type == "Cast" && node.int("to") == Some(i64::from(DataType::Float.onnx())) {
            node.attributes.insert("to".into(), Attribute::Int(to.onnx().into()));
        }
        for output in &node.outputs {
            if types.get(output) == Some(&DataType::Float) {
                lowering.actual.insert(output.clone(), wanted);
            }
        }
        lowering.nodes.push(node);
    }
    for info in &graph.outputs {
        if types.get(&info.name) == Some(&DataType::Float) && lowering.actual.get(&info.name) == Some(&to) {
            lowering.raise_output(&info.name);
        }
    }
    graph.nodes = lowering.nodes;
    graph.initializers.extend(lowering.constants);
}

struct Lowering {
    to: DataType,
    /// Type of each float value after lowering; absent means float32, as graph inputs are.
    actual: HashMap<String, DataType>,
    casts: HashMap<(String, DataType), String>,
    nodes: Vec<Node>,
    constants: Vec<(String, Initializer)>,
}

impl Lowering {
    /// The name under which `value` is to be had in type `wanted`.
    fn value(
        &mut self,
        value: &str,
        wanted: DataType,
        initializers: &indexmap::IndexMap<String, Initializer>,
    ) -> String {
        if self.actual.get(value).copied().unwrap_or(DataType::Float) == wanted {
            return value.to_owned();
        }
        let key = (value.to_owned(), wanted);
        if let Some(name) = self.casts.get(&key) {
            return name.clone();
        }
        let name = format!("{value}.{wanted}");
        match initializers.get(value).filter(|c| !c.external).and_then(|c| converted_exactly(c, wanted)) {
            Some(constant) => self.constants.push((name.clone(), constant)),
            None => self.nodes.push(cast(value, &name, wanted)),
        }
        self.casts.insert(key, name.clone());
        name
    }

    /// Renames the producer of the graph output `name` and casts its value back to float32.
    fn raise_output(&mut self, name: &str) {
        let lowered = format!("{name}.{}", self.to);
        for node in &mut self.nodes {
            for value in node.inputs.iter_mut().chain(&mut node.outputs).filter(|v| *v == name) {
                lowered.clone_into(value);
            }
        }
        self.nodes.push(cast(&lowered, name, DataType::Float));
    }
}

/// A constant in another type if that changes none of its values: one that it would round stays behind a Cast, so that
/// raising the graph again gives the exact value back.
fn converted_exactly(constant: &Initializer, to: DataType) -> Option<Initializer> {
    let data = constant.data.clone().converted(constant.dtype, to).to_bytes().ok()?;
    let back = TensorData::raw(data.clone()).converted(to, constant.dtype).to_bytes().ok()?;
    (back == constant.data.to_bytes().ok()?).then(|| Initializer {
        dtype: to,
        data: TensorData::raw(data),
        ..constant.clone()
    })
}

fn cast(input: &str, output: &str, to: DataType) -> Node {
    Node {
        name: format!("{output}/Cast"),
        op_type: "Cast".into(),
        inputs: vec![input.to_owned()],
        outputs: vec![output.to_owned()],
        attributes: [("to".to_owned(), Attribute::Int(to.onnx().into()))].into_iter().collect(),
        ..Node::default()
    }
}

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
    let types = infer_types(graph);
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
