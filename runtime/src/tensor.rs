//! Host tensors: what sessions take and return, and what `.safetensors` inputs and outputs hold.

use std::fmt;

use half::{bf16, f16};
use indexmap::IndexMap;
use ndarray::{ArrayD, Axis, IxDyn, Slice};
use serde::{Deserialize, Serialize};

mod exact;
mod view;

pub use exact::Lost;
pub use view::TensorView;

/// Element type of a tensor, spelled as in the engine manifest (`"f32"`, `"bf16"`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit unsigned integer.
    U8,
    /// Boolean, one byte each.
    Bool,
    /// IEEE 754 binary64.
    F64,
    /// 8-bit signed integer.
    I8,
    /// 16-bit signed integer.
    I16,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I64,
        Self::I32,
        Self::U8,
        Self::Bool,
        Self::F64,
        Self::I8,
        Self::I16,
        Self::U16,
        Self::U32,
        Self::U64,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::I64 | Self::U64 | Self::F64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::U8 | Self::I8 | Self::Bool => 1,
        }
    }

    /// True for f32, f16 and bf16: the types of weights that adapters change, which widen to f32 without loss. Not for f64.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The matching safetensors type.
    pub const fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::Bf16 => safetensors::Dtype::BF16,
            Self::I64 => safetensors::Dtype::I64,
            Self::I32 => safetensors::Dtype::I32,
            Self::U8 => safetensors::Dtype::U8,
            Self::Bool => safetensors::Dtype::BOOL,
            Self::F64 => safetensors::Dtype::F64,
            Self::I8 => safetensors::Dtype::I8,
            Self::I16 => safetensors::Dtype::I16,
            Self::U16 => safetensors::Dtype::U16,
            Self::U32 => safetensors::Dtype::U32,
            Self::U64 => safetensors::Dtype::U64,
        }
    }

    /// The type that `dtype` names, or `None` for one that v2l does not handle: 8-bit and smaller floats, complex numbers.
    pub const fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        Some(match dtype {
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::F16 => Self::F16,
            safetensors::Dtype::BF16 => Self::Bf16,
            safetensors::Dtype::I64 => Self::I64,
            safetensors::Dtype::I32 => Self::I32,
            safetensors::Dtype::U8 => Self::U8,
            safetensors::Dtype::BOOL => Self::Bool,
            safetensors::Dtype::F64 => Self::F64,
            safetensors::Dtype::I8 => Self::I8,
            safetensors::Dtype::I16 => Self::I16,
            safetensors::Dtype::U16 => Self::U16,
            safetensors::Dtype::U32 => Self::U32,
            safetensors::Dtype::U64 => Self::U64,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::Bool => "bool",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
        })
    }
}

/// A dense row-major tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// `f32` elements.
    F32(ArrayD<f32>),
    /// `f16` elements.
    F16(ArrayD<f16>),
    /// `bf16` elements.
    Bf16(ArrayD<bf16>),
    /// `i64` elements.
    I64(ArrayD<i64>),
    /// `i32` elements.
    I32(ArrayD<i32>),
    /// `u8` elements.
    U8(ArrayD<u8>),
    /// Booleans.
    Bool(ArrayD<bool>),
    /// `f64` elements.
    F64(ArrayD<f64>),
    /// `i8` elements.
    I8(ArrayD<i8>),
    /// `i16` elements.
    I16(ArrayD<i16>),
    /// `u16` elements.
    U16(ArrayD<u16>),
    /// `u32` elements.
    U32(ArrayD<u32>),
    /// `u64` elements.
    U64(ArrayD<u64>),
}

/// Tensors by name, in a fixed order.
pub type NamedTensors = IndexMap<String, Tensor>;

macro_rules! each {
    ($self:expr, $a:ident => $body:expr) => {
        match $self {
            Tensor::F32($a) => $body,
            Tensor::F16($a) => $body,
            Tensor::Bf16($a) => $body,
            Tensor::I64($a) => $body,
            Tensor::I32($a) => $body,
            Tensor::U8($a) => $body,
            Tensor::Bool($a) => $body,
            Tensor::F64($a) => $body,
            Tensor::I8($a) => $body,
            Tensor::I16($a) => $body,
            Tensor::U16($a) => $body,
            Tensor::U32($a) => $body,
            Tensor::U64($a) => $body,
        }
    };
}
pub(crate) use each;

impl Tensor {
    /// An f32 tensor of `shape` over `data`; `None` if the lengths disagree.
    pub fn from_f32(shape: &[usize], data: Vec<f32>) -> Option<Self> {
        ArrayD::from_shape_vec(IxDyn(shape), data).ok().map(Self::F32)
    }

    /// Floats rounded to f16 or bf16, or as they are; `None` for an integer type.
    pub fn from_floats(array: ArrayD<f32>, dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32(array)),
            Dtype::F16 => Some(Self::F16(array.mapv(f16::from_f32))),
            Dtype::Bf16 => Some(Self::Bf16(array.mapv(bf16::from_f32))),
            _ => None,
        }
    }

    /// Element type.
    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::I64(_) => Dtype::I64,
            Self::I32(_) => Dtype::I32,
            Self::U8(_) => Dtype::U8,
            Self::Bool(_) => Dtype::Bool,
            Self::F64(_) => Dtype::F64,
            Self::I8(_) => Dtype::I8,
            Self::I16(_) => Dtype::I16,
            Self::U16(_) => Dtype::U16,
            Self::U32(_) => Dtype::U32,
            Self::U64(_) => Dtype::U64,
        }
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        each!(self, a => a.shape())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, a => a.len())
    }

    /// True if the tensor holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as f32, widened without loss from f16 and bf16; `None` for f64 and what is no float.
    pub fn to_f32(&self) -> Option<ArrayD<f32>> {
        match self {
            Self::F32(a) => Some(a.clone()),
            Self::F16(a) => Some(a.mapv(f16::to_f32)),
            Self::Bf16(a) => Some(a.mapv(bf16::to_f32)),
            _ => None,
        }
    }

    /// Part `at` of `parts` equal parts of the first axis; `None` if it cannot be cut so.
    pub(crate) fn part(&self, at: usize, parts: usize) -> Option<Self> {
        let rows = self.shape().first()?.checked_div(parts)?;
        if rows.checked_mul(parts) != self.shape().first().copied() || at >= parts {
            return None;
        }
        let slice = Slice::from(at * rows..(at + 1) * rows);
        Some(each!(self, a => Self::from(a.slice_axis(Axis(0), slice).to_owned())))
    }

    /// The f32 array inside, without a copy; `None` if the tensor has another type.
    pub fn into_f32(self) -> Option<ArrayD<f32>> {
        match self {
            Self::F32(a) => Some(a),
            other => other.to_f32(),
        }
    }
}

macro_rules! from_array {
    ($($variant:ident $element:ty),*) => {
        $(impl From<ArrayD<$element>> for Tensor {
            fn from(a: ArrayD<$element>) -> Self {
                Self::$variant(a)
            }
        })*
    };
}

from_array!(
    F32 f32, F16 f16, Bf16 bf16, I64 i64, I32 i32, U8 u8, Bool bool, F64 f64, I8 i8, I16 i16, U16 u16, U32 u32, U64 u64
);
