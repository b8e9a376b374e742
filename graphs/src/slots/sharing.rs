use std::collections::{HashMap, HashSet};

use super::rows::row_hashes;
use crate::operators::is_onnx;
use crate::walk::{defined_names, free_name, label, rank, rename_uses, replace_nodes};
use crate::{Attribute, Graph, Initializer, Model, Node};

/// Lets every reader of an initializer read another of equal bytes instead; `pairs` are `(kept, dropped)`. The dropped
/// ones go. Pairs that differ in type, shape or content, or name what is not there, change nothing. Returns how many
/// went.
///
/// That the two are one parameter is the caller's to know. Reads both, and holds 16 bytes per row.
pub fn merge_initializers(model: &mut Model, pairs: &[(String, String)]) -> usize {
    let graph = &mut model.graph;
    let mut renames = HashMap::new();
    for (kept, dropped) in pairs {
        let same = match (graph.initializers.get(kept), graph.initializers.get(dropped)) {
            (Some(a), Some(b)) => kept != dropped && a.dtype == b.dtype && a.shape == b.shape && equal(a, b),
            _ => false,
        };
        if same && !is_output(graph, dropped) {
            graph.initializers.shift_remove(dropped);
            renames.insert(dropped.clone(), kept.clone());
        }
    }
    rename_uses(graph, &renames);
    renames.len()
}

/// Gives the nodes at `readers`, which read `name`, a copy of their own, and returns the copy's name: `wanted`, with a
/// number behind it if that is taken. `None` if there is no such initializer.
///
/// The bytes are shared until they are written.
pub fn unshare_initializer(model: &mut Model, name: &str, readers: &[usize], wanted: &str) -> Option<String> {
    let graph = &mut model.graph;
    let copy = graph.initializers.get(name)?.clone();
    let taken: HashSet<String> = defined_names(graph);
    let numbered = (2..).map(|n| format!("{wanted}_{n}"));
    let free = std::iter::once(wanted.to_owned()).chain(numbered).find(|n| !taken.contains(n))?;
    graph.initializers.insert(free.clone(), copy);
    for &index in readers {
        if let Some(node) = graph.nodes.get_mut(index) {
            node.inputs.iter_mut().filter(|i| *i == name).for_each(|i| i.clone_from(&free));
        }
    }
    Some(free)
}

/// True if two matrices, each `[out, in]` unless it is `transposed`, have equal rows, and not all rows are alike.
/// Reads both.
pub fn same_matrix(a: (&Initializer, bool), b: (&Initializer, bool)) -> bool {
    let extents = |(value, transposed): (&Initializer, bool)| match value.shape.as_slice() {
        &[rows, cols] => Some(if transposed { [cols, rows] } else { [rows, cols] }),
        _ => None,
    };
    if a.0.dtype != b.0.dtype || extents(a).is_none() || extents(a) != extents(b) {
        return false;
    }
    let hashes = |(value, transposed): (&Initializer, bool)| {
        row_hashes(&value.data, [value.shape[0], value.shape[1]], value.dtype, value.dtype, transposed).ok()
    };
    hashes(a).is_some_and(|rows| rows.iter().any(|row| *row != rows[0]) && Some(rows) == hashes(b))
}

/// Lets the `Gemm` at `index`, which reads `name`, read its transpose `turned` instead; false if it is no such node.
pub fn turn_product(model: &mut Model, index: usize, name: &str, turned: &str) -> bool {
    let Some(node) = model.graph.nodes.get_mut(index) else { return false };
    if !is_onnx(node) || node.op_type != "Gemm" || node.inputs.get(1).is_none_or(|weight| weight != name) {
        return false;
    }
    let trans_b = i64::from(node.int("transB").unwrap_or(0) == 0);
    node.attributes.insert("transB".to_owned(), Attribute::Int(trans_b));
    turned.clone_into(&mut node.inputs[1]);
    true
}

