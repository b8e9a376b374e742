//! What the cache keeps of a prediction, as bytes.

use indexmap::IndexMap;
use ndarray::Array2;

use super::kind::Predicted;
use crate::io::raw;
use crate::lora::adapter::{Adapter, LowRank};
use crate::tensor::Dtype;

/// What is kept of a prediction.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// Tokens, to be expanded.
    Tokens(Array2<f32>),
    /// The adapter itself.
    Adapter(Adapter),
}

impl From<&Predicted> for Kept {
    fn from(predicted: &Predicted) -> Self {
        match &predicted.tokens {
            Some(tokens) => Self::Tokens(tokens.tokens.clone()),
            None => Self::Adapter(predicted.adapter.clone()),
        }
    }
}

/// A form of entries: how their files' names end, and what reads them.
pub(super) struct Form {
    pub(super) extension: &'static str,
    pub(super) decode: fn(&[u8]) -> Option<Kept>,
}

/// Every form.
pub(super) const FORMS: [Form; 2] = [
    Form { extension: "tokens", decode: |bytes| whole(bytes, matrix).map(Kept::Tokens) },
    Form { extension: "adapter", decode: |bytes| whole(bytes, adapter).map(Kept::Adapter) },
];

impl Kept {
    pub(super) fn form(&self) -> &'static Form {
        match self {
            Self::Tokens(_) => &FORMS[0],
            Self::Adapter(_) => &FORMS[1],
        }
    }

    /// All little-endian. A matrix is its extents (two u64) and its elements (f32); an adapter is its name, and of each
    /// layer the name, alpha (f32) and the factors down and up; a name is its length (u64) and its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Tokens(tokens) => put_matrix(tokens, &mut bytes),
            Self::Adapter(adapter) => {
                put_name(&adapter.name, &mut bytes);
                for (name, update) in &adapter.layers {
                    let layer = update.to_low_rank();
                    put_name(name, &mut bytes);
                    bytes.extend(layer.alpha.to_le_bytes());
                    put_matrix(&layer.down, &mut bytes);
                    put_matrix(&layer.up, &mut bytes);
                }
            }
        }
        bytes
    }
}

fn put_name(name: &str, bytes: &mut Vec<u8>) {
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
}

fn put_matrix(matrix: &Array2<f32>, bytes: &mut Vec<u8>) {
    for extent in matrix.shape() {
        bytes.extend((*extent as u64).to_le_bytes());
    }
    bytes.reserve(matrix.len() * size_of::<f32>());
    bytes.extend(matrix.iter().flat_map(|element| element.to_le_bytes()));
}

/// What `read` makes of all of the bytes.
fn whole<T>(mut bytes: &[u8], read: impl Fn(&mut &[u8]) -> Option<T>) -> Option<T> {
    read(&mut bytes).filter(|_| bytes.is_empty())
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn length(bytes: &mut &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)).ok()
}

fn name(bytes: &mut &[u8]) -> Option<String> {
    let length = length(bytes)?;
    String::from_utf8(take(bytes, length)?.to_vec()).ok()
}

fn matrix(bytes: &mut &[u8]) -> Option<Array2<f32>> {
    let shape = [length(bytes)?, length(bytes)?];
    let values = take(bytes, raw::byte_len(Dtype::F32, &shape)?)?;
    raw::tensor_from_bytes(Dtype::F32, &shape, values)?.into_f32()?.into_dimensionality().ok()
}

fn adapter(bytes: &mut &[u8]) -> Option<Adapter> {
    let mut adapter = Adapter { name: name(bytes)?, layers: IndexMap::new() };
    while !bytes.is_empty() {
        let name = name(bytes)?;
        let alpha = f32::from_le_bytes(take(bytes, 4)?.try_into().ok()?);
        let (down, up) = (matrix(bytes)?, matrix(bytes)?);
        adapter.layers.insert(name, LowRank { down, up, alpha }.into());
    }
    Some(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_comes_back_from_its_bytes_whole_or_not_at_all() {
        let layer = |rank, alpha| LowRank {
            down: Array2::from_shape_fn((rank, 3), |(r, i)| (r + i) as f32),
            up: Array2::from_shape_fn((2, rank), |(o, r)| o as f32 - r as f32),
            alpha,
        };
        let layers = IndexMap::from([("b".to_owned(), layer(2, 0.5).into()), ("a".to_owned(), layer(1, 1.0).into())]);
        let kept = Kept::Adapter(Adapter { name: "predicted".to_owned(), layers });
        let (bytes, decode) = (kept.encode(), kept.form().decode);
        assert_eq!(decode(&bytes), Some(kept));
        // A name of 9 bytes, and two layers of 9 + 4 bytes and two matrices.
        let ends = [17, 17 + 13 + 2 * 16 + 4 * 10];
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]).is_some(), ends.contains(&length), "{length}");
        }
    }
}
