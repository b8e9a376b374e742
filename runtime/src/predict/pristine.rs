//! The pristine weight of a slot, in panels: what a predictor reads that takes the base's weights.

use half::{bf16, f16};
use ndarray::Array2;
use rayon::prelude::*;

use super::error::PredictorError;
use crate::engine::Engine;
use crate::engine::manifest::{Hash, INT8_SUFFIX, SCALES_SUFFIX, Slot};
use crate::io::raw;
use crate::tensor::Dtype;

/// The pristine weight `[out, in]` of a slot, in the engine's map. Panels of it are copied to f32, and nothing of the size
/// of the whole is.
pub struct Pristine {
    data: bytes::Bytes,
    stored: Stored,
    /// Rows of `[out, in]` before the slot's.
    first: usize,
    /// All that are stored of each: `[out, in]`, or `[in, out]` if `transposed`.
    width: usize,
    transposed: bool,
    out: usize,
    input: usize,
    hashes: Vec<Hash>,
}

enum Stored {
    Floats(Dtype),
    /// Values + 128, and the scale of each block of inputs of each output.
    Blocks {
        block: usize,
        scales: Vec<f32>,
    },
}

impl Pristine {
    /// The weight of a slot. Reads none of it.
    ///
    /// # Errors
    /// [`PredictorError::Engine`] if the engine has no such tensor, [`PredictorError::Backbone`] if it is no matrix of the
    /// slot's size.
    pub fn open(engine: &Engine, slot: &Slot) -> Result<Self, PredictorError> {
        let misfit = |found: String| PredictorError::Backbone {
            slot: slot.name.clone(),
            expected: format!("a matrix with {} × {} elements of it", slot.out_features, slot.in_features),
            found,
        };
        let hash = |name: &str| engine.manifest().tensors.get(name).map(|record| record.blake3);
        let (rows, out, input) = (slot.row_range(), slot.out_features, slot.in_features);
        let base = |data, stored, width, hashes| Self {
            data,
            stored,
            first: rows.start,
            width,
            transposed: slot.transposed,
            out,
            input,
            hashes,
        };
        if rows.end.checked_sub(rows.start) != Some(out) {
            return Err(misfit(format!("rows {}..{}", rows.start, rows.end)));
        }
        if let Some(block) = slot.quantized {
            let stem = slot.tensor.strip_suffix(INT8_SUFFIX).unwrap_or(&slot.tensor);
            let names = [format!("{stem}{INT8_SUFFIX}"), format!("{stem}{SCALES_SUFFIX}")];
            let (values, scales) = (engine.weight(&names[0])?, engine.weight(&names[1])?);
            let blocks = input.div_ceil(block.max(1));
            let scales = raw::widen(scales.dtype, &scales.data).unwrap_or_default();
            let fits = matches!(*values.shape, [all, b, k] if all >= rows.end && b == blocks && k == block
                && Some(values.data.len()) == raw::byte_len(Dtype::U8, values.shape) && scales.len() == all * blocks);
            if !fits || slot.transposed {
                return Err(misfit(format!("{:?} with {} scales", values.shape, scales.len())));
            }
            let hashes = names.iter().filter_map(|name| hash(name)).collect();
            return Ok(base(values.data, Stored::Blocks { block, scales }, blocks * block, hashes));
        }
        let weight = engine.weight(&slot.tensor)?;
        let (tall, wide) = if slot.transposed { (input, rows.end) } else { (rows.end, input) };
        let fits = matches!(*weight.shape, [high, width] if high >= tall && width >= wide
            && (slot.transposed || width == input) && (!slot.transposed || high == input));
        if !fits || !weight.dtype.is_float() {
            return Err(misfit(format!("{} {:?}", weight.dtype, weight.shape)));
        }
        let width = weight.shape[1];
        Ok(base(weight.data, Stored::Floats(weight.dtype), width, hash(&slot.tensor).into_iter().collect()))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.out
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.input
    }

    /// The manifest's hashes of what is stored: a weight that differs in an element differs in these.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Rows `start..start + count` of the weight, `[count, in]`.
    pub fn row_panel(&self, start: usize, count: usize) -> Array2<f32> {
        self.panel(count, self.input, |row, column| (start + row, column))
    }

    /// Columns `start..start + count` of the weight, turned: `[count, out]`.
    pub fn column_panel(&self, start: usize, count: usize) -> Array2<f32> {
        self.panel(count, self.out, |column, row| (row, start + column))
    }

    /// `[high, wide]` of the elements that `at` names by row and column of the weight.
    fn panel(&self, high: usize, wide: usize, at: impl Fn(usize, usize) -> (usize, usize) + Sync) -> Array2<f32> {
        let mut values = vec![0f32; high * wide];
        values.par_chunks_mut(wide.max(1)).enumerate().for_each(|(i, line)| {
            let (first, second) = (at(i, 0), at(i, 1.min(wide.saturating_sub(1))));
            let (start, next) = (self.index(first), self.index(second));
            match &self.stored {
                Stored::Floats(dtype) if wide < 2 || next == start + 1 => {
                    let size = dtype.size();
                    raw::widen_into(*dtype, &self.data[start * size..(start + wide) * size], line);
                }
                Stored::Floats(dtype) => {
                    let (size, step) = (dtype.size(), next - start);
                    for (j, value) in line.iter_mut().enumerate() {
                        let from = (start + j * step) * size;
                        *value = number(*dtype, &self.data[from..from + size]);
                    }
                }
                Stored::Blocks { block, scales } => {
                    for (j, value) in line.iter_mut().enumerate() {
                        let (row, column) = at(i, j);
                        let from = self.index((row, column));
                        let scale = scales[(self.first + row) * (self.width / block) + column / block];
                        *value = (f32::from(self.data[from]) - 128.0) * scale;
                    }
                }
            }
        });
        Array2::from_shape_vec((high, wide), values).unwrap_or_default()
    }

    /// Where an element lies, in elements.
    fn index(&self, (row, column): (usize, usize)) -> usize {
        let row = self.first + row;
        if self.transposed { column * self.width + row } else { row * self.width + column }
    }
}

fn number(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
        _ => f32::NAN,
    }
}
