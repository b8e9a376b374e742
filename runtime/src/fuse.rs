//! Fusion: `W' = round(f32(W) + Σᵢ sᵢ · Bᵢ · Aᵢ)`, from the pristine weights into private buffers.
//!
//! The order is fixed: adapters by name (equal names in the order given), then ranks in ascending order, each step one
//! fused multiply-add in f32. Strength and `alpha / rank` enter once, as the factor `sᵢ` of an adapter's whole product.
//! So results depend neither on threads nor on the processor, and an update of zero gives the base bit for bit.

use std::collections::HashSet;

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use indexmap::IndexMap;
use ndarray::Array2;
use rayon::prelude::*;

use crate::adapter::{Adapter, LowRank};
use crate::engine::manifest::Slot;
use crate::engine::{Engine, EngineError};
use crate::raw::{vec_into_bytes, widen, widen_into};
use crate::tensor::Dtype;
use crate::weights::WeightView;

/// Rows that one thread fuses at a time.
const ROWS: usize = 16;
/// Columns that stay in cache while a thread's rows are fused.
const COLUMNS: usize = 512;

/// The type of fused weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseTarget {
    /// f32, whatever the weights are stored in: nothing is lost but the last bit of f32.
    F32,
    /// The storage type.
    Storage,
}

/// Why adapters could not be fused. Nothing has then changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// The component has no such layer.
    #[error("adapter `{adapter}`: the component has no slot `{slot}`; was the adapter made for another model?")]
    UnknownSlot {
        /// The adapter.
        adapter: String,
        /// The layer that it changes.
        slot: String,
    },
    /// One adapter changes a layer under two names.
    #[error("adapter `{adapter}` changes slot `{slot}` twice, as `{alias}` too; remove one of them")]
    Twice {
        /// The adapter.
        adapter: String,
        /// The slot.
        slot: String,
        /// The second name.
        alias: String,
    },
    /// A factor does not fit the layer.
    #[error("adapter `{adapter}`, slot `{slot}`: expected {expected}, found {found}; was it made for another model?")]
    ShapeMismatch {
        /// The adapter.
        adapter: String,
        /// The slot.
        slot: String,
        /// What fits.
        expected: String,
        /// What the adapter holds.
        found: String,
    },
    /// A factor or scale is NaN or infinite.
    #[error("adapter `{adapter}`, slot `{slot}`: {factor} holds NaN or infinity; the adapter is damaged")]
    NotFinite {
        /// The adapter.
        adapter: String,
        /// The slot.
        slot: String,
        /// `down`, `up`, `alpha` or `strength`.
        factor: &'static str,
    },
    /// The sum leaves the range of the target type.
    #[error(
        "slot `{slot}`: fused weights are not finite in {dtype}; lower the strength, or use `--ort-weights widened`"
    )]
    Overflow {
        /// The slot.
        slot: String,
        /// The type.
        dtype: Dtype,
    },
    /// The engine lacks the weight.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What a fuse did to one slot.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SlotReport {
    /// The slot.
    pub slot: String,
    /// Sum of the adapters' ranks.
    pub rank: usize,
    /// `‖ΔW‖`, Frobenius.
    pub delta_norm: f64,
    /// Part of ΔW that survived rounding, `⟨W' − W, ΔW⟩ / ‖ΔW‖²`: 1 if all of it, 1 for an update of zero.
    pub survived: f64,
}

/// What a fuse did.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct FuseReport {
    /// Per changed slot, in the engine's order.
    pub slots: Vec<SlotReport>,
}

/// Fused weights.
#[derive(Clone, Debug, Default)]
pub struct Fused {
    /// Tensor name → all of its elements in the target type.
    pub weights: IndexMap<String, Bytes>,
    /// What was done.
    pub report: FuseReport,
}

/// One adapter's update of one slot.
#[derive(Clone, Copy, Debug)]
struct Term<'a> {
    adapter: &'a str,
    update: &'a LowRank,
    strength: f32,
}

