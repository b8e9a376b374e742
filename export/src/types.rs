//! Types, inputs and outputs of a graph in the runtime's words.

use v2l_graphs::{DataType, Dim, ValueInfo};
use v2l_runtime::engine::session::{self, Port};
use v2l_runtime::tensor::Dtype;

use crate::ExportError;

pub(crate) fn ports(graph: &str, infos: &[ValueInfo]) -> Result<Vec<Port>, ExportError> {
    infos
        .iter()
        .map(|info| {
            let ty = info.ty.as_ref().ok_or_else(|| ExportError::Graph {
                graph: graph.to_owned(),
                reason: format!("`{}` has no type; run shape inference on the model first", info.name),
            })?;
            let shape = ty.shape.as_ref().ok_or_else(|| ExportError::Unsupported {
                what: format!("{graph}: `{}`, a tensor of unknown rank,", info.name),
                reason:
                    "inputs and outputs need a rank; give their extents names when the model is exported, or run shape \
                         inference on it"
                        .to_owned(),
            })?;
            let dim = |(axis, d): (usize, &Dim)| match d {
                Dim::Fixed(n) => session::Dim::Fixed(*n),
                Dim::Symbol(s) => session::Dim::Symbol(s.clone()),
                Dim::Unknown => session::Dim::Symbol(format!("{}.{axis}", info.name)),
            };
            Ok(Port {
                name: info.name.clone(),
                dtype: to_runtime(ty.dtype),
                shape: shape.iter().enumerate().map(dim).collect(),
            })
        })
        .collect()
}

pub(crate) fn to_runtime(dtype: DataType) -> Dtype {
    match dtype {
        DataType::Float => Dtype::F32,
        DataType::Float16 => Dtype::F16,
        DataType::Bfloat16 => Dtype::Bf16,
        DataType::Double => Dtype::F64,
        DataType::Int64 => Dtype::I64,
        DataType::Int32 => Dtype::I32,
        DataType::Int16 => Dtype::I16,
        DataType::Int8 => Dtype::I8,
        DataType::Uint64 => Dtype::U64,
        DataType::Uint32 => Dtype::U32,
        DataType::Uint16 => Dtype::U16,
        DataType::Uint8 => Dtype::U8,
        DataType::Bool => Dtype::Bool,
    }
}

pub(crate) fn from_runtime(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F32 => DataType::Float,
        Dtype::F16 => DataType::Float16,
        Dtype::Bf16 => DataType::Bfloat16,
        Dtype::I64 => DataType::Int64,
        Dtype::I32 => DataType::Int32,
        Dtype::U8 => DataType::Uint8,
        Dtype::Bool => DataType::Bool,
        Dtype::F64 => DataType::Double,
        Dtype::I8 => DataType::Int8,
        Dtype::I16 => DataType::Int16,
        Dtype::U16 => DataType::Uint16,
        Dtype::U32 => DataType::Uint32,
        Dtype::U64 => DataType::Uint64,
    }
}
