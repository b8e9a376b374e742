//! Rewrites to what TensorRT builds.

use std::collections::{HashMap, HashSet};

use super::links::Links;
use super::parts;
use crate::operators::{IntegerRule, Kind, is_onnx, operator};
use crate::walk::{defined_names, free_name, only_output, replace_nodes};
use crate::{Attribute, Graph, Model, Node};

/// Writes `c·x − (x mod n)` as `(c·x − x) + n·(x / n)` wherever `n` is a constant above zero and `x` is made of
/// extents, so that it is never below zero; returns how often. These are integers: results are the same.
///
/// TensorRT-RTX finds out between which bounds each extent lies, and takes `x` and its remainder, whose upper bound it
/// overestimates, to be independent. The difference may then be negative as far as it knows, and it refuses to build a
/// Resize of a tensor with such an extent, as of a video whose frames are doubled but for an odd first one.
///
/// Besides, a Reshape to computed extents is told that a zero among them is an extent, not a place to copy one to:
/// none is ever zero, which TensorRT cannot know, and it would otherwise reserve memory for what the copy could be.
///
/// Only the main graph is looked at; types of the new values are not recorded. The nodes must be sorted. Costs time
/// linear in the graph.
pub fn lower_for_tensorrt(model: &mut Model) -> usize {
    let knows_zeros = model.opset().is_some_and(|opset| opset >= 14);
    let graph = &mut model.graph;
    if knows_zeros {
        take_zeros_for_extents(graph);
    }
    let mut taken = defined_names(graph);
    let links = Links::new(graph);
    let natural = natural(graph, &links);
    let nodes = graph.nodes.iter().enumerate();
    let differences = nodes.filter_map(|(index, node)| Some((index, Difference::find(node, &links, &natural)?)));
    let found: HashMap<usize, Vec<Node>> =
        differences.map(|(index, difference)| (index, difference.rewritten(&mut taken))).collect();
    let fired = found.len();
    replace_nodes(graph, found);
    fired
}

/// `multiple − (x mod n)`.
struct Difference<'a> {
    node: &'a Node,
    output: &'a str,
    multiple: &'a str,
    x: &'a str,
    n: &'a str,
}

impl<'a> Difference<'a> {
    fn find(node: &'a Node, links: &Links<'a>, natural: &HashSet<&'a str>) -> Option<Self> {
        let (true, "Sub", [multiple, remainder]) = (is_onnx(node), &node.op_type[..], &node.inputs[..]) else {
            return None;
        };
        let [x, n] = &links.made_by(remainder, "Mod")?.inputs[..] else { return None };
        let above_zero = links.constant(n)?.indices()?.iter().all(|&n| n > 0);
        let is_multiple = links.made_by(multiple, "Mul")?.inputs.contains(x);
        (above_zero && is_multiple && natural.contains(&x[..])).then_some(Self {
            node,
            output: only_output(node)?,
            multiple,
            x,
            n,
        })
    }

    fn rewritten(&self, taken: &mut HashSet<String>) -> Vec<Node> {
        let Self { node, output, multiple, x, n } = *self;
        let [less, quotient, whole] =
            ["less", "quotient", "whole"].map(|part| free_name(&format!("{output}.{part}"), taken));
        let part = |op_type: &str, operands: [&str; 2], output: &str| Node {
            metadata: node.metadata.clone(),
            ..parts::node(op_type, &operands, output, &[])
        };
        vec![
            part("Sub", [multiple, x], &less),
            part("Div", [x, n], &quotient),
            part("Mul", [&quotient, n], &whole),
            part("Add", [&less, &whole], output),
        ]
    }
}

/// Sets `allowzero` of each Reshape whose shape is put together of computed extents and of constants other than 0.
fn take_zeros_for_extents(graph: &mut Graph) {
    let links = Links::new(graph);
    let is_zero_free = |part: &String| match links.constant(part) {
        Some(constant) => constant.indices().is_some_and(|numbers| numbers.iter().all(|&n| n != 0)),
        None => true,
    };
    let is_computed = |node: &Node| {
        let shape = node.inputs.get(1).and_then(|shape| links.made_by(shape, "Concat"));
        is_onnx(node) && node.op_type == "Reshape" && shape.is_some_and(|concat| concat.inputs.iter().all(is_zero_free))
    };
    let computed: Vec<usize> = (0..graph.nodes.len()).filter(|&at| is_computed(&graph.nodes[at])).collect();
    for at in computed {
        graph.nodes[at].attributes.insert("allowzero".to_owned(), Attribute::Int(1));
    }
}

/// Integers that are never below zero: extents, and what is made of them and of constants without a difference.
fn natural<'a>(graph: &'a Graph, links: &Links<'a>) -> HashSet<&'a str> {
    let mut natural: HashSet<&str> = HashSet::new();
    for node in &graph.nodes {
        let (Some(output), Some(known)) = (only_output(node), operator(node)) else { continue };
        let constant = |name: &str| links.constant(name).and_then(|constant| constant.indices());
        let is_natural = |name: &String| {
            natural.contains(&name[..]) || constant(name).is_some_and(|numbers| numbers.iter().all(|&n| n >= 0))
        };
        let is_natural = match known.integers {
            IntegerRule::Moved => node.inputs.first().is_some_and(is_natural),
            IntegerRule::Joined => node.inputs.iter().all(is_natural),
            _ => known.kind == Kind::Extents || (known.natural && node.inputs.iter().all(is_natural)),
        };
        if is_natural {
            natural.insert(output);
        }
    }
    natural
}

#[cfg(test)]
mod tests;
