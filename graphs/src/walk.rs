//! Small walks over graphs that several passes share.

use std::collections::{HashMap, HashSet};

use crate::{Attribute, Graph, Node};

/// What an error calls a node: its name, or for a nameless one its operator and first output.
pub fn label(node: &Node) -> String {
    if !node.name.is_empty() {
        return node.name.clone();
    }
    let output = node.outputs.iter().find(|o| !o.is_empty()).map_or("", String::as_str);
    format!("{} -> {output}", node.op_type)
}

/// The only output's name; `None` if there are several or it is left out.
pub(crate) fn only_output(node: &Node) -> Option<&str> {
    match node.outputs.as_slice() {
        [name] if !name.is_empty() => Some(name),
        _ => None,
    }
}

pub(crate) fn output_names(graph: &Graph) -> HashSet<String> {
    graph.outputs.iter().map(|o| o.name.clone()).collect()
}

/// The graphs in a node's attributes.
pub(crate) fn bodies(node: &Node) -> impl Iterator<Item = &Graph> {
    node.attributes.values().filter_map(|a| match a {
        Attribute::Graph(g) => Some(&**g),
        _ => None,
    })
}

/// The graphs in a node's attributes.
pub(crate) fn bodies_mut(node: &mut Node) -> impl Iterator<Item = &mut Graph> {
    node.attributes.values_mut().filter_map(|a| match a {
        Attribute::Graph(g) => Some(&mut **g),
        _ => None,
    })
}

/// Every name that the graph or a body in it defines.
pub(crate) fn defined_names(graph: &Graph) -> HashSet<String> {
    let mut names = HashSet::new();
    collect_defined(graph, &mut names);
    names
}

fn collect_defined(graph: &Graph, names: &mut HashSet<String>) {
    names.extend(graph.inputs.iter().map(|i| i.name.clone()));
    names.extend(graph.initializers.keys().cloned());
    for node in &graph.nodes {
        names.extend(node.outputs.iter().cloned());
        bodies(node).for_each(|body| collect_defined(body, names));
    }
}

/// `wanted`, with a number behind it if that is taken; it is taken from then on.
pub(crate) fn free_name(wanted: &str, taken: &mut HashSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut count = 2;
    while !taken.insert(name.clone()) {
        name = format!("{wanted}_{count}");
        count += 1;
    }
    name
}

/// Lets every reader of `from` read `to` instead, also inside bodies, unless the body defines `from` itself.
pub fn rename_uses(graph: &mut Graph, renames: &HashMap<String, String>) {
    for node in &mut graph.nodes {
        for input in &mut node.inputs {
            if let Some(to) = renames.get(input) {
                input.clone_from(to);
            }
        }
        for body in bodies_mut(node) {
            rename_captures(body, renames);
        }
    }
}

fn rename_captures(body: &mut Graph, renames: &HashMap<String, String>) {
    let captured: HashSet<String> = body.captures().into_iter().map(str::to_owned).collect();
    let visible: HashMap<String, String> =
        renames.iter().filter(|(from, _)| captured.contains(*from)).map(|(f, t)| (f.clone(), t.clone())).collect();
    if visible.is_empty() {
        return;
    }
    rename_uses(body, &visible);
    for output in &mut body.outputs {
        if let Some(to) = visible.get(&output.name) {
            output.name.clone_from(to);
        }
    }
}

/// Removes the nodes at `indices`.
pub(crate) fn remove_nodes(graph: &mut Graph, indices: &HashSet<usize>) {
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        !indices.contains(&(index - 1))
    });
}

/// Puts lists of nodes in the place of single ones, which are known by index.
pub(crate) fn replace_nodes(graph: &mut Graph, mut by: HashMap<usize, Vec<Node>>) {
    let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    graph.nodes = nodes.flat_map(|(at, node)| by.remove(&at).unwrap_or_else(|| vec![node])).collect();
}

/// Number of extents of a value of the main graph, where it is known.
pub(crate) fn rank(graph: &Graph, name: &str) -> Option<usize> {
    if let Some(value) = graph.initializers.get(name) {
        return Some(value.shape.len());
    }
    let info = graph.inputs.iter().chain(&graph.value_info).find(|info| info.name == name)?;
    Some(info.ty.as_ref()?.shape.as_ref()?.len())
}

/// Forgets the recorded types of `names`.
pub(crate) fn forget_types(graph: &mut Graph, names: &HashSet<String>) {
    graph.value_info.retain(|v| !names.contains(&v.name));
}
