//! Fusion: `W' = round(f32(W) + Σᵢ sᵢ · Bᵢ · Aᵢ)`, from the pristine weights into private buffers.
//!
//! The order is fixed: adapters by name (equal names in the order given), then ranks in ascending order, each step one
//! fused multiply-add in f32. Strength and `alpha / rank` enter once, as the factor `sᵢ` of an adapter's whole product.
//! So results depend neither on threads nor on the processor, and an update of zero gives the base bit for bit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use indexmap::IndexMap;
use ndarray::Array2;
use rayon::prelude::*;

use crate::engine::manifest::{Hash, Slot, slots_by_name};
use crate::engine::parameters::matrix;
use crate::engine::{Engine, EngineError};
use crate::error::{Classified, ErrorClass};
use crate::io::raw::widen_bytes;
use crate::io::weights::WeightView;
use crate::lora::adapter::{Adapter, LowRank, Update};
use crate::tensor::Dtype;
use crate::wording::{BACKEND_ORT, BRANCH, FUSE, NO_DEVICE_WEIGHTS, WEIGHTS_F32};

mod arena;
mod kept;
mod kernel;
mod lanes;
mod report;
mod survival;

pub use arena::Pool;
pub(crate) use kept::FusedKey;
pub use kept::{FusedCache, fuse_kept};
pub use kernel::{Addend, Packed, RoundingStats, Simd};
pub(crate) use report::idle;
pub use report::{FuseReport, SlotReport};
pub(crate) use survival::sampled;
pub use survival::{Survival, survival, weight_norm};

/// Elements that one thread fuses at a time, about.
const PIECE: usize = 1 << 16;
/// Bytes of factors that are laid out at once, about: those of some tensors, or of one if they take more.
const LAID_OUT: usize = 32 << 20;
/// Results of at least this many bytes in all are written past the caches, which would not keep them until they are used.
const STREAMED: usize = 4 << 20;

/// The type of fused weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseTarget {
    /// f32, whatever the weights are stored in: nothing is lost but the last bit of f32.
    F32,
    /// The storage type.
    Storage,
}

/// Asked now and then, on any thread: true stops a fuse.
pub type CancelCheck<'a> = Option<&'a (dyn Fn() -> bool + Sync)>;

/// How to fuse.
#[derive(Clone, Copy)]
pub struct FuseOptions<'a> {
    /// The type of the results.
    pub target: FuseTarget,
    /// The instructions to use; all give the same bits.
    pub simd: Simd,
    /// Where the memory comes from, and is kept for the next time; fresh memory without one.
    pub pool: Option<&'a Pool>,
    /// What may stop it.
    pub cancelled: CancelCheck<'a>,
}

impl FuseOptions<'_> {
    /// Into this type, with the fastest instructions, in fresh memory.
    pub fn new(target: FuseTarget) -> Self {
        Self { target, simd: Simd::best(), pool: None, cancelled: None }
    }
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
        /// `down`, `up`, `alpha`, `strength` or their product.
        factor: &'static str,
    },
    /// A layer's weight is stored in 8 bits.
    #[error(
        "slot `{slot}` is stored in 8 bits, and adapters cannot be fused into it; use `{BRANCH}` with an \
         engine of `v2l-compile --lora-rank MAX`, or compile without `--int8`"
    )]
    Quantized {
        /// The slot.
        slot: String,
    },
    /// The backend holds the tensor inside its graphs.
    #[error(
        "`{slot}` is a constant of the graphs that this backend runs, and adapters cannot be fused into it; use `{BACKEND_ORT}` \
         with `{NO_DEVICE_WEIGHTS}`"
    )]
    InGraph {
        /// The parameter.
        slot: String,
    },
    /// Low-rank branches stand beside linear layers only.
    #[error(
        "`{slot}` is not a linear layer, and low-rank branches cannot change it alone; generate with the \
         engine directory, where it is fused beside them, or use `{FUSE}` with an engine that is not in 8 bits"
    )]
    NoBranch {
        /// The parameter.
        slot: String,
    },
    /// The sum leaves the range of the target type.
    #[error("slot `{slot}`: fused weights are not finite in {dtype}; lower the strength, or use `{WEIGHTS_F32}`")]
    Overflow {
        /// The slot.
        slot: String,
        /// The type.
        dtype: Dtype,
    },
    /// More ranks than the branches were compiled for.
    #[error(
        "slot `{slot}`: the adapters' ranks sum to {rank}, the low-rank branches were compiled for {max}; compile with \
         `v2l-compile --lora-rank {rank}`, or use `{FUSE}`"
    )]
    Rank {
        /// The slot.
        slot: String,
        /// Sum of ranks.
        rank: usize,
        /// What the graph was compiled for.
        max: usize,
    },
    /// There is no memory for the results; the base and whatever was fused before are as they were.
    #[error("fused weights need {needed} bytes of memory: {source}; free memory, or use an adapter for fewer layers")]
    Memory {
        /// Bytes needed.
        needed: usize,
        /// The system's words.
        source: std::io::Error,
    },
    /// It was stopped.
    #[error("fusing was cancelled")]
    Cancelled,
    /// The device that fuses refused or failed.
    #[error(transparent)]
    Device(#[from] v2l_cuda::CudaError),
    /// The engine lacks the weight.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Classified for FuseError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Engine(error) => error.class(),
            Self::Device(error) => error.class(),
            Self::Memory { .. } => ErrorClass::Memory,
            Self::Cancelled => ErrorClass::Cancelled,
            _ => ErrorClass::BadAdapter,
        }
    }
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
pub(crate) struct Term<'a> {
    pub(crate) adapter: &'a str,
    pub(crate) update: &'a Update,
    strength: f32,
}

