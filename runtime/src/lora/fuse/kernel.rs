//! The kernel: rows of one matrix, `W' = round(f32(W) + Σᵢ fᵢ · Lᵢ · Rᵢ)`, in one pass over W.
//!
//! Blocks of [`BLOCK`] rows and [`Packed::tile`] columns keep their sums in registers while the ranks go by. For every
//! element the order is the same with all instructions: ranks ascending, one fused multiply-add each, into the product of one
//! factor pair; the products, each times its factor, by fused multiply-add into ΔW; one addition to W; one rounding.
#![allow(unsafe_code, reason = "entry of functions that need instructions of a processor")]

use std::borrow::Cow;
use std::sync::OnceLock;

use ndarray::ArrayView2;

use super::lanes::{Bf16Bits, F16Bits, Lanes, PAIR, Portable, Stored};
use crate::tensor::Dtype;

/// Rows whose sums are in registers at once.
const BLOCK: usize = 6;
/// The sums of rounding stats have as many lanes with all instructions; a lane takes two neighbouring columns of every [`WIDEST`].
const STATS_LANES: usize = 16;
/// The widest tile of any instructions.
const WIDEST: usize = 32;

/// The instructions that a fuse uses. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Simd {
    /// AVX-512 F, BW, DQ: 16 values at once.
    Avx512,
    /// AVX2, FMA, F16C: 8 values at once.
    Avx2,
    /// What the compiler makes of plain Rust; slow on an x86-64 without FMA, which is then computed in software.
    Portable,
}

impl Simd {
    /// The fastest instructions of this processor.
    pub fn best() -> Self {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// The instructions of this processor, fastest first.
    pub fn available() -> Vec<Self> {
        [Self::Avx512, Self::Avx2, Self::Portable].into_iter().filter(|simd| simd.is_here()).collect()
    }

    fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    const fn width(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Avx2 | Self::Portable => 8,
        }
    }
}

/// A row's `‖ΔW‖²` in f32 below which terms that f32 cannot hold may count.
const LEAST_NORM: f64 = 1e-24;

/// One update of a matrix `[rows, columns]`, and what it is multiplied by.
#[derive(Clone, Copy)]
pub enum Addend<'a> {
    /// The product of `left` `[rows, rank]` and `right` `[rank, columns]`.
    Product {
        /// `[rows, rank]`.
        left: ArrayView2<'a, f32>,
        /// `[rank, columns]`.
        right: ArrayView2<'a, f32>,
        /// The factor.
        factor: f32,
    },
    /// A difference `[rows, columns]`.
    Full {
        /// `[rows, columns]`.
        values: ArrayView2<'a, f32>,
        /// The factor.
        factor: f32,
    },
}

/// An update, laid out for the kernel.
enum Term<'a> {
    Product {
        rank: usize,
        factor: f32,
        /// True if the product is zero everywhere.
        zero: bool,
        /// Blocks of rows; in each, rank by rank, the rows' values. Rows that do not fill a block follow one by one.
        left: Vec<f32>,
        /// Tiles of columns; in each, rank by rank, the columns' values, zeros beyond the last column.
        right: Vec<f32>,
    },
    /// Row-major, where it lies; a copy if it lies there otherwise.
    Full { factor: f32, values: Cow<'a, [f32]> },
}

/// Updates of one matrix `[rows, columns]`, laid out for some instructions.
pub struct Packed<'a> {
    simd: Simd,
    /// Even columns of a tile come before odd ones.
    zipped: bool,
    rows: usize,
    columns: usize,
    terms: Vec<Term<'a>>,
}

/// What rounding left of an update, over some elements. Sums are in a fixed order, of f32 terms where f32 holds them and
/// else of f64 terms; good to about 1e-6, however small or large the update is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundingStats {
    /// `‖ΔW‖²`.
    pub norm: f64,
    /// `⟨W' − W, ΔW⟩`.
    pub dot: f64,
    /// `‖W' − W − ΔW‖²`.
    pub error: f64,
    /// Elements with `W' = W`.
    pub unchanged: u64,
}

impl RoundingStats {
    /// False if some W' is not finite: what an infinite or undefined weight differs by is neither.
    pub fn is_finite(&self) -> bool {
        self.error.is_finite()
    }

