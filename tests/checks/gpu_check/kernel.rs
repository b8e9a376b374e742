//! The fusion kernel at full size: its bits against the CPU's, its time against copying the same weights.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::ensure;
use half::bf16;
use ndarray::ArrayView2;
use serde_json::json;
use v2l_cli::{Exit, Failure, Output};
use v2l_cuda::{CudaError, Driver, Element, Factors, Memory, Prepared, Region};
use v2l_runtime::lora::fuse::{Addend, FuseError, Packed, Simd};
use v2l_runtime::tensor::Dtype;

use crate::shapes::{LAYERS, linears};
use crate::{median, timed};

const RANKS: [usize; 3] = [1, 16, 128];
/// Of an adapter's whole product.
const FACTOR: f32 = 0.01;
/// Part of the free memory that is used.
const SHARE: f64 = 0.9;
/// Factors are drawn from as many numbers, again and again.
const NUMBERS: usize = 1 << 24;

/// Numbers in [-0.5, 0.5), the same every time.
pub(crate) fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(next).collect()
}

/// As many layers as fit with weights, results and the factors of the largest rank.
fn that_fit(free: u64) -> usize {
    let bytes = |layers| -> usize {
        linears(layers).iter().map(|[out, inner]| 4 * out * inner + 4 * RANKS[2] * (out + inner)).sum()
    };
    (0..=LAYERS).rev().find(|&layers| bytes(layers) as f64 <= free as f64 * SHARE).unwrap_or(0)
}

/// The weights of some layers on the card, and memory for the results.
struct Card {
    driver: Arc<dyn Driver>,
    shapes: Vec<[usize; 2]>,
    bases: Vec<Memory>,
    /// Where each begins in `out`, in elements.
    offsets: Vec<usize>,
    out: Memory,
}

impl Card {
    fn new(driver: &Arc<dyn Driver>, shapes: Vec<[usize; 2]>, weights: &[u8]) -> Result<Self, CudaError> {
        let bases = shapes.iter().map(|[out, inner]| Memory::of(driver, &weights[..2 * out * inner]));
        let bases: Vec<Memory> = bases.collect::<Result<_, _>>()?;
        let (mut offsets, mut end) = (Vec::new(), 0usize);
        for [out, inner] in &shapes {
            offsets.push(end);
            end = (end + out * inner).next_multiple_of(128);
        }
        let out = Memory::new(driver, 2 * end)?;
        Ok(Self { driver: Arc::clone(driver), shapes, bases, offsets, out })
    }

    fn elements(&self) -> usize {
        self.shapes.iter().map(|[out, inner]| out * inner).sum()
    }

    fn copy(&mut self) -> Result<(), CudaError> {
        for (base, at) in self.bases.iter().zip(&self.offsets) {
            self.out.copy(2 * at, base)?;
        }
        self.driver.synchronize()
    }
}

/// Factors of a rank for every layer on the card; where `up` and `down` of each begin, in elements.
fn factors(card: &Card, rank: usize, numbers: &[f32]) -> Result<(Memory, Vec<[usize; 2]>), CudaError> {
    let (mut places, mut end) = (Vec::new(), 0);
    for [out, inner] in &card.shapes {
        places.push([end, end + out * rank]);
        end += (out + inner) * rank;
    }
    let mut memory = Memory::new(&card.driver, 4 * end)?;
    for at in (0..end).step_by(numbers.len()) {
        let count = numbers.len().min(end - at);
        let bytes: Vec<u8> = numbers[..count].iter().flat_map(|value| value.to_le_bytes()).collect();
        memory.upload(4 * at, &bytes)?;
    }
    Ok((memory, places))
}

fn regions<'a>(
    card: &'a [Memory],
    shapes: &[[usize; 2]],
    offsets: &[usize],
    rank: usize,
    places: &[[usize; 2]],
) -> Vec<Region<'a>> {
    let region = |i: usize| {
        let ([rows, columns], [up, down]) = (shapes[i], places[i]);
        let pair =
            Factors { left: up, left_steps: [rank, 1], right: down, right_steps: [columns, 1], rank, factor: FACTOR };
        Region { base: &card[i], base_at: 0, out_at: offsets[i], stride: columns, rows, columns, products: vec![pair] }
    };
    (0..shapes.len()).map(region).collect()
}