/// Lets every `Gather` of the main graph that looks up rows of the matrix `name` look up columns of its transpose
/// `turned` instead, and returns how many did; those whose indices have no known rank stay.
pub fn turn_lookups(model: &mut Model, name: &str, turned: &str) -> usize {
    let graph = &mut model.graph;
    let mut taken = defined_names(graph);
    let mut replaced = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let along_rows = matches!(node.int("axis"), None | Some(0 | -2));
        let reads = is_onnx(node) && node.op_type == "Gather" && along_rows;
        if !reads || node.inputs.first().is_none_or(|input| input != name) || node.outputs.len() != 1 {
            continue;
        }
        let Some(rank) = rank(graph, &node.inputs[1]) else { continue };
        let columns = free_name(&format!("{}.columns", node.outputs[0]), &mut taken);
        let mut lookup = Node { outputs: vec![columns.clone()], ..node.clone() };
        turned.clone_into(&mut lookup.inputs[0]);
        lookup.attributes.insert("axis".to_owned(), Attribute::Int(1));
        // [in, indices…] to [indices…, in].
        let perm = (1..=rank as i64).chain([0]).collect();
        let turn = Node {
            name: format!("{}/Transpose", label(node)),
            op_type: "Transpose".to_owned(),
            inputs: vec![columns],
            outputs: node.outputs.clone(),
            attributes: [("perm".to_owned(), Attribute::Ints(perm))].into_iter().collect(),
            ..Node::default()
        };
        replaced.insert(at, vec![lookup, turn]);
    }
    let count = replaced.len();
    replace_nodes(graph, replaced);
    count
}

/// Removes those of the initializers that nothing reads any more.
pub fn drop_unread(model: &mut Model, names: &[String]) {
    let graph = &mut model.graph;
    for name in names {
        let read = graph.nodes.iter().any(|node| node.uses().any(|used| used == name)) || is_output(graph, name);
        if !read {
            graph.initializers.shift_remove(name);
        }
    }
}

fn equal(a: &Initializer, b: &Initializer) -> bool {
    let hashes = |v: &Initializer| match v.shape.as_slice() {
        &[rows, cols] => row_hashes(&v.data, [rows, cols], v.dtype, v.dtype, false).ok(),
        _ => None,
    };
    hashes(a).is_some_and(|hashes_of_a| Some(hashes_of_a) == hashes(b))
}

fn is_output(graph: &Graph, name: &str) -> bool {
    graph.outputs.iter().any(|o| o.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DataType, TensorData};

    fn model() -> Model {
        let mut b = Builder::new("g");
        let mut x = b.input("x", DataType::Float, [2usize, 2]);
        for name in ["a", "b"] {
            let w = b.initializer(name, Initializer::inline(DataType::Float, &[2, 2], vec![7; 16]));
            x = b.op("MatMul", &[&x, &w]);
        }
        b.output("y", &x, DataType::Float, [2usize, 2]);
        b.finish().unwrap()
    }

    fn weights(model: &Model) -> Vec<&str> {
        model.graph.nodes.iter().map(|n| n.inputs[1].as_str()).collect()
    }

    #[test]
    fn merged_initializers_have_one_name_and_unshared_ones_two() {
        let mut model = model();
        assert_eq!(merge_initializers(&mut model, &[("a".into(), "b".into())]), 1);
        assert_eq!((weights(&model), model.graph.initializers.len()), (vec!["a", "a"], 1));
        assert_eq!(unshare_initializer(&mut model, "a", &[1], "x").as_deref(), Some("x_2"));
        assert_eq!((weights(&model), model.graph.initializers.len()), (vec!["a", "x_2"], 2));
    }

    #[test]
    fn initializers_of_other_content_shape_or_name_are_not_merged() {
        let mut model = model();
        model.graph.initializers["b"].data = TensorData::raw(vec![8; 16]);
        assert_eq!(merge_initializers(&mut model, &[("a".into(), "b".into())]), 0);
        model.graph.initializers["b"].shape = vec![4];
        for pair in [("a", "b"), ("a", "a"), ("a", "c")] {
            assert_eq!(merge_initializers(&mut model, &[(pair.0.into(), pair.1.into())]), 0);
        }
        assert_eq!(unshare_initializer(&mut model, "c", &[0], "d"), None);
    }
}
