use std::io::{self, Write};

use crate::{DataType, TensorData};

/// One 128-bit hash per row of a matrix `[rows, cols]` of type `from`, after rounding to `to` and, if `transposed`, of
/// its transpose: equal rows, and only they, have equal hashes, however two matrices are stored.
///
/// Streams the tensor; holds at most one tensor in private memory, where it is rounded or transposed.
///
/// # Errors
/// As [`TensorData::write_to`]: a value beyond `to`'s range, or lengths that contradict the shape.
pub fn row_hashes(
    data: &TensorData,
    [rows, cols]: [usize; 2],
    from: DataType,
    to: DataType,
    transposed: bool,
) -> io::Result<Vec<u128>> {
    let wrong =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes for [{rows}, {cols}] {from}", data.len()));
    if rows.checked_mul(cols).and_then(|n| n.checked_mul(from.size())) != Some(data.len()) || cols == 0 {
        return Err(wrong());
    }
    let (data, width) = match transposed {
        true => (data.clone().transposed(rows, cols, from.size()), rows),
        false => (data.clone(), cols),
    };
    let data = match (from, to) {
        (DataType::Float16, DataType::Bfloat16) | (DataType::Bfloat16, DataType::Float16) => {
            data.converted(from, DataType::Float).converted(DataType::Float, to)
        }
        _ => data.converted(from, to),
    };
    let mut rows = Rows { row: width * to.size(), filled: 0, hasher: blake3::Hasher::new(), hashes: Vec::new() };
    data.write_to(&mut rows)?;
    Ok(rows.hashes)
}

/// Hashes what is written in pieces of `row` bytes.
struct Rows {
    row: usize,
    filled: usize,
    hasher: blake3::Hasher,
    hashes: Vec<u128>,
}

impl Write for Rows {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.row - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            if self.filled == self.row {
                let mut half = [0; 16];
                half.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
                self.hashes.push(u128::from_le_bytes(half));
                self.hasher.reset();
                self.filled = 0;
            }
            rest = later;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(values: &[f32]) -> TensorData {
        TensorData::raw(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    const F32: DataType = DataType::Float;

    #[test]
    fn rows_of_a_matrix_are_the_columns_of_its_transpose() {
        let upright = row_hashes(&data(&[1., 2., 3., 4., 5., 6.]), [2, 3], F32, F32, false).unwrap();
        let turned = row_hashes(&data(&[1., 4., 2., 5., 3., 6.]), [3, 2], F32, F32, true).unwrap();
        assert_eq!((upright.len(), &upright), (2, &turned));
        let other = row_hashes(&data(&[1., 2., 3., 4., 5., 7.]), [2, 3], F32, F32, false).unwrap();
        assert!(upright[0] == other[0] && upright[1] != other[1]);
    }

    #[test]
    fn rows_rounded_to_16_bits_equal_those_stored_so() {
        let values = [0.1f32, -3.7, 1e-5, 250.25];
        for to in [DataType::Bfloat16, DataType::Float16] {
            let narrow = TensorData::raw(data(&values).converted(F32, to).to_bytes().unwrap());
            let stored = row_hashes(&narrow, [2, 2], to, to, false).unwrap();
            assert_eq!(stored, row_hashes(&data(&values), [2, 2], F32, to, false).unwrap());
        }
    }

    #[test]
    fn length_that_contradicts_the_shape_is_an_error() {
        assert!(row_hashes(&data(&[1., 2.]), [2, 2], F32, F32, false).is_err());
        assert!(row_hashes(&data(&[]), [2, 0], F32, F32, false).is_err());
    }
}
