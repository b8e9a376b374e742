//! Element types and weight bytes.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::quantize::{Blocks, QuantizedPart};

/// ONNX tensor element types (`TensorProto.DataType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "names are ONNX's own")]
pub enum DataType {
    Float,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Int32,
    Int64,
    Bool,
    Float16,
    Double,
    Uint32,
    Uint64,
    Bfloat16,
}

impl DataType {
    const ALL: [(Self, i32, usize, &'static str); 13] = [
        (Self::Float, 1, 4, "float32"),
        (Self::Uint8, 2, 1, "uint8"),
        (Self::Int8, 3, 1, "int8"),
        (Self::Uint16, 4, 2, "uint16"),
        (Self::Int16, 5, 2, "int16"),
        (Self::Int32, 6, 4, "int32"),
        (Self::Int64, 7, 8, "int64"),
        (Self::Bool, 9, 1, "bool"),
        (Self::Float16, 10, 2, "float16"),
        (Self::Double, 11, 8, "float64"),
        (Self::Uint32, 12, 4, "uint32"),
        (Self::Uint64, 13, 8, "uint64"),
        (Self::Bfloat16, 16, 2, "bfloat16"),
    ];

    fn row(self) -> (Self, i32, usize, &'static str) {
        Self::ALL.into_iter().find(|row| row.0 == self).unwrap_or(Self::ALL[0])
    }

    /// The `TensorProto.DataType` number.
    pub fn onnx(self) -> i32 {
        self.row().1
    }

    /// The type with this `TensorProto.DataType` number, or `None` for one that is not handled (strings, 8-bit
    /// floats, 4-bit integers, complex numbers).
    pub fn from_onnx(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// True for `float32`, `float16`, `bfloat16` and `float64`.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Float16 | Self::Bfloat16 | Self::Double)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

/// A stored form of numbers that ONNX has no type for: 8-bit floats with a scale, blocks of few bits.
pub trait Decode: fmt::Debug + Send + Sync {
    /// Bytes of a block, and the values that it holds; neither is 0.
    fn block(&self) -> (usize, usize);

    /// Decodes whole blocks into as many values as they hold; `first` is the number of the first of them in the tensor.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    fn decode(&self, first: usize, blocks: &[u8], values: &mut [f32]) -> Result<(), String>;
}

/// Little-endian row-major tensor bytes, with transforms that are applied while the tensor is written.
#[derive(Clone, Debug)]
pub struct TensorData(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Raw(Bytes),
    /// Blocks that hold f32 values.
    Decoded {
        blocks: Bytes,
        /// The number of the first block in the whole tensor.
        first: usize,
        decoder: Arc<dyn Decode>,
    },
    /// A `[rows, cols]` matrix to be written as `[cols, rows]`.
    Transposed {
        data: Box<TensorData>,
        rows: usize,
        cols: usize,
        size: usize,
    },
    Converted {
        data: Box<TensorData>,
        from: DataType,
        to: DataType,
    },
    Quantized {
        data: Box<TensorData>,
        layout: Blocks,
        part: QuantizedPart,
    },
}

/// Elements that a conversion holds in private memory at a time.
const CHUNK: usize = 1 << 18;

/// The smallest magnitude that rounds to infinity in float16.
const F16_OVERFLOW: f32 = 65520.0;

impl TensorData {
    /// Bytes as they are, shared and not copied.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self(Repr::Raw(bytes.into()))
    }

    /// The f32 values that `blocks` hold, decoded while they are written.
    pub fn decoded(blocks: impl Into<Bytes>, decoder: Arc<dyn Decode>) -> Self {
        Self(Repr::Decoded { blocks: blocks.into(), first: 0, decoder })
    }

    /// The transpose of a `[rows, cols]` matrix whose elements take `size` bytes.
    pub fn transposed(self, rows: usize, cols: usize, size: usize) -> Self {
        match self.0 {
            // Conversions stay outermost, so that the source is read where it lies and known by its own type.
            Repr::Converted { data, from, to } => {
                Self(Repr::Converted { data: Box::new(data.transposed(rows, cols, from.size())), from, to })
            }
            _ => Self(Repr::Transposed { data: Box::new(self), rows, cols, size }),
        }
    }

    /// The same numbers in another floating-point type, rounded to nearest even. Equal types change nothing.
    ///
    /// `float32`, `float16` and `bfloat16` convert to each other and `float64` to them; see [`TensorData::write_to`].
    pub fn converted(self, from: DataType, to: DataType) -> Self {
        match self.0 {
            _ if from == to => self,
            // f16 and bf16 widen without loss, so that going there and back is no change.
            Repr::Converted { data, from: origin, to: DataType::Float } if origin == to && origin.size() == 2 => *data,
            _ => Self(Repr::Converted { data: Box::new(self), from, to }),
        }
    }

    /// One part of an f32 matrix in 8 bits per value and an f32 scale per block; see [`crate::quantize`].
    pub fn quantized(self, layout: Blocks, part: QuantizedPart) -> Self {
        Self(Repr::Quantized { data: Box::new(self), layout, part })
    }

    /// The bytes of `range`, shared; `None` if they are made from others as they are written, or the range is outside.
    ///
    /// The range must begin and end at elements.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Option<Self> {
        match &self.0 {
            Repr::Raw(bytes) => {
                (range.start <= range.end && range.end <= bytes.len()).then(|| Self(Repr::Raw(bytes.slice(range))))
            }
            Repr::Decoded { blocks, first, decoder } => {
                let (bytes, values) = decoder.block();
                let at = |byte: usize| {
                    let whole = byte.is_multiple_of(4 * values);
                    whole.then(|| (byte / (4 * values)).checked_mul(bytes)).flatten()
                };
                let (start, end) = (at(range.start)?, at(range.end)?);
                let inside = start <= end && end <= blocks.len();
                let first = first + start / bytes;
                let blocks = || blocks.slice(start..end);
                inside.then(|| Self(Repr::Decoded { blocks: blocks(), first, decoder: Arc::clone(decoder) }))
            }
            Repr::Transposed { .. } | Repr::Quantized { .. } => None,
            Repr::Converted { data, from, to } => {
                let source = |byte: usize| (byte / to.size()).checked_mul(from.size());
                let data = data.slice(source(range.start)?..source(range.end)?)?;
                Some(Self(Repr::Converted { data: Box::new(data), from: *from, to: *to }))
            }
        }
    }

    /// Bytes that [`TensorData::write_to`] will write.
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Raw(bytes) => bytes.len(),
            Repr::Decoded { blocks, decoder, .. } => {
                let (bytes, values) = decoder.block();
                (blocks.len() / bytes).saturating_mul(values).saturating_mul(4)
            }
            Repr::Transposed { data, .. } => data.len(),
            Repr::Converted { data, from, to } => data.len() / from.size() * to.size(),
            Repr::Quantized { layout, part, .. } => layout.len(*part),
        }
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type that the values were converted to f32 from, if that is all that happens to them.
    pub fn widened_from(&self) -> Option<DataType> {
        match self.0 {
            Repr::Converted { from, to: DataType::Float, .. } => Some(from),
            _ => None,
        }
    }