    /// Of both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            norm: self.norm + other.norm,
            dot: self.dot + other.dot,
            error: self.error + other.error,
            unchanged: self.unchanged + other.unchanged,
        }
    }
}

impl<'a> Packed<'a> {
    /// Lays out the updates of a matrix that is stored as `base`.
    ///
    /// Costs one pass over factors, and as much memory. A difference stays where it is if it is row-major, and is copied if not.
    ///
    /// # Panics
    /// If the shapes of an update do not go together, or this processor lacks the instructions: see [`Simd::available`].
    pub fn new(simd: Simd, base: Dtype, (rows, columns): (usize, usize), addends: &[Addend<'a>]) -> Self {
        assert!(simd.is_here(), "this processor has no {simd:?}");
        let zipped = base == Dtype::Bf16;
        let terms = addends.iter().map(|addend| match *addend {
            Addend::Product { left, right, factor } => {
                assert_eq!(
                    (left.nrows(), right.dim()),
                    (rows, (left.ncols(), columns)),
                    "factors do not fit the matrix"
                );
                let (left, right) = (packed_left(&left), packed_right(simd, zipped, &right));
                let zero = factor == 0.0 || all_zero(&left.1) || all_zero(&right);
                Term::Product { rank: left.0, factor, zero, left: left.1, right }
            }
            Addend::Full { values, factor } => {
                assert_eq!(values.dim(), (rows, columns), "a difference does not fit the matrix");
                let values = match values.to_slice() {
                    Some(values) => Cow::Borrowed(values),
                    None => Cow::Owned(values.iter().copied().collect()),
                };
                Term::Full { factor, values }
            }
        });
        Self { simd, zipped, rows, columns, terms: terms.collect() }
    }

    /// Bytes of memory that a pair of this rank takes once it is laid out, at most: paths differ in what they add.
    pub const fn bytes((rows, columns): (usize, usize), rank: usize) -> usize {
        let elements = rows.saturating_add(columns.saturating_add(WIDEST));
        elements.saturating_mul(rank).saturating_mul(size_of::<f32>())
    }

    /// Bytes of memory that a difference takes besides itself: a copy if its rows are the matrix's columns.
    pub const fn full_bytes((rows, columns): (usize, usize), transposed: bool) -> usize {
        if transposed { rows.saturating_mul(columns).saturating_mul(size_of::<f32>()) } else { 0 }
    }

    /// Rows that are best fused together: work should be cut at multiples of this.
    pub const fn block(&self) -> usize {
        BLOCK
    }

    /// Fuses the rows `first ..` of the matrix, as many as `out` holds.
    ///
    /// `base` and `out` hold the same rows, little-endian in their types, without gaps: `stride` elements each, of which
    /// those from `column` on belong to the matrix; the others are left alone. `first` is a multiple of [`Self::block`], and so is
    /// the number of rows unless they are the last.
    ///
    /// `stream` writes past the caches, where alignment allows: faster for results that they would not keep.
    ///
    /// # Panics
    /// If lengths, `first` or types are others than that.
    pub fn fuse(
        &self,
        first: usize,
        column: usize,
        stride: usize,
        base: (Dtype, &[u8]),
        out: (Dtype, &mut [u8]),
        stream: bool,
    ) -> RoundingStats {
        let (base_type, base) = base;
        let (out_type, out) = out;
        if base.is_empty() || self.columns == 0 {
            return RoundingStats::default();
        }
        let row_bytes = |dtype: Dtype| stride.checked_mul(dtype.size()).filter(|&bytes| bytes > 0);
        let (base_row, out_row) =
            (row_bytes(base_type).unwrap_or(usize::MAX), row_bytes(out_type).unwrap_or(usize::MAX));
        let rows = base.len() / base_row;
        assert!(base.len().is_multiple_of(base_row) && out.len().is_multiple_of(out_row), "whole rows");
        assert_eq!(out.len() / out_row, rows, "rows of the result");
        assert!(self.columns <= stride && column <= stride - self.columns, "columns of the matrix");
        assert!(first.is_multiple_of(BLOCK) && first <= self.rows && rows <= self.rows - first, "rows of the matrix");
        assert!(rows.is_multiple_of(BLOCK) || rows == self.rows - first, "whole blocks");
        assert_eq!(base_type == Dtype::Bf16, self.zipped, "the type that the factors were laid out for");
        let aligned = |n: usize| (n * out_type.size()).is_multiple_of(64);
        let stream = stream && out.as_ptr().addr().is_multiple_of(64) && aligned(stride) && aligned(column);
        let window = Window { first, rows, column, stride, stream, base: base.as_ptr(), out: out.as_mut_ptr() };
        // SAFETY: the assertions above are what `Window` promises.
        unsafe {
            match (base_type, out_type) {
                (Dtype::F32, Dtype::F32) => self.dispatch::<f32, f32>(&window),
                (Dtype::F16, Dtype::F16) => self.dispatch::<F16Bits, F16Bits>(&window),
                (Dtype::F16, Dtype::F32) => self.dispatch::<F16Bits, f32>(&window),
                (Dtype::Bf16, Dtype::Bf16) => self.dispatch::<Bf16Bits, Bf16Bits>(&window),
                (Dtype::Bf16, Dtype::F32) => self.dispatch::<Bf16Bits, f32>(&window),
                other => panic!("no kernel for {other:?}"),
            }
        }
    }

    /// # Safety
    /// `window` is as it promises for these types.
    unsafe fn dispatch<S: Stored, T: Stored>(&self, window: &Window) -> RoundingStats {
        // SAFETY: factors are only laid out for instructions that the processor has.
        unsafe {
            match self.simd {
                #[cfg(target_arch = "x86_64")]
                Simd::Avx512 => self.avx512::<S, T>(window),
                #[cfg(target_arch = "x86_64")]
                Simd::Avx2 => self.avx2::<S, T>(window),
                _ => self.run::<Portable, S, T>(window),
            }
        }
    }

    /// # Safety
    /// As [`Self::dispatch`], and the processor has the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma,f16c,popcnt")]
    unsafe fn avx512<S: Stored, T: Stored>(&self, window: &Window) -> RoundingStats {
        // SAFETY: as promised to this function.
        unsafe { self.run::<super::lanes::x86::Avx512, S, T>(window) }
    }

    /// # Safety
    /// As [`Self::dispatch`], and the processor has the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    unsafe fn avx2<S: Stored, T: Stored>(&self, window: &Window) -> RoundingStats {
        // SAFETY: as promised to this function.
        unsafe { self.run::<super::lanes::x86::Avx2, S, T>(window) }
    }

