//! Removes what no output needs.

use std::collections::{HashMap, HashSet};

use crate::walk::bodies_mut;
use crate::{Graph, Model};

/// Removes nodes that no graph output needs, initializers that nothing reads, and recorded types of values that are
/// gone; returns how many nodes and initializers went.
///
/// Bodies of control-flow operators are cleaned first, so that what only their dead nodes captured goes too. The
/// producer of a graph output always stays.
pub fn remove_dead_nodes(model: &mut Model) -> usize {
    clean(&mut model.graph)
}

fn clean(graph: &mut Graph) -> usize {
    let mut removed = 0;
    for node in &mut graph.nodes {
        removed += bodies_mut(node).map(clean).sum::<usize>();
    }
    let (live_nodes, live_values) = live(graph);
    let before = graph.nodes.len() + graph.initializers.len();
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        live_nodes[index - 1]
    });
    graph.initializers.retain(|name, _| live_values.contains(name));
    let defined: HashSet<&str> = graph
        .inputs
        .iter()
        .map(|i| i.name.as_str())
        .chain(graph.initializers.keys().map(String::as_str))
        .chain(graph.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)))
        .collect();
    graph.value_info.retain(|v| defined.contains(v.name.as_str()));
    removed + before - graph.nodes.len() - graph.initializers.len()
}

/// Which nodes an output needs, and the names of all values read on the way.
fn live(graph: &Graph) -> (Vec<bool>, HashSet<String>) {
    let mut producers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            producers.entry(output).or_default().push(index);
        }
    }
    let mut nodes = vec![false; graph.nodes.len()];
    let mut values = HashSet::new();
    let mut wanted: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
    while let Some(value) = wanted.pop() {
        if !values.insert(value.to_owned()) {
            continue;
        }
        for &index in producers.get(value).into_iter().flatten() {
            if !std::mem::replace(&mut nodes[index], true) {
                wanted.extend(graph.nodes[index].uses());
            }
        }
    }
    (nodes, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attribute, Builder, DataType, Initializer};

    #[test]
    fn dead_chain_and_its_initializer_are_removed() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, ["n"]);
        let unused = b.float(2.0);
        let dead = b.op("Mul", &[&x, &unused]);
        b.op("Relu", &[&dead]);
        let y = b.op("Relu", &[&x]);
        b.output("y", &y, DataType::Float, ["n"]);
        let mut model = b.finish().unwrap();
        assert_eq!(remove_dead_nodes(&mut model), 3);
        assert_eq!(model.graph.nodes.len(), 1);
        assert!(model.graph.initializers.is_empty());
        assert_eq!(remove_dead_nodes(&mut model), 0);
    }

    #[test]
    fn node_with_one_used_output_stays() {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [4usize]);
        let parts = b.split(&x, 0, 2);
        b.output("y", &parts[1], DataType::Float, [2usize]);
        let mut model = b.finish().unwrap();
        assert_eq!(remove_dead_nodes(&mut model), 0);
    }

    #[test]
    fn initializer_read_only_by_a_body_or_an_output_stays() {
        let mut b = Builder::new("body");
        let inner = b.op("Relu", &[&"captured".into()]);
        b.output("inner", &inner, DataType::Float, [1usize]);
        let body = b.finish().unwrap().graph;
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Bool, [1usize]);
        b.initializer("captured", Initializer::inline(DataType::Float, &[1], vec![0; 4]));
        b.initializer("direct", Initializer::inline(DataType::Float, &[1], vec![0; 4]));
        let y = b.op("If", &[&x]);
        b.output("y", &y, DataType::Float, [1usize]);
        let mut model = b.finish().unwrap();
        model.graph.nodes[0].attributes.insert("then_branch".into(), Attribute::Graph(Box::new(body)));
        let mut direct = model.graph.outputs[0].clone();
        direct.name = "direct".into();
        model.graph.outputs.push(direct);
        assert_eq!(remove_dead_nodes(&mut model), 0);
        assert_eq!(model.graph.initializers.len(), 2);
    }
}
