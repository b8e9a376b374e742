//! What is known about the shapes of values, without full shape inference.

use std::collections::HashMap;

use super::evaluate::permutation;
use super::tensor::Tensor;
use super::walk::{is_onnx, only_output};
use crate::{Dim, Graph, Node};

/// Operators whose first output has the shape of their first input.
const SAME_SHAPE: &[&str] = &[
    "Abs",
    "Cast",
    "Ceil",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Not",
    "RMSNormalization",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Tanh",
];

/// Elementwise operators over two broadcast operands.
const BROADCAST: &[&str] = &[
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Xor",
];

/// The extents of every value of the main graph whose rank is known.
pub(super) fn known_shapes(graph: &Graph) -> HashMap<String, Vec<Dim>> {
    let mut known: HashMap<String, Vec<Dim>> = HashMap::new();
    for info in graph.inputs.iter().chain(&graph.value_info).chain(&graph.outputs) {
        if let Some(shape) = info.ty.as_ref().and_then(|ty| ty.shape.clone()) {
            known.entry(info.name.clone()).or_insert(shape);
        }
    }
    for (name, value) in &graph.initializers {
        known.insert(name.clone(), value.shape.iter().map(|&d| Dim::Fixed(d)).collect());
    }
    for node in graph.nodes.iter().filter(|n| is_onnx(n)) {
        let Some(output) = node.outputs.first().filter(|o| !o.is_empty()) else { continue };
        if let Some(inferred) = infer(graph, node, &known) {
            match known.get_mut(output) {
                Some(recorded) => refine(recorded, &inferred),
                None => drop(known.insert(output.clone(), inferred)),
            }
        }
    }
    known
}

/// Fills in what the record leaves open.
fn refine(recorded: &mut [Dim], inferred: &[Dim]) {
    if recorded.len() == inferred.len() {
        for (have, new) in recorded.iter_mut().zip(inferred) {
            if matches!(new, Dim::Fixed(_)) && !matches!(have, Dim::Fixed(_)) {
                have.clone_from(new);
            }
        }
    }
}

fn infer(graph: &Graph, node: &Node, known: &HashMap<String, Vec<Dim>>) -> Option<Vec<Dim>> {
    let shape = |index: usize| node.inputs.get(index).and_then(|name| known.get(name));
    match node.op_type.as_str() {
        op if SAME_SHAPE.contains(&op) => shape(0).cloned(),
        op if BROADCAST.contains(&op) => broadcast(shape(0)?, shape(1)?),
        "Transpose" => {
            let from = shape(0)?;
            Some(permutation(node, from.len())?.into_iter().map(|a| from[a].clone()).collect())
        }
        "MatMul" => {
            let (x, [_, columns]) = (shape(0)?, shape(1)?.as_slice()) else { return None };
            let (_, lead) = x.split_last()?;
            Some(lead.iter().chain([columns]).cloned().collect())
        }
        "Gemm" => {
            let ([a0, a1], [b0, b1]) = (shape(0)?.as_slice(), shape(1)?.as_slice()) else { return None };
            let rows = if node.int("transA").unwrap_or(0) != 0 { a1 } else { a0 };
            let columns = if node.int("transB").unwrap_or(0) != 0 { b0 } else { b1 };
            Some(vec![rows.clone(), columns.clone()])
        }
        "Reshape" => {
            only_output(node)?;
            let wanted = graph.initializers.get(node.inputs.get(1)?).filter(|i| !i.external)?;
            let extents = Tensor::from_initializer(wanted)?.indices()?;
            let allow_zero = node.int("allowzero").unwrap_or(0) != 0;
            let extent = |(at, &d): (usize, &i64)| match d {
                0 if !allow_zero => shape(0).and_then(|s| s.get(at)).cloned().unwrap_or(Dim::Unknown),
                d => usize::try_from(d).map_or(Dim::Unknown, Dim::Fixed),
            };
            Some(extents.iter().enumerate().map(extent).collect())
        }
        _ => None,
    }
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let extent = |s: &[Dim], axis: usize| (axis + s.len()).checked_sub(rank).map_or(Dim::Fixed(1), |i| s[i].clone());
    let join = |axis| match (extent(a, axis), extent(b, axis)) {
        (Dim::Fixed(1), other) | (other, Dim::Fixed(1)) => Some(other),
        (Dim::Fixed(x), Dim::Fixed(y)) => (x == y).then_some(Dim::Fixed(x)),
        // The open extent is 1 or the number: either way the result has the number.
        (Dim::Fixed(n), _) | (_, Dim::Fixed(n)) => Some(Dim::Fixed(n)),
        (Dim::Symbol(x), Dim::Symbol(y)) if x == y => Some(Dim::Symbol(x)),
        _ => Some(Dim::Unknown),
    };
    (0..rank).map(join).collect()
}
