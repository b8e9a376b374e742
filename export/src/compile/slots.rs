//! What adapters may change in a model, and under which names.
//!
//! A model of v2l's says so itself. Of any other, each matrix that feeds a MatMul or Gemm is a slot, and its name is
//! found:
//!
//! ```text
//! content   by comparing it with a checkpoint's tensors
//! settle    between several tensors of equal content
//! names     by what the exporter left: initializer, bias and module path
//! readers   what else reads a slot's matrix, and whether an update may change that
//! ```

mod content;
mod found;
mod names;
mod readers;
mod settle;

use std::collections::{BTreeMap, BTreeSet};

use v2l_graphs::Model;
use v2l_graphs::slots::{
    LinearUse, drop_unread, linear_uses, merge_initializers, same_matrix, turn_product, unshare_initializer,
};
use v2l_runtime::engine::manifest::{Absent, Found, How, Slot, Why};

use self::content::Contents;
pub(crate) use self::found::Discovered;
pub use self::found::{AmbiguousSlot, SharedSlot, SlotReport};
use self::found::{Foreign, Layer, is_declared};
use self::names::Forms;
use self::settle::{Settled, module_of};
use crate::remedy::Remedy;
use crate::{Checkpoint, ExportError, metadata};

/// The slots of the models: those of their metadata, else what `weights` or the exporter's names tell.
///
/// Layers that share an initializer but are parameters of their own get copies of it, and initializers that are one
/// parameter become one.
pub(crate) fn slots(models: &mut [(String, Model)], weights: Option<&Checkpoint>) -> Result<Discovered, ExportError> {
    let mut all = Discovered::default();
    for (graph, model) in models.iter_mut() {
        let found = match (declared(graph, model)?, weights) {
            (Some(_), Some(weights)) => {
                let reason = format!(
                    "it names its slots itself (metadata `{}`), and {} would not be looked at",
                    metadata::SLOTS,
                    weights.label()
                );
                return Err(fail(graph, reason).advised(&[Remedy::WithoutWeights]));
            }
            (Some(slots), None) => slots,
            (None, weights) => discover(graph, model, weights, &mut all)?,
        };
        for slot in found {
            if !all.slots.iter().any(|s| s.name == slot.name) {
                all.slots.push(slot);
            }
        }
    }
    readers::settle(models, &mut all);
    for (graph, model) in models.iter() {
        let declared = all.slots.iter().filter(|slot| is_declared(slot)).map(|slot| &slot.tensor[..]);
        let present: Vec<&str> = declared.filter(|name| model.graph.initializers.contains_key(*name)).collect();
        if let Err(findings) = v2l_graphs::check::check_slots(&model.graph, &present) {
            let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
            return Err(fail(graph, lines.join("; ")));
        }
    }
    let slots = &all.slots;
    all.absent.retain(|a| slots.iter().all(|s| s.name != a.layer.name && !s.aliases.contains(&a.layer.name)));
    all.absent.sort_by(|a, b| a.layer.name.cmp(&b.layer.name));
    all.absent.dedup_by(|a, b| a.layer.name == b.layer.name);
    let nameless = |slot: &&Slot| match &slot.found {
        Found { checkpoint: Some(tensor), .. } => !tensor.ends_with(".weight"),
        Found { how: How::Initializer, .. } => slot.name == slot.tensor,
        _ => false,
    };
    all.report.unnamed = slots.iter().filter(nameless).map(|slot| slot.name.clone()).collect();
    Ok(all)
}

fn fail(graph: &str, reason: String) -> ExportError {
    ExportError::Graph { graph: graph.to_owned(), reason }
}

/// The slots that a model names itself.
fn declared(graph: &str, model: &Model) -> Result<Option<Vec<Slot>>, ExportError> {
    let Some(text) = model.metadata.get(metadata::SLOTS) else { return Ok(None) };
    let slots = serde_json::from_str(text);
    Ok(Some(slots.map_err(|e| fail(graph, format!("metadata `{}`: {e}", metadata::SLOTS)))?))
}

