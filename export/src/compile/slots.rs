//! What adapters may change in a model, and under which names.
//!
//! A model of v2l's says so itself. Of any other, each matrix that feeds a MatMul or Gemm is a slot, and its name is found:
//!
//! ```text
//! content   by comparing it with a checkpoint's tensors
//! settle    between several tensors of equal content
//! names     by what the exporter left: initializer, bias and module path
//! ```

mod content;
mod names;
mod settle;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use v2l_graphs::Model;
use v2l_graphs::slots::{LinearUse, linear_uses, merge_initializers, unshare_initializer};
use v2l_runtime::engine::manifest::{Found, How, RowRange, Slot};

use crate::{Checkpoint, ExportError, metadata};

/// What was not found while slots were named by a checkpoint, or not for certain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotReport {
    /// Matrices of the graph whose content is in no tensor of the checkpoint; they have the names that the exporter left; of a fused layer, the
    /// rows.
    pub unmatched: Vec<String>,
    /// Matrices of the checkpoint that no matrix of the graph has the content of: unused, or changed by the exporter.
    pub unused: Vec<String>,
    /// Matrices that may be one of several tensors with equal content; they are no slots.
    pub ambiguous: Vec<AmbiguousSlot>,
}

/// A matrix whose content several tensors of the checkpoint have, with nothing to tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AmbiguousSlot {
    /// The initializer.
    pub tensor: String,
    /// The node that multiplies by it.
    pub node: String,
    /// The tensors that it may be.
    pub candidates: Vec<String>,
}

/// A linear layer, found.
struct Layer {
    name: String,
    found: Found,
    /// Rows of the initializer that are this layer's, if not all.
    rows: Option<RowRange>,
    aliases: Vec<String>,
    /// Indices of the products by it in the list of uses, in order.
    uses: Vec<usize>,
}

/// The slots of the models: those of their metadata, else what `weights` or the exporter's names tell.
///
/// Layers that share an initializer but are parameters of their own get copies of it, and initializers that are one parameter
/// become one.
pub(crate) fn slots(
    models: &mut [(String, Model)],
    weights: Option<&Checkpoint>,
) -> Result<(Vec<Slot>, SlotReport), ExportError> {
    let mut slots: Vec<Slot> = Vec::new();
    let mut report = SlotReport::default();
    for (graph, model) in models.iter_mut() {
        let fail = |reason: String| ExportError::Graph { graph: graph.clone(), reason };
        let found = match (model.metadata.get(metadata::SLOTS), weights) {
            (Some(_), Some(weights)) => {
                return Err(fail(format!(
                    "it names its slots itself (metadata `{}`), and {} would not be looked at; leave --weights out",
                    metadata::SLOTS,
                    weights.label()
                )));
            }
            (Some(text), None) => {
                let slots: Vec<Slot> =
                    serde_json::from_str(text).map_err(|e| fail(format!("metadata `{}`: {e}", metadata::SLOTS)))?;
                let found = Some(Found::by(How::Metadata));
                slots.into_iter().map(|slot| Slot { found: slot.found.or_else(|| found.clone()), ..slot }).collect()
            }
            (None, weights) => discover(graph, model, weights, &mut report)?,
        };
        for slot in found {
            if !slots.iter().any(|s| s.name == slot.name) {
                slots.push(slot);
            }
        }
        let names: Vec<&str> = slots.iter().map(|s| s.tensor.as_str()).collect();
        let present: Vec<&str> = names.into_iter().filter(|n| model.graph.initializers.contains_key(*n)).collect();
        if let Err(findings) = v2l_graphs::check::check_slots(&model.graph, &present) {
            let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
            return Err(fail(lines.join("; ")));
        }
    }
    Ok((slots, report))
}

