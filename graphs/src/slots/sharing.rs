use std::collections::{HashMap, HashSet};

use super::row_hashes;
use crate::passes::{defined_names, rename_uses};
use crate::{Graph, Initializer, Model};

/// Lets every reader of an initializer read another of equal bytes instead; `pairs` are `(kept, dropped)`. The dropped ones
/// go. Pairs that differ in type, shape or content, or name what is not there, change nothing. Returns how many went.
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

/// Gives the nodes at `readers`, which read `name`, a copy of their own, and returns the copy's name: `wanted`, with a number
/// behind it if that is taken. `None` if there is no such initializer.
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
