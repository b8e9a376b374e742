//! Updates of one layer: what an adapter adds to it.

use std::borrow::Cow;
use std::sync::Arc;

use ndarray::{Array2, Axis, concatenate};

/// One layer's update. A strength multiplies all of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A product of two factors.
    LowRank(LowRank),
    /// A full difference `[out, in]`: `ΔW = strength · difference`. It is one addition for each weight.
    Full(Array2<f32>),
}

/// A product of factors: `ΔW = strength · (alpha / rank) · up · down`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, in]`.
    pub down: Array2<f32>,
    /// `[out, rank]`.
    pub up: Array2<f32>,
    /// Scale numerator; equal to the rank for a scale of 1.
    pub alpha: f32,
}

impl Update {
    /// Output and input features of the layer.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::LowRank(factors) => (factors.up.nrows(), factors.down.ncols()),
            Self::Full(difference) => difference.dim(),
        }
    }

    /// Rank of the factors; of a full difference the largest that it can have, its smaller extent.
    pub fn rank(&self) -> usize {
        match self {
            Self::LowRank(factors) => factors.rank(),
            Self::Full(difference) => difference.nrows().min(difference.ncols()),
        }
    }

    /// What the update is multiplied by besides the strength: `alpha / rank`, or 1.
    pub fn scale(&self) -> f32 {
        match self {
            Self::LowRank(factors) => factors.scale(),
            Self::Full(_) => 1.0,
        }
    }

    /// The factors, if it is a product of two.
    pub fn factors(&self) -> Option<&LowRank> {
        match self {
            Self::LowRank(factors) => Some(factors),
            Self::Full(_) => None,
        }
    }

    /// The update as a product. One factor of a full difference is then the identity, so that the product is the difference bit for bit;
    /// it costs a copy of the difference, and the square of its smaller extent.
    pub fn to_low_rank(&self) -> Cow<'_, LowRank> {
        match self {
            Self::LowRank(factors) => Cow::Borrowed(factors),
            Self::Full(difference) => {
                let (rows, columns) = difference.dim();
                let rank = rows.min(columns);
                let (values, identity) = (difference.clone(), Array2::eye(rank));
                let (down, up) = if rows <= columns { (values, identity) } else { (identity, values) };
                Cow::Owned(LowRank { down, up, alpha: rank as f32 })
            }
        }
    }

    /// `ΔW` at a strength of 1, `[out, in]`. Costs the product of the factors.
    pub fn delta(&self) -> Array2<f32> {
        match self {
            Self::LowRank(factors) => factors.up.dot(&factors.down) * factors.scale(),
            Self::Full(difference) => difference.clone(),
        }
    }

    /// The matrices that it consists of: `down` and `up`, or the difference.
    pub fn matrices(&self) -> impl Iterator<Item = &Array2<f32>> {
        let (first, second) = match self {
            Self::LowRank(LowRank { down, up, .. }) => (down, Some(up)),
            Self::Full(difference) => (difference, None),
        };
        std::iter::once(first).chain(second)
    }

    /// True if it adds nothing, whatever the strength.
    pub fn is_zero(&self) -> bool {
        let zero = |matrix: &Array2<f32>| matrix.iter().all(|&x| x == 0.0);
        self.scale() == 0.0 || self.matrices().any(zero)
    }

    /// Adds the numbers of its matrices to a hash; the scale is no part of them.
    pub(crate) fn hash_matrices(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&[u8::from(self.factors().is_some())]);
        for matrix in self.matrices() {
            let extents = [matrix.nrows(), matrix.ncols()].map(|extent| extent as u64);
            hasher.update(bytemuck::cast_slice(&extents));
            let rows = matrix.as_standard_layout();
            // Of the usual layout: its elements are there as a slice.
            hasher.update(bytemuck::cast_slice(rows.as_slice().unwrap_or_default()));
        }
    }
}

impl From<LowRank> for Update {
    fn from(factors: LowRank) -> Self {
        Self::LowRank(factors)
    }
}

impl From<LowRank> for Arc<Update> {
    fn from(factors: LowRank) -> Self {
        Self::new(factors.into())
    }
}

impl LowRank {
    /// The sum of two updates of one layer, as one of scale 1: ranks side by side. `None` if they are of different shapes.
    pub(crate) fn joined(&self, other: &Self) -> Option<Self> {
        let down = concatenate(Axis(0), &[self.down.view(), other.down.view()]).ok()?;
        let scaled = |update: &Self| &update.up * update.scale();
        let up = concatenate(Axis(1), &[scaled(self).view(), scaled(other).view()]).ok()?;
        let alpha = down.nrows() as f32;
        Some(Self { down, up, alpha })
    }

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
