//! Which kinds of input each value depends on.

use std::collections::HashMap;

use crate::operators::is_random;
use crate::{Dim, Graph, Node};

const LATENT: u8 = 1;
pub(super) const TIME: u8 = 2;
pub(super) const FIXED: u8 = 4;

/// Which kinds of input each value depends on.
pub(super) struct Kinds<'a> {
    pub(super) of: HashMap<&'a str, u8>,
}

impl<'a> Kinds<'a> {
    pub(super) fn new(graph: &'a Graph, step: &[String]) -> Self {
        let lead = leads(graph, step).next();
        let mut of = HashMap::new();
        for input in &graph.inputs {
            let shape = input.ty.as_ref().and_then(|ty| ty.shape.as_deref());
            let kind = match (step.contains(&input.name), shape) {
                (true, Some([_])) => TIME,
                (true, _) => LATENT,
                // One per sample, as the timestep is.
                (false, Some([dim])) if Some(dim) == lead => TIME,
                (false, Some([] | [_])) => 0,
                (false, Some(dims)) if dims.iter().any(is_rank) => 0,
                (false, _) => FIXED,
            };
            of.insert(&input.name[..], kind);
        }
        let mut kinds = Self { of };
        for node in &graph.nodes {
            let kind = kinds.of(node);
            for output in &node.outputs {
                kinds.of.insert(output, kind);
            }
        }
        kinds
    }

    pub(super) fn of(&self, node: &Node) -> u8 {
        let own = if is_random(node) { LATENT } else { 0 };
        node.uses().fold(own, |kind, value| kind | self.of.get(value).copied().unwrap_or(0))
    }

    /// The first extent of the timesteps, and every input with a row for each.
    pub(super) fn rows(&self, graph: &Graph, step: &[String]) -> Option<(Dim, Vec<String>)> {
        let counts = |dim: &&Dim| matches!(dim, Dim::Symbol(name) if !name.is_empty()) || **dim == Dim::Fixed(1);
        let lead = leads(graph, step).next().filter(counts)?;
        let inputs = graph.inputs.iter().filter(|input| self.of.get(&input.name[..]) == Some(&TIME));
        let rows: Vec<String> = inputs.map(|input| input.name.clone()).collect();
        leads(graph, step).all(|other| other == lead).then(|| (lead.clone(), rows))
    }
}

/// The extents of the timesteps.
fn leads<'a>(graph: &'a Graph, step: &[String]) -> impl Iterator<Item = &'a Dim> {
    let inputs = graph.inputs.iter().filter(|input| step.contains(&input.name));
    inputs.filter_map(|input| match input.ty.as_ref()?.shape.as_deref() {
        Some([lead]) => Some(lead),
        _ => None,
    })
}

/// True for the rank of LoRA factors.
fn is_rank(dim: &Dim) -> bool {
    matches!(dim, Dim::Symbol(name) if name.ends_with(".lora_rank"))
}
