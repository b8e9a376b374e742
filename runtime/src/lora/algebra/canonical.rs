//! The singular-value form of an update, which does not depend on how its factors were chosen.

use ndarray::{Array2, Axis};

use super::AlgebraError;
use super::linear::{qr, svd};
use crate::lora::adapter::{Adapter, LowRank, Update};

/// Largest rank whose singular values are computed.
pub const MAX_RANK: usize = 1024;

/// Singular values below this part of the largest do not count.
const NUMERICAL_ZERO: f64 = 1e-6;

/// `ΔW = Σᵢ values[i] · left[i] · right[i]ᵀ`, strength 1 and scale included, the largest value first.
///
/// Unique up to rotations among equal values: of each left vector the element of largest magnitude, the first of equal
/// ones, is positive (Prompt2Effect, equation 7; the rule for signs is that of its reproductions).
#[derive(Clone, Debug, PartialEq)]
pub struct Canonical {
    /// `[k, out]`, rows of length 1, or 0 where the value is 0; `k` is the least of rank, out and in.
    pub left: Array2<f64>,
    /// `[k]`.
    pub values: Vec<f64>,
    /// `[k, in]`, as `left`.
    pub right: Array2<f64>,
}

impl Canonical {
    /// Of one layer's update. Costs `O((out + in) · rank²)` and `O(rank³)`: two QR factorizations of the factors, and the
    /// singular values of the product of what is left of them.
    ///
    /// # Errors
    /// [`AlgebraError`] if the rank is above [`MAX_RANK`] or a number is not finite; `adapter` and `slot` are for it.
    pub fn of(update: &Update, adapter: &str, slot: &str) -> Result<Self, AlgebraError> {
        let at = || (adapter.to_owned(), slot.to_owned());
        let rank = update.rank();
        if rank > MAX_RANK {
            let (adapter, slot) = at();
            return Err(AlgebraError::Rank { adapter, slot, rank });
        }
        let finite = |factor: &Array2<f32>| factor.iter().all(|x| x.is_finite());
        if !(update.matrices().all(finite) && update.scale().is_finite()) {
            let (adapter, slot) = at();
            return Err(AlgebraError::NotFinite { adapter, slot });
        }
        let scale = f64::from(update.scale());
        let update = update.to_low_rank();
        let (output, r_output) = qr(update.up.t().mapv(|x| f64::from(x) * scale));
        let (input, r_input) = qr(update.down.mapv(f64::from));
        let (u, values, v) = svd(&r_output.dot(&r_input.t()));
        let (mut left, mut right) = (u.dot(&output), v.dot(&input));
        for (mut left, mut right) in left.axis_iter_mut(Axis(0)).zip(right.axis_iter_mut(Axis(0))) {
            let largest = left.iter().fold(0f64, |most, &x| if x.abs() > most.abs() { x } else { most });
            if largest < 0.0 {
                left.mapv_inplace(|x| -x);
                right.mapv_inplace(|x| -x);
            }
        }
        Ok(Self { left, values, right })
    }

    /// How many values are above 10⁻⁶ of the largest.
    pub fn numerical_rank(&self) -> usize {
        let least = self.values.first().map_or(0.0, |largest| largest * NUMERICAL_ZERO);
        self.values.iter().take_while(|&&value| value > least).count()
    }

    /// `‖ΔW‖`, Frobenius.
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// The part of `‖ΔW‖²` that the first `rank` values hold; 1 of an update of zero.
    pub fn energy(&self, rank: usize) -> f64 {
        let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let all = squares(&self.values);
        if all > 0.0 { squares(&self.values[..rank.min(self.values.len())]) / all } else { 1.0 }
    }

    /// `up = U · S^½`, `down = S^½ · Vᵀ` of this rank and of scale 1: what is beyond the rank is dropped, what is missing is
    /// zeros.
    pub fn factors(&self, rank: usize) -> LowRank {
        let scaled = |vectors: &Array2<f64>| {
            let kept = self.values.len().min(rank);
            Array2::from_shape_fn((rank, vectors.ncols()), |(i, j)| {
                if i < kept { (self.values[i].sqrt() * vectors[[i, j]]) as f32 } else { 0.0 }
            })
        };
        let up = scaled(&self.left).reversed_axes().as_standard_layout().into_owned();
        LowRank { down: scaled(&self.right), up, alpha: rank as f32 }
    }
}

/// The adapter with canonical factors of at most this rank in each layer (its own where it is lower), and the part of
/// `Σ ‖ΔW‖²` over all layers that they keep.
///
/// # Errors
/// As [`Canonical::of`].
pub fn recompress(adapter: &Adapter, rank: usize) -> Result<(Adapter, f64), AlgebraError> {
    let mut found = Adapter { name: adapter.name.clone(), ..Adapter::default() };
    let (mut kept, mut all) = (0.0, 0.0);
    for (slot, update) in &adapter.layers {
        let canonical = Canonical::of(update, &adapter.name, slot)?;
        let square = canonical.norm().powi(2);
        all += square;
        kept += square * canonical.energy(rank);
        found.layers.insert(slot.clone(), canonical.factors(rank.min(update.rank())).into());
    }
    Ok((found, if all > 0.0 { kept / all } else { 1.0 }))
}
