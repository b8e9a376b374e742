//! One tensor of a checkpoint, as its file holds it.

use std::sync::Arc;

use bytes::Bytes;
use v2l_graphs::{DataType, Decode, TensorData};
use v2l_runtime::io::float8::Float8;
use v2l_runtime::io::weights::RawView;

/// A tensor, in place.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    /// The file's format has few axes, so that neighbours may be folded into one and axes of 1 may be missing.
    pub(super) foldable: bool,
    pub(super) data: Bytes,
    pub(super) form: Form,
}

/// What the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Floating-point numbers.
    Floats(DataType),
    /// Numbers of 8 bits, of which it has to be seen whether there is a scale.
    Eight(Eight),
    /// Numbers that are decoded as they are read, and what their form is called.
    Coded(&'static str, Arc<dyn Decode>),
    /// Anything else, by its name.
    Other(String),
}

/// Numbers of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eight {
    /// Floats.
    Float(Float8),
    /// Signed integers, which mean something only with a scale.
    Int,
}

impl Eight {
    /// The name in messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Float(form) => form.name(),
            Self::Int => "int8",
        }
    }

    /// What a file's header calls them.
    pub(super) const fn stored(self) -> &'static str {
        match self {
            Self::Float(_) => "F8",
            Self::Int => "I8",
        }
    }
}

impl Entry {
    pub(super) fn of(view: &RawView<'_>) -> Self {
        let form = match view.dtype {
            safetensors::Dtype::F32 => Form::Floats(DataType::Float),
            safetensors::Dtype::F16 => Form::Floats(DataType::Float16),
            safetensors::Dtype::BF16 => Form::Floats(DataType::Bfloat16),
            safetensors::Dtype::F64 => Form::Floats(DataType::Double),
            safetensors::Dtype::I8 => Form::Eight(Eight::Int),
            other => match Float8::of(other) {
                Some(form) => Form::Eight(Eight::Float(form)),
                None => Form::Other(other.to_string()),
            },
        };
        Self { shape: view.shape.to_vec(), foldable: false, data: view.data.clone(), form }
    }

    /// The values as f32, made as they are written; the name of a type that has none.
    pub(super) fn floats(&self) -> Result<TensorData, &str> {
        match &self.form {
            Form::Floats(dtype) => Ok(TensorData::raw(self.data.clone()).converted(*dtype, DataType::Float)),
            Form::Coded(_, decoder) => Ok(TensorData::decoded(self.data.clone(), Arc::clone(decoder))),
            Form::Eight(eight) => Err(eight.stored()),
            Form::Other(name) => Err(name),
        }
    }

    /// The type in which the values lose nothing.
    pub(super) fn exact_type(&self) -> Option<DataType> {
        match self.form {
            Form::Floats(DataType::Double) | Form::Coded(..) => Some(DataType::Float),
            Form::Floats(dtype) => Some(dtype),
            Form::Eight(_) | Form::Other(_) => None,
        }
    }

    /// All numbers, of a tensor of at most `most` elements; `None` for more, and for no floating-point numbers.
    pub(super) fn numbers(&self, most: usize) -> Option<Vec<f32>> {
        let data = self.floats().ok().filter(|data| data.len() / 4 <= most)?.to_bytes().ok()?;
        Some(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// True if the tensor can be read with this shape: its own, or one that folding and leaving out axes of 1 makes its own.
    pub(super) fn reads_as(&self, shape: &[usize]) -> bool {
        self.shape == shape || (self.foldable && is_folding(&self.shape, shape))
    }
}

/// True if `folded` is `shape` with some neighbouring axes made one and axes of 1 put in or left out.
pub(crate) fn is_folding(folded: &[usize], shape: &[usize]) -> bool {
    let mut rest = shape.iter().copied().filter(|&extent| extent != 1);
    let whole = folded.iter().copied().filter(|&extent| extent != 1).all(|extent| {
        let mut product = 1usize;
        while product < extent {
            match rest.next().and_then(|next| product.checked_mul(next)) {
                Some(more) => product = more,
                None => return false,
            }
        }
        product == extent
    });
    whole && rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foldings_join_neighbours_and_drop_ones_and_never_turn_a_tensor() {
        let shape = [48, 16, 1, 2, 2];
        for folded in
            [&[48, 16, 1, 2, 2][..], &[768, 1, 2, 2], &[48, 16, 2, 2], &[48, 64], &[48, 16, 4], &[3072], &[1, 48, 64]]
        {
            assert!(is_folding(folded, &shape), "{folded:?}");
        }
        for other in [
            &[16, 48, 1, 2, 2][..],
            &[64, 48],
            &[2, 2, 1, 16, 48],
            &[48, 63],
            &[48, 2, 32],
            &[48],
            &[],
            &[0],
            &[48, 64, 2],
        ] {
            assert!(!is_folding(other, &shape), "{other:?}");
        }
        assert!(is_folding(&[6, 48], &[1, 6, 48]) && is_folding(&[], &[1, 1]) && !is_folding(&[2, 3], &[6]));
        assert!(!is_folding(&[usize::MAX], &[usize::MAX - 1, usize::MAX]));
    }
}