impl Term<'_> {
    /// Strength times `alpha / rank`: the one point where strength enters.
    pub(crate) fn factor(&self) -> f32 {
        self.strength * self.update.scale()
    }
}

/// Weights and slots that adapters are fused into: an engine's, or a model's that is being compiled.
pub trait FuseBase {
    /// What adapters may change. Each slot lies within its tensor, a matrix of floats or a tensor that is taken as one, and no two
    /// overlap.
    fn slots(&self) -> &[Slot];

    /// A pristine weight.
    ///
    /// # Errors
    /// [`EngineError`] if there is none of that name.
    fn base_weight(&self, name: &str) -> Result<WeightView<'_>, EngineError>;

    /// A hash of all weights; without one results are not kept.
    fn fingerprint(&self) -> Option<&Hash> {
        None
    }
}

impl FuseBase for Engine {
    fn slots(&self) -> &[Slot] {
        self.changeable()
    }

    fn base_weight(&self, name: &str) -> Result<WeightView<'_>, EngineError> {
        self.weight(name)
    }

    fn fingerprint(&self) -> Option<&Hash> {
        Some(self.fingerprint())
    }
}

impl<T: FuseBase> FuseBase for Arc<T> {
    fn slots(&self) -> &[Slot] {
        (**self).slots()
    }

    fn base_weight(&self, name: &str) -> Result<WeightView<'_>, EngineError> {
        (**self).base_weight(name)
    }

    fn fingerprint(&self) -> Option<&Hash> {
        FuseBase::fingerprint(&**self)
    }
}

/// Fuses adapters, each with its strength, into the weights they change.
///
/// Private memory: one buffer per changed tensor, in the target type, and [`packed_bytes`]. Costs `2 · out · in · rank` flops per slot; at low
/// ranks it takes about the time of copying the weights (`benches/fuse.rs`).
///
/// # Errors
/// [`FuseError`]; no result is then visible anywhere.
pub fn fuse(engine: &Engine, adapters: &[(&Adapter, f32)], target: FuseTarget) -> Result<Fused, FuseError> {
    fuse_with(engine, adapters, &FuseOptions::new(target))
}

/// [`fuse`] with a choice of instructions and memory, and a way to stop it.
///
/// # Errors
/// [`FuseError`]; no result is then visible anywhere.
pub fn fuse_with(
    base: &impl FuseBase,
    adapters: &[(&Adapter, f32)],
    options: &FuseOptions<'_>,
) -> Result<Fused, FuseError> {
    let by_tensor = by_tensor(base, adapters)?;
    fuse_tensors(&changed(base, &by_tensor)?, options)
}

/// Refuses adapters that could not be fused: their names, shapes, and numbers. Costs a pass over their numbers, and fuses nothing.
///
/// # Errors
/// As [`fuse`], but for what depends on the sums: overflow, and memory.
pub fn check(base: &impl FuseBase, adapters: &[(&Adapter, f32)]) -> Result<(), FuseError> {
    for (slot, terms) in by_tensor(base, adapters)?.values().flatten() {
        // Differences are not looked at before they are added.
        let damaged = |term: &&Term<'_>| term.update.factors().is_none() && !term.update.matrices().all(all_finite);
        if let Some(term) = terms.iter().find(damaged) {
            let adapter = term.adapter.to_owned();
            return Err(FuseError::NotFinite { adapter, slot: slot.name.clone(), factor: "the difference" });
        }
    }
    Ok(())
}

