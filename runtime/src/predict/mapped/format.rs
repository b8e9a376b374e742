//! What a map says.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value as Json;

use super::source::{FactorSource, InputSource, ScaleSource, Written, distinct};
use crate::lora::Strength;

/// Where the factors of which slots come from.
#[derive(Clone, Debug)]
pub struct PredictorMap {
    pub(super) graphs: Vec<MapGraph>,
    pub(super) slots: Vec<MapSlot>,
    /// What all updates are multiplied by.
    pub(super) strength: Strength,
}

/// One run of a graph.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MapGraph {
    /// What the map calls it: the graph's own name if not given.
    pub(super) name: Option<String>,
    /// May be left out if its engine has one only.
    pub(super) graph: Option<String>,
    /// An engine file or directory beside the map; the predictor's engine if not given.
    pub(super) engine: Option<String>,
    /// The component of an engine directory.
    pub(super) component: Option<String>,
    /// True: it runs for each slot.
    #[serde(default)]
    pub(super) each_slot: bool,
    /// Inputs that are not taken by their names.
    #[serde(default, deserialize_with = "distinct")]
    pub(super) inputs: IndexMap<String, Written<InputSource>>,
}

/// Where one slot's factors are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MapSlot {
    /// Name or alias.
    pub(super) slot: String,
    /// `[k', in]`.
    pub(super) down: Written<FactorSource>,
    /// `[out, k]`.
    pub(super) up: Written<FactorSource>,
    /// `[k, k']`, or a diagonal `[k]`.
    pub(super) mid: Option<Written<FactorSource>>,
    /// One number.
    pub(super) scale: Option<Written<ScaleSource>>,
    /// Scale numerator: `ΔW = strength · (alpha / k) · scale · up · mid · down`; k if not given.
    pub(super) alpha: Option<f32>,
    /// What graphs that run for each slot are given of this slot.
    #[serde(default, deserialize_with = "distinct")]
    pub(super) values: IndexMap<String, Json>,
}