fn discover(
    graph: &str,
    model: &mut Model,
    weights: Option<&Checkpoint>,
    all: &mut Discovered,
) -> Result<Vec<Slot>, ExportError> {
    let mut uses = linear_uses(&model.graph);
    let (mut layers, mut foreign) = (Vec::new(), Vec::new());
    let mut open: Vec<usize> = (0..uses.len()).collect();
    if let Some(weights) = weights {
        let (content, settled) = by_content(graph, model, &uses, weights)?;
        (layers, foreign) = (settled.layers, settled.foreign);
        all.absent.extend(absent(&settled.ambiguous, &content.pruned, weights));
        let report = &mut all.report;
        report.ambiguous.extend(settled.ambiguous);
        report.unused.extend(content.unused);
        report.pruned.extend(content.pruned);
        report.unmatched.extend(settled.gaps);
        open.retain(|&at| !content.found.contains_key(&uses[at].weight));
        let unmatched: BTreeSet<&String> = open.iter().map(|&at| &uses[at].weight).collect();
        report.unmatched.extend(unmatched.into_iter().cloned());
    }
    let forms = Forms::of(model);
    let known: BTreeSet<String> = layers.iter().map(|l| l.name.clone()).collect();
    let matrix = |at: usize| Some((model.graph.initializers.get(&uses[at].weight)?, uses[at].transposed));
    let same = |a, b, turned: bool| {
        matrix(a).zip(matrix(b)).is_some_and(|(a, (value, transposed))| same_matrix(a, (value, transposed != turned)))
    };
    let (named, others) = names::name(&uses, &open, known, &forms, &same);
    layers.extend(named);
    foreign.extend(others);
    for Foreign { at, layer } in foreign {
        all.report.ambiguous.push(AmbiguousSlot {
            tensor: uses[at].weight.clone(),
            node: uses[at].label.clone(),
            candidates: vec![layer],
        });
        // What is not the layer's own keeps the matrix as it is.
        let weight = &uses[at].weight;
        if layers.iter().flat_map(|l| &l.uses).any(|&own| uses[own].weight == *weight)
            && let Some(copy) = unshare_initializer(model, weight, &[uses[at].node], weight)
        {
            uses[at].weight = copy;
        }
    }
    turn(model, &mut uses, &layers, &forms);
    Ok(apply(model, &uses, layers, &mut all.report.ambiguous))
}

/// What the checkpoint's tensors tell of the products' matrices, at least one of which it must hold.
fn by_content(
    graph: &str,
    model: &Model,
    uses: &[LinearUse],
    weights: &Checkpoint,
) -> Result<(Contents, Settled), ExportError> {
    let content = content::compare(&model.graph, uses, weights)?;
    if content.found.is_empty() {
        let matrices = uses.iter().map(|u| &u.weight).collect::<BTreeSet<_>>().len();
        let reason = format!(
            "no tensor of {} has the content of any of its {matrices} matrices; expected the checkpoint that it was \
             exported from",
            weights.label(),
        );
        return Err(fail(graph, reason).advised(&[Remedy::OtherWeights, Remedy::WithoutWeights]));
    }
    let settled = settle::settle(uses, &content, weights);
    Ok((content, settled))
}

/// Layers of the checkpoint that are no slots.
fn absent(ambiguous: &[AmbiguousSlot], pruned: &[String], weights: &Checkpoint) -> Vec<Absent> {
    let layer = |tensor: &String, why, reason: &str| {
        let &[out, into] = weights.shape(tensor)? else { return None };
        let found = Found { checkpoint: Some(tensor.clone()), ..Found::by(How::Checkpoint) };
        let layer = Slot { tensor: tensor.clone(), found, ..Slot::linear(module_of(tensor), out, into) };
        Some(Absent { layer, why, reason: reason.to_owned() })
    };
    let open = ambiguous.iter().flat_map(|a| &a.candidates);
    let open = open.filter_map(|t| layer(t, Why::Ambiguous, "may be one of several matrices, and nothing tells which"));
    let pruned = pruned.iter().filter_map(|t| {
        layer(t, Why::Pruned, "is not in this graph: without effect on this graph, or computed by the exporter")
    });
    open.chain(pruned).collect()
}

/// Lets all products of a layer that is stored in both orientations read it as `[in, out]`.
fn turn(model: &mut Model, uses: &mut [LinearUse], layers: &[Layer], forms: &Forms) {
    let mut left = Vec::new();
    for layer in layers.iter().filter(|l| l.rows.is_none()) {
        let Some(&to) = layer.uses.iter().find(|&&at| uses[at].transposed) else { continue };
        let to = uses[to].weight.clone();
        for &at in &layer.uses {
            let of = &mut uses[at];
            let weights = &model.graph.initializers;
            let one = || match (weights.get(&of.weight), weights.get(&to)) {
                (Some(a), Some(b)) => same_matrix((a, false), (b, true)),
                _ => false,
            };
            if of.transposed || of.weight == to || !(forms.root(&of.weight) == forms.root(&to) || one()) {
                continue;
            }
            if turn_product(model, of.node, &of.weight, &to) {
                left.push(std::mem::replace(&mut of.weight, to.clone()));
                of.transposed = true;
            }
        }
    }
    drop_unread(model, &left);
}

/// The initializers that are one layer's: the one to keep, and another.
fn copies(uses: &[LinearUse], layers: &[Layer]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for layer in layers.iter().filter(|l| l.rows.is_none()) {
        let tensors: BTreeSet<&String> = layer.uses.iter().map(|&at| &uses[at].weight).collect();
        let first = &uses[layer.uses[0]];
        // Orientation is part of what is equal.
        if tensors.len() > 1 && layer.uses.iter().all(|&at| uses[at].transposed == first.transposed) {
            let others = tensors.into_iter().filter(|t| **t != first.weight);
            found.extend(others.map(|other| (first.weight.clone(), other.clone())));
        }
    }
    found
}

/// Gives every layer an initializer of its own, and only one, and makes slots of the layers, in the order of the graph.
fn apply(model: &mut Model, uses: &[LinearUse], layers: Vec<Layer>, ambiguous: &mut Vec<AmbiguousSlot>) -> Vec<Slot> {
    let merged = copies(uses, &layers);
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
            lookups: Vec::new(),
            aliases: layer.aliases,
            found: layer.found,
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
