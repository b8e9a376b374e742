//! What reads a slot's matrix besides its layer.
//!
//! A fuse replaces the matrix for all of its readers. That is right for further calls of the layer, and for a tied
//! embedding, which looks up the rows of the parameter that the update is of. It is wrong for what computes with the
//! matrix otherwise, such as the norm that a product is divided by: the layer is then no slot.

use std::collections::BTreeSet;

use v2l_graphs::passes::infer_shapes;
use v2l_graphs::slots::{
    Reader, Readers, Reading, drop_unread, linear_uses, merge_initializers, same_matrix, turn_lookups,
};
use v2l_graphs::{Initializer, Model};
use v2l_runtime::engine::manifest::{Absent, How, Slot, Why};

use super::found::{Discovered, SharedSlot, is_declared};
use super::names::{Forms, at_node};
use super::settle::agree;

/// Notes lookups at the slots, and takes out the slots whose matrix is read otherwise.
pub(super) fn settle(models: &mut [(String, Model)], all: &mut Discovered) {
    for (_, model) in models.iter_mut() {
        settle_model(model, all);
    }
    let refused: BTreeSet<String> = all.report.shared.iter().map(|s| s.tensor.clone()).collect();
    let (kept, gone): (Vec<Slot>, Vec<Slot>) =
        std::mem::take(&mut all.slots).into_iter().partition(|slot| !refused.contains(&slot.tensor));
    all.slots = kept;
    for layer in gone {
        let by = all.report.shared.iter().find(|s| s.tensor == layer.tensor);
        let by = by.map_or_else(String::new, |s| format!("`{}` ({})", s.node, s.op_type));
        let reason = format!("is not a slot: {by} reads its matrix, too, and an update would change that");
        all.absent.push(Absent { layer, why: Why::Shared, reason });
    }
    all.report.tied = all.slots.iter().filter(|s| !s.lookups.is_empty()).map(|s| s.name.clone()).collect();
}

fn settle_model(model: &mut Model, all: &mut Discovered) {
    let forms = Forms::of(model);
    let tensors: BTreeSet<String> = all.slots.iter().map(|slot| slot.tensor.clone()).collect();
    let (mut left, mut names) = (Vec::new(), all.slots.iter().map(|slot| slot.name.clone()).collect::<Vec<_>>());
    let mut readers = Readers::new(&model.graph);
    for slot in all.slots.iter_mut().filter(|slot| !is_declared(slot)) {
        if !model.graph.initializers.contains_key(&slot.tensor) {
            continue;
        }
        for (other, upright) in copies(model, slot, &tensors, &forms, &readers) {
            let products = readers.of(&other).iter().any(|r| matches!(r.reading, Reading::Product(_)));
            let turned = upright && slot.transposed && turn_lookups(model, &other, &slot.tensor) > 0;
            let merged = !products && merge_initializers(model, &[(slot.tensor.clone(), other.clone())]) > 0;
            if turned || merged {
                readers = Readers::new(&model.graph);
                left.push(other.clone());
            }
            let blocking = |r: &&Reader| !matches!(r.reading, Reading::Product(_));
            if let Some(reader) = readers.of(&other).iter().find(blocking) {
                all.report.shared.push(shared(slot, reader));
            }
        }
        let axis = usize::from(slot.transposed);
        for reader in readers.of(&slot.tensor) {
            match reader.reading {
                Reading::Product(transposed) if transposed == slot.transposed => {}
                Reading::Lookup(along) if along == axis && slot.rows.is_none() => {
                    if !slot.lookups.contains(&reader.node) {
                        slot.lookups.push(reader.node.clone());
                    }
                }
                _ => all.report.shared.push(shared(slot, reader)),
            }
        }
        if !slot.lookups.is_empty() && slot.found.how == How::Initializer {
            own_name(model, slot, &mut names);
        }
    }
    if !left.is_empty() {
        drop_unread(model, &left);
        infer_shapes(model);
    }
}

/// Other initializers that hold the slot's parameter and are read by more than products; true for those that hold it as
/// `[out, in]`.
///
/// The passes record the forms that they made; what exporters stored twice is told by its content.
fn copies(
    model: &Model,
    slot: &Slot,
    tensors: &BTreeSet<String>,
    forms: &Forms,
    readers: &Readers,
) -> Vec<(String, bool)> {
    let Some(own) = model.graph.initializers.get(&slot.tensor).filter(|_| slot.rows.is_none()) else {
        return Vec::new();
    };
    let root = forms.root(&slot.tensor);
    let upright = |name: &str, value: &Initializer| {
        if forms.root(name) == root {
            return Some(forms.turned(name) == Some(false));
        }
        let mut extents = value.shape.clone();
        extents.sort_unstable();
        let mut wanted = own.shape.clone();
        wanted.sort_unstable();
        let holds = |transposed| extents == wanted && same_matrix((value, transposed), (own, slot.transposed));
        if holds(false) { Some(true) } else { holds(true).then_some(false) }
    };
    let others = model.graph.initializers.iter().filter(|(name, _)| !tensors.contains(*name));
    let read =
        others.filter(|(name, _)| readers.of(name).iter().any(|reader| !matches!(reader.reading, Reading::Product(_))));
    read.filter_map(|(name, value)| Some((name.clone(), upright(name, value)?))).collect()
}

/// The parameter of a tied embedding has the embedding's name; its product stands in a layer with a name, too.
fn own_name(model: &Model, slot: &mut Slot, names: &mut Vec<String>) {
    let uses = linear_uses(&model.graph);
    let told = uses.iter().filter(|of| of.weight == slot.tensor).find_map(at_node).map(|(module, _)| module);
    if let Some(module) = told.filter(|module| !agree(module, &slot.name) && !names.contains(module)) {
        names.push(module.clone());
        slot.aliases.push(module);
    }
}

fn shared(slot: &Slot, reader: &Reader) -> SharedSlot {
    let (node, op_type) = (reader.node.clone(), reader.op_type.clone());
    SharedSlot { name: slot.name.clone(), tensor: slot.tensor.clone(), node, op_type }
}