/// The tensors that are changed, with their pristine weights.
pub(crate) fn changed<'a>(
    base: &'a impl FuseBase,
    by_tensor: &'a IndexMap<&'a str, Vec<SlotTerms<'a>>>,
) -> Result<Vec<Changed<'a>>, FuseError> {
    let one =
        |(&name, slots): (&&'a str, &'a Vec<SlotTerms<'a>>)| Ok(Changed { name, base: base.base_weight(name)?, slots });
    by_tensor.iter().map(one).collect()
}

/// A slot, and what is fused into it.
pub(crate) type SlotTerms<'a> = (&'a Slot, Vec<Term<'a>>);

/// Tensor name → what is fused into its slots, in the engine's order, all checked.
pub(crate) fn by_tensor<'a>(
    base: &'a impl FuseBase,
    adapters: &[(&'a Adapter, f32)],
) -> Result<IndexMap<&'a str, Vec<SlotTerms<'a>>>, FuseError> {
    let mut terms = resolve(base, adapters)?;
    let quantized = |slot: &&Slot| slot.quantized.is_some() && terms.contains_key(&slot.name[..]);
    if let Some(slot) = base.slots().iter().find(quantized) {
        return Err(FuseError::Quantized { slot: slot.name.clone() });
    }
    let mut by_tensor: IndexMap<&str, Vec<SlotTerms<'_>>> = IndexMap::new();
    for slot in base.slots() {
        if let Some(terms) = terms.swap_remove(&slot.name[..]) {
            by_tensor.entry(&slot.tensor).or_default().push((slot, terms));
        }
    }
    Ok(by_tensor)
}

/// True if no element is NaN or infinite. Looks at all of them: that is faster than stopping at the first.
pub(crate) fn all_finite(values: &Array2<f32>) -> bool {
    match values.as_slice_memory_order() {
        Some(values) => values.iter().fold(true, |finite, v| finite & v.is_finite()),
        None => values.iter().all(|v| v.is_finite()),
    }
}

/// A tensor, and what is fused into its slots.
pub(crate) struct Changed<'a> {
    pub(crate) name: &'a str,
    pub(crate) base: WeightView<'a>,
    pub(crate) slots: &'a [SlotTerms<'a>],
}

impl Changed<'_> {
    fn target(&self, target: FuseTarget) -> Dtype {
        if target == FuseTarget::F32 { Dtype::F32 } else { self.base.dtype }
    }

    /// Bytes of its factors once they are laid out.
    fn packed_bytes(&self) -> usize {
        let of = |(slot, terms): &SlotTerms<'_>| Job::bytes(slot, terms.iter().map(|term| term.update));
        self.slots.iter().map(of).fold(0, usize::saturating_add)
    }

    fn length(&self, target: FuseTarget) -> usize {
        self.base.data.len() / self.base.dtype.size() * self.target(target).size()
    }

    /// Rows, and elements of a row in memory.
    fn extents(&self) -> (usize, usize) {
        matrix(self.base.shape).unwrap_or((0, 0))
    }

    fn stride(&self) -> usize {
        self.extents().1
    }
}

/// Where a slot lies in its tensor.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) first_column: usize,
    pub(crate) columns: usize,
}

impl Region {
    pub(crate) fn of(slot: &Slot) -> Self {
        let range = slot.row_range();
        if slot.transposed {
            Self { first_row: 0, rows: slot.in_features, first_column: range.start, columns: slot.out_features }
        } else {
            Self { first_row: range.start, rows: slot.out_features, first_column: 0, columns: slot.in_features }
        }
    }
}

/// One slot's updates, and where the slot lies in its tensor: a row of `left` combines the rows of `right`.
struct Job<'a> {
    region: Region,
    packed: Packed<'a>,
}

