//! Several adapters as one sum, and what may be done to them first so that they disturb each other less.
//!
//! LiON-LoRA (arXiv 2507.05678) asks for adapters whose norms are consistent and whose directions are orthogonal. It
//! gives no formulas; those here are v2l's own.

use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, Axis, concatenate};

use super::AlgebraError;
use super::canonical::Canonical;
use super::linear::qr;
use crate::lora::adapter::{Adapter, LowRank, Update};

/// What is done to adapters before they are added.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Composition {
    /// Nothing.
    #[default]
    Add,
    /// Layer by layer their norms are brought towards each other.
    Norm(NormConsistency),
    /// Each adapter loses what lies in the output directions of those before it, so that in no layer the updates have a
    /// part in common. The first keeps everything.
    Orthogonal,
}

/// How far norms are brought towards each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConsistency {
    /// 0 changes nothing, 1 makes the norms in a layer equal, up to `most`.
    pub gamma: f64,
    /// No update is multiplied or divided by more.
    pub most: f64,
    /// Each adapter as a whole keeps its strength: its factors of all layers have a geometric mean of 1.
    pub preserve_strength: bool,
}

impl Default for NormConsistency {
    fn default() -> Self {
        Self { gamma: 1.0, most: 4.0, preserve_strength: true }
    }
}

/// An adapter as it goes into the sum, at the strength that it had.
#[derive(Clone, Debug, PartialEq)]
pub struct Composed {
    /// The adapter.
    pub adapter: Adapter,
    /// What is left of `Σ ‖ΔW‖²` over its layers.
    pub kept: f64,
}

/// Prepares adapters, each with its strength, for their sum. The sum itself is [`merge`]'s or a fuse's.
///
/// An adapter whose strength is 0 is left as it is and changes no other.
///
/// # Errors
/// [`AlgebraError`]; [`Composition::Add`] does not fail.
pub fn compose(adapters: &[(&Adapter, f32)], how: Composition) -> Result<Vec<Composed>, AlgebraError> {
    match how {
        Composition::Add => {
            Ok(adapters.iter().map(|(adapter, _)| Composed { adapter: (*adapter).clone(), kept: 1.0 }).collect())
        }
        Composition::Norm(options) => consistent(adapters, options),
        Composition::Orthogonal => orthogonal(adapters),
    }
}

/// Scales are changed, factors are not.
fn consistent(adapters: &[(&Adapter, f32)], options: NormConsistency) -> Result<Vec<Composed>, AlgebraError> {
    let mut norms: Vec<IndexMap<&str, f64>> = Vec::with_capacity(adapters.len());
    for (adapter, strength) in adapters {
        let mut own = IndexMap::new();
        for (slot, update) in &adapter.layers {
            let norm = Canonical::of(update, &adapter.name, slot)?.norm() * f64::from(*strength).abs();
            own.insert(&slot[..], finite(norm, adapter, slot)?);
        }
        norms.push(own);
    }
    let mut logs: IndexMap<&str, Vec<f64>> = IndexMap::new();
    for (slot, norm) in norms.iter().flatten().filter(|(_, norm)| **norm > 0.0) {
        logs.entry(slot).or_default().push(norm.ln());
    }
    let targets: IndexMap<&str, f64> = logs.iter().map(|(slot, logs)| (*slot, mean(logs))).collect();
    let found = adapters.iter().zip(&norms).map(|((adapter, _), norms)| {
        let bound = options.most.max(1.0).ln();
        let factors: IndexMap<&str, f64> = norms
            .iter()
            .filter(|(_, norm)| **norm > 0.0)
            .map(|(slot, norm)| (*slot, (options.gamma * (targets[slot] - norm.ln())).clamp(-bound, bound)))
            .collect();
        let logs: Vec<f64> = factors.values().copied().collect();
        let centre = if options.preserve_strength { mean(&logs) } else { 0.0 };
        let mut composed = (*adapter).clone();
        let (mut kept, mut all) = (0.0, 0.0);
        for (slot, update) in &mut composed.layers {
            let Some(log) = factors.get(&slot[..]) else { continue };
            let factor = (log - centre).exp();
            let scaled = match &**update {
                Update::LowRank(own) => LowRank { alpha: (f64::from(own.alpha) * factor) as f32, ..own.clone() }.into(),
                Update::Full(difference) => Update::Full(difference.mapv(|x| (f64::from(x) * factor) as f32)),
            };
            *update = Arc::new(scaled);
            let square = norms[&slot[..]].powi(2);
            all += square;
            kept += square * factor * factor;
        }
        Composed { adapter: composed, kept: if all > 0.0 { kept / all } else { 1.0 } }
    });
    Ok(found.collect())
}

