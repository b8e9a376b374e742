//! Fusing: from regions and factors to one launch of the kernel, and its sums back.
#![allow(unsafe_code, reason = "the CUDA driver's API")]

use std::sync::Arc;

use crate::table::{ProductEntry, RegionEntry, SUMS_BYTES, Table};
use crate::{CudaError, Driver, Element, Memory};

/// A factor pair: `left[row, k]` and `right[k, column]` in f32, each `at` an offset in elements into the memory of factors,
/// with the steps between its rows and between its columns.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// Offset of `left` `[rows, rank]`.
    pub left: usize,
    /// From row to row, and from rank to rank.
    pub left_steps: [usize; 2],
    /// Offset of `right` `[rank, columns]`.
    pub right: usize,
    /// From rank to rank, and from column to column.
    pub right_steps: [usize; 2],
    /// The rank.
    pub rank: usize,
    /// What the product is multiplied by, as a whole.
    pub factor: f32,
}

/// A rectangle of a row-major tensor. Offsets, extents and strides in elements.
#[derive(Clone, Debug)]
pub struct Region<'a> {
    /// The pristine tensor.
    pub base: &'a Memory,
    /// Where the rectangle begins in it.
    pub base_at: usize,
    /// Where it begins in the memory of results.
    pub out_at: usize,
    /// From row to row, in both.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns, at most `stride`.
    pub columns: usize,
    /// What is added, in this order.
    pub products: Vec<Factors>,
}

/// Sums over a region's elements in a fixed order that is not the CPU's, of f32 terms where f32 holds them and else of f64
/// terms; good to about 1e-6.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// `‖ΔW‖²`.
    pub norm: f64,
    /// `⟨W' − W, ΔW⟩`.
    pub dot: f64,
    /// `‖W' − W − ΔW‖²`; not finite if some W' is not.
    pub error: f64,
    /// Elements with `W' = W`.
    pub unchanged: u64,
}

/// Fuses all regions in one launch, into `out`, and waits for it: `W' = round(f32(W) + Σᵢ fᵢ · Lᵢ · Rᵢ)`, bit for bit what the
/// CPU kernels give. `factors` holds f32. Memory of the device: the tables, about 64 bytes a region and product and 36 per
/// 32768 elements.
///
/// Regions that overlap in `out` give either's results.
///
/// # Errors
/// [`CudaError`]; what `out` holds is then arbitrary.
pub fn fuse(
    driver: &Arc<dyn Driver>,
    element: Element,
    factors: &Memory,
    out: &mut Memory,
    regions: &[Region<'_>],
) -> Result<Vec<Sums>, CudaError> {
    let mut prepared = Prepared::new(driver, element, factors, out, regions)?;
    prepared.launch()?;
    prepared.sums()
}

/// A fuse that is ready to be launched, its tables on the device. [`fuse`] takes one step after the other; this is for measuring
/// them one by one.
#[derive(Debug)]
pub struct Prepared<'a> {
    element: Element,
    /// Regions, products, the region of each block, and each block's sums.
    tables: [Memory; 4],
    table: Table,
    /// Borrowed as long as the kernel may use them.
    _held: (&'a Memory, &'a mut Memory, Vec<&'a Memory>),
}

impl<'a> Prepared<'a> {
    /// Checks all ranges and brings the tables to the device.
    ///
    /// # Errors
    /// [`CudaError`], as [`fuse`].
    pub fn new(
        driver: &Arc<dyn Driver>,
        element: Element,
        factors: &'a Memory,
        out: &'a mut Memory,
        regions: &[Region<'a>],
    ) -> Result<Self, CudaError> {
        let mut table = Table::default();
        for region in regions {
            let products = region.products.iter().map(|pair| product(pair, region, factors));
            let products: Vec<ProductEntry> = products.collect::<Result<_, _>>()?;
            table.push(entry(region, element, out)?, &products)?;
        }
        let sums = Memory::new(driver, table.block_count() as usize * SUMS_BYTES)?;
        let [regions_at, products, blocks] =
            [&table.regions, &table.products, &table.region_of_block].map(|part| Memory::of(driver, part));
        let tables = [regions_at?, products?, blocks?, sums];
        let bases = regions.iter().map(|region| region.base).collect();
        Ok(Self { element, tables, table, _held: (factors, out, bases) })
    }

    /// Starts the kernel; [`Driver::synchronize`] waits for it. Every launch gives the same results.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn launch(&mut self) -> Result<(), CudaError> {
        if self.table.block_count() == 0 {
            return Ok(());
        }
        let [_, _, _, sums] = &self.tables;
        let arguments = self.tables.each_ref().map(Memory::address);
        // SAFETY: the tables are as the kernel expects them; every range in them was checked against its memory, which `self` borrows,
        // the results' for writing; freeing memory waits for the kernel.
        unsafe { sums.driver().launch(self.element, arguments, self.table.block_count()) }
    }

    /// Waits for what was launched, and gives each region's sums.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn sums(&self) -> Result<Vec<Sums>, CudaError> {
        let [_, _, _, sums] = &self.tables;
        sums.driver().synchronize()?;
        let words = sums.download(0..sums.len())?;
        let mut blocks = words.chunks_exact(SUMS_BYTES);
        Ok(self.table.blocks.iter().map(|&count| blocks.by_ref().take(count).fold(Sums::default(), add)).collect())
    }
}

fn add(sum: Sums, block: &[u8]) -> Sums {
    let word = |i: usize| std::array::from_fn(|byte| block[8 * i + byte]);
    let float = |i: usize| f64::from_le_bytes(word(i));
    Sums {
        norm: sum.norm + float(0),
        dot: sum.dot + float(1),
        error: sum.error + float(2),
        unchanged: sum.unchanged + u64::from_le_bytes(word(3)),
    }
}

/// Elements from the first to the last of `rows` times `columns`, with these steps; `None` if that overflows.
fn span([rows, columns]: [usize; 2], [down, across]: [usize; 2]) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(down)?.checked_add((columns - 1).checked_mul(across)?)?.checked_add(1)
}

fn address(memory: &Memory, what: &'static str, at: usize, span: Option<usize>, size: usize) -> Result<u64, CudaError> {
    let bytes = |elements: usize| elements.checked_mul(size);
    match (bytes(at), span.and_then(bytes)) {
        (Some(at), Some(length)) => memory.range(what, at, length),
        _ => Err(CudaError::OutOfRange { what, bytes: memory.len() }),
    }
}

fn entry(region: &Region<'_>, element: Element, out: &Memory) -> Result<RegionEntry, CudaError> {
    let &Region { base, base_at, out_at, stride, rows, columns, .. } = region;
    let (span, size) = (span([rows, columns], [stride, 1]), element.size());
    let base = address(base, "a region", base_at, span, size)?;
    let out = address(out, "a region's result", out_at, span, size)?;
    Ok(RegionEntry { base, out, stride, rows, columns })
}

fn product(pair: &Factors, region: &Region<'_>, factors: &Memory) -> Result<ProductEntry, CudaError> {
    let &Factors { left, left_steps, right, right_steps, rank, factor } = pair;
    let left = address(factors, "a left factor", left, span([region.rows, rank], left_steps), 4)?;
    let right = address(factors, "a right factor", right, span([rank, region.columns], right_steps), 4)?;
    Ok(ProductEntry { left, right, left_steps, right_steps, rank, factor })
}
