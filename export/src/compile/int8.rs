//! Weights in 8 bits.

use std::collections::HashSet;

use v2l_graphs::Model;
use v2l_graphs::passes::{INT8_SUFFIX, quantizable, quantize_weights, restore_quantized};
use v2l_runtime::engine::manifest::Slot;

use crate::ExportError;
use crate::precision::{Int8Report, PrecisionOptions, fit_int8};

/// The matrices of one component that are stored in 8 bits.
#[derive(Default)]
pub(crate) struct Int8 {
    block: usize,
    names: Vec<String>,
}

impl Int8 {
    /// The matrices that every one of the graphs that reads them can take in 8 bits, of `block` inputs to a scale. Where there are slots, they are
    /// those of slots: what adapters change by full differences stays as it is.
    pub(crate) fn new<'a>(block: usize, slots: &[Slot], models: impl Iterator<Item = &'a (String, Model)>) -> Self {
        let (mut fits, mut unfit) = (Vec::new(), HashSet::new());
        let mut seen = HashSet::new();
        for (_, model) in models {
            let names = quantizable(&model.graph, block);
            let good: HashSet<&String> = names.iter().collect();
            unfit.extend(model.graph.initializers.keys().filter(|name| !good.contains(name)).cloned());
            fits.extend(names.iter().filter(|name| seen.insert((*name).clone())).cloned());
        }
        let of_slots: HashSet<&String> = slots.iter().map(|slot| &slot.tensor).collect();
        fits.retain(|name| !unfit.contains(name) && (slots.is_empty() || of_slots.contains(name)));
        Self { block, names: fits }
    }

    /// Leaves out what keeps the graphs from an accuracy target.
    pub(crate) fn fit(
        &mut self,
        component: &str,
        graphs: &[(String, Model)],
        options: &PrecisionOptions,
    ) -> Result<Int8Report, ExportError> {
        fit_int8(component, graphs, &mut self.names, self.block, options)
    }

    pub(crate) fn is_used(&self) -> bool {
        !self.names.is_empty()
    }

    /// The graph over 8-bit weights.
    pub(crate) fn quantized(&self, model: &Model) -> Model {
        let mut model = model.clone();
        quantize_weights(&mut model, &self.names, self.block);
        model
    }

    /// The f32 graphs over what the 8-bit weights stand for.
    pub(crate) fn restore(&self, models: &mut [(String, Model)]) {
        for (_, model) in models {
            restore_quantized(model, &self.names, self.block);
        }
    }

    /// The slots, those of 8-bit weights saying so.
    pub(crate) fn slots(&self, slots: Vec<Slot>) -> Vec<Slot> {
        let names: HashSet<&String> = self.names.iter().collect();
        let mark = |slot: Slot| match names.contains(&slot.tensor) {
            true => Slot {
                tensor: format!("{}{INT8_SUFFIX}", slot.tensor),
                transposed: false,
                quantized: Some(self.block),
                ..slot
            },
            false => slot,
        };
        slots.into_iter().map(mark).collect()
    }
}
