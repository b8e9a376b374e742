//! What a graph does with the values of its inputs, as far as made ones must know it: a result grows with an extent, a
//! table has so many rows.

use v2l_graphs::{Argument, Attribute, Graph, Node, argument, passes_on};

/// What the values of an input are for. Of several uses the first in this order tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Numbers of axes.
    Axis,
    /// Where something begins.
    Start,
    /// A stride, a distance, or a number of places.
    Step,
    /// An extent or a count, with which a result grows.
    Extent,
    /// Factors of extents, the last two of which count.
    Factor,
    /// What integers are divided by.
    Divisor,
    /// Rows of a table that has so many.
    Row(usize),
}

/// Least rows that a table is taken to have if the graph does not say: the smallest extent of made inputs.
const LEAST_ROWS: usize = 2;

/// The use of the graph's input `input`, whose values are integers if `integer` says so; `None` if any value will do.
pub(super) fn use_of(graph: &Graph, input: &str, integer: bool) -> Option<Use> {
    let mut found = Vec::new();
    search(graph, vec![input.to_owned()], integer, &[graph], &mut found);
    found.into_iter().min()
}

/// Follows `same`, the names of the values, through a graph or body; `scopes` are the graphs whose tables it can read.
fn search(graph: &Graph, mut same: Vec<String>, integer: bool, scopes: &[&Graph], found: &mut Vec<Use>) {
    for node in &graph.nodes {
        let reads = |at: usize| node.inputs.get(at).is_some_and(|name| same.contains(name));
        let read: Vec<usize> = (0..node.inputs.len()).filter(|&at| reads(at)).collect();
        found.extend(read.iter().filter_map(|&at| role(node, at, integer, scopes)));
        for body in
            node.attributes.values().filter_map(|a| if let Attribute::Graph(body) = a { Some(body) } else { None })
        {
            let carried = read.iter().filter_map(|&at| body.inputs.get(at)).map(|info| info.name.clone());
            let inner = same.iter().cloned().chain(carried.filter(|_| node.op_type != "If")).collect();
            search(body, inner, integer, &[scopes, &[body]].concat(), found);
        }
        if read.iter().any(|&at| passes_on(node, at, integer)) {
            same.extend(node.outputs.iter().filter(|output| !output.is_empty()).cloned());
        }
    }
}

/// What a node's input number `at` is for.
fn role(node: &Node, at: usize, integer: bool, scopes: &[&Graph]) -> Option<Use> {
    Some(match argument(node, at)? {
        Argument::Axis => Use::Axis,
        Argument::Start => Use::Start,
        Argument::Step => Use::Step,
        Argument::Extent => Use::Extent,
        Argument::Factor => Use::Factor,
        Argument::Divisor if !integer => return None,
        Argument::Divisor => Use::Divisor,
        Argument::Row => Use::Row(rows(node, scopes).unwrap_or(LEAST_ROWS)),
    })
}

/// Rows of the table that a Gather reads, if it is a constant, converted or not.
fn rows(node: &Node, scopes: &[&Graph]) -> Option<usize> {
    if node.op_type != "Gather" {
        return None;
    }
    let mut name = node.inputs.first()?;
    let table = loop {
        if let Some(table) = scopes.iter().rev().find_map(|graph| graph.initializers.get(name)) {
            break table;
        }
        let maker =
            scopes.iter().rev().find_map(|graph| graph.nodes.iter().find(|node| node.outputs.contains(name)))?;
        match (maker.op_type.as_str(), maker.attributes.get("value")) {
            ("Constant", Some(Attribute::Tensor(table))) => break table,
            ("Cast" | "Identity", _) => name = maker.inputs.first()?,
            _ => return None,
        }
    };
    table.shape.get(usize::try_from(node.int("axis").unwrap_or(0)).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use v2l_graphs::{DataType, Initializer, ValueInfo};

    use super::*;

    fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Node {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Node { op_type: op_type.to_owned(), inputs: names(inputs), outputs: names(outputs), ..Node::default() }
    }

    fn graph(nodes: Vec<Node>) -> Graph {
        Graph { nodes, ..Graph::default() }
    }

    #[test]
    fn use_of_an_input_that_reaches_an_extent_through_moves_and_arithmetic_is_extent() {
        let graph = graph(vec![
            node("Slice", &["size", "a", "b"], &["part"]),
            node("Concat", &["one", "part"], &["joined"]),
            node("Mul", &["joined", "two"], &["doubled"]),
            node("Resize", &["x", "", "", "doubled"], &["y"]),
        ]);
        assert_eq!(use_of(&graph, "size", true), Some(Use::Extent));
        // Arithmetic on floats makes no extents of them.
        assert_eq!(use_of(&graph, "size", false), None);
        assert_eq!(use_of(&graph, "x", false), None);
    }

    #[test]
    fn use_of_an_input_that_a_body_reads_is_found() {
        let mut body =
            graph(vec![node("ConstantOfShape", &["carried"], &["z"]), node("Expand", &["w", "outer"], &["v"])]);
        let info = |name: &str| ValueInfo { name: name.to_owned(), ty: None };
        body.inputs = ["iteration", "condition", "carried"].map(info).to_vec();
        let mut repeated = node("Loop", &["count", "", "first"], &["last"]);
        repeated.attributes.insert("body".to_owned(), Attribute::Graph(Box::new(body)));
        let graph = graph(vec![repeated]);
        for name in ["first", "outer", "count"] {
            assert_eq!(use_of(&graph, name, true), Some(Use::Extent), "{name}");
        }
    }

    #[test]
    fn use_of_token_ids_is_the_smallest_table() {
        let mut graph = graph(vec![
            node("Cast", &["narrow"], &["small"]),
            node("Gather", &["large", "ids"], &["a"]),
            node("Gather", &["small", "ids"], &["b"]),
            node("Gather", &["computed", "at"], &["c"]),
        ]);
        for (name, rows) in [("large", 512), ("narrow", 77)] {
            let table = Initializer::inline(DataType::Float, &[rows, 1], vec![0; 4 * rows]);
            graph.initializers.insert(name.to_owned(), table);
        }
        assert_eq!(use_of(&graph, "ids", true), Some(Use::Row(77)));
        assert_eq!(use_of(&graph, "at", true), Some(Use::Row(LEAST_ROWS)));
    }
}
