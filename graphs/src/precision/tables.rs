//! Weights that no product reads.

use std::collections::{HashMap, HashSet};

use crate::operators::{Kind, is_onnx, kind};
use crate::read::OWN_MODEL_KEY;
use crate::{Attribute, DataType, Graph, Initializer, Model, Node};

/// The tables of models over one set of weights: f32 weights with two axes or more that no product reads and nothing is
/// looked up in, such as those of positions. In a model that v2l wrote, all weights are the checkpoint's, and there
/// are none.
///
/// What is made of weights alone counts as they do. Bodies and operators that are not ONNX's own count as products.
pub fn tables<'a>(models: impl IntoIterator<Item = &'a Model>) -> HashSet<&'a str> {
    let (mut tables, mut in_products) = (HashSet::new(), HashSet::new());
    for model in models {
        let own = model.metadata.contains_key(OWN_MODEL_KEY);
        let matrices = model.graph.initializers.iter().filter(|(_, w)| is_matrix(w)).map(|(name, _)| name.as_str());
        let matrices: HashSet<&str> = matrices.collect();
        in_products.extend(if own { matrices.clone() } else { read_by_products(&model.graph, &matrices) });
        tables.extend(matrices);
    }
    &tables - &in_products
}

fn read_by_products<'a>(graph: &'a Graph, matrices: &HashSet<&'a str>) -> HashSet<&'a str> {
    let mut found = HashSet::new();
    // By constant value, the matrices that it is made of.
    let mut made_of: HashMap<&str, Vec<&str>> = graph
        .initializers
        .keys()
        .map(|name| (name.as_str(), matrices.get(name.as_str()).into_iter().copied().collect()))
        .collect();
    for node in &graph.nodes {
        let of = |name: &str| made_of.get(name).into_iter().flatten().copied();
        if !has_bodies(node) && node.uses().all(|name| made_of.contains_key(name)) {
            let sources: Vec<&str> = node.uses().flat_map(of).collect();
            made_of.extend(node.outputs.iter().map(|output| (output.as_str(), sources.clone())));
            continue;
        }
        match reads(node) {
            Reads::Nothing => {}
            Reads::First => found.extend(node.inputs.first().map(String::as_str).into_iter().flat_map(of)),
            Reads::All => found.extend(node.uses().flat_map(of)),
        }
    }
    found
}

/// Which inputs of a node are matrices of a layer, if they are weights.
enum Reads {
    Nothing,
    First,
    All,
}

fn reads(node: &Node) -> Reads {
    match kind(node) {
        _ if has_bodies(node) || !is_onnx(node) => Reads::All,
        Kind::Lookup => Reads::First,
        Kind::Layer | Kind::Product => Reads::All,
        _ => Reads::Nothing,
    }
}

fn has_bodies(node: &Node) -> bool {
    node.attributes.values().any(|attribute| matches!(attribute, Attribute::Graph(_)))
}

/// True for a weight with at least two extents.
pub(super) fn is_matrix(weight: &Initializer) -> bool {
    weight.external && weight.dtype == DataType::Float && weight.shape.len() > 1
}
