//! Puts nodes into execution order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::error::PassError;
use crate::walk::{bodies_mut, label};
use crate::{Graph, Model};

/// Sorts the nodes of every graph so that each comes after those it reads from, and returns how many moved.
///
/// The sort is stable: among the nodes that could come next, the one that came first stays first, so a sorted graph
/// does not change. What a body captures counts as read by the node that owns the body.
///
/// # Errors
/// [`PassError::Cycle`]; the graph with the cycle is then unchanged.
pub fn sort_topologically(model: &mut Model) -> Result<usize, PassError> {
    sort(&mut model.graph)
}

fn sort(graph: &mut Graph) -> Result<usize, PassError> {
    let mut moved = 0;
    for node in &mut graph.nodes {
        for body in bodies_mut(node) {
            moved += sort(body)?;
        }
    }
    let order = order_or_cycle(graph)?;
    if order.iter().enumerate().all(|(at, &from)| at == from) {
        return Ok(moved);
    }
    let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    for (at, &from) in order.iter().enumerate() {
        moved += usize::from(at != from);
        graph.nodes.extend(nodes[from].take());
    }
    Ok(moved)
}

/// [`order`] with the cycle as an error that names its nodes.
fn order_or_cycle(graph: &Graph) -> Result<Vec<usize>, PassError> {
    order(graph).map_err(|cycle| PassError::Cycle {
        graph: graph.name.clone(),
        nodes: cycle.into_iter().map(|i| label(&graph.nodes[i])).collect(),
    })
}

/// Node indices in execution order, or the indices of one cycle, each before a node that reads it.
pub(crate) fn order(graph: &Graph) -> Result<Vec<usize>, Vec<usize>> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            producers.entry(output).or_insert(index);
        }
    }
    let reads: Vec<Vec<usize>> =
        graph.nodes.iter().map(|n| n.uses().filter_map(|u| producers.get(u).copied()).collect()).collect();
    let mut readers = vec![Vec::new(); graph.nodes.len()];
    for (index, sources) in reads.iter().enumerate() {
        for &source in sources {
            readers[source].push(index);
        }
    }
    let mut waiting: Vec<usize> = reads.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        waiting.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(graph.nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &reader in &readers[index] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if order.len() == graph.nodes.len() { Ok(order) } else { Err(cycle(&reads, &waiting)) }
}

/// Follows unmet reads backwards until a node comes again.
fn cycle(reads: &[Vec<usize>], waiting: &[usize]) -> Vec<usize> {
    let mut path: Vec<usize> = Vec::new();
    let mut next = waiting.iter().position(|&n| n > 0);
    let mut position: HashMap<usize, usize> = HashMap::new();
    while let Some(index) = next {
        if let Some(&start) = position.get(&index) {
            path.drain(..start);
            break;
        }
        position.insert(index, path.len());
        path.push(index);
        next = reads[index].iter().copied().find(|&source| waiting[source] > 0);
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attribute, Builder, DataType, Node};

    fn node(op: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            name: format!("make_{output}"),
            op_type: op.into(),
            inputs: inputs.iter().map(|s| (*s).to_owned()).collect(),
            outputs: vec![output.to_owned()],
            ..Node::default()
        }
    }

    fn model(nodes: Vec<Node>) -> Model {
        let mut b = Builder::new("g");
        b.input("x", DataType::Float, [1usize]);
        let mut model = b.finish().unwrap();
        model.graph.nodes = nodes;
        model
    }

    fn outputs(model: &Model) -> Vec<&str> {
        model.graph.nodes.iter().map(|n| n.outputs[0].as_str()).collect()
    }

    #[test]
    fn sort_of_sorted_graph_moves_nothing() {
        let mut m = model(vec![node("Relu", &["x"], "b"), node("Relu", &["x"], "a"), node("Add", &["a", "b"], "c")]);
        assert_eq!(sort_topologically(&mut m), Ok(0));
        assert_eq!(outputs(&m), ["b", "a", "c"]);
    }

    #[test]
    fn sort_of_reversed_graph_keeps_order_of_independent_nodes() {
        let mut m = model(vec![node("Add", &["a", "b"], "c"), node("Relu", &["x"], "b"), node("Relu", &["x"], "a")]);
        assert_eq!(sort_topologically(&mut m), Ok(3));
        assert_eq!(outputs(&m), ["b", "a", "c"]);
    }

    #[test]
    fn sort_counts_captured_values_as_reads() {
        let mut owner = node("If", &["x"], "y");
        let body = model(vec![node("Relu", &["late"], "inner")]).graph;
        owner.attributes.insert("then_branch".into(), Attribute::Graph(Box::new(body)));
        let mut m = model(vec![owner, node("Relu", &["x"], "late")]);
        sort_topologically(&mut m).unwrap();
        assert_eq!(outputs(&m), ["late", "y"]);
    }

    #[test]
    fn sort_of_cycle_names_only_the_nodes_in_it() {
        let mut m = model(vec![
            node("Relu", &["b"], "after"),
            node("Relu", &["c"], "a"),
            node("Relu", &["a"], "b"),
            node("Relu", &["b"], "c"),
        ]);
        let Err(PassError::Cycle { mut nodes, .. }) = sort_topologically(&mut m) else { panic!("no cycle found") };
        nodes.sort();
        assert_eq!(nodes, ["make_a", "make_b", "make_c"]);
        assert_eq!(outputs(&m), ["after", "a", "b", "c"]);
    }

    #[test]
    fn sort_of_node_that_reads_itself_is_a_cycle() {
        let mut m = model(vec![node("Relu", &["a"], "a")]);
        assert!(matches!(sort_topologically(&mut m), Err(PassError::Cycle { nodes, .. }) if nodes == ["make_a"]));
    }
}
