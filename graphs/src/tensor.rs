//! Small constant tensors in memory.

use bytes::Bytes;

use crate::{DataType, Initializer, TensorData};

/// A result may take this many bytes.
pub(crate) const RESULT_BYTES: usize = 64 << 10;

/// An operand may take this many bytes.
const OPERAND_BYTES: usize = 1 << 20;

/// More extents than any real constant has.
const MAX_RANK: usize = 16;

/// A constant whose length agrees with its type and shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dtype: DataType,
    pub(crate) shape: Vec<usize>,
    bytes: Bytes,
}

/// The elements of a tensor. Integers of every type but `uint64` are widened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Numbers {
    Int(Vec<i64>),
    Float(Vec<f32>),
    Bool(Vec<bool>),
}

impl Tensor {
    /// `None` if the length does not fit type and shape, or the tensor is large.
    pub(crate) fn from_initializer(value: &Initializer) -> Option<Self> {
        let expected = value.expected_len().filter(|&n| n <= OPERAND_BYTES && n == value.data.len())?;
        let bytes = value.data.to_bytes().ok()?;
        let fits = bytes.len() == expected && value.shape.len() <= MAX_RANK;
        fits.then(|| Self { dtype: value.dtype, shape: value.shape.clone(), bytes })
    }

    pub(crate) fn into_initializer(self) -> Initializer {
        Initializer { dtype: self.dtype, shape: self.shape, data: TensorData::raw(self.bytes), external: false }
    }

    /// A tensor of int64.
    pub(crate) fn ints(shape: &[usize], values: &[i64]) -> Option<Self> {
        Self::from_numbers(DataType::Int64, shape.to_vec(), &Numbers::Int(values.to_vec()))
    }

    /// `None` if a number does not fit the type, the count does not fit the shape, or the result is too large.
    pub(crate) fn from_numbers(dtype: DataType, shape: Vec<usize>, numbers: &Numbers) -> Option<Self> {
        let bytes = match (numbers, dtype) {
            (Numbers::Int(v), _) => {
                let (low, high) = int_range(dtype)?;
                if v.iter().any(|n| !(low..=high).contains(n)) {
                    return None;
                }
                v.iter().flat_map(|n| n.to_le_bytes().into_iter().take(dtype.size())).collect()
            }
            (Numbers::Float(v), DataType::Float) => v.iter().flat_map(|n| n.to_le_bytes()).collect(),
            (Numbers::Bool(v), DataType::Bool) => v.iter().map(|&b| u8::from(b)).collect(),
            _ => return None,
        };
        Self::from_bytes(dtype, shape, bytes)
    }

    fn from_bytes(dtype: DataType, shape: Vec<usize>, bytes: Vec<u8>) -> Option<Self> {
        let expected = result_count(&shape, dtype)? * dtype.size();
        (bytes.len() == expected).then(|| Self { dtype, shape, bytes: bytes.into() })
    }

    /// The elements, for types that are computed with.
    pub(crate) fn numbers(&self) -> Option<Numbers> {
        Some(match self.dtype {
            DataType::Float => Numbers::Float(
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ),
            DataType::Bool => Numbers::Bool(self.bytes.iter().map(|&b| b != 0).collect()),
            dtype => {
                let (low, _) = int_range(dtype)?;
                let size = dtype.size();
                let widen = |b: &[u8]| {
                    let negative = low < 0 && b[size - 1] & 0x80 != 0;
                    let mut wide = [if negative { 0xff } else { 0 }; 8];
                    wide[..size].copy_from_slice(b);
                    i64::from_le_bytes(wide)
                };
                Numbers::Int(self.bytes.chunks_exact(size).map(widen).collect())
            }
        })
    }