    #[inline(always)]
    unsafe fn run<V: Lanes, S: Stored, T: Stored>(&self, window: &Window) -> RoundingStats {
        let mut rounding = RoundingStats::default();
        let full = self.rows - self.rows % BLOCK;
        // Blocks are for factors, which their rows share. A difference has nothing to share, and memory likes few streams.
        let shares = self.terms.is_empty() || self.terms.iter().any(|term| matches!(term, Term::Product { .. }));
        let mut row = 0;
        while row < window.rows {
            let whole = window.first + row + BLOCK <= full && row + BLOCK <= window.rows;
            let count = if whole { BLOCK } else { 1 };
            let mut found = RoundingStats::default();
            // SAFETY: the rows lie within the window.
            unsafe {
                if whole && shares {
                    found = self.rows::<V, S, T, BLOCK>(window, row);
                } else {
                    // Summed as those of a block, so that a difference and its product have equal stats.
                    for row in row..row + count {
                        found = found.plus(self.rows::<V, S, T, 1>(window, row));
                    }
                }
            }
            rounding = rounding.plus(found);
            row += count;
        }
        if window.stream {
            // SAFETY: the processor has these instructions.
            unsafe { V::fence() };
        }
        rounding
    }

    /// `R` rows, from `row` of the window on: a whole block, or one.
    ///
    /// # Safety
    /// They lie within the window.
    #[inline(always)]
    unsafe fn rows<V: Lanes, S: Stored, T: Stored, const R: usize>(
        &self,
        window: &Window,
        row: usize,
    ) -> RoundingStats {
        let tile = V::WIDTH * PAIR;
        let start = window.first + row;
        let mut sums = [Sums::default(); R];
        let mut unchanged = 0;
        let (base, out) = (window.base.cast::<S>(), window.out.cast::<T>());
        let full = self.columns - self.columns % tile;
        for column in (0..full).step_by(tile) {
            let at = row * window.stride + window.column + column;
            // SAFETY: a full tile of R rows lies within the window.
            unsafe {
                let stream = window.stream;
                let rows = Rows { base: base.add(at), out: out.add(at), stride: window.stride, stream };
                unchanged += u64::from(self.tile::<V, S, T, R>(start, column / tile, &rows, &mut sums));
            }
        }
        let rest = self.columns - full;
        if rest > 0 {
            // The last columns go through buffers; what lies beyond them is zero and stays so.
            let mut padded = ([[S::default(); WIDEST]; R], [[T::default(); WIDEST]; R]);
            let at = |i: usize| (row + i) * window.stride + window.column + full;
            // SAFETY: `rest` elements of each row lie within the window, and fewer than a tile.
            unsafe {
                for (i, line) in padded.0.iter_mut().enumerate() {
                    copy_bytes(base.add(at(i)), line.as_mut_ptr(), rest);
                }
                let (from, to) = (padded.0.as_ptr().cast(), padded.1.as_mut_ptr().cast());
                let rows = Rows { base: from, out: to, stride: WIDEST, stream: false };
                let found = self.tile::<V, S, T, R>(start, full / tile, &rows, &mut sums);
                unchanged += u64::from(found) - (R * (tile - rest)) as u64;
                for (i, line) in padded.1.iter().enumerate() {
                    copy_bytes(line.as_ptr(), out.add(at(i)), rest);
                }
            }
        }
        let mut rounding = RoundingStats::default();
        for (i, sums) in sums.iter().enumerate() {
            let found = sums.stats();
            let found = if self.holds(&found, start + i) {
                found
            } else {
                // SAFETY: a row of the window, written above.
                unsafe { self.exact::<S, T>(window, row + i) }
            };
            rounding = rounding.plus(found);
        }
        RoundingStats { unchanged, ..rounding }
    }

