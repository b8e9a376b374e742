//! Adapters: low-rank updates of linear layers, in memory and in the file formats of the field.

use indexmap::IndexMap;
use ndarray::Array2;

/// Low-rank updates for some slots of a component.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// For messages and for the fixed order of fusion: a file name, say.
    pub name: String,
    /// Slot name → update.
    pub layers: IndexMap<String, LowRank>,
}

/// One layer's update: `ΔW = strength · (alpha / rank) · up · down`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`.
    pub down: Array2<f32>,
    /// `[out, rank]`.
    pub up: Array2<f32>,
    /// Scale numerator; equal to the rank for a scale of 1.
    pub alpha: f32,
}

impl LowRank {
    /// Rows of `down`.
    pub fn rank(&self) -> usize {
        self.down.nrows()
    }

    /// `alpha / rank`; 0 for rank 0.
    pub fn scale(&self) -> f32 {
        match self.rank() {
            0 => 0.0,
            rank => self.alpha / rank as f32,
        }
    }
}
