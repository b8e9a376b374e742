//! What survives of an adapter when weights are rounded.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::RoundingStats;
use crate::wording::{BRANCH, WEIGHTS_F32};

/// Realised gain below which rounding loses a noticeable part of the adapters.
const LEAST_GAIN: f64 = 0.9;

/// What a fuse did to one slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotReport {
    /// The slot.
    pub slot: String,
    /// Sum of the adapters' ranks.
    pub rank: usize,
    /// Weights of the slot.
    pub weights: u64,
    /// Sums over them.
    pub rounding: RoundingStats,
}

/// What a fuse did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FuseReport {
    /// Per changed slot, tensor by tensor in the engine's order.
    pub slots: Vec<SlotReport>,
    /// True if the results were kept from an earlier fuse, false if they are kept now; `None` without a folder to keep them in.
    pub kept: Option<bool>,
    /// Why they could not be kept.
    pub not_kept: Option<String>,
    /// Why an entry that was there was not used: a pipe, a link, or what others could have written.
    pub passed_over: Option<String>,
}

impl RoundingStats {
    /// `‖ΔW‖`, Frobenius.
    pub fn delta_norm(&self) -> f64 {
        self.norm.sqrt()
    }

    /// Realised gain `⟨W' − W, ΔW⟩ / ‖ΔW‖²`: 1 if all of the update survives on average, 1 for an update of zero.
    pub fn survived(&self) -> f64 {
        if self.norm > 0.0 { self.dot / self.norm } else { 1.0 }
    }

    /// `‖W' − W − ΔW‖ / ‖ΔW‖`: 0 if W' − W is the update itself, 0 for an update of zero.
    pub fn relative_error(&self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

impl SlotReport {
    /// Part of the weights with `W' = W`.
    pub fn unchanged(&self) -> f64 {
        if self.weights == 0 { 1.0 } else { self.rounding.unchanged as f64 / self.weights as f64 }
    }
}

impl FuseReport {
    /// All slots together, as one.
    pub fn overall(&self) -> SlotReport {
        let rounding = self.slots.iter().fold(RoundingStats::default(), |sum, slot| sum.plus(slot.rounding));
        let rank = self.slots.iter().map(|slot| slot.rank).max().unwrap_or(0);
        let weights = self.slots.iter().map(|slot| slot.weights).sum();
        SlotReport { slot: "overall".to_owned(), rank, weights, rounding }
    }

    /// What to tell the user, with the ways out, if less than 90 % of the update survives overall; else `None`.
    pub fn warning(&self) -> Option<String> {
        (self.overall().rounding.survived() < LEAST_GAIN).then(|| {
            format!(
                "rounding to the storage type loses a noticeable part of the adapter; use `{WEIGHTS_F32}`, or compile \
                 with `v2l-compile --precision fp32` (fp16 loses less than bf16), or with `v2l-compile --lora-rank MAX` \
                 and use `{BRANCH}`"
            )
        })
    }
}

impl FuseReport {
    /// What to tell the user if more than half of the slots keep all of their weights, although adapters of a strength other than 0
    /// are for them; else `None`.
    pub fn idle(&self) -> Option<String> {
        idle(self.slots.iter().map(|slot| slot.rounding.unchanged == slot.weights))
    }
}

/// What to tell the user if more than half of some slots stay as they are; else `None`.
pub(crate) fn idle(unchanged: impl Iterator<Item = bool>) -> Option<String> {
    let (idle, of) = unchanged.fold((0, 0), |(idle, of), unchanged| (idle + usize::from(unchanged), of + 1));
    (2 * idle > of).then(|| {
        format!(
            "the adapters change nothing in {idle} of {of} slots: their updates are zero there, or too small to change a weight \
             (a rank or an alpha of 0, or a factor that was never trained)"
        )
    })
}

impl Serialize for SlotReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SlotReport", 7)?;
        fields.serialize_field("slot", &self.slot)?;
        fields.serialize_field("rank", &self.rank)?;
        fields.serialize_field("weights", &self.weights)?;
        fields.serialize_field("delta_norm", &self.rounding.delta_norm())?;
        // Nothing survives of nothing.
        let survived = (self.rounding.norm > 0.0).then(|| self.rounding.survived());
        fields.serialize_field("survived", &survived)?;
        fields.serialize_field("relative_error", &self.rounding.relative_error())?;
        fields.serialize_field("unchanged", &self.unchanged())?;
        fields.end()
    }
}

impl Serialize for FuseReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("FuseReport", 2)?;
        fields.serialize_field("overall", &self.overall())?;
        fields.serialize_field("slots", &self.slots)?;
        fields.end()
    }
}
