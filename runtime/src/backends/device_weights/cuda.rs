//! A GPU's memory, and the CUDA kernel: allocation, copies, one launch for each type of weights.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use v2l_cuda::{CudaError, Driver, Element, Factors, Memory, Sums};

use super::{Block, Device, ToFuse};
use crate::engine::parameters::matrix;
use crate::lora::adapter::LowRank;
use crate::lora::fuse::{CancelCheck, FuseError, FuseReport, Region, RoundingStats, SlotReport, Term, not_finite};
use crate::tensor::Dtype;

/// Where each tensor begins in the memory of fused weights.
const ALIGNMENT: usize = 256;

/// A GPU, or what a test puts in its place.
#[derive(Debug)]
pub(in crate::backends) struct Cuda {
    driver: Arc<dyn Driver>,
    /// Memory of fused weights, shared or free: it is free if nobody else has it, and then used again.
    arenas: Mutex<Vec<Arc<Memory>>>,
}

impl Cuda {
    /// On this device.
    pub(in crate::backends) fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, arenas: Mutex::default() }
    }

    /// Memory of at least `bytes`; free memory that does not suit is given back first.
    fn arena(&self, bytes: usize) -> Result<Memory, CudaError> {
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, used) =
            std::mem::take(&mut *arenas).into_iter().partition(|a: &Arc<Memory>| Arc::strong_count(a) == 1);
        *arenas = used;
        let mut free: Vec<Memory> = free.into_iter().filter_map(Arc::into_inner).collect();
        match free.iter().position(|arena| arena.len() >= bytes && arena.len() / 2 <= bytes) {
            Some(at) => Ok(free.swap_remove(at)),
            None => {
                drop(free);
                Memory::new(&self.driver, bytes)
            }
        }
    }

    /// Keeps an arena for the next time, whether or not it was of use.
    fn keep(&self, arena: Memory) -> Arc<Memory> {
        let arena = Arc::new(arena);
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&arena));
        arena
    }
}

fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::Bf16 => Some(Element::Bf16),
        _ => None,
    }
}

/// The memory of a block that this device made.
fn memory(block: &Block) -> Result<&Memory, FuseError> {
    let outside = CudaError::OutOfRange { what: "a weight of another device", bytes: block.length };
    block.owner.downcast_ref::<Memory>().ok_or(FuseError::Device(outside))
}

/// All factors in f32, one after another, and where each begins, in elements. A full difference is uploaded as a product.
struct Uploaded {
    factors: Memory,
    /// Per tensor, slot and term.
    places: Vec<Vec<Vec<Place>>>,
}

/// Where a term's factors begin, in elements, and their extents.
#[derive(Clone, Copy)]
struct Place {
    down: usize,
    up: usize,
    rank: usize,
    columns: usize,
}

impl Uploaded {
    fn new(driver: &Arc<dyn Driver>, tensors: &[ToFuse<'_>]) -> Result<Self, FuseError> {
        let mut end = 0;
        let mut place = |term: &Term<'_>| {
            let (rank, (rows, columns)) = (term.update.rank(), term.update.dim());
            let (down, up) = (end, end + rank * columns);
            end = up + rows * rank;
            Place { down, up, rank, columns }
        };
        let places: Vec<Vec<Vec<Place>>> = tensors
            .iter()
            .map(|tensor| tensor.slots.iter().map(|(_, terms)| terms.iter().map(&mut place).collect()).collect())
            .collect();
        let mut factors = Memory::new(driver, end * 4)?;
        for (tensor, places) in tensors.iter().zip(&places) {
            for ((_, terms), places) in tensor.slots.iter().zip(places) {
                for (term, place) in terms.iter().zip(places) {
                    let update = term.update.to_low_rank();
                    let LowRank { down, up, .. } = &*update;
                    for (at, values) in [(place.down, down), (place.up, up)] {
                        let values = values.as_standard_layout();
                        let values: &[f32] = values.as_slice().unwrap_or_default();
                        factors.upload(at * 4, bytemuck::cast_slice(values))?;
                    }
                }
            }
        }
        Ok(Self { factors, places })
    }
}

/// A term as the kernel takes it: a row of `left` combines the rows of `right`.
fn pair(term: &Term<'_>, place: Place, transposed: bool) -> Factors {
    let Place { down, up, rank, columns } = place;
    let factor = term.factor();
    if transposed {
        Factors { left: down, left_steps: [1, columns], right: up, right_steps: [1, rank], rank, factor }
    } else {
        Factors { left: up, left_steps: [rank, 1], right: down, right_steps: [columns, 1], rank, factor }
    }
}