/// Fuses adapters, each with its strength, into the weights they change.
///
/// Private memory: one buffer per changed tensor, in the target type. Costs `2 · out · in · rank` flops per slot.
///
/// # Errors
/// [`FuseError`]; no result is then visible anywhere.
pub fn fuse(engine: &Engine, adapters: &[(&Adapter, f32)], target: FuseTarget) -> Result<Fused, FuseError> {
    let mut terms = resolve(engine, adapters)?;
    let mut by_tensor: IndexMap<&str, Vec<(&Slot, Vec<Term<'_>>)>> = IndexMap::new();
    for slot in &engine.manifest().slots {
        if let Some(terms) = terms.swap_remove(&slot.name[..]) {
            by_tensor.entry(&slot.tensor).or_default().push((slot, terms));
        }
    }
    let mut fused = Fused::default();
    for (tensor, slots) in by_tensor {
        let (data, reports) = fuse_tensor(&engine.weight(tensor)?, &slots, target)?;
        fused.weights.insert(tensor.to_owned(), data);
        fused.report.slots.extend(reports);
    }
    Ok(fused)
}

/// Names of the tensors that adapters change; layers that the engine lacks are passed over.
pub fn touched_tensors<'a>(engine: &Engine, adapters: impl IntoIterator<Item = &'a Adapter>) -> HashSet<String> {
    let layers = adapters.into_iter().flat_map(|adapter| adapter.layers.keys());
    layers.filter_map(|name| Some(engine.manifest().slot(name)?.tensor.clone())).collect()
}