/// Checks and measures every rank.
pub(crate) fn check(driver: &Arc<dyn Driver>, rounds: usize, output: &mut Output) -> anyhow::Result<()> {
    let layers = that_fit(driver.free_memory().map_err(FuseError::Device)?);
    ensure!(layers > 0, "the card's free memory does not hold one transformer block of the 5b model's shape");
    if layers < LAYERS {
        output.warning(&format!("the card's free memory holds {layers} of {LAYERS} blocks; those are measured"));
    }
    let numbers = numbers(NUMBERS);
    let largest = linears(1).iter().map(|[out, inner]| out * inner).max().unwrap_or(0);
    let weights: Vec<u8> =
        numbers.iter().cycle().take(largest).flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let mut card = Card::new(driver, linears(layers), &weights).map_err(FuseError::Device)?;
    for rank in RANKS {
        measure(&mut card, rank, rounds, &numbers, &weights, output)?;
    }
    Ok(())
}

fn measure(
    card: &mut Card,
    rank: usize,
    rounds: usize,
    numbers: &[f32],
    weights: &[u8],
    output: &mut Output,
) -> anyhow::Result<()> {
    let (factors, places) = factors(card, rank, numbers).map_err(FuseError::Device)?;
    let (mut copies, mut fuses, mut wholes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let copied = timed(|| card.copy()).map_err(FuseError::Device)?;
        let driver = Arc::clone(&card.driver);
        let regions = regions(&card.bases, &card.shapes, &card.offsets, rank, &places);
        let whole = timed(|| v2l_cuda::fuse(&driver, Element::Bf16, &factors, &mut card.out, &regions));
        let whole = whole.map_err(FuseError::Device)?;
        let mut prepared =
            Prepared::new(&driver, Element::Bf16, &factors, &mut card.out, &regions).map_err(FuseError::Device)?;
        let fused = timed(|| {
            prepared.launch()?;
            driver.synchronize()
        });
        let fused = fused.map_err(FuseError::Device)?;
        // The first round warms up.
        if round > 0 {
            copies.push(copied);
            fuses.push(fused);
            wholes.push(whole);
        }
    }
    let compared = compare(card, rank, &places, numbers, weights)?;
    let share = median(copies.iter().zip(&fuses).map(|(copy, fuse)| copy / fuse));
    let bandwidth = |seconds: &[f64]| 4.0 * card.elements() as f64 / median(seconds.iter().copied()) / 1e9;
    let (copy, fuse, whole) = (bandwidth(&copies), bandwidth(&fuses), 1e3 * median(wholes));
    let fields = json!({
        "rank": rank, "slots": card.shapes.len(), "weights": card.elements(), "copy_gb_per_s": copy, "fuse_gb_per_s": fuse,
        "of_copy": share, "fuse_with_tables_and_sums_ms": whole, "elements_compared": compared,
    });
    output.result("kernel", fields, || {
        format!(
            "rank {rank}, {} slots: {fuse:.0} GB/s read and written, {:.0} % of the copy's {copy:.0}; {whole:.1} ms with tables and \
             sums; {compared} weights compared with the CPU's, bit for bit",
            card.shapes.len(),
            100.0 * share
        )
    });
    Ok(())
}

/// Compares the first layer of every shape with the CPU's kernel; gives the number of weights.
fn compare(card: &Card, rank: usize, places: &[[usize; 2]], numbers: &[f32], weights: &[u8]) -> anyhow::Result<usize> {
    let (mut seen, mut compared) = (HashSet::new(), 0);
    for (i, &[rows, columns]) in card.shapes.iter().enumerate() {
        if !seen.insert([rows, columns]) {
            continue;
        }
        let from =
            |at: usize, count: usize| -> Vec<f32> { (at..at + count).map(|at| numbers[at % numbers.len()]).collect() };
        let ([up, down], size) = (places[i], rows * columns);
        let (up, down) = (from(up, rows * rank), from(down, columns * rank));
        let up = ArrayView2::from_shape((rows, rank), &up)?;
        let down = ArrayView2::from_shape((rank, columns), &down)?;
        let product = Addend::Product { left: up, right: down, factor: FACTOR };
        let packed = Packed::new(Simd::best(), Dtype::Bf16, (rows, columns), &[product]);
        let mut expected = vec![0; 2 * size];
        packed.fuse(0, 0, columns, (Dtype::Bf16, &weights[..2 * size]), (Dtype::Bf16, &mut expected), false);
        let at = 2 * card.offsets[i];
        let found = card.out.download(at..at + 2 * size).map_err(FuseError::Device)?;
        if let Some(byte) = found.iter().zip(&expected).position(|(a, b)| a != b) {
            let message =
                format!("rank {rank}, [{rows}, {columns}]: weight {} differs from the CPU kernel's", byte / 2);
            return Err(Failure { exit: Exit::Numeric, message }.into());
        }
        compared += size;
    }
    Ok(compared)
}