    /// The final bytes: shared if nothing has to be transformed, else computed into memory.
    ///
    /// # Errors
    /// As [`TensorData::write_to`].
    pub fn to_bytes(&self) -> io::Result<Bytes> {
        if let Repr::Raw(bytes) = &self.0 {
            return Ok(bytes.clone());
        }
        let mut out = Vec::with_capacity(self.len());
        self.write_to(&mut out)?;
        Ok(out.into())
    }

    /// Streams the final bytes. Conversions hold 1 MiB at a time; a transpose reads its source where it lies and holds
    /// one 1 MiB panel.
    ///
    /// # Errors
    /// Those of `out`, and `InvalidData` for a conversion between types that do not convert, a finite value beyond
    /// float16's range, or a length that is no multiple of the element size; a quantised matrix holds its f32 values
    /// in memory.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.0 {
            Repr::Raw(bytes) => out.write_all(bytes),
            Repr::Decoded { blocks, first, decoder } => write_decoded(blocks, *first, &**decoder, out),
            Repr::Transposed { data, rows, cols, size } => {
                write_transposed(&data.to_bytes()?, *rows, *cols, *size, out)
            }
            Repr::Converted { data, from, to } => write_converted(&data.to_bytes()?, *from, *to, out),
            Repr::Quantized { data, layout, part } => layout.write(&data.to_bytes()?, *part, out),
        }
    }
}