/// Slot name → terms, in the order of fusion.
fn resolve<'a>(
    engine: &'a Engine,
    adapters: &[(&'a Adapter, f32)],
) -> Result<IndexMap<&'a str, Vec<Term<'a>>>, FuseError> {
    let mut slots = IndexMap::new();
    for slot in &engine.manifest().slots {
        for name in std::iter::once(&slot.name).chain(&slot.aliases) {
            slots.insert(&name[..], slot);
        }
    }
    let mut order = adapters.to_vec();
    order.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut terms: IndexMap<&str, Vec<Term<'_>>> = IndexMap::new();
    for (adapter, strength) in order {
        let mut seen = HashSet::new();
        for (name, update) in &adapter.layers {
            let slot = slots
                .get(&name[..])
                .ok_or_else(|| FuseError::UnknownSlot { adapter: adapter.name.clone(), slot: name.clone() })?;
            if !seen.insert(&slot.name) {
                return Err(FuseError::Twice {
                    adapter: adapter.name.clone(),
                    slot: slot.name.clone(),
                    alias: name.clone(),
                });
            }
            let term = Term { adapter: &adapter.name, update, strength };
            check(slot, &term)?;
            terms.entry(&slot.name).or_default().push(term);
        }
    }
    Ok(terms)
}

fn check(slot: &Slot, term: &Term<'_>) -> Result<(), FuseError> {
    let LowRank { down, up, alpha } = term.update;
    let rank = down.nrows();
    if down.ncols() != slot.in_features || up.dim() != (slot.out_features, rank) {
        return Err(FuseError::ShapeMismatch {
            adapter: term.adapter.to_owned(),
            slot: slot.name.clone(),
            expected: format!("down [rank, {}] and up [{}, rank]", slot.in_features, slot.out_features),
            found: format!("down {:?} and up {:?}", down.shape(), up.shape()),
        });
    }
    let finite = [
        ("down", down.iter().all(|v| v.is_finite())),
        ("up", up.iter().all(|v| v.is_finite())),
        ("alpha", alpha.is_finite()),
        ("strength", term.strength.is_finite()),
    ];
    match finite.into_iter().find(|(_, finite)| !finite) {
        Some((factor, _)) => {
            Err(FuseError::NotFinite { adapter: term.adapter.to_owned(), slot: slot.name.clone(), factor })
        }
        None => Ok(()),
    }
}

fn fuse_tensor(
    base: &WeightView<'_>,
    slots: &[(&Slot, Vec<Term<'_>>)],
    target: FuseTarget,
) -> Result<(Bytes, Vec<SlotReport>), FuseError> {
    match (target, base.dtype) {
        (FuseTarget::Storage, Dtype::F16) => fuse_into(base, slots, copied::<f16>(&base.data)),
        (FuseTarget::Storage, Dtype::Bf16) => fuse_into(base, slots, copied::<bf16>(&base.data)),
        // Slots are floating-point, the engine's reader has checked that: `widen` gives all elements.
        _ => fuse_into(base, slots, widen(base.dtype, &base.data).unwrap_or_default()),
    }
}

fn copied<T: bytemuck::AnyBitPattern + Send>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Fuses `slots` of one tensor into `out`, which holds the pristine elements in the target type.
fn fuse_into<O: Element>(
    base: &WeightView<'_>,
    slots: &[(&Slot, Vec<Term<'_>>)],
    mut out: Vec<O>,
) -> Result<(Bytes, Vec<SlotReport>), FuseError> {
    let mut reports = Vec::with_capacity(slots.len());
    for (slot, terms) in slots {
        let job = Job::new(base, slot, terms);
        let stride = job.stride;
        let window = &mut out[job.first_row * stride..][..job.rows * stride];
        let stats: Vec<Stats> = window
            .par_chunks_mut(ROWS * stride)
            .enumerate()
            .map(|(chunk, rows)| job.fuse_rows(chunk * ROWS, rows))
            .collect();
        let total = stats.into_iter().fold(Stats::default(), Stats::plus);
        if total.overflow {
            return Err(FuseError::Overflow { slot: slot.name.clone(), dtype: O::DTYPE });
        }
        reports.push(SlotReport {
            slot: slot.name.clone(),
            rank: terms.iter().map(|term| term.update.rank()).sum(),
            delta_norm: total.norm.sqrt(),
            survived: if total.norm > 0.0 { total.dot / total.norm } else { 1.0 },
        });
    }
    Ok((vec_into_bytes(out), reports))
}

/// One slot's fuse, seen as rows in memory: a row of `left` picks the combination of the rows of `right`.
struct Job<'a> {
    base: &'a [u8],
    dtype: Dtype,
    /// Elements per row of the tensor.
    stride: usize,
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
    products: Vec<Product>,
}

struct Product {
    /// `[rows, rank]`.
    left: Array2<f32>,
    /// `[rank, columns]`, row-major.
    right: Array2<f32>,
    /// `strength · alpha / rank`: the one point where strength enters.
    factor: f32,
}

#[derive(Clone, Copy, Default)]
struct Stats {
    /// `⟨W' − W, ΔW⟩`.
    dot: f64,
    /// `‖ΔW‖²`.
    norm: f64,
    overflow: bool,
}

impl Stats {
    fn plus(self, other: Self) -> Self {
        Self { dot: self.dot + other.dot, norm: self.norm + other.norm, overflow: self.overflow | other.overflow }
    }
}

impl<'a> Job<'a> {
    fn new(base: &'a WeightView<'_>, slot: &Slot, terms: &[Term<'_>]) -> Self {
        let range = slot.row_range();
        let stride = base.shape.last().copied().unwrap_or(0);
        let (first_row, rows, first_column, columns) = if slot.transposed {
            (0, slot.in_features, range.start, slot.out_features)
        } else {
            (range.start, slot.out_features, 0, slot.in_features)
        };
        let products = terms
            .iter()
            .map(|term| {
                let LowRank { down, up, .. } = term.update;
                let (left, right) = if slot.transposed { (down.t(), up.t()) } else { (up.view(), down.view()) };
                Product {
                    left: left.as_standard_layout().into_owned(),
                    right: right.as_standard_layout().into_owned(),
                    factor: term.strength * term.update.scale(),
                }
            })
            .collect();
        Self { base: &base.data, dtype: base.dtype, stride, first_row, rows, first_column, columns, products }
    }

    /// Fuses the rows in `out`, the first of which is row `start` of the slot.
    fn fuse_rows<O: Element>(&self, start: usize, out: &mut [O]) -> Stats {
        let mut stats = Stats::default();
        let mut scratch = Scratch::new();
        for panel in (0..self.columns).step_by(COLUMNS) {
            let width = COLUMNS.min(self.columns - panel);
            for (i, row) in out.chunks_exact_mut(self.stride).enumerate() {
                let column = self.first_column + panel;
                let Scratch { base, delta, product } = &mut scratch;
                let (base, delta, product) = (&mut base[..width], &mut delta[..width], &mut product[..width]);
                let size = self.dtype.size();
                let at = ((self.first_row + start + i) * self.stride + column) * size;
                widen_into(self.dtype, &self.base[at..at + width * size], base);
                self.delta(start + i, panel, delta, product);
                let fused = &mut product[..];
                for ((fused, &w), &d) in fused.iter_mut().zip(&*base).zip(&*delta) {
                    // An update of zero keeps the base's bits, the sign of a zero too.
                    *fused = if d == 0.0 { w } else { w + d };
                }
                let row = &mut row[column..column + width];
                O::round(fused, row);
                stats = stats.plus(survey(row, base, delta));
            }
        }
        stats
    }

    /// `ΔW[row, panel..]`, summed over the adapters.
    fn delta(&self, row: usize, panel: usize, delta: &mut [f32], product: &mut [f32]) {
        delta.fill(0.0);
        for Product { left, right, factor } in &self.products {
            product.fill(0.0);
            for (k, right) in right.outer_iter().enumerate() {
                if let Some(right) = right.to_slice() {
                    multiply_add(left[[row, k]], &right[panel..panel + product.len()], product);
                }
            }
            multiply_add(*factor, product, delta);
        }
    }
}

struct Scratch {
    base: [f32; COLUMNS],
    delta: [f32; COLUMNS],
    product: [f32; COLUMNS],
}

impl Scratch {
    fn new() -> Self {
        Self { base: [0.0; COLUMNS], delta: [0.0; COLUMNS], product: [0.0; COLUMNS] }
    }
}

fn survey<O: Element>(fused: &[O], base: &[f32], delta: &[f32]) -> Stats {
    let mut stats = Stats::default();
    for ((&fused, &w), &d) in fused.iter().zip(base).zip(delta) {
        let fused = fused.to_f32();
        stats.dot += f64::from(fused - w) * f64::from(d);
        stats.norm += f64::from(d) * f64::from(d);
        stats.overflow |= !fused.is_finite();
    }
    stats
}

/// `sum[j] = fma(factor, values[j], sum[j])`: one rounding each, whatever the processor.
fn multiply_add(factor: f32, values: &[f32], sum: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features.
        #[allow(unsafe_code)]
        return unsafe { multiply_add_fma(factor, values, sum) };
    }
    multiply_add_portable(factor, values, sum);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_fma(factor: f32, values: &[f32], sum: &mut [f32]) {
    multiply_add_portable(factor, values, sum);
}

#[inline(always)]
fn multiply_add_portable(factor: f32, values: &[f32], sum: &mut [f32]) {
    for (sum, &value) in sum.iter_mut().zip(values) {
        *sum = factor.mul_add(value, *sum);
    }
}

/// A type that weights are fused into.
trait Element: bytemuck::NoUninit + Send + Sync {
    const DTYPE: Dtype;
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even; the slices have equal lengths.
    fn round(values: &[f32], out: &mut [Self]);
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn to_f32(self) -> f32 {
        self
    }
    fn round(values: &[f32], out: &mut [Self]) {
        out.copy_from_slice(values);
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn round(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn round(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}

#[cfg(test)]
mod tests;
