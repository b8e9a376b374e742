//! From float32 to a graph in which every node has a type of its own.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::tables::{is_matrix, tables};
use super::types::{reads_any, value_types};
use crate::builder::KEPT_IN_FP32;
use crate::operators::{Out, operator};
use crate::walk::rename_uses;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node, TensorData};

/// Brings a float32 graph into `to` (`float16` or `bfloat16`): weights, constants and arithmetic.
///
/// Graph inputs and outputs stay float32, with a Cast behind or before them; so do the nodes that are kept in fp32
/// ([`Builder::in_fp32`](crate::Builder::in_fp32)) and one-dimensional weights whose own values are float32, which would
/// lose something. Matrices feed their consumers directly. `float32` changes nothing.
pub fn lower_precision(model: &mut Model, to: DataType) {
    if to == DataType::Float {
        return;
    }
    let kept = |node: &Node| node.metadata.contains_key(KEPT_IN_FP32);
    let types: Vec<DataType> =
        model.graph.nodes.iter().map(|node| if kept(node) { DataType::Float } else { to }).collect();
    apply_precision(model, &types, &|_, weight| {
        let low = weight.shape.len() > 1 || weight.data.widened_from() == Some(to);
        if low { to } else { DataType::Float }
    });
}

/// Gives each node of a float32 graph the type at its place in `types` (`float32`, `float16` or `bfloat16`), and each
/// floating-point weight the one that `storage` names.
///
/// The result is strongly typed: all that a node reads and makes has its type, and a Cast stands wherever types meet,
/// one per value and type. Graph inputs and outputs stay float32, a weight that is an output among them. A weight
/// whose type is its reader's feeds it directly. Nodes beyond the end of `types`, and those with bodies, are float32.
/// Weights are converted while they are read or written.
pub fn apply_precision(model: &mut Model, types: &[DataType], storage: &dyn Fn(&str, &Initializer) -> DataType) {
    let known = value_types(&model.graph);
    let float = |name: &str| known.get(name) == Some(&DataType::Float);
    let graph = &mut model.graph;
    let mut lowering = Lowering::default();
    let handed_out: HashSet<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    for (name, value) in &mut graph.initializers {
        if value.external && value.dtype == DataType::Float && !handed_out.contains(name.as_str()) {
            let to = storage(name, value);
            value.data = value.data.clone().converted(DataType::Float, to);
            value.dtype = to;
        }
        lowering.actual.insert(name.clone(), value.dtype);
    }
    for (index, mut node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
        let bodies = node.attributes.values().any(|a| matches!(a, Attribute::Graph(_)));
        let wanted = types.get(index).copied().filter(|_| !bodies).unwrap_or(DataType::Float);
        if bodies {
            let captured: Vec<String> = node.uses().filter(|name| float(name)).map(str::to_owned).collect();
            let renames = captured.into_iter().map(|name| {
                let raised = lowering.value(&name, DataType::Float, &graph.initializers);
                (name, raised)
            });
            let renames: HashMap<String, String> = renames.filter(|(from, to)| from != to).collect();
            let mut alone = Graph { nodes: vec![node], ..Graph::default() };
            rename_uses(&mut alone, &renames);
            lowering.nodes.append(&mut alone.nodes);
            continue;
        }
        let (typeless, typed) = (reads_any(&node), float32_from(&node));
        for (at, input) in node.inputs.iter_mut().enumerate() {
            if float(input) && !typeless {
                let wanted = if at < typed { wanted } else { DataType::Float };
                *input = lowering.value(input, wanted, &graph.initializers);
            }
        }
        let made = retype(&mut node, wanted);
        for output in node.outputs.iter().filter(|name| float(name)) {
            lowering.actual.insert(output.clone(), made);
        }
        lowering.nodes.push(node);
    }
    for info in &graph.outputs {
        if let Some(low) = lowering.actual.get(&info.name).filter(|t| t.is_float() && **t != DataType::Float) {
            lowering.raise_output(&info.name, *low);
        }
    }
    graph.nodes = lowering.nodes;
    graph.initializers.extend(lowering.constants);
    for info in &mut graph.value_info {
        if let (Some(ty), Some(actual)) = (&mut info.ty, lowering.actual.get(&info.name)) {
            ty.dtype = *actual;
        }
    }
}

