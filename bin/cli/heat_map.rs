//! A picture of a number for each slot, by block and module.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use image::{Rgb, RgbImage};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::lora::algebra::place;
use v2l_runtime::media::video::{MAX_SIDE, VideoError, write_png};

/// Side of a cell in pixels, unless the picture would then be too large.
const CELL: usize = 16;
/// Colours of 0, 1/8, … 1: viridis, whose lightness rises evenly, in print and for every kind of colour
/// vision.
const RAMP: [[u8; 3]; 9] = [
    [68, 1, 84],
    [71, 45, 123],
    [59, 82, 139],
    [44, 114, 142],
    [33, 144, 140],
    [39, 173, 129],
    [93, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];
/// Colour of slots that no adapter changes.
pub const NOT_CHANGED: [u8; 3] = [176, 176, 176];
/// Colour of places where the model has no slot.
pub const NO_SLOT: [u8; 3] = [255, 255, 255];

/// The colour of a number from 0 to 1; what lies beyond has the colour of the nearer end.
pub fn colour(number: f64) -> [u8; 3] {
    let at = number.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let low = (at as usize).min(RAMP.len() - 2);
    let part = at - low as f64;
    std::array::from_fn(|i| {
        let (a, b) = (f64::from(RAMP[low][i]), f64::from(RAMP[low + 1][i]));
        (a + part * (b - a)).round() as u8
    })
}

/// One cell for each slot of a model: a row for each module path, a column for each block.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Module paths from top to bottom, in the model's order; `*` stands for the number of the block.
    pub rows: Vec<String>,
    /// Numbers of the blocks from left to right; `None`, always the first, has the slots outside any block.
    pub columns: Vec<Option<u64>>,
    /// (row, column) → colour, where there is a slot.
    cells: HashMap<(usize, usize), [u8; 3]>,
}

impl HeatMap {
    /// The picture of numbers from 0 to 1, by slot; slots without one are not changed.
    pub fn new(slots: &[Slot], numbers: &HashMap<&str, f64>) -> Self {
        let places: Vec<(String, Option<u64>)> = slots.iter().map(|slot| place(&slot.name)).collect();
        let blocks: BTreeSet<Option<u64>> = places.iter().map(|(_, block)| *block).collect();
        let columns: Vec<Option<u64>> = blocks.into_iter().collect();
        let (mut rows, mut row_of) = (Vec::new(), HashMap::new());
        let mut cells = HashMap::new();
        for (slot, (module, block)) in slots.iter().zip(places) {
            let row = *row_of.entry(module).or_insert_with_key(|module| {
                rows.push(module.clone());
                rows.len() - 1
            });
            // Every block is a column.
            let Ok(column) = columns.binary_search(&block) else { continue };
            cells.insert((row, column), numbers.get(&slot.name[..]).map_or(NOT_CHANGED, |&part| colour(part)));
        }
        Self { rows, columns, cells }
    }

    /// Side of a cell in pixels: 16, or less if a side of the picture would have more than [`MAX_SIDE`] pixels.
    pub fn cell(&self) -> usize {
        (MAX_SIDE / self.rows.len().max(self.columns.len()).max(1)).clamp(1, CELL)
    }

    /// Writes the picture as a PNG, whole or not at all.
    ///
    /// # Errors
    /// [`VideoError::NotPng`] if `path` does not end in `.png`, [`VideoError::Size`] without a slot or with more than
    /// [`MAX_SIDE`] rows or columns, [`VideoError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), VideoError> {
        write_png(path, &self.draw()?)
    }

    fn draw(&self) -> Result<RgbImage, VideoError> {
        let side = self.cell();
        let (width, height) = (self.columns.len() * side, self.rows.len() * side);
        if ![width, height].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
            return Err(VideoError::Size { width, height, frames: 1 });
        }
        Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
            Rgb(self.cells.get(&(y as usize / side, x as usize / side)).copied().unwrap_or(NO_SLOT))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_map_has_a_column_for_each_block_and_one_at_the_left_for_the_rest() {
        let names = [
            "patch_embed.proj",
            "transformer_blocks.10.attn1.to_q",
            "transformer_blocks.2.attn1.to_q",
            "transformer_blocks.2.ff.net.0.proj",
        ];
        let slots = names.map(|name| Slot::linear(name, 2, 3));
        let map = HeatMap::new(&slots, &HashMap::from([(names[0], 1.0), (names[1], 0.0), (names[2], 0.5)]));
        let rows = ["patch_embed.proj", "transformer_blocks.*.attn1.to_q", "transformer_blocks.*.ff.net.0.proj"];
        assert_eq!(map.rows, rows);
        assert_eq!(map.columns, [None, Some(2), Some(10)]);
        let picture = map.draw().unwrap();
        assert_eq!(picture.dimensions(), (3 * 16, 3 * 16));
        let expected = [[RAMP[8], NO_SLOT, NO_SLOT], [NO_SLOT, RAMP[4], RAMP[0]], [NO_SLOT, NOT_CHANGED, NO_SLOT]];
        for (x, y, pixel) in picture.enumerate_pixels() {
            assert_eq!(pixel.0, expected[y as usize / 16][x as usize / 16], "{x}, {y}");
        }
    }

    #[test]
    fn heat_map_colours_get_lighter_as_more_survives() {
        let light = |survived: f64| {
            let [r, g, b] = colour(survived).map(f64::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        for step in 1..=100 {
            assert!(light(f64::from(step) / 100.0) > light(f64::from(step - 1) / 100.0), "{step}");
        }
        assert_eq!((colour(-0.1), colour(1.01)), (RAMP[0], RAMP[8]));
    }

    #[test]
    fn heat_map_cells_shrink_before_a_picture_gets_too_large() {
        let slots = |count: usize| -> Vec<Slot> {
            (0..count).map(|block| Slot::linear(format!("blocks.{block}.q"), 1, 1)).collect()
        };
        assert_eq!(HeatMap::new(&slots(1000), &HashMap::new()).draw().unwrap().dimensions(), (8000, 8));
        for count in [0, MAX_SIDE + 1] {
            let refused = HeatMap::new(&slots(count), &HashMap::new()).draw();
            assert!(matches!(refused, Err(VideoError::Size { .. })), "{count}");
        }
    }

    #[test]
    fn heat_map_is_written_as_a_png_only() {
        let dir = tempfile::tempdir().unwrap();
        let map = HeatMap::new(&[Slot::linear("head", 1, 1)], &HashMap::from([("head", 0.25)]));
        let refused = map.write(&dir.path().join("map.jpg"));
        assert!(matches!(refused, Err(VideoError::NotPng { .. })));
        let path = dir.path().join("map.png");
        map.write(&path).unwrap();
        assert_eq!(image::open(&path).unwrap().into_rgb8(), map.draw().unwrap());
    }
}
