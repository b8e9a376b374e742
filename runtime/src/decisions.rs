//! What was decided for a run and changes the last bits of its results: recorded with them.

use indexmap::IndexMap;
use serde::Serialize;

use crate::lora::mode::Way;

/// How a component's weights are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldWeights {
    /// The component.
    pub component: String,
    /// `f32`, `stored` or `plan`.
    pub weights: String,
    /// Why, in words.
    pub reason: String,
}

/// What was decided where `auto` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// How weights are held, by component.
    pub weights: Vec<HeldWeights>,
    /// How adapters are applied, if there are any.
    pub way: Option<Way>,
}

impl Decisions {
    /// As they are written into the metadata of a result: `v2l.weights.<component>` and `v2l.fuse_mode`.
    pub fn metadata(&self) -> IndexMap<String, String> {
        let weights = self.weights.iter().map(|held| (format!("v2l.weights.{}", held.component), held.weights.clone()));
        weights.chain(self.way.map(|way| ("v2l.fuse_mode".to_owned(), way.to_string()))).collect()
    }
}