impl<'a> Job<'a> {
    /// Bytes of the updates once they are laid out.
    fn bytes<'u>(slot: &Slot, updates: impl Iterator<Item = &'u Update>) -> usize {
        let Region { rows, columns, .. } = Region::of(slot);
        let of = |update: &Update| match update {
            Update::LowRank(factors) => Packed::bytes((rows, columns), factors.rank()),
            Update::Full(_) => Packed::full_bytes((rows, columns), slot.transposed),
        };
        updates.map(of).fold(0, usize::saturating_add)
    }

    fn new(slot: &Slot, terms: &[Term<'a>], simd: Simd, base: Dtype) -> Self {
        let region = Region::of(slot);
        let addends: Vec<Addend<'a>> = terms
            .iter()
            .map(|term| match (term.update, slot.transposed) {
                (Update::LowRank(LowRank { down, up, .. }), transposed) => {
                    let (left, right) = if transposed { (down.t(), up.t()) } else { (up.view(), down.view()) };
                    Addend::Product { left, right, factor: term.factor() }
                }
                (Update::Full(difference), true) => Addend::Full { values: difference.t(), factor: term.factor() },
                (Update::Full(difference), false) => Addend::Full { values: difference.view(), factor: term.factor() },
            })
            .collect();
        Self { region, packed: Packed::new(simd, base, (region.rows, region.columns), &addends) }
    }
}

/// A piece of work: some rows of a tensor, and the slots that cover them.
struct Piece<'a> {
    tensor: usize,
    /// Indices into the tensor's slots.
    jobs: std::ops::Range<usize>,
    first_row: usize,
    base: &'a [u8],
    out: &'a mut [u8],
}

/// Fuses all tensors at once, so that large and small ones share the threads evenly.
pub(crate) fn fuse_tensors(tensors: &[Changed<'_>], options: &FuseOptions<'_>) -> Result<Fused, FuseError> {
    if tensors.is_empty() {
        return Ok(Fused::default());
    }
    let no_memory = |needed| move |source| FuseError::Memory { needed, source };
    let lengths = tensors.iter().map(|tensor| tensor.length(options.target));
    let overflow = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
    let (offsets, needed) = arena::layout(lengths).ok_or_else(overflow).map_err(no_memory(usize::MAX))?;
    let fresh = Pool::default();
    let pool = options.pool.unwrap_or(&fresh);
    let mut buffer = pool.take(needed).map_err(no_memory(needed))?;

    let (mut memory, mut taken) = (buffer.bytes_mut(), 0);
    let mut stats: Vec<(usize, usize, RoundingStats)> = Vec::new();
    for batch in batches(tensors.iter().map(Changed::packed_bytes)) {
        let end = batch.clone().next_back().map_or(taken, |last| offsets[last] + tensors[last].length(options.target));
        let (out, rest) = memory.split_at_mut(end - taken);
        memory = rest;
        let offsets: Vec<usize> = offsets[batch.clone()].iter().map(|offset| offset - taken).collect();
        let found = fuse_batch(&tensors[batch.clone()], &offsets, out, needed >= STREAMED, options)?;
        stats.extend(found.into_iter().map(|(tensor, slot, rounding)| (batch.start + tensor, slot, rounding)));
        taken = end;
    }

    let mut totals: Vec<Vec<RoundingStats>> =
        tensors.iter().map(|t| vec![RoundingStats::default(); t.slots.len()]).collect();
    for (tensor, slot, rounding) in stats {
        totals[tensor][slot] = totals[tensor][slot].plus(rounding);
    }
    let mut report = FuseReport::default();
    for (tensor, stats) in tensors.iter().zip(totals) {
        for ((slot, terms), rounding) in tensor.slots.iter().zip(stats) {
            if !rounding.is_finite() {
                return Err(not_finite(slot, terms, tensor.target(options.target)));
            }
            let rank = terms.iter().map(|term| term.update.rank()).sum();
            let weights = (slot.out_features * slot.in_features) as u64;
            report.slots.push(SlotReport { slot: slot.name.clone(), rank, weights, rounding });
        }
    }
    let bytes = buffer.share();
    let weights = tensors
        .iter()
        .zip(offsets)
        .map(|(tensor, start)| (tensor.name.to_owned(), bytes.slice(start..start + tensor.length(options.target))));
    Ok(Fused { weights: weights.collect(), report })
}

/// Why fused weights are not finite: factors were looked at before, differences were not.
pub(crate) fn not_finite(slot: &Slot, terms: &[Term<'_>], dtype: Dtype) -> FuseError {
    let damaged = |term: &&Term<'_>| matches!(term.update, Update::Full(difference) if !all_finite(difference));
    match terms.iter().find(damaged) {
        Some(term) => {
            FuseError::NotFinite { adapter: term.adapter.to_owned(), slot: slot.name.clone(), factor: "the difference" }
        }
        None => FuseError::Overflow { slot: slot.name.clone(), dtype },
    }
}

/// Runs of tensors whose factors are laid out together, by the bytes of each tensor's.
fn batches(bytes: impl Iterator<Item = usize>) -> Vec<std::ops::Range<usize>> {
    let (mut batches, mut sum): (Vec<std::ops::Range<usize>>, usize) = (Vec::new(), 0);
    for (index, bytes) in bytes.enumerate() {
        sum = sum.saturating_add(bytes);
        match batches.last_mut() {
            Some(last) if sum <= LAID_OUT => last.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                sum = bytes;
            }
        }
    }
    batches
}

/// Bytes of factors that fusing these adapters has laid out for the kernel at once; layers that the engine lacks are passed over.
pub fn packed_bytes<'a>(base: &impl FuseBase, adapters: impl IntoIterator<Item = &'a Adapter>) -> u64 {
    let slots = slots_by_name(base.slots());
    let mut updates: HashMap<&str, Vec<&Update>> = HashMap::new();
    for (name, update) in adapters.into_iter().flat_map(|adapter| &adapter.layers) {
        if let Some(slot) = slots.get(&name[..]) {
            updates.entry(&slot.name).or_default().push(update);
        }
    }
    let mut by_tensor: IndexMap<&str, usize> = IndexMap::new();
    for slot in base.slots() {
        if let Some(updates) = updates.remove(&slot.name[..]) {
            *by_tensor.entry(&slot.tensor).or_default() += Job::bytes(slot, updates.into_iter());
        }
    }
    largest_batch(&by_tensor.into_values().collect::<Vec<_>>()) as u64
}