fn write_decoded(blocks: &[u8], first: usize, decoder: &dyn Decode, out: &mut dyn Write) -> io::Result<()> {
    let (bytes, values) = decoder.block();
    if !blocks.len().is_multiple_of(bytes) {
        let reason = format!("{} bytes are no whole number of blocks of {bytes}", blocks.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let each = (CHUNK / values).max(1);
    let mut wide = vec![0.0; each * values];
    let mut narrow = vec![0; 4 * wide.len()];
    for (at, chunk) in blocks.chunks(each * bytes).enumerate() {
        let n = chunk.len() / bytes * values;
        decoder
            .decode(first + at * each, chunk, &mut wide[..n])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        narrow_to(&wide[..n], DataType::Float, &mut narrow[..4 * n]);
        out.write_all(&narrow[..4 * n])?;
    }
    Ok(())
}

fn write_transposed(data: &[u8], rows: usize, cols: usize, size: usize, out: &mut dyn Write) -> io::Result<()> {
    if rows.checked_mul(cols).and_then(|n| n.checked_mul(size)) != Some(data.len()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("transpose of [{rows}, {cols}] x {size} bytes over {} bytes", data.len()),
        ));
    }
    if data.is_empty() {
        return Ok(());
    }
    // A panel of output rows at a time, filled in tiles that stay in the cache on both sides.
    let panel = (CHUNK * 4 / (rows * size)).clamp(1, cols);
    let mut buffer = vec![0; panel * rows * size];
    for first in (0..cols).step_by(panel) {
        let width = panel.min(cols - first);
        for tile in (0..rows).step_by(64) {
            for row in tile..rows.min(tile + 64) {
                let source = &data[(row * cols + first) * size..][..width * size];
                for (col, element) in source.chunks_exact(size).enumerate() {
                    buffer[(col * rows + row) * size..][..size].copy_from_slice(element);
                }
            }
        }
        out.write_all(&buffer[..width * rows * size])?;
    }
    Ok(())
}

fn write_converted(data: &[u8], from: DataType, to: DataType, out: &mut dyn Write) -> io::Result<()> {
    let convertible = |t| matches!(t, DataType::Float | DataType::Float16 | DataType::Bfloat16);
    if !(convertible(from) || from == DataType::Double) || !convertible(to) || !data.len().is_multiple_of(from.size()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("cannot convert {} bytes from {from} to {to}", data.len()),
        ));
    }
    let mut wide = vec![0.0f32; CHUNK.min(data.len() / from.size())];
    let mut narrow = vec![0u8; wide.len() * to.size()];
    for chunk in data.chunks(CHUNK * from.size()) {
        let n = chunk.len() / from.size();
        widen(chunk, from, &mut wide[..n]);
        if to == DataType::Float16
            && let Some(v) = wide[..n].iter().find(|v| v.is_finite() && v.abs() >= F16_OVERFLOW)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("value {v} does not fit float16, whose largest is 65504; store it as bfloat16 or float32"),
            ));
        }
        narrow_to(&wide[..n], to, &mut narrow[..n * to.size()]);
        out.write_all(&narrow[..n * to.size()])?;
    }
    Ok(())
}

fn widen(bytes: &[u8], from: DataType, out: &mut [f32]) {
    match from {
        DataType::Float16 => {
            let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(out);
        }
        DataType::Bfloat16 => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *o = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        DataType::Double => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(8)) {
                *o = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            }
        }
        _ => {
            for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}

