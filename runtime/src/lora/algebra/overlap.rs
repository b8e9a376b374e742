//! How far two adapters act on the same directions, and with what strength: will they disturb each other?
//!
//! LiON-LoRA (arXiv 2507.05678) names the two checks, orthogonality and consistent norms; the formulas are v2l's own.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::canonical::Canonical;
use super::{AlgebraError, place};
use crate::engine::manifest::Slot;
use crate::lora::adapter::{Adapter, Update};

/// This part of a model's blocks, the first, counts as shallow.
const SHALLOW: f64 = 1.0 / 3.0;
/// Two adapters disturb each other if their overlap in shallow blocks is above this …
const DISTURBING: f64 = 0.3;
/// … and this many times that of random directions.
const TIMES_RANDOM: f64 = 5.0;

/// Two updates of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotOverlap {
    /// The layer.
    pub slot: String,
    /// Numerical ranks.
    pub ranks: [usize; 2],
    /// `‖ΔW‖` of each, strength included.
    pub norms: [f64; 2],
    /// Mean squared cosine of the principal angles between the spaces of outputs that the updates reach, 0 to 1.
    pub output: f64,
    /// The same of the inputs that they read.
    pub input: f64,
    /// What `output` would be for random directions.
    pub random_output: f64,
    /// What `input` would be for random directions.
    pub random_input: f64,
    /// Cosine between the two updates as vectors, strengths included: −1 where they cancel, 1 where they add up.
    pub cosine: f64,
    /// Standard deviation of the two norms over their mean: 0 where they are equal, 1 where one is nothing.
    pub norm_dispersion: f64,
}

/// Means over layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Means {
    /// How many layers.
    pub slots: usize,
    /// Mean of [`SlotOverlap::output`].
    pub output: f64,
    /// Mean of [`SlotOverlap::input`].
    pub input: f64,
    /// Mean of [`SlotOverlap::random_output`].
    pub random_output: f64,
    /// Mean of the magnitude of [`SlotOverlap::cosine`].
    pub cosine: f64,
    /// Mean of [`SlotOverlap::norm_dispersion`].
    pub norm_dispersion: f64,
}

/// Two adapters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Layers that both change, in the model's order.
    pub slots: Vec<SlotOverlap>,
    /// Layers that only the first, or only the second, changes.
    pub alone: [usize; 2],
    /// Over the first third of the model's blocks.
    pub shallow: Means,
    /// Over all others, and what is in no block.
    pub deep: Means,
    /// Over layers of equal module path, `*` for the number of the block.
    pub modules: BTreeMap<String, Means>,
    /// The layer of the largest magnitude of cosine.
    pub worst: Option<String>,
    /// In shallow blocks they act on the same outputs, far more than by chance.
    pub disturbing: bool,
}

/// Compares two adapters, each with its strength, over the layers of a model. An update of zero overlaps with nothing.
///
/// # Errors
/// [`AlgebraError`].
pub fn compare(slots: &[Slot], a: (&Adapter, f32), b: (&Adapter, f32)) -> Result<Comparison, AlgebraError> {
    let blocks = slots.iter().filter_map(|slot| place(&slot.name).1).max().map_or(0, |last| last.saturating_add(1));
    let shallow = (blocks as f64 * SHALLOW).ceil() as u64;
    let mut found = Comparison::default();
    let mut groups: [Vec<SlotOverlap>; 2] = Default::default();
    let mut modules: HashMap<String, Vec<SlotOverlap>> = HashMap::new();
    for slot in slots {
        match (a.0.layers.get(&slot.name), b.0.layers.get(&slot.name)) {
            (Some(first), Some(second)) => {
                let overlap = of_slot(&slot.name, (a.0, first, a.1), (b.0, second, b.1))?;
                let (module, block) = place(&slot.name);
                groups[usize::from(block.is_none_or(|block| block >= shallow))].push(overlap.clone());
                modules.entry(module).or_default().push(overlap.clone());
                found.slots.push(overlap);
            }
            (Some(_), None) => found.alone[0] += 1,
            (None, Some(_)) => found.alone[1] += 1,
            (None, None) => {}
        }
    }
    [found.shallow, found.deep] = groups.each_ref().map(|group| means(group));
    found.modules = modules.into_iter().map(|(module, slots)| (module, means(&slots))).collect();
    let worst = found.slots.iter().max_by(|a, b| a.cosine.abs().total_cmp(&b.cosine.abs()));
    found.worst = worst.map(|slot| slot.slot.clone());
    found.disturbing =
        found.shallow.output > DISTURBING && found.shallow.output > TIMES_RANDOM * found.shallow.random_output;
    Ok(found)
}

fn of_slot(
    slot: &str,
    (first, a, strength_a): (&Adapter, &Update, f32),
    (second, b, strength_b): (&Adapter, &Update, f32),
) -> Result<SlotOverlap, AlgebraError> {
    let shape = |update: &Update| <[usize; 2]>::from(update.dim());
    if shape(a) != shape(b) {
        let (adapter, slot) = (second.name.clone(), slot.to_owned());
        return Err(AlgebraError::Shape { adapter, slot, expected: shape(a), found: shape(b) });
    }
    let [outputs, inputs] = shape(a).map(|extent| extent as f64);
    let strengths = [f64::from(strength_a), f64::from(strength_b)];
    let (ca, cb) = (Canonical::of(a, &first.name, slot)?, Canonical::of(b, &second.name, slot)?);
    let norms = [ca.norm() * strengths[0].abs(), cb.norm() * strengths[1].abs()];
    for (norm, adapter) in norms.iter().zip([first, second]) {
        if !norm.is_finite() {
            return Err(AlgebraError::NotFinite { adapter: adapter.name.clone(), slot: slot.to_owned() });
        }
    }
    let ranks = [&ca, &cb].map(Canonical::numerical_rank);
    let (least, most) = (ranks[0].min(ranks[1]), ranks[0].max(ranks[1]) as f64);
    let (left, right) = (ca.left.dot(&cb.left.t()), ca.right.dot(&cb.right.t()));
    let (mut output, mut input, mut product) = (0.0, 0.0, 0.0);
    for i in 0..ranks[0] {
        for j in 0..ranks[1] {
            let (l, r) = (left[[i, j]], right[[i, j]]);
            output += l * l;
            input += r * r;
            product += ca.values[i] * cb.values[j] * l * r;
        }
    }
    let over = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    Ok(SlotOverlap {
        slot: slot.to_owned(),
        ranks,
        norms,
        output: over(output, least as f64),
        input: over(input, least as f64),
        random_output: over(most, outputs).min(1.0),
        random_input: over(most, inputs).min(1.0),
        cosine: over(product * strengths[0] * strengths[1], norms[0] * norms[1]),
        norm_dispersion: over((norms[0] - norms[1]).abs(), norms[0] + norms[1]),
    })
}

fn means(slots: &[SlotOverlap]) -> Means {
    let mean = |of: fn(&SlotOverlap) -> f64| slots.iter().map(of).sum::<f64>() / slots.len().max(1) as f64;
    Means {
        slots: slots.len(),
        output: mean(|slot| slot.output),
        input: mean(|slot| slot.input),
        random_output: mean(|slot| slot.random_output),
        cosine: mean(|slot| slot.cosine.abs()),
        norm_dispersion: mean(|slot| slot.norm_dispersion),
    }
}
