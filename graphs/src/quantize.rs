//! Matrices in 8 bits: symmetric, one f32 scale for each block of inputs of a row.

use std::io::{self, Write};

/// How a matrix `[rows, cols]` is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Inputs that share a scale; the last block of a row may be shorter.
    pub block: usize,
}

/// What of a quantised matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizedPart {
    /// `q + 128` as bytes, `[rows, blocks, block]`, the last block padded with zeros of the matrix (128).
    Values,
    /// f32 `[rows · blocks]`: the largest magnitude of each block over 127.
    Scales,
    /// The matrix that values and scales stand for, `q · scale`, f32 `[rows, cols]`.
    Restored,
}

impl Blocks {
    /// Blocks in a row.
    pub fn per_row(&self) -> usize {
        self.cols.div_ceil(self.block)
    }

    pub(crate) fn len(&self, part: QuantizedPart) -> usize {
        match part {
            QuantizedPart::Values => self.rows * self.per_row() * self.block,
            QuantizedPart::Scales => self.rows * self.per_row() * 4,
            QuantizedPart::Restored => self.rows * self.cols * 4,
        }
    }

    /// Writes a part of the f32 matrix `data`.
    pub(crate) fn write(&self, data: &[u8], part: QuantizedPart, out: &mut dyn Write) -> io::Result<()> {
        let expected = self.len(QuantizedPart::Restored);
        if data.len() != expected || self.block == 0 {
            let message = format!("expected {expected} bytes of float32, found {}", data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut line = Vec::new();
        for row in data.chunks_exact((self.cols * 4).max(1)) {
            line.clear();
            for bytes in row.chunks(self.block * 4) {
                self.block(bytes, part, &mut line)?;
            }
            out.write_all(&line)?;
        }
        Ok(())
    }

    fn block(&self, bytes: &[u8], part: QuantizedPart, line: &mut Vec<u8>) -> io::Result<()> {
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        if values.clone().any(|v| !v.is_finite()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a value is not finite and has no 8-bit form; expected finite values: compile without `v2l-compile --int8`, or export the model again",
            ));
        }
        let largest = values.clone().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let quantized =
            values.map(|v| if scale > 0.0 { (v / scale).round_ties_even().clamp(-127.0, 127.0) } else { 0.0 });
        match part {
            QuantizedPart::Values => {
                let start = line.len();
                line.extend(quantized.map(|q| (q + 128.0) as u8));
                line.resize(start + self.block, 128);
            }
            QuantizedPart::Scales => line.extend(scale.to_le_bytes()),
            QuantizedPart::Restored => line.extend(quantized.flat_map(|q| (q * scale).to_le_bytes())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorData;

    fn part(values: &[f32], layout: Blocks, part: QuantizedPart) -> Vec<u8> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let data = TensorData::raw(bytes).quantized(layout, part);
        let out = data.to_bytes().unwrap();
        assert_eq!(out.len(), data.len());
        out.to_vec()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn quantized_values_times_scales_are_the_restored_matrix() {
        let layout = Blocks { rows: 2, cols: 5, block: 3 };
        let values = [1.0, -127.0, 63.0, 0.5, -0.25, 0.0, 0.0, 0.0, 3.0, 4.0];
        let (q, scales) =
            (part(&values, layout, QuantizedPart::Values), floats(&part(&values, layout, QuantizedPart::Scales)));
        assert_eq!(q, [129, 1, 191, 255, 64, 128, 128, 128, 128, 223, 255, 128]);
        assert_eq!(scales, [1.0, 0.5 / 127.0, 0.0, 4.0 / 127.0]);
        let restored = floats(&part(&values, layout, QuantizedPart::Restored));
        for (row, chunk) in restored.chunks(5).enumerate() {
            for (col, value) in chunk.iter().enumerate() {
                let code = f32::from(q[row * 6 + col]) - 128.0;
                assert_eq!(*value, code * scales[row * 2 + col / 3]);
                assert!((value - values[row * 5 + col]).abs() <= scales[row * 2 + col / 3] / 2.0);
            }
        }
    }

    #[test]
    fn quantized_matrix_with_nan_or_infinity_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for values in [[bad, 1.0], [1.0, bad]] {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let layout = Blocks { rows: 1, cols: 2, block: 2 };
                assert!(
                    TensorData::raw(bytes).quantized(layout, QuantizedPart::Values).to_bytes().is_err(),
                    "{values:?}"
                );
            }
        }
    }
}