/// Bytes of factors that fusing these tensors has laid out at once.
pub(crate) fn most_laid_out(tensors: &[Changed<'_>]) -> usize {
    largest_batch(&tensors.iter().map(Changed::packed_bytes).collect::<Vec<_>>())
}

fn largest_batch(bytes: &[usize]) -> usize {
    let sums = batches(bytes.iter().copied()).into_iter().map(|batch| bytes[batch].iter().sum());
    sums.max().unwrap_or(0)
}

/// Lays out the factors of some tensors and fuses them into `memory`, where they begin at `offsets`.
fn fuse_batch(
    tensors: &[Changed<'_>],
    offsets: &[usize],
    memory: &mut [u8],
    stream: bool,
    options: &FuseOptions<'_>,
) -> Result<Vec<(usize, usize, RoundingStats)>, FuseError> {
    let jobs: Vec<Vec<Job<'_>>> = tensors
        .par_iter()
        .map(|tensor| {
            tensor
                .slots
                .par_iter()
                .map(|(slot, terms)| Job::new(slot, terms, options.simd, tensor.base.dtype))
                .collect()
        })
        .collect();
    let pieces = cut(tensors, &jobs, offsets, options.target, memory);
    let stopped = AtomicBool::new(false);
    let stats = pieces
        .into_par_iter()
        .flat_map_iter(|piece| {
            let stop = stopped.load(Ordering::Relaxed) || options.cancelled.is_some_and(|cancelled| cancelled());
            if stop {
                stopped.store(true, Ordering::Relaxed);
                return Vec::new();
            }
            let (tensor, jobs) = (&tensors[piece.tensor], &jobs[piece.tensor]);
            piece.fuse(tensor, jobs, tensor.target(options.target), stream)
        })
        .collect();
    if stopped.into_inner() { Err(FuseError::Cancelled) } else { Ok(stats) }
}

/// Cuts the results into pieces, each of which one thread fuses.
fn cut<'a>(
    tensors: &'a [Changed<'_>],
    jobs: &[Vec<Job<'_>>],
    offsets: &[usize],
    target: FuseTarget,
    mut memory: &'a mut [u8],
) -> Vec<Piece<'a>> {
    let (mut pieces, mut taken) = (Vec::new(), 0);
    for (t, tensor) in tensors.iter().enumerate() {
        let (_, rest) = std::mem::take(&mut memory).split_at_mut(offsets[t] - taken);
        let (mut out, rest) = rest.split_at_mut(tensor.length(target));
        memory = rest;
        taken = offsets[t] + out.len();
        let (in_size, out_size) = (tensor.base.dtype.size(), tensor.target(target).size());
        let stride = tensor.stride();
        for (rows, covering) in segments(tensor, &jobs[t]) {
            // Pieces begin at whole blocks of the slot's rows.
            let block = jobs[t].first().map_or(1, |job| job.packed.block());
            let step = (PIECE / stride.max(1)).next_multiple_of(block).max(block);
            for first_row in rows.clone().step_by(step) {
                let count = step.min(rows.end - first_row);
                let (piece, rest) = std::mem::take(&mut out).split_at_mut(count * stride * out_size);
                out = rest;
                let base = &tensor.base.data[first_row * stride * in_size..][..count * stride * in_size];
                pieces.push(Piece { tensor: t, jobs: covering.clone(), first_row, base, out: piece });
            }
        }
    }
    pieces
}