    /// True if a row's sums in f32 are what they should be.
    fn holds(&self, found: &RoundingStats, row: usize) -> bool {
        let finite = found.norm.is_finite() && found.dot.is_finite() && found.error.is_finite();
        let zero = |term: &Term<'_>| match term {
            Term::Product { zero, .. } => *zero,
            Term::Full { factor, values } => *factor == 0.0 || all_zero(&values[row * self.columns..][..self.columns]),
        };
        finite && (found.norm >= LEAST_NORM || self.terms.iter().all(zero))
    }

    /// A row's sums in f64, of what is in memory already; `unchanged` is left at 0.
    ///
    /// # Safety
    /// The row lies within the window.
    #[cold]
    #[inline(never)]
    unsafe fn exact<S: Stored, T: Stored>(&self, window: &Window, row: usize) -> RoundingStats {
        let at = row * window.stride + window.column;
        let mut rounding = RoundingStats::default();
        for column in 0..self.columns {
            // SAFETY: an element of the row.
            let (base, fused) = unsafe {
                let (base, out) = (window.base.cast::<S>(), window.out.cast::<T>());
                (base.add(at + column).read_unaligned().widened(), out.add(at + column).read_unaligned().widened())
            };
            let delta = f64::from(self.delta(window.first + row, column));
            let realised = f64::from(fused) - f64::from(base);
            rounding.norm += delta * delta;
            rounding.dot += realised * delta;
            rounding.error += (realised - delta) * (realised - delta);
        }
        rounding
    }

    /// One element of ΔW, with the bits that [`Self::tile`] gives it.
    fn delta(&self, row: usize, column: usize) -> f32 {
        let tile = self.simd.width() * PAIR;
        let full = self.rows - self.rows % BLOCK;
        let within = match (column % tile, self.zipped) {
            (at, true) => at % PAIR * self.simd.width() + at / PAIR,
            (at, false) => at,
        };
        self.terms.iter().fold(0.0, |delta, term| match term {
            Term::Product { rank, factor, left, right, .. } => {
                // Single rows lie one after another.
                let blocked = row < full;
                let (start, step) = match blocked {
                    true => (row / BLOCK * BLOCK * rank + row % BLOCK, BLOCK),
                    false => (row * rank, 1),
                };
                let value = |k: usize| right[(column / tile * rank + k) * tile + within];
                let product = (0..*rank).fold(0.0, |sum, k| f32::mul_add(value(k), left[start + k * step], sum));
                f32::mul_add(product, *factor, delta)
            }
            Term::Full { factor, values } => f32::mul_add(values[row * self.columns + column], *factor, delta),
        })
    }

    /// A tile of a row of a difference from `column` on, zeros beyond the last column; in the order of the weights' vectors.
    #[inline(always)]
    fn difference<V: Lanes, S: Stored>(&self, row: &[f32], column: usize) -> [V; PAIR] {
        let load = |values: &[f32; WIDEST]| {
            // SAFETY: PAIR vectors are no more than WIDEST values.
            unsafe { [V::load_f32(values.as_ptr()), V::load_f32(values[V::WIDTH..].as_ptr())] }
        };
        let pair = match row[column..].first_chunk::<WIDEST>() {
            Some(values) => load(values),
            None => {
                let mut padded = [0.0; WIDEST];
                let rest = &row[column..];
                padded[..rest.len()].copy_from_slice(rest);
                load(&padded)
            }
        };
        if S::ZIPPED { V::unzip(pair) } else { pair }
    }

    /// One tile of `R` rows; gives the number of unchanged elements.
    ///
    /// # Safety
    /// `rows` are as they promise for this tile.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "indices of known extent keep the arrays in registers")]
    unsafe fn tile<V: Lanes, S: Stored, T: Stored, const R: usize>(
        &self,
        start: usize,
        tile: usize,
        rows: &Rows<S, T>,
        sums: &mut [Sums; R],
    ) -> u32 {
        let width = V::WIDTH * PAIR;
        let zero = V::splat(0.0);
        let mut delta = [[zero; PAIR]; R];
        for term in &self.terms {
            let (rank, factor, left, right) = match term {
                Term::Product { rank, factor, left, right, .. } => (*rank, *factor, left, right),
                Term::Full { factor, values } => {
                    let factor = V::splat(*factor);
                    for i in 0..R {
                        let row = &values[(start + i) * self.columns..][..self.columns];
                        let values = self.difference::<V, S>(row, tile * width);
                        for c in 0..PAIR {
                            delta[i][c] = values[c].mul_add(factor, delta[i][c]);
                        }
                    }
                    continue;
                }
            };
            // R rows of a block lie together rank by rank, single rows after one another: both begin here.
            let left = left[start * rank..][..R * rank].as_ptr();
            let right = right[tile * rank * width..][..rank * width].as_ptr();
            let mut product = [[zero; PAIR]; R];
            for k in 0..rank {
                let mut values = [zero; PAIR];
                for c in 0..PAIR {
                    // SAFETY: within the slice just taken.
                    values[c] = unsafe { V::load_f32(right.add(k * width + c * V::WIDTH)) };
                }
                for i in 0..R {
                    // SAFETY: within the slice just taken.
                    let factor = V::splat(unsafe { *left.add(k * R + i) });
                    for c in 0..PAIR {
                        product[i][c] = values[c].mul_add(factor, product[i][c]);
                    }
                }
            }
            let factor = V::splat(factor);
            for i in 0..R {
                for c in 0..PAIR {
                    delta[i][c] = product[i][c].mul_add(factor, delta[i][c]);
                }
            }
        }
        let mut unchanged = 0;
        // A lane takes the same columns with all instructions.
        let lanes = if S::ZIPPED { [tile * V::WIDTH % STATS_LANES; PAIR] } else { [0, V::WIDTH % STATS_LANES] };
        for i in 0..R {
            let at = i * rows.stride;
            // SAFETY: a row of the tile.
            let base = unsafe { S::load::<V>(rows.base.add(at)) };
            let mut rounded = [zero; PAIR];
            let mut totals = sums[i].load::<V>(lanes[0]);
            for c in 0..PAIR {
                if c == 1 && lanes[1] != lanes[0] {
                    sums[i].store(totals, lanes[0]);
                    totals = sums[i].load::<V>(lanes[1]);
                }
                let delta = delta[i][c];
                rounded[c] = T::round(V::updated(base[c], delta));
                let realised = rounded[c].sub(base[c]);
                let lost = realised.sub(delta);
                totals[0] = delta.mul_add(delta, totals[0]);
                totals[1] = realised.mul_add(delta, totals[1]);
                totals[2] = lost.mul_add(lost, totals[2]);
            }
            sums[i].store(totals, lanes[1]);
            let equal = [rounded[0].equal(base[0]), rounded[1].equal(base[1])];
            unchanged += (equal[0] | equal[1] << V::WIDTH).count_ones();
            // SAFETY: a row of the tile.
            unsafe { T::store(rounded, S::ZIPPED, rows.out.add(at), rows.stream) };
        }
        unchanged
    }
}

