//! Parts of a graph that one speaks of as blocks.

use indexmap::IndexMap;
use v2l_graphs::{Graph, Node, node_labels};

/// Pieces that a graph without named modules is cut into.
const PIECES: usize = 8;

/// The blocks of a graph and their nodes, in graph order.
///
/// A block is what shares the beginning of a module path up to its first number (`transformer_blocks.7`), or, without a
/// number, its first part (`patch_embed`); it is read from the names of a node and of the weights that it reads. A node
/// without either belongs to the block of the node before it. Where that gives fewer than two blocks, the graph is cut
/// into eight pieces of equal numbers of nodes.
pub fn blocks(graph: &Graph) -> IndexMap<String, Vec<usize>> {
    let mut found: IndexMap<String, Vec<usize>> = IndexMap::new();
    let mut current: Option<String> = None;
    let mut waiting = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let own = module(graph, node);
        if let Some(name) = own {
            current = Some(name);
        }
        match &current {
            Some(name) => {
                let nodes = found.entry(name.clone()).or_default();
                nodes.append(&mut waiting);
                nodes.push(at);
            }
            None => waiting.push(at),
        }
    }
    if found.len() > 1 {
        return found;
    }
    let labels = node_labels(graph);
    let step = graph.nodes.len().div_ceil(PIECES).max(1);
    let ranges = (0..graph.nodes.len()).step_by(step).map(|first| first..(first + step).min(graph.nodes.len()));
    ranges.map(|range| (format!("{} to {}", labels[range.start], labels[range.end - 1]), range.collect())).collect()
}

fn module(graph: &Graph, node: &Node) -> Option<String> {
    let weights = node.inputs.iter().filter(|name| graph.initializers.get(*name).is_some_and(|w| w.external));
    let names: Vec<&str> = weights.chain([&node.name]).map(|name| name.trim_matches('/')).collect();
    let numbered = names.iter().find_map(|name| {
        let parts: Vec<&str> = name.split(['/', '.']).collect();
        let number = parts.iter().skip(1).position(|part| part.parse::<u32>().is_ok())? + 1;
        Some(parts[..=number].join("."))
    });
    let first = || names.iter().find_map(|name| name.split_once(['/', '.']).map(|(first, _)| first.to_owned()));
    numbered.or_else(first)
}

#[cfg(test)]
mod tests {
    use v2l_graphs::{Builder, DataType, Initializer, TensorData};

    use super::*;

    fn graph(names: &[(&str, &str)]) -> Graph {
        let mut b = Builder::new("g");
        let mut h = b.input("x", DataType::Float, [2usize, 2]);
        for (_, weight) in names {
            let bytes = TensorData::raw(vec![0; 16]);
            h = match weight.is_empty() {
                true => b.op("Relu", &[&h]),
                false => {
                    let w = b.initializer(weight, Initializer::weight(DataType::Float, &[2, 2], bytes));
                    b.op("MatMul", &[&h, &w])
                }
            };
        }
        b.output("y", &h, DataType::Float, [2usize, 2]);
        let mut graph = b.finish().unwrap().graph;
        for (node, (name, _)) in graph.nodes.iter_mut().zip(names) {
            node.name = (*name).to_owned();
        }
        graph
    }

    #[test]
    fn blocks_are_module_paths_up_to_their_first_number() {
        let graph = graph(&[
            ("Relu_0", ""),
            ("/patch_embed/proj/MatMul", ""),
            ("MatMul_3", "transformer_blocks.0.attn1.to_q.weight"),
            ("", ""),
            ("/transformer_blocks.1/ff/MatMul", ""),
            ("norm_out/MatMul", "norm_out.weight"),
        ]);
        let found = blocks(&graph);
        let expected = [
            ("patch_embed", vec![0, 1]),
            ("transformer_blocks.0", vec![2, 3]),
            ("transformer_blocks.1", vec![4]),
            ("norm_out", vec![5]),
        ];
        let expected: IndexMap<String, Vec<usize>> = expected.map(|(name, nodes)| (name.to_owned(), nodes)).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn blocks_of_a_graph_without_modules_are_pieces_of_it() {
        let graph = graph(&[("a", ""), ("b", ""), ("c", "")]);
        let found = blocks(&graph);
        assert_eq!(found.values().cloned().collect::<Vec<_>>(), [vec![0], vec![1], vec![2]]);
        assert_eq!(found.keys().next().unwrap(), "a to a");
    }
}