    /// The elements of an int32 or int64 tensor.
    pub(crate) fn indices(&self) -> Option<Vec<i64>> {
        match (self.dtype, self.numbers()?) {
            (DataType::Int32 | DataType::Int64, Numbers::Int(v)) => Some(v),
            _ => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements at `indices`, in a new shape.
    pub(crate) fn pick(&self, indices: &[usize], shape: Vec<usize>) -> Option<Self> {
        let size = self.dtype.size();
        let mut bytes = Vec::with_capacity(indices.len() * size);
        for &index in indices {
            let start = index.checked_mul(size)?;
            bytes.extend_from_slice(self.bytes.get(start..start + size)?);
        }
        Self::from_bytes(self.dtype, shape, bytes)
    }

    /// The same elements in another shape of as many.
    pub(crate) fn reshaped(&self, shape: Vec<usize>) -> Option<Self> {
        let fits = result_count(&shape, self.dtype)? == self.len();
        fits.then(|| Self { dtype: self.dtype, shape, bytes: self.bytes.clone() })
    }

    /// Another floating-point type, rounded to nearest even.
    pub(crate) fn converted(&self, to: DataType) -> Option<Self> {
        let bytes = TensorData::raw(self.bytes.clone()).converted(self.dtype, to).to_bytes().ok()?;
        Self::from_bytes(to, self.shape.clone(), bytes.to_vec())
    }

    /// This tensor followed element by element by others of the same type.
    pub(crate) fn chained(parts: &[&Self], shape: Vec<usize>) -> Option<Self> {
        let dtype = parts.first()?.dtype;
        result_count(&shape, dtype)?;
        let bytes = parts.iter().flat_map(|t| t.bytes.iter().copied()).collect();
        Self::from_bytes(dtype, shape, bytes)
    }
}

/// Number of elements of a result; `None` if it is too large.
pub(crate) fn result_count(shape: &[usize], dtype: DataType) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let small = shape.len() <= MAX_RANK && count <= RESULT_BYTES / dtype.size();
    small.then_some(count)
}

/// Smallest and largest value of an integer type that is computed with.
fn int_range(dtype: DataType) -> Option<(i64, i64)> {
    Some(match dtype {
        DataType::Int64 => (i64::MIN, i64::MAX),
        DataType::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::Int16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Int8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DataType::Uint32 => (0, i64::from(u32::MAX)),
        DataType::Uint16 => (0, i64::from(u16::MAX)),
        DataType::Uint8 => (0, i64::from(u8::MAX)),
        _ => return None,
    })
}

/// Row-major strides in elements.
pub(crate) fn strides(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].try_into().unwrap_or(i64::MAX));
    }
    strides
}

/// The source element of every element of `shape`, in row-major order: `offset + Σ index · stride`.
///
/// `shape` must be small ([`result_count`]). `None` if a source would be negative.
pub(crate) fn walk(shape: &[usize], strides: &[i64], offset: i64) -> Option<Vec<usize>> {
    if shape.contains(&0) {
        return Some(Vec::new());
    }
    let mut at = vec![offset];
    for (&extent, &stride) in shape.iter().zip(strides) {
        let mut next = Vec::with_capacity(at.len() * extent);
        for base in at {
            for i in 0..i64::try_from(extent).ok()? {
                next.push(base.checked_add(i.checked_mul(stride)?)?);
            }
        }
        at = next;
    }
    at.into_iter().map(|i| usize::try_from(i).ok()).collect()
}

/// The shape that NumPy's rules broadcast to.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let extent = |s: &[usize], axis: usize| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|axis| match (extent(a, axis), extent(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// The element of a tensor of shape `from` for every element of `to`, which `from` broadcasts to.
pub(crate) fn broadcast_sources(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    if broadcast(from, to).as_deref() != Some(to) {
        return None;
    }
    let own = strides(from);
    let lead = to.len() - from.len();
    let strides: Vec<i64> =
        (0..to.len()).map(|axis| if axis < lead || from[axis - lead] == 1 { 0 } else { own[axis - lead] }).collect();
    walk(to, &strides, 0)
}

/// `axis`, counted from the end if negative.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank)? } else { axis };
    (0..rank).contains(&axis).then_some(axis as usize)
}
