//! Computes equal things once.

use std::collections::{HashMap, HashSet};

use crate::operators::{Kind, is_onnx, is_random, kind};
use crate::walk::{bodies, forget_types, output_names, remove_nodes, rename_uses};
use crate::{Attribute, DataType, Graph, Model, Node};

/// Small constants larger than this are not compared.
const COMPARED_BYTES: usize = 64 << 10;

/// Merges small constants of equal type, shape and bytes, and nodes of ONNX's own domain that apply the same operator
/// with the same attributes to the same values; returns how many nodes and constants went.
///
/// The first stays. Weights, what a `MatMul`, `Gemm` or `Conv` multiplies by whatever its size, random operators,
/// nodes with bodies, tensors or unknown attributes, and producers of graph outputs are left alone. The nodes must be
/// sorted. Costs time linear in the graph; no weight bytes are read.
pub fn merge_duplicates(model: &mut Model) -> usize {
    let graph = &mut model.graph;
    merge_constants(graph) + merge_nodes(graph)
}

fn merge_constants(graph: &mut Graph) -> usize {
    // An initializer that is also an input is only its default.
    let inputs: HashSet<&str> = graph.inputs.iter().map(|i| i.name.as_str()).collect();
    let mut kept = output_names(graph);
    collect_factors(graph, &mut kept);
    let mut first: HashMap<(DataType, Vec<usize>, Vec<u8>), String> = HashMap::new();
    let mut renames = HashMap::new();
    for (name, value) in &graph.initializers {
        let small = !value.external && value.data.len() <= COMPARED_BYTES;
        if !small || inputs.contains(name.as_str()) || kept.contains(name) {
            continue;
        }
        let Ok(bytes) = value.data.to_bytes() else { continue };
        let key = (value.dtype, value.shape.clone(), bytes.to_vec());
        if let Some(known) = first.get(&key) {
            renames.insert(name.clone(), known.clone());
        } else {
            first.insert(key, name.clone());
        }
    }
    rename_uses(graph, &renames);
    graph.initializers.retain(|name, _| !renames.contains_key(name));
    renames.len()
}

/// What linear layers multiply by: an adapter may change the matrix of one and not that of another.
fn collect_factors(graph: &Graph, names: &mut HashSet<String>) {
    for node in &graph.nodes {
        if kind(node) == Kind::Layer {
            names.extend(node.inputs.get(1).cloned());
        }
        bodies(node).for_each(|body| collect_factors(body, names));
    }
}

fn merge_nodes(graph: &mut Graph) -> usize {
    let outputs = output_names(graph);
    let mut first: HashMap<String, Vec<String>> = HashMap::new();
    let mut renames: HashMap<String, String> = HashMap::new();
    let mut gone = HashSet::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let Some(key) = key(node, &renames) else { continue };
        let Some(known) = first.get(&key) else {
            first.insert(key, node.outputs.clone());
            continue;
        };
        if node.outputs.iter().any(|o| outputs.contains(o)) {
            continue;
        }
        renames.extend(node.outputs.iter().cloned().zip(known.iter().cloned()));
        gone.insert(index);
    }
    rename_uses(graph, &renames);
    remove_nodes(graph, &gone);
    forget_types(graph, &renames.into_keys().collect());
    gone.len()
}

