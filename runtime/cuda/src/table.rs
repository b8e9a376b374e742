//! The tables that the kernel reads, in its layout.

use crate::CudaError;

/// Rows that a block of threads fuses. As in `fuse.cu`.
const TILE_ROWS: usize = 128;
/// Columns that a block of threads fuses. As in `fuse.cu`.
const TILE_COLUMNS: usize = 256;
/// Bytes of what the kernel writes for each block.
pub(crate) const SUMS_BYTES: usize = 32;
/// Most blocks of a launch.
const MOST_BLOCKS: usize = i32::MAX as usize;

/// A rectangle, by addresses; strides and extents in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionEntry {
    pub(crate) base: u64,
    pub(crate) out: u64,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A factor pair, by addresses; steps in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductEntry {
    pub(crate) left: u64,
    pub(crate) right: u64,
    pub(crate) left_steps: [usize; 2],
    pub(crate) right_steps: [usize; 2],
    pub(crate) rank: usize,
    pub(crate) factor: f32,
}

/// Everything that one launch reads, little-endian as GPUs are.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) regions: Vec<u8>,
    pub(crate) products: Vec<u8>,
    pub(crate) region_of_block: Vec<u8>,
    /// Blocks of each region.
    pub(crate) blocks: Vec<usize>,
    product_count: usize,
    block_count: usize,
}

impl Table {
    /// Adds a region and what is added to it.
    pub(crate) fn push(&mut self, region: RegionEntry, products: &[ProductEntry]) -> Result<(), CudaError> {
        let RegionEntry { base, out, stride, rows, columns } = region;
        let column_tiles = columns.div_ceil(TILE_COLUMNS);
        let blocks = rows.div_ceil(TILE_ROWS).checked_mul(column_tiles);
        let first_block = self.block_count;
        let blocks = blocks.filter(|blocks| blocks.checked_add(first_block).is_some_and(|all| all <= MOST_BLOCKS));
        let blocks = blocks.ok_or_else(|| too_large("the regions of one launch"))?;
        let index = word(self.blocks.len())?;
        self.regions.extend([base, out, stride as u64].iter().flat_map(|v| v.to_le_bytes()));
        for value in [rows, columns, self.product_count, products.len(), first_block, column_tiles] {
            self.regions.extend(word(value)?.to_le_bytes());
        }
        for product in products {
            self.products.extend([product.left, product.right].iter().flat_map(|v| v.to_le_bytes()));
            let steps = product.left_steps.iter().chain(&product.right_steps);
            self.products.extend(steps.flat_map(|&step| (step as u64).to_le_bytes()));
            self.products.extend(word(product.rank)?.to_le_bytes());
            self.products.extend(product.factor.to_le_bytes());
        }
        self.region_of_block.extend(std::iter::repeat_n(index.to_le_bytes(), blocks).flatten());
        self.product_count += products.len();
        self.block_count += blocks;
        self.blocks.push(blocks);
        Ok(())
    }

    /// Blocks of all regions, at most `i32::MAX`.
    pub(crate) fn block_count(&self) -> u32 {
        u32::try_from(self.block_count).unwrap_or(u32::MAX)
    }
}

fn word(value: usize) -> Result<u32, CudaError> {
    u32::try_from(value).map_err(|_| too_large("an extent of a region"))
}

fn too_large(what: &'static str) -> CudaError {
    CudaError::Driver { call: "fuse", reason: format!("{what}: too large for the kernel") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_gives_every_block_its_region_and_counts_products() {
        let mut table = Table::default();
        let region = |rows, columns| RegionEntry { base: 256, out: 512, stride: 300, rows, columns };
        let product =
            ProductEntry { left: 1, right: 2, left_steps: [4, 1], right_steps: [300, 1], rank: 4, factor: 0.5 };
        table.push(region(129, 257), &[product, product]).unwrap();
        table.push(region(0, 5), &[product]).unwrap();
        table.push(region(1, 1), &[]).unwrap();
        assert_eq!(table.blocks, [4, 0, 1]);
        assert_eq!((table.regions.len(), table.products.len(), table.block_count()), (3 * 48, 3 * 56, 5));
        let map: Vec<u32> =
            table.region_of_block.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(map, [0, 0, 0, 0, 2]);
        let last: Vec<u32> =
            table.regions[2 * 48 + 24..].chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(last, [1, 1, 3, 0, 4, 1], "rows, columns, first product, products, first block, column tiles");
    }

    #[test]
    fn table_refuses_what_the_kernel_cannot_count() {
        let mut table = Table::default();
        let huge = RegionEntry { base: 0, out: 0, stride: 1, rows: usize::MAX, columns: usize::MAX };
        assert!(table.push(huge, &[]).unwrap_err().to_string().contains("too large"));
    }
}