fn discover(
    graph: &str,
    model: &mut Model,
    weights: Option<&Checkpoint>,
    report: &mut SlotReport,
) -> Result<Vec<Slot>, ExportError> {
    let uses = linear_uses(&model.graph);
    let mut layers = Vec::new();
    let mut open: Vec<usize> = (0..uses.len()).collect();
    if let Some(weights) = weights {
        let content = content::compare(&model.graph, &uses, weights)?;
        if content.found.is_empty() {
            return Err(ExportError::Graph {
                graph: graph.to_owned(),
                reason: format!(
                    "no tensor of {} has the content of any of its {} matrices; expected the checkpoint that it was exported \
                     from: give that one, or leave --weights out",
                    weights.label(),
                    uses.iter().map(|u| &u.weight).collect::<BTreeSet<_>>().len()
                ),
            });
        }
        let settled = settle::settle(&uses, &content, weights);
        layers = settled.layers;
        report.ambiguous.extend(settled.ambiguous);
        report.unused.extend(content.unused);
        report.unmatched.extend(settled.gaps);
        open.retain(|&at| !content.found.contains_key(&uses[at].weight));
        let unmatched: BTreeSet<&String> = open.iter().map(|&at| &uses[at].weight).collect();
        report.unmatched.extend(unmatched.into_iter().cloned());
    }
    let known: BTreeSet<String> = layers.iter().map(|l| l.name.clone()).collect();
    layers.extend(names::name(&uses, &open, known));
    Ok(apply(model, &uses, layers, &mut report.ambiguous))
}

/// Gives every layer an initializer of its own, and only one, and makes slots of the layers, in the order of the graph.
fn apply(model: &mut Model, uses: &[LinearUse], layers: Vec<Layer>, ambiguous: &mut Vec<AmbiguousSlot>) -> Vec<Slot> {
    let mut merged = Vec::new();
    for layer in layers.iter().filter(|l| l.rows.is_none()) {
        let tensors: BTreeSet<&String> = layer.uses.iter().map(|&at| &uses[at].weight).collect();
        let first = &uses[layer.uses[0]];
        // Orientation is part of what is equal.
        let same = |at: &&usize| uses[**at].transposed == first.transposed;
        if tensors.len() > 1 && layer.uses.iter().all(|at| same(&at)) {
            let others = tensors.into_iter().filter(|t| **t != first.weight);
            merged.extend(others.map(|other| (first.weight.clone(), other.clone())));
        }
    }
    merge_initializers(model, &merged);
    let root = |name: &String| match merged.iter().find(|(_, dropped)| dropped == name) {
        Some((kept, dropped)) if !model.graph.initializers.contains_key(dropped) => kept.clone(),
        _ => name.clone(),
    };
    let roots: Vec<String> = uses.iter().map(|of| root(&of.weight)).collect();
    // A product without a name keeps the initializer as it is.
    let named: BTreeSet<usize> = layers.iter().flat_map(|l| l.uses.iter().copied()).collect();
    let mut owner: BTreeMap<&str, String> =
        (0..uses.len()).filter(|at| !named.contains(at)).map(|at| (roots[at].as_str(), String::new())).collect();
    let mut slots: Vec<(usize, usize, Slot)> = Vec::new();
    for layer in layers {
        let first = &uses[layer.uses[0]];
        let mut tensor = roots[layer.uses[0]].clone();
        for &at in layer.uses.iter().filter(|at| roots[**at] != tensor) {
            let (tensor, node) = (roots[at].clone(), uses[at].label.clone());
            ambiguous.push(AmbiguousSlot { tensor, node, candidates: vec![layer.name.clone()] });
        }
        if layer.rows.is_none() {
            let taken = owner.entry(&roots[layer.uses[0]]).or_insert_with(|| layer.name.clone());
            if *taken != layer.name {
                let own = layer.uses.iter().filter(|at| roots[**at] == tensor);
                let nodes: Vec<usize> = own.map(|&at| uses[at].node).collect();
                let wanted = format!("{}.weight", layer.name);
                tensor = unshare_initializer(model, &tensor, &nodes, &wanted).unwrap_or(tensor);
            }
        }
        let out_features = layer.rows.map_or(first.out_features, |rows| rows.end - rows.start);
        let slot = Slot {
            name: layer.name,
            tensor,
            out_features,
            in_features: first.in_features,
            transposed: first.transposed,
            rows: layer.rows,
            quantized: None,
            aliases: layer.aliases,
            found: Some(layer.found),
        };
        slots.push((first.node, slot.row_range().start, slot));
    }
    // However small, it is a weight of the engine.
    for (.., slot) in &slots {
        if let Some(weight) = model.graph.initializers.get_mut(&slot.tensor) {
            weight.external = true;
        }
    }
    slots.sort_by_key(|(node, row, _)| (*node, *row));
    slots.into_iter().map(|(_, _, slot)| slot).collect()
}

#[cfg(test)]
mod tests;
