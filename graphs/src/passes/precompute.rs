//! Takes out of a step graph what need not be computed in every step.
//!
//! Graph inputs come in four kinds. *Latents* change in every step, *timesteps* too, but only a schedule's worth of
//! them exists; everything else is *fixed* over the steps of one generation. What depends on fixed inputs alone moves
//! into a graph of their own, `precompute`; what depends on timesteps alone, row by row, into a graph whose rows can be kept in a table.
//! Vectors and LoRA factors among the fixed inputs are *settings*: either graph may read them besides.
//!
//! What is drawn at random is drawn in every step: it counts as latent.
//!
//! A graph is precomputed only where it takes a matrix product along, and an operator at its end that only repeats or
//! renames what it reads (`Expand`, `Reshape`, …) stays with its reader: what crosses is never larger than
//! what it was made from.

mod cost;
mod kinds;
mod rows;

use std::collections::{HashMap, HashSet};

use super::{Pass, Passes, infer_shapes, remove_dead_nodes};
use crate::operators::{Kind, kind, operator};
use crate::{Graph, Model, Node, TensorType, ValueInfo};
pub use cost::flops_per_row;
use kinds::{FIXED, Kinds};

/// What [`precompute`] took out.
#[derive(Clone, Debug, Default)]
pub struct Precomputed {
    /// What depends on fixed inputs alone.
    pub precompute: Option<Model>,
    /// What depends on timesteps alone.
    pub timestep_rows: Option<TimestepRows>,
}

/// A graph that computes each row of its results from the same row of its row inputs, whatever other rows there are.
#[derive(Clone, Debug)]
pub struct TimestepRows {
    /// The graph; every output has the row inputs' first extent.
    pub model: Model,
    /// Its inputs with one row per timestep; it takes the others whole.
    pub rows: Vec<String>,
}

/// Moves what need not be computed in every step out of `model`, as far as `passes` has it. `step` names the inputs
/// that change from step to step; vectors among them are timesteps, the others latents.
///
/// The results of a precomputed graph become inputs of the step graph, under their own names. Inputs that only precomputed graphs read leave
/// the step graph; outputs stay. Needs inferred shapes and brings those of every graph up to date. Weights are shared,
/// not copied; one that only a precomputed graph reads leaves the step graph. Costs time linear in the graph.
pub fn precompute(model: &mut Model, step: &[String], passes: &Passes) -> Precomputed {
    let mut precomputed = Precomputed::default();
    if !model.graph.inputs.iter().any(|input| step.contains(&input.name)) {
        return precomputed;
    }
    if passes.has(Pass::Precompute) {
        let kinds = Kinds::new(&model.graph, step);
        let moved = model.graph.nodes.iter().map(|node| kinds.of(node) == FIXED).collect();
        precomputed.precompute = split(model, moved, "precompute");
    }
    if passes.has(Pass::TimestepRows) {
        // What the precompute graph gives is fixed.
        let kinds = Kinds::new(&model.graph, step);
        if let Some((lead, rows)) = kinds.rows(&model.graph, step) {
            let moved = rows::independent(&model.graph, &kinds, &rows, &lead);
            precomputed.timestep_rows = split(model, moved, "timestep_rows").map(|model| {
                let read = |name: &String| model.graph.inputs.iter().any(|input| input.name == *name);
                TimestepRows { rows: rows.into_iter().filter(read).collect(), model }
            });
        }
    }
    precomputed
}