impl Device for Cuda {
    fn ordinal(&self) -> Option<i32> {
        self.driver.ordinal()
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn hold(&self, _dtype: Dtype, data: Bytes) -> Result<Block, FuseError> {
        let memory = Memory::of(&self.driver, &data)?;
        Ok(Block { address: memory.address(), length: data.len(), owner: Arc::new(memory) })
    }

    fn fuse(&self, tensors: &[ToFuse<'_>], cancelled: CancelCheck<'_>) -> Result<(Vec<Block>, FuseReport), FuseError> {
        let stop = || if cancelled.is_some_and(|cancelled| cancelled()) { Err(FuseError::Cancelled) } else { Ok(()) };
        stop()?;
        let (mut offsets, mut end) = (Vec::with_capacity(tensors.len()), 0usize);
        for tensor in tensors {
            let start = end.next_multiple_of(ALIGNMENT);
            offsets.push(start);
            end = start + tensor.base.length;
        }
        let mut arena = self.arena(end)?;
        let fused = Uploaded::new(&self.driver, tensors).and_then(|uploaded| {
            stop()?;
            launch(&self.driver, tensors, &uploaded, &offsets, &mut arena)
        });
        let arena = self.keep(arena);
        let report = FuseReport { slots: fused?.into_iter().flatten().collect(), ..FuseReport::default() };
        let block = |(tensor, &at): (&ToFuse<'_>, &usize)| Block {
            address: arena.address() + at as u64,
            length: tensor.base.length,
            owner: Arc::clone(&arena) as _,
        };
        Ok((tensors.iter().zip(&offsets).map(block).collect(), report))
    }

    fn settle(&self) -> Result<(), FuseError> {
        Ok(self.driver.synchronize()?)
    }
}

/// Copies what slots do not cover, and fuses the slots, type by type. Gives what happened to each tensor's slots.
fn launch(
    driver: &Arc<dyn Driver>,
    tensors: &[ToFuse<'_>],
    uploaded: &Uploaded,
    offsets: &[usize],
    arena: &mut Memory,
) -> Result<Vec<Vec<SlotReport>>, FuseError> {
    let mut reports: Vec<Vec<SlotReport>> = tensors.iter().map(|_| Vec::new()).collect();
    for (tensor, &at) in tensors.iter().zip(offsets) {
        let covered: usize = tensor.slots.iter().map(|(slot, _)| slot.out_features * slot.in_features).sum();
        if covered < tensor.shape.iter().product() {
            arena.copy(at, memory(tensor.base)?)?;
        }
    }
    let types: HashSet<Dtype> = tensors.iter().map(|tensor| tensor.dtype).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().filter(|dtype| types.contains(dtype)) {
        let Some(element) = element(dtype) else { continue };
        let (mut regions, mut places) = (Vec::new(), Vec::new());
        for (t, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.dtype == dtype) {
            let (_, stride) = matrix(tensor.shape).unwrap_or((0, 0));
            for (s, (slot, terms)) in tensor.slots.iter().enumerate() {
                let Region { first_row, rows, first_column, columns } = Region::of(slot);
                let begin = first_row * stride + first_column;
                let placed = terms.iter().zip(&uploaded.places[t][s]);
                regions.push(v2l_cuda::Region {
                    base: memory(tensor.base)?,
                    base_at: begin,
                    out_at: offsets[t] / element.size() + begin,
                    stride,
                    rows,
                    columns,
                    products: placed.map(|(term, &place)| pair(term, place, slot.transposed)).collect(),
                });
                places.push((t, s));
            }
        }
        let sums = v2l_cuda::fuse(driver, element, &uploaded.factors, arena, &regions)?;
        for ((t, s), sums) in places.into_iter().zip(sums) {
            let (slot, terms) = &tensors[t].slots[s];
            let Sums { norm, dot, error, unchanged } = sums;
            let rounding = RoundingStats { norm, dot, error, unchanged };
            if !rounding.is_finite() {
                return Err(not_finite(slot, terms, dtype));
            }
            let rank = terms.iter().map(|term| term.update.rank()).sum();
            let weights = (slot.out_features * slot.in_features) as u64;
            reports[t].push(SlotReport { slot: slot.name.clone(), rank, weights, rounding });
        }
    }
    Ok(reports)
}