/// The rank, and the left factor in blocks of rows: see [`Term::Product`].
fn packed_left(left: &ArrayView2<'_, f32>) -> (usize, Vec<f32>) {
    let (rows, rank) = left.dim();
    let full = rows - rows % BLOCK;
    let mut packed = Vec::with_capacity(rows * rank);
    for block in (0..full).step_by(BLOCK) {
        packed.extend((0..rank).flat_map(|k| (block..block + BLOCK).map(move |row| left[[row, k]])));
    }
    packed.extend((full..rows).flat_map(|row| (0..rank).map(move |k| left[[row, k]])));
    (rank, packed)
}

/// The right factor in tiles of columns: see [`Term::Product`].
fn packed_right(simd: Simd, zipped: bool, right: &ArrayView2<'_, f32>) -> Vec<f32> {
    let (tile, (rank, columns)) = (simd.width() * PAIR, right.dim());
    let mut packed = vec![0.0; columns.div_ceil(tile) * tile * rank];
    for (k, row) in right.outer_iter().enumerate() {
        let row = row.as_standard_layout();
        for (i, values) in row.as_slice().unwrap_or_default().chunks(tile).enumerate() {
            let packed = &mut packed[(i * rank + k) * tile..][..tile];
            if zipped {
                values.iter().step_by(2).zip(&mut *packed).for_each(|(value, at)| *at = *value);
                let odd = &mut packed[simd.width()..];
                values.iter().skip(1).step_by(2).zip(odd).for_each(|(value, at)| *at = *value);
            } else {
                packed[..values.len()].copy_from_slice(values);
            }
        }
    }
    packed
}