/// Moves the nodes marked in `moved` into a graph of their own, if that is worth it.
fn split(model: &mut Model, mut moved: Vec<bool>, name: &str) -> Option<Model> {
    let graph = &model.graph;
    let types: HashMap<&str, &TensorType> =
        graph.value_info.iter().filter_map(|info| Some((&info.name[..], info.ty.as_ref()?))).collect();
    let outputs: HashSet<&str> = graph.outputs.iter().map(|output| &output.name[..]).collect();
    for (moved, node) in moved.iter_mut().zip(&graph.nodes) {
        *moved &= !node.outputs.iter().any(|output| outputs.contains(&output[..]));
    }
    let crossing = loop {
        let crossing = crossing(graph, &moved);
        let mut stays = false;
        let inside = read_by(graph, |index| moved[index]);
        for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| moved[*index]) {
            let mut crosses = node.outputs.iter().filter(|output| crossing.contains(&output[..])).peekable();
            let ends = crosses.peek().is_some() && !node.outputs.iter().any(|output| inside.contains(&output[..]));
            let idle = ends && operator(node).is_some_and(|known| known.is_idle);
            if idle || crosses.any(|output| types.get(&output[..]).is_none_or(|ty| ty.shape.is_none())) {
                stays = true;
                unmove(graph, &mut moved, index);
                break;
            }
        }
        if !stays {
            break crossing;
        }
    };
    let is_layer = |node: &Node| kind(node) == Kind::Layer;
    if crossing.is_empty() || !graph.nodes.iter().zip(&moved).any(|(node, moved)| *moved && is_layer(node)) {
        return None;
    }
    let made = graph.nodes.iter().flat_map(|node| &node.outputs).filter(|output| crossing.contains(&output[..]));
    let infos: Vec<ValueInfo> =
        made.map(|name| ValueInfo { name: name.clone(), ty: types.get(&name[..]).map(|&ty| ty.clone()) }).collect();
    let mut precomputed = model.clone();
    precomputed.graph.name = format!("{}.{name}", graph.name);
    precomputed.graph.outputs.clone_from(&infos);
    drop_unread(&mut precomputed);
    let mut kept = moved.iter();
    model.graph.nodes.retain(|_| kept.next() == Some(&false));
    model.graph.inputs.extend(infos);
    drop_unread(model);
    Some(precomputed)
}

/// What moved nodes make and others read.
fn crossing<'a>(graph: &'a Graph, moved: &[bool]) -> HashSet<&'a str> {
    let outside = read_by(graph, |index| !moved[index]);
    let precomputed = graph.nodes.iter().zip(moved).filter(|(_, moved)| **moved);
    precomputed
        .flat_map(|(node, _)| &node.outputs)
        .map(String::as_str)
        .filter(|value| outside.contains(value))
        .collect()
}

/// What the nodes read whose index is `among` these.
fn read_by(graph: &Graph, among: impl Fn(usize) -> bool) -> HashSet<&str> {
    let nodes = graph.nodes.iter().enumerate().filter(|(index, _)| among(*index));
    nodes.flat_map(|(_, node)| node.uses()).collect()
}

/// Leaves a node where it is, and every node that reads from it.
fn unmove(graph: &Graph, moved: &mut [bool], index: usize) {
    moved[index] = false;
    let mut left: HashSet<&str> = graph.nodes[index].outputs.iter().map(String::as_str).collect();
    for (moved, node) in moved.iter_mut().zip(&graph.nodes).skip(index + 1) {
        if *moved && node.uses().any(|value| left.contains(value)) {
            *moved = false;
            left.extend(node.outputs.iter().map(String::as_str));
        }
    }
}

/// Removes nodes, weights and inputs that nothing needs.
fn drop_unread(model: &mut Model) {
    remove_dead_nodes(model);
    let read: HashSet<String> = model.graph.nodes.iter().flat_map(Node::uses).map(str::to_owned).collect();
    let outputs: HashSet<String> = model.graph.outputs.iter().map(|output| output.name.clone()).collect();
    model.graph.inputs.retain(|input| read.contains(&input.name) || outputs.contains(&input.name));
    let given: HashSet<&str> = model.graph.inputs.iter().map(|input| &input.name[..]).collect();
    model.graph.value_info.retain(|info| !given.contains(&info.name[..]));
    infer_shapes(model);
}

#[cfg(test)]
mod tests;
