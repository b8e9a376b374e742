//! The second stage: what adapters may change is found, and graphs with low-rank branches are made.

use std::collections::HashSet;

use v2l_graphs::Model;
use v2l_graphs::passes::{BranchSlot, add_branches, infer_shapes};
use v2l_runtime::engine::manifest::{Absent, Slot};
use v2l_runtime::engine::parameters::parameter;
use v2l_runtime::lora::adapter::Layers;

use super::options::CompileOptions;
use super::prepared::Prepared;
use super::slots::{Discovered, SlotReport, slots};
use crate::files::check_graph;
use crate::remedy::Remedy;
use crate::{Checkpoint, ExportError};

/// A component whose slots are known.
pub(crate) struct Slotted {
    /// Its graphs; layers that share an initializer but are parameters of their own have copies of it.
    pub(crate) prepared: Prepared,
    pub(crate) slots: Vec<Slot>,
    /// Weights that are no linear layer's matrix.
    parameters: Vec<Slot>,
    /// Layers that are no slots.
    pub(crate) absent: Vec<Absent>,
    /// What is to be said of both, if anything is.
    pub(crate) named: Option<SlotReport>,
    /// By graph: the variant with low-rank branches.
    pub(crate) branches: Vec<(String, Model)>,
}

impl Slotted {
    /// Finds the slots, by the names in the checkpoint if there is one.
    pub(crate) fn of(mut prepared: Prepared, options: &CompileOptions) -> Result<Self, ExportError> {
        let checkpoint = options.weights.as_deref().map(Checkpoint::open).transpose()?;
        let Discovered { slots, absent, report } = slots(&mut prepared.models, checkpoint.as_ref())?;
        let branches =
            options.lora_rank.map_or_else(|| Ok(Vec::new()), |_| branch_variants(&prepared.models, &slots))?;
        if options.lora_rank.is_some() && branches.is_empty() {
            let reason = "it has no linear layer that a low-rank branch could stand beside";
            let error = ExportError::config(&prepared.sources[0].path, reason);
            return Err(error.advised(&[Remedy::WithoutLoraRank]));
        }
        let named = (checkpoint.is_some() || report != SlotReport::default()).then_some(report);
        let parameters = parameters(&prepared.models, &slots);
        Ok(Self { prepared, slots, parameters, absent, named, branches })
    }

    /// Slots, and layers that are none.
    pub(crate) fn layers(&self) -> Layers<'_> {
        Layers { slots: &self.slots, absent: &self.absent, parameters: &self.parameters }
    }
}

/// The floating-point weights of all graphs that are no slot's, each once.
fn parameters(models: &[(String, Model)], slots: &[Slot]) -> Vec<Slot> {
    let mut known: HashSet<&str> = slots.iter().map(|slot| &slot.tensor[..]).collect();
    let weights = models.iter().flat_map(|(_, model)| &model.graph.initializers);
    let floats = weights.filter(|(_, weight)| weight.external && weight.dtype.is_float());
    floats.filter(|(name, _)| known.insert(name)).filter_map(|(name, weight)| parameter(name, &weight.shape)).collect()
}

/// For each graph that reads a slot's weight, the variant with low-rank branches.
fn branch_variants(models: &[(String, Model)], slots: &[Slot]) -> Result<Vec<(String, Model)>, ExportError> {
    let mut variants = Vec::new();
    for (graph, model) in models {
        let fail = |reason: String| ExportError::Graph { graph: graph.clone(), reason };
        let mut branch_slots = Vec::new();
        for slot in slots {
            let Some(weight) = model.graph.initializers.get(&slot.tensor) else { continue };
            let range = slot.row_range();
            let total_rows = weight.shape.get(usize::from(slot.transposed)).copied();
            branch_slots.push(BranchSlot {
                name: slot.name.clone(),
                tensor: slot.tensor.clone(),
                rows: (range.start, range.end),
                total_rows: total_rows.ok_or_else(|| fail(format!("`{}` is not a matrix", slot.tensor)))?,
                in_features: slot.in_features,
                transposed: slot.transposed,
            });
        }
        if branch_slots.is_empty() {
            continue;
        }
        let mut variant = model.clone();
        add_branches(&mut variant, &branch_slots).map_err(|e| fail(e.to_string()))?;
        infer_shapes(&mut variant);
        check_graph(graph, &variant)?;
        variants.push((graph.clone(), variant));
    }
    Ok(variants)
}

#[cfg(test)]
mod tests {
    use v2l_graphs::{Builder, DataType, encode_model};

    use super::*;
    use crate::compile::testing::Small;

    #[test]
    fn slotted_makes_branches_beside_the_layers_that_a_rank_is_asked_for() {
        let small = Small::new();
        let ranked = CompileOptions { lora_rank: Some(8), ..CompileOptions::default() };
        assert!(small.slotted(&CompileOptions::default()).branches.is_empty());
        let slotted = small.slotted(&ranked);
        let names: Vec<&str> = slotted.slots.iter().map(|slot| &slot.name[..]).collect();
        assert_eq!(names, ["first", "second"]);
        let [(graph, branched)] = &slotted.branches[..] else { panic!("one variant") };
        assert_eq!(graph, "g");
        assert_eq!(branched.graph.inputs.len(), 1 + 2 * names.len());
    }

    #[test]
    fn slotted_refuses_a_rank_for_a_graph_without_linear_layers() {
        let small = Small::new();
        let mut b = Builder::new("plain");
        let x = b.input("x", DataType::Float, [2]);
        let y = b.op("Relu", &[&x]);
        b.output("y", &y, DataType::Float, [2]);
        std::fs::write(small.path(), encode_model(&b.finish().unwrap(), &|_| None).unwrap()).unwrap();
        let ranked = CompileOptions { lora_rank: Some(8), ..CompileOptions::default() };
        let error = Slotted::of(small.prepared(&ranked), &ranked).err().unwrap();
        assert!(error.to_string().contains("no linear layer"), "{error}");
    }
}