fn all_zero(values: &[f32]) -> bool {
    values.iter().all(|&value| value == 0.0)
}

/// Copies `count` elements that need no alignment.
///
/// # Safety
/// As many can be read and written, and they do not overlap.
unsafe fn copy_bytes<T>(from: *const T, to: *mut T, count: usize) {
    // SAFETY: as promised; bytes have no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), count * size_of::<T>()) }
}

/// Some rows in memory: `rows · stride` elements at each pointer.
struct Window {
    /// The first row, counted within the matrix.
    first: usize,
    rows: usize,
    /// The matrix's first column within a row.
    column: usize,
    stride: usize,
    /// Past the caches.
    stream: bool,
    base: *const u8,
    out: *mut u8,
}

/// The rows of one tile: a full tile of elements every `stride` elements.
struct Rows<S, T> {
    base: *const S,
    out: *mut T,
    stride: usize,
    stream: bool,
}

/// A row's sums, lane by lane: `‖ΔW‖²`, `⟨W' − W, ΔW⟩`, `‖W' − W − ΔW‖²`.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Sums([[f32; STATS_LANES]; 3]);

impl Sums {
    #[inline(always)]
    fn load<V: Lanes>(&self, lane: usize) -> [V; 3] {
        let mut values = [V::splat(0.0); 3];
        for (value, sum) in values.iter_mut().zip(&self.0) {
            // SAFETY: WIDTH lanes, as the slice says.
            *value = unsafe { V::load_f32(sum[lane..][..V::WIDTH].as_ptr()) };
        }
        values
    }

    #[inline(always)]
    fn store<V: Lanes>(&mut self, values: [V; 3], lane: usize) {
        for (value, sum) in values.into_iter().zip(&mut self.0) {
            // SAFETY: WIDTH lanes, as the slice says.
            unsafe { value.store_f32(sum[lane..][..V::WIDTH].as_mut_ptr(), false) };
        }
    }

    fn stats(&self) -> RoundingStats {
        let [norm, dot, error] = self.0.map(|lanes| lanes.iter().map(|&lane| f64::from(lane)).sum());
        RoundingStats { norm, dot, error, unchanged: 0 }
    }
}