/// What two nodes must have in common; `None` for a node that is left alone.
fn key(node: &Node, renames: &HashMap<String, String>) -> Option<String> {
    if !is_onnx(node) || is_random(node) || node.outputs.iter().any(String::is_empty) {
        return None;
    }
    let mut attributes: Vec<String> = Vec::with_capacity(node.attributes.len());
    for (name, value) in &node.attributes {
        attributes.push(match value {
            Attribute::Int(v) => format!("{name}=i{v}"),
            Attribute::Float(v) => format!("{name}=f{:08x}", v.to_bits()),
            Attribute::String(v) => format!("{name}=s{v:?}"),
            Attribute::Ints(v) => format!("{name}=i{v:?}"),
            Attribute::Floats(v) => format!("{name}=f{:08x?}", v.iter().map(|f| f.to_bits()).collect::<Vec<_>>()),
            Attribute::Tensor(_) | Attribute::Graph(_) | Attribute::Other(_) => return None,
        });
    }
    attributes.sort_unstable();
    let inputs: Vec<&String> = node.inputs.iter().map(|i| renames.get(i).unwrap_or(i)).collect();
    // Of what a node's metadata says, only its precision counts.
    let kept = node.metadata.get(crate::builder::KEPT_IN_FP32);
    Some(format!("{} {attributes:?} {inputs:?} {} {kept:?}", node.op_type, node.outputs.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Dim, Initializer};

    #[test]
    fn merge_duplicates_keeps_one_of_equal_chains_and_constants() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("n")]);
        let two = |b: &mut Builder, name: &str, value: f32| {
            b.initializer(name, Initializer::inline(DataType::Float, &[], value.to_le_bytes().to_vec()))
        };
        let (c, same, other) = (two(&mut b, "c", 2.0), two(&mut b, "same", 2.0), two(&mut b, "other", 3.0));
        let ends: Vec<_> = [&c, &same, &other]
            .into_iter()
            .map(|constant| {
                let product = b.op("Mul", &[&x, constant]);
                b.op("Exp", &[&product])
            })
            .collect();
        let sum = b.op("Add", &[&ends[0], &ends[1]]);
        let sum = b.op("Add", &[&sum, &ends[2]]);
        b.output("y", &sum, DataType::Float, [Dim::from("n")]);
        let mut model = b.finish().unwrap();
        assert_eq!(merge_duplicates(&mut model), 3);
        let nodes: Vec<String> =
            model.graph.nodes.iter().map(|n| format!("{}({})", n.op_type, n.inputs.join(","))).collect();
        let expected = ["Mul(x,c)", "Exp(Mul)", "Mul(x,other)", "Exp(Mul_2)", "Add(Exp,Exp)", "Add(Add,Exp_2)"];
        assert_eq!(nodes, expected);
        crate::check::check(&model).unwrap();
        assert_eq!(merge_duplicates(&mut model), 0);
    }

    #[test]
    fn merge_duplicates_leaves_equal_matrices_of_two_layers_apart() {
        let mut b = Builder::new("g");
        let mut x = b.input("x", DataType::Float, [Dim::from("n"), 2.into()]);
        for (op, name) in [("MatMul", "l1"), ("MatMul", "l2"), ("Gemm", "l3"), ("Add", "c1"), ("Add", "c2")] {
            let value = b.initializer(name, Initializer::inline(DataType::Float, &[2, 2], vec![0; 16]));
            x = b.op(op, &[&x, &value]);
        }
        b.output("y", &x, DataType::Float, [Dim::from("n"), 2.into()]);
        let mut model = b.finish().unwrap();
        assert_eq!(merge_duplicates(&mut model), 1);
        let read: Vec<&str> = model.graph.nodes.iter().map(|n| n.inputs[1].as_str()).collect();
        assert_eq!(read, ["l1", "l2", "l3", "c1", "c1"]);
    }

    #[test]
    fn merge_duplicates_leaves_random_nodes_attributes_and_outputs_apart() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::from("m")]);
        let noise = [b.op("RandomNormalLike", &[&x]), b.op("RandomNormalLike", &[&x])];
        let soft = [0i64, 1].map(|axis| b.node("Softmax", &[&x]).attr("axis", axis).out());
        let twice = [b.op("Neg", &[&x]), b.op("Neg", &[&x])];
        for (i, value) in noise.iter().chain(&soft).chain(&twice).enumerate() {
            b.output(&format!("y{i}"), value, DataType::Float, [Dim::from("n"), Dim::from("m")]);
        }
        let mut model = b.finish().unwrap();
        assert_eq!(merge_duplicates(&mut model), 0);
        assert_eq!(model.graph.nodes.len(), 6);
    }
}