/// All rows of a tensor in order, cut where slots begin and end, each part with the slots that cover it.
fn segments(tensor: &Changed<'_>, jobs: &[Job<'_>]) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let (rows, _) = tensor.extents();
    if tensor.slots.iter().any(|(slot, _)| slot.transposed) {
        // Each slot has all rows, and columns of its own.
        return vec![(0..rows, 0..jobs.len())];
    }
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&job| jobs[job].region.first_row);
    let (mut segments, mut end) = (Vec::new(), 0);
    for job in order {
        let start = jobs[job].region.first_row;
        segments.push((end..start, 0..0));
        end = start + jobs[job].region.rows;
        segments.push((start..end, job..job + 1));
    }
    segments.push((end..rows, 0..0));
    segments.retain(|(rows, _)| !rows.is_empty());
    segments
}

impl Piece<'_> {
    /// Gives what happened to each slot: (tensor, slot, rounding).
    fn fuse(
        self,
        tensor: &Changed<'_>,
        jobs: &[Job<'_>],
        target: Dtype,
        stream: bool,
    ) -> Vec<(usize, usize, RoundingStats)> {
        let (stride, base) = (tensor.stride(), tensor.base.dtype);
        let covered: usize = jobs[self.jobs.clone()].iter().map(|job| job.region.columns).sum();
        if covered < stride {
            widen_bytes(base, self.base, target, self.out);
        }
        let mut stats = Vec::with_capacity(self.jobs.len());
        for slot in self.jobs {
            let job = &jobs[slot];
            let first = self.first_row - job.region.first_row;
            let (from, to) = ((base, self.base), (target, &mut *self.out));
            let rounding = job.packed.fuse(first, job.region.first_column, stride, from, to, stream);
            stats.push((self.tensor, slot, rounding));
        }
        stats
    }
}

/// Names of the tensors that adapters change; layers that the engine lacks are passed over.
pub fn touched_tensors<'a>(engine: &Engine, adapters: impl IntoIterator<Item = &'a Adapter>) -> HashSet<String> {
    let layers = adapters.into_iter().flat_map(|adapter| adapter.layers.keys());
    let slots = slots_by_name(engine.slots());
    layers.filter_map(|name| Some(slots.get(&name[..])?.tensor.clone())).collect()
}

/// Slot name → terms, in the order of fusion, all checked.
pub(crate) fn resolve<'a>(
    base: &'a impl FuseBase,
    adapters: &[(&'a Adapter, f32)],
) -> Result<IndexMap<&'a str, Vec<Term<'a>>>, FuseError> {
    let slots = slots_by_name(base.slots());
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
            check_term(slot, &term)?;
            terms.entry(&slot.name).or_default().push(term);
        }
    }
    Ok(terms)
}

fn check_term(slot: &Slot, term: &Term<'_>) -> Result<(), FuseError> {
    let misfit = |expected: String, found: String| {
        let (adapter, slot) = (term.adapter.to_owned(), slot.name.clone());
        Err(FuseError::ShapeMismatch { adapter, slot, expected, found })
    };
    let (out, inner) = (slot.out_features, slot.in_features);
    let mut finite =
        vec![("strength", term.strength.is_finite()), ("strength times alpha / rank", term.factor().is_finite())];
    match term.update {
        Update::LowRank(LowRank { down, up, alpha }) => {
            if down.ncols() != inner || up.dim() != (out, down.nrows()) {
                let expected = format!("down [rank, {inner}] and up [{out}, rank]");
                return misfit(expected, format!("down {:?} and up {:?}", down.shape(), up.shape()));
            }
            let factors = [("down", all_finite(down)), ("up", all_finite(up)), ("alpha", alpha.is_finite())];
            finite.splice(..0, factors);
        }
        // Whether it is finite shows when it is added: looking at all of it would cost a third of that.
        Update::Full(difference) => {
            if difference.dim() != (out, inner) {
                return misfit(format!("a difference [{out}, {inner}]"), format!("{:?}", difference.shape()));
            }
        }
    }
    match finite.into_iter().find(|(_, finite)| !finite) {
        Some((factor, _)) => {
            Err(FuseError::NotFinite { adapter: term.adapter.to_owned(), slot: slot.name.clone(), factor })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