fn narrow_to(values: &[f32], to: DataType, out: &mut [u8]) {
    match to {
        DataType::Float16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            for (o, h) in out.chunks_exact_mut(2).zip(&halves) {
                o.copy_from_slice(&h.to_le_bytes());
            }
        }
        DataType::Bfloat16 => {
            for (o, v) in out.chunks_exact_mut(2).zip(values) {
                o.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
            }
        }
        _ => {
            for (o, v) in out.chunks_exact_mut(4).zip(values) {
                o.copy_from_slice(&v.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two values a byte.
    #[derive(Debug)]
    struct Nibbles;

    impl Decode for Nibbles {
        fn block(&self) -> (usize, usize) {
            (1, 2)
        }

        fn decode(&self, _: usize, blocks: &[u8], values: &mut [f32]) -> Result<(), String> {
            for (byte, pair) in blocks.iter().zip(values.chunks_exact_mut(2)) {
                if *byte == u8::MAX {
                    return Err("no numbers".to_owned());
                }
                pair.copy_from_slice(&[f32::from(byte & 15), f32::from(byte >> 4)]);
            }
            Ok(())
        }
    }

    #[test]
    fn decoded_blocks_are_written_sliced_and_converted_as_their_values() {
        let data = TensorData::decoded(vec![0x21, 0x43, 0x65], Arc::new(Nibbles));
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!((data.len(), data.widened_from()), (24, None));
        assert_eq!(data.to_bytes().unwrap(), bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(data.slice(8..24).unwrap().to_bytes().unwrap(), bytes(&[3.0, 4.0, 5.0, 6.0]));
        assert!(data.slice(4..24).is_none() && data.slice(8..32).is_none());
        let turned = data.clone().transposed(3, 2, 4).to_bytes().unwrap();
        assert_eq!(turned, bytes(&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
        let narrow = data.converted(DataType::Float, DataType::Bfloat16);
        assert_eq!((narrow.len(), narrow.to_bytes().unwrap().len()), (12, 12));
        let damaged = TensorData::decoded(vec![0x21, 0xff], Arc::new(Nibbles));
        assert_eq!(damaged.to_bytes().unwrap_err().to_string(), "no numbers");
    }

    /// The number of the byte in the tensor.
    #[derive(Debug)]
    struct Places;

    impl Decode for Places {
        fn block(&self) -> (usize, usize) {
            (1, 1)
        }

        fn decode(&self, first: usize, _: &[u8], values: &mut [f32]) -> Result<(), String> {
            values.iter_mut().enumerate().for_each(|(at, value)| *value = (first + at) as f32);
            Ok(())
        }
    }

    #[test]
    fn decoders_are_told_where_blocks_lie_in_the_tensor_across_chunks_and_slices() {
        let floats = |data: &TensorData| -> Vec<f32> {
            let bytes = data.to_bytes().unwrap();
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let data = TensorData::decoded(vec![0; CHUNK + 5], Arc::new(Places));
        let expected: Vec<f32> = (0..CHUNK + 5).map(|at| at as f32).collect();
        assert_eq!(floats(&data), expected);
        let part = data.slice(12..4 * (CHUNK + 4)).unwrap();
        assert_eq!(floats(&part), expected[3..CHUNK + 4]);
        assert_eq!(floats(&part.slice(8..16).unwrap()), [5.0, 6.0]);
    }

    #[test]
    fn transpose_of_odd_shapes_equals_naive() {
        for (rows, cols) in [(1, 1), (3, 5), (130, 67), (1, 9), (9, 1)] {
            let data: Vec<u8> = (0..rows * cols * 2).map(|i| (i % 251) as u8).collect();
            let got = TensorData::raw(data.clone()).transposed(rows, cols, 2).to_bytes().unwrap();
            for r in 0..rows {
                for c in 0..cols {
                    assert_eq!(got[(c * rows + r) * 2..][..2], data[(r * cols + c) * 2..][..2]);
                }
            }
        }
    }

    #[test]
    fn conversion_across_chunk_border_rounds_to_nearest_even() {
        let values: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32 * 1.0001).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let got = TensorData::raw(bytes).converted(DataType::Float, DataType::Bfloat16).to_bytes().unwrap();
        for (b, v) in got.chunks_exact(2).zip(&values) {
            assert_eq!(b, bf16::from_f32(*v).to_le_bytes());
        }
    }

    #[test]
    fn conversion_from_f64_rounds_to_nearest() {
        let values = [0.1f64, -1e-40, 3.0e38, 16_777_217.0];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let got = TensorData::raw(bytes).converted(DataType::Double, DataType::Float).to_bytes().unwrap();
        let expected: Vec<u8> = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn conversion_to_f16_beyond_its_range_is_refused() {
        let data = |v: f32| TensorData::raw(v.to_le_bytes().to_vec()).converted(DataType::Float, DataType::Float16);
        assert!(data(65519.0).to_bytes().is_ok() && data(f32::INFINITY).to_bytes().is_ok());
        assert!(data(-65520.0).to_bytes().unwrap_err().to_string().contains("-65520"));
    }

    #[test]
    fn conversion_there_and_back_shares_the_source() {
        let source = Bytes::from(vec![1u8, 2, 3, 4]);
        let data = TensorData::raw(source.clone())
            .converted(DataType::Bfloat16, DataType::Float)
            .converted(DataType::Float, DataType::Bfloat16);
        assert_eq!(data.to_bytes().unwrap().as_ptr(), source.as_ptr());
    }

    #[test]
    fn conversion_of_integers_is_refused() {
        let data = TensorData::raw(vec![0u8; 8]).converted(DataType::Int64, DataType::Float);
        assert_eq!(data.to_bytes().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
