//! A map of version 1: one graph, whose outputs are all the factors.

use indexmap::IndexMap;
use serde::Deserialize;

use super::format::{MapGraph, MapSlot, PredictorMap, Version};
use super::source::{FactorSource, Written};
use crate::lora::Strength;

/// Which outputs of a predictor's graph are the factors of which slots.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "PredictorMap")]
pub(super) struct FirstMap {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    graph: Option<String>,
    slots: Vec<FirstSlot>,
}

/// Where one slot's factors are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "MapSlot")]
struct FirstSlot {
    slot: String,
    down: String,
    up: String,
    alpha: Option<f32>,
    #[serde(default)]
    down_transposed: bool,
    #[serde(default)]
    up_transposed: bool,
    down_index: Option<usize>,
    up_index: Option<usize>,
}

impl FirstMap {
    /// The same in the words of version 2.
    pub(super) fn into_map(self) -> PredictorMap {
        let graphs = vec![MapGraph { graph: self.graph, ..MapGraph::default() }];
        let slots = self.slots.into_iter().map(FirstSlot::into_slot).collect();
        PredictorMap { version: Version::One, graphs, slots, strength: Strength::default() }
    }
}

impl FirstSlot {
    fn into_slot(self) -> MapSlot {
        let factor = |output, index, transposed| {
            Written(FactorSource { output: Some(output), index, transposed, ..FactorSource::default() })
        };
        MapSlot {
            slot: self.slot,
            down: factor(self.down, self.down_index, self.down_transposed),
            up: factor(self.up, self.up_index, self.up_transposed),
            mid: None,
            scale: None,
            alpha: self.alpha,
            values: IndexMap::new(),
        }
    }
}