/// The type in which each matrix of a component is stored: that of the nodes that read it in 16 bits, if they agree,
/// else the one that it has in the source.
///
/// Each graph comes with the types of its nodes. What nothing reads is left out, and so are [`tables`].
pub fn matrix_types(graphs: &[(&Model, &[DataType])]) -> BTreeMap<String, DataType> {
    let mut read: BTreeMap<String, Option<DataType>> = BTreeMap::new();
    let mut own: BTreeMap<String, DataType> = BTreeMap::new();
    let tables = tables(graphs.iter().map(|(model, _)| *model));
    for (model, types) in graphs {
        for (index, node) in model.graph.nodes.iter().enumerate() {
            for name in node.uses() {
                let Some(weight) = model.graph.initializers.get(name).filter(|w| is_matrix(w)) else { continue };
                if tables.contains(name) {
                    continue;
                }
                let wanted = types.get(index).copied().filter(|t| t.size() == 2);
                let kept = read.entry(name.to_owned()).or_insert(wanted);
                *kept = kept.filter(|t| Some(*t) == wanted);
                let source = weight.data.widened_from().filter(|t| t.size() == 2);
                own.insert(name.to_owned(), source.unwrap_or(DataType::Float));
            }
        }
    }
    let kept = |name: &String| own.get(name).copied().unwrap_or(DataType::Float);
    read.into_iter().map(|(name, ty)| (name.clone(), ty.unwrap_or_else(|| kept(&name)))).collect()
}

/// The first input that is float32 whatever the type of the node, as are all behind it.
pub(super) fn float32_from(node: &Node) -> usize {
    operator(node).map_or(usize::MAX, |known| known.float32_from)
}

/// Gives a node that says its result's type itself the type `to`; the type of what it makes.
fn retype(node: &mut Node, to: DataType) -> DataType {
    match operator(node).map_or(Out::Open, |known| known.result) {
        Out::To if node.int("to") == Some(i64::from(DataType::Float.onnx())) => {
            node.attributes.insert("to".into(), Attribute::Int(to.onnx().into()));
            to
        }
        Out::Constant(_) => {
            let value = node.attributes.get("value").cloned();
            match value {
                Some(Attribute::Tensor(value)) => match converted_exactly(&value, to) {
                    Some(value) => {
                        node.attributes.insert("value".into(), Attribute::Tensor(value));
                        to
                    }
                    None => value.dtype,
                },
                _ => DataType::Float,
            }
        }
        _ => to,
    }
}

#[derive(Default)]
struct Lowering {
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

    /// Renames the producer of the graph output `name`, which has type `low`, and casts its value back to float32.
    fn raise_output(&mut self, name: &str, low: DataType) {
        let lowered = format!("{name}.{low}");
        for node in &mut self.nodes {
            for value in node.inputs.iter_mut().chain(&mut node.outputs).filter(|v| *v == name) {
                lowered.clone_into(value);
            }
        }
        self.nodes.push(cast(&lowered, name, DataType::Float));
        self.actual.insert(name.to_owned(), DataType::Float);
    }
}

/// A constant in another type if that changes none of its values: one that it would round stays behind a Cast, so that
/// raising the graph again gives the exact value back.
pub(super) fn converted_exactly(constant: &Initializer, to: DataType) -> Option<Initializer> {
    let data = constant.data.clone().converted(constant.dtype, to).to_bytes().ok()?;
    let back = TensorData::raw(data.clone()).converted(to, constant.dtype).to_bytes().ok()?;
    (back == constant.data.to_bytes().ok()?).then(|| Initializer {
        dtype: to,
        data: TensorData::raw(data),
        ..constant.clone()
    })
}

pub(super) fn cast(input: &str, output: &str, to: DataType) -> Node {
    Node {
        name: format!("{output}/Cast"),
        op_type: "Cast".into(),
        inputs: vec![input.to_owned()],
        outputs: vec![output.to_owned()],
        attributes: [("to".to_owned(), Attribute::Int(to.onnx().into()))].into_iter().collect(),
        ..Node::default()
    }
}
