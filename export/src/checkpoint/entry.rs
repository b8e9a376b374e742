//! One tensor of a checkpoint, as its file holds it.

use std::sync::Arc;

use bytes::Bytes;
use v2l_graphs::{DataType, Decode, TensorData};
use v2l_runtime::io::weights::RawView;

/// A tensor, in place.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
    pub(super) form: Form,
}

/// What the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Floating-point numbers.
    Floats(DataType),
    /// An 8-bit float, of which it has to be seen whether there is a scale.
    Float8(Float8),
    /// Numbers that are decoded as they are read, and what their form is called.
    Coded(&'static str, Arc<dyn Decode>),
    /// Anything else, by its name.
    Other(String),
}

/// Types of 8-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Float8 {
    /// 4 bits of exponent, no infinities.
    E4m3,
    /// 5 bits of exponent, an f16 without its last 8 bits.
    E5m2,
}

impl Float8 {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::E4m3 => "fp8 e4m3",
            Self::E5m2 => "fp8 e5m2",
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
            safetensors::Dtype::F8_E4M3 => Form::Float8(Float8::E4m3),
            safetensors::Dtype::F8_E5M2 => Form::Float8(Float8::E5m2),
            other => Form::Other(other.to_string()),
        };
        Self { shape: view.shape.to_vec(), data: view.data.clone(), form }
    }

    /// The values as f32, made as they are written; the name of a type that has none.
    pub(super) fn floats(&self) -> Result<TensorData, &str> {
        match &self.form {
            Form::Floats(dtype) => Ok(TensorData::raw(self.data.clone()).converted(*dtype, DataType::Float)),
            Form::Coded(_, decoder) => Ok(TensorData::decoded(self.data.clone(), Arc::clone(decoder))),
            Form::Float8(_) => Err("F8"),
            Form::Other(name) => Err(name),
        }
    }

    /// The type in which the values lose nothing.
    pub(super) fn exact_type(&self) -> Option<DataType> {
        match self.form {
            Form::Floats(DataType::Double) | Form::Coded(..) => Some(DataType::Float),
            Form::Floats(dtype) => Some(dtype),
            Form::Float8(_) | Form::Other(_) => None,
        }
    }

    /// The only number of a tensor of one element, or `None` for another tensor.
    pub(super) fn number(&self) -> Option<f32> {
        let data = self.floats().ok().filter(|data| data.len() == 4)?.to_bytes().ok()?;
        Some(f32::from_le_bytes(data[..].try_into().ok()?))
    }
}
