//! The types of GGUF's tensors: blocks of a few values that share scales. The computation is that of the reference implementation
//! (ggml, and the package `gguf`) in its order, in f32, so that the values are equal bit for bit.

use std::sync::Arc;

use half::f16;
use v2l_graphs::{DataType, Decode};

/// What a type of GGUF is.
pub(super) enum Kind {
    /// Numbers as they are.
    Floats(DataType),
    /// Blocks, and what they are called.
    Blocks(&'static str, Arc<dyn Decode>),
}

/// Bytes of a block, its values, and how it is decoded: a row of the table below.
struct Row {
    number: u32,
    name: &'static str,
    bytes: usize,
    values: usize,
    decode: fn(&[u8], &mut [f32]),
}

/// Values of a block of the types `_K`.
const SUPER: usize = 256;

/// The types of blocks, by their number in the file.
const TYPES: [Row; 10] = [
    Row { number: 2, name: "Q4_0", bytes: 18, values: 32, decode: q4_0 },
    Row { number: 3, name: "Q4_1", bytes: 20, values: 32, decode: q4_1 },
    Row { number: 6, name: "Q5_0", bytes: 22, values: 32, decode: q5_0 },
    Row { number: 7, name: "Q5_1", bytes: 24, values: 32, decode: q5_1 },
    Row { number: 8, name: "Q8_0", bytes: 34, values: 32, decode: q8_0 },
    Row { number: 10, name: "Q2_K", bytes: 84, values: SUPER, decode: q2_k },
    Row { number: 11, name: "Q3_K", bytes: 110, values: SUPER, decode: q3_k },
    Row { number: 12, name: "Q4_K", bytes: 144, values: SUPER, decode: q4_k },
    Row { number: 13, name: "Q5_K", bytes: 176, values: SUPER, decode: q5_k },
    Row { number: 14, name: "Q6_K", bytes: 210, values: SUPER, decode: q6_k },
];

/// Types that hold numbers as they are, by their number in the file.
const FLOATS: [(u32, DataType); 4] =
    [(0, DataType::Float), (1, DataType::Float16), (28, DataType::Double), (30, DataType::Bfloat16)];

/// Names of the types that are not supported, for messages.
const OTHERS: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// What the type of this number is, of a tensor at `place`, for messages.
///
/// # Errors
/// Names a type that is not supported, and those that are.
pub(super) fn kind(place: String, number: u32) -> Result<Kind, String> {
    if let Some((_, dtype)) = FLOATS.into_iter().find(|(other, _)| *other == number) {
        return Ok(Kind::Floats(dtype));
    }
    if let Some(row) = TYPES.iter().find(|row| row.number == number) {
        return Ok(Kind::Blocks(row.name, Arc::new(Blocks { place, row })));
    }
    let known: Vec<&str> = TYPES.iter().map(|row| row.name).collect();
    let other = OTHERS.into_iter().find(|(other, _)| *other == number);
    let name = other.map_or_else(|| format!("number {number}"), |(_, name)| name.to_owned());
    Err(format!(
        "{place} is of GGUF's type {name}, which is not supported; expected F32, F16, BF16, F64, {}",
        known.join(", ")
    ))
}

/// A tensor of blocks.
struct Blocks {
    /// The file and the tensor, for messages.
    place: String,
    row: &'static Row,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.row.name, self.place)
    }
}

impl Decode for Blocks {
    fn block(&self) -> (usize, usize) {
        (self.row.bytes, self.row.values)
    }

    fn decode(&self, _: usize, blocks: &[u8], values: &mut [f32]) -> Result<(), String> {
        for (block, values) in blocks.chunks_exact(self.row.bytes).zip(values.chunks_exact_mut(self.row.values)) {
            (self.row.decode)(block, values);
        }
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => Err(format!("{} holds NaN or infinity in its blocks; the file is damaged", self.place)),
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// Each bit of `bytes`, the lowest of the first byte first.
fn bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| (byte >> bit) & 1))
}