fn orthogonal(adapters: &[(&Adapter, f32)]) -> Result<Vec<Composed>, AlgebraError> {
    // Slot → orthonormal output directions of the adapters so far.
    let mut taken: IndexMap<&str, Array2<f64>> = IndexMap::new();
    let mut found = Vec::with_capacity(adapters.len());
    for (adapter, strength) in adapters {
        let mut composed = (*adapter).clone();
        let (mut kept, mut all) = (0.0, 0.0);
        for (slot, update) in &adapter.layers {
            let own = Canonical::of(update, &adapter.name, slot)?;
            finite(own.norm() * f64::from(*strength), adapter, slot)?;
            let before = own.norm().powi(2);
            all += before;
            let part = match taken.get(&slot[..]) {
                Some(basis) if *strength != 0.0 => {
                    let (rows, columns) = update.dim();
                    let (expected, found) = ([basis.ncols(), columns], [rows, columns]);
                    if expected != found {
                        let (adapter, slot) = (adapter.name.clone(), slot.clone());
                        return Err(AlgebraError::Shape { adapter, slot, expected, found });
                    }
                    let factors = update.to_low_rank().into_owned();
                    let up = without(factors.up.t().mapv(f64::from), basis);
                    let rest = Update::from(LowRank { up: up.t().mapv(|x| x as f32), ..factors });
                    let part = Canonical::of(&rest, &adapter.name, slot)?;
                    composed.layers.insert(slot.clone(), Arc::new(rest));
                    part
                }
                _ => own,
            };
            kept += part.norm().powi(2);
            if *strength != 0.0 && part.norm() > 1e-6 * before.sqrt() {
                let directions = part.left.slice(ndarray::s![..part.numerical_rank(), ..]);
                let all = match taken.get(&slot[..]) {
                    Some(basis) => concatenate![Axis(0), *basis, directions],
                    None => directions.to_owned(),
                };
                taken.insert(slot, qr(all).0);
            }
        }
        found.push(Composed { adapter: composed, kept: if all > 0.0 { kept / all } else { 1.0 } });
    }
    Ok(found)
}

/// Vectors, in rows, less their parts along an orthonormal basis; twice, as the first time leaves rounding.
fn without(mut vectors: Array2<f64>, basis: &Array2<f64>) -> Array2<f64> {
    for _ in 0..2 {
        let along = vectors.dot(&basis.t());
        vectors = vectors - along.dot(basis);
    }
    vectors
}

/// The sum of adapters, each with its strength, as one adapter of strength and scale 1: factors one after the other, so
/// that the ranks add up. Exact but for one rounding of each element of `up`.
///
/// # Errors
/// [`AlgebraError`] if two differ in a layer's shape, or a number is not finite.
pub fn merge(name: &str, adapters: &[(&Adapter, f32)]) -> Result<Adapter, AlgebraError> {
    let mut merged = Adapter { name: name.to_owned(), ..Adapter::default() };
    for (adapter, strength) in adapters {
        for (slot, update) in &adapter.layers {
            let factor = finite(f64::from(*strength) * f64::from(update.scale()), adapter, slot)?;
            let factors = update.to_low_rank();
            let up = factors.up.mapv(|x| (f64::from(x) * factor) as f32);
            let whole = append(&merged, adapter, slot, LowRank { up, down: factors.down.clone(), alpha: 0.0 })?;
            merged.layers.insert(slot.clone(), whole.into());
        }
    }
    Ok(merged)
}

/// The mean of adapters, as one: factors one after the other, each `down` over the number of adapters, so that the ranks add
/// up and the scale stays. A layer that only some have counts as 0 in the others.
///
/// # Errors
/// [`AlgebraError`] if two differ in a layer's shape, or a number is not finite.
pub fn join(name: &str, adapters: &[&Adapter]) -> Result<Adapter, AlgebraError> {
    let count = adapters.len() as f32;
    let mut joined = Adapter { name: name.to_owned(), ..Adapter::default() };
    let scales = |slot: &str| {
        adapters.iter().filter_map(|a| a.layers.get(slot)).map(|update| update.scale()).collect::<Vec<_>>()
    };
    for adapter in adapters {
        for (slot, update) in &adapter.layers {
            // One scale for all stays outside of the factors.
            let own = scales(slot);
            let (inside, outside) =
                if own.iter().all(|scale| *scale == own[0]) { (1.0, own[0]) } else { (update.scale(), 1.0) };
            let strength = f64::from(inside);
            let LowRank { down, up, .. } = update.to_low_rank().into_owned();
            let up = if inside == 1.0 { up } else { up.mapv(|x| (f64::from(x) * strength) as f32) };
            let part = LowRank { down: down.mapv(|x| x / count), alpha: 0.0, up };
            let whole = append(&joined, adapter, slot, part)?;
            let alpha = outside * whole.rank() as f32;
            joined.layers.insert(slot.clone(), LowRank { alpha, ..whole }.into());
        }
    }
    Ok(joined)
}

/// Factors of scale 1 together with those that an adapter has of a layer.
fn append(merged: &Adapter, from: &Adapter, slot: &str, part: LowRank) -> Result<LowRank, AlgebraError> {
    if !part.up.iter().chain(&part.down).all(|x| x.is_finite()) {
        return Err(AlgebraError::NotFinite { adapter: from.name.clone(), slot: slot.to_owned() });
    }
    let (up, down) = match merged.layers.get(slot) {
        None => (part.up, part.down),
        Some(before) => {
            let before = before.to_low_rank();
            let shape = |update: &LowRank| [update.up.nrows(), update.down.ncols()];
            let (expected, found) = (shape(&before), shape(&part));
            if expected != found {
                let (adapter, slot) = (from.name.clone(), slot.to_owned());
                return Err(AlgebraError::Shape { adapter, slot, expected, found });
            }
            (concatenate![Axis(1), before.up, part.up], concatenate![Axis(0), before.down, part.down])
        }
    };
    Ok(LowRank { alpha: down.nrows() as f32, down, up })
}

fn finite(value: f64, adapter: &Adapter, slot: &str) -> Result<f64, AlgebraError> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(AlgebraError::NotFinite { adapter: adapter.name.clone(), slot: slot.to_owned() }),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
