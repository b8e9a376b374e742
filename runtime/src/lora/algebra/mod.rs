//! Algebra of low-rank updates: canonical factors, sums, and how far two adapters act on the same directions.
//!
//! All of it works on factors: `ΔW` is never formed. Products of `[out, rank]` and `[in, rank]` factors cost
//! `O((out + in) · rank²)`; everything is computed in f64.

mod canonical;
mod compose;
mod linear;
mod overlap;
mod place;

pub use canonical::{Canonical, MAX_RANK, recompress};
pub use compose::{Composed, Composition, NormConsistency, compose, join, merge};
pub use overlap::{Comparison, Means, SlotOverlap, compare};
pub use place::place;

use crate::error::{Classified, ErrorClass};

/// Why factors cannot be worked on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AlgebraError {
    /// The singular values would take too long.
    #[error(
        "adapter `{adapter}`, slot `{slot}`: rank {rank}, singular values are computed up to rank {MAX_RANK}; extract \
         a LoRA of a lower rank first"
    )]
    Rank {
        /// The adapter.
        adapter: String,
        /// The layer.
        slot: String,
        /// Its rank.
        rank: usize,
    },
    /// Two adapters differ in the shape of a layer.
    #[error(
        "adapter `{adapter}`, slot `{slot}`: expected [out, in] {expected:?}, found {found:?}; the adapters are for different models"
    )]
    Shape {
        /// The adapter.
        adapter: String,
        /// The layer.
        slot: String,
        /// That of the adapters before.
        expected: [usize; 2],
        /// Its own.
        found: [usize; 2],
    },
    /// A factor, scale or strength is NaN or infinite.
    #[error("adapter `{adapter}`, slot `{slot}`: a factor, alpha or the strength is NaN or infinite")]
    NotFinite {
        /// The adapter.
        adapter: String,
        /// The layer.
        slot: String,
    },
}

impl Classified for AlgebraError {
    fn class(&self) -> ErrorClass {
        ErrorClass::BadAdapter
    }
}

#[cfg(test)]
mod tests;