fn q4_0(block: &[u8], values: &mut [f32]) {
    let scale = half(block, 0);
    for (value, q) in values.iter_mut().zip(nibbles(&block[2..])) {
        *value = scale * (f32::from(q) - 8.0);
    }
}

fn q4_1(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (value, q) in values.iter_mut().zip(nibbles(&block[4..])) {
        *value = scale * f32::from(q) + least;
    }
}

fn q5_0(block: &[u8], values: &mut [f32]) {
    let scale = half(block, 0);
    for ((value, q), high) in values.iter_mut().zip(nibbles(&block[6..])).zip(bits(&block[2..6])) {
        *value = scale * (f32::from(q | high << 4) - 16.0);
    }
}

fn q5_1(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for ((value, q), high) in values.iter_mut().zip(nibbles(&block[8..])).zip(bits(&block[4..8])) {
        *value = scale * f32::from(q | high << 4) + least;
    }
}

fn q8_0(block: &[u8], values: &mut [f32]) {
    let scale = half(block, 0);
    for (value, q) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(q.cast_signed()) * scale;
    }
}

/// The values of 2 bits: of each 32 bytes the lowest two bits of all, then the next two.
fn pairs(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.chunks_exact(32).flat_map(|run| (0..4).flat_map(move |k| run.iter().map(move |byte| (byte >> (2 * k)) & 3)))
}

fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, packed) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    for (n, (value, q)) in values.iter_mut().zip(pairs(packed)).enumerate() {
        let of = scales[n / 16];
        *value = scale * f32::from(of & 15) * f32::from(q) - least * f32::from(of >> 4);
    }
}

fn q3_k(block: &[u8], values: &mut [f32]) {
    let (high, packed, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    let of = |n: usize| {
        let low = if n < 8 { scales[n] & 15 } else { scales[n - 8] >> 4 };
        f32::from(low | ((scales[8 + n % 4] >> (2 * (n / 4))) & 3) << 4) - 32.0
    };
    for (n, (value, q)) in values.iter_mut().zip(pairs(packed)).enumerate() {
        // The offset is subtracted where the bit is not set.
        let offset = 4 * (1 - ((high[n % 32] >> (n / 32)) & 1));
        *value = scale * of(n / 16) * (f32::from(q) - f32::from(offset));
    }
}

/// Scale and offset `n` of eight, 6 bits each in 12 bytes.
fn scale_and_offset(packed: &[u8], n: usize) -> (f32, f32) {
    let (scale, offset) = match n {
        0..4 => (packed[n] & 63, packed[n + 4] & 63),
        _ => {
            let low = packed[n + 4];
            (low & 15 | (packed[n - 4] >> 2) & 48, low >> 4 | (packed[n] >> 2) & 48)
        }
    };
    (f32::from(scale), f32::from(offset))
}

/// The values of 4 bits of each 32 bytes: the low halves of all, then the high ones.
fn halves(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.chunks_exact(32).flat_map(nibbles)
}

fn q4_k(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    for (n, (value, q)) in values.iter_mut().zip(halves(&block[16..])).enumerate() {
        let (own, offset) = scale_and_offset(&block[4..16], n / 32);
        *value = scale * own * f32::from(q) - least * offset;
    }
}

fn q5_k(block: &[u8], values: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let high = &block[16..48];
    for (n, (value, q)) in values.iter_mut().zip(halves(&block[48..])).enumerate() {
        let (own, offset) = scale_and_offset(&block[4..16], n / 32);
        let q = q | ((high[n % 32] >> (n / 32)) & 1) << 4;
        *value = scale * own * f32::from(q) - least * offset;
    }
}

fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    let low = low.chunks_exact(64).flat_map(nibbles);
    for (n, ((value, q), high)) in values.iter_mut().zip(low).zip(pairs(high)).enumerate() {
        let own = scale * f32::from(scales[n / 16].cast_signed());
        *value = own * (f32::from(q | high << 4) - 32.0);
    }
}
