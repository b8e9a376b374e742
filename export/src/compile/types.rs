//! Types, inputs and outputs of a graph in the runtime's words.

use v2l_graphs::{DataType, Dim, ValueInfo};
use v2l_runtime::session::{self, Port};
use v2l_runtime::tensor::Dtype;

use crate::ExportError;

pub(crate) fn ports(graph: &str, infos: &[ValueInfo]) -> Result<Vec<Port>, ExportError> {
    infos
        .iter()
        .map(|info| {
            let ty = info.ty.as_ref();
            let dtype = ty.and_then(|t| to_runtime(t.dtype));
            let (Some(dtype), Some(shape)) = (dtype, ty.and_then(|t| t.shape.as_ref())) else {
                return Err(ExportError::Graph {
                    graph: graph.to_owned(),
                    reason: format!(
                        "`{}` is no tensor of a supported type and known rank; run shape inference on the model first",
                        info.name
                    ),
                });
            };
            let dim = |(axis, d): (usize, &Dim)| match d {
                Dim::Fixed(n) => session::Dim::Fixed(*n),
                Dim::Symbol(s) => session::Dim::Symbol(s.clone()),
                Dim::Unknown => session::Dim::Symbol(format!("{}.{axis}", info.name)),
            };
            Ok(Port { name: info.name.clone(), dtype, shape: shape.iter().enumerate().map(dim).collect() })
        })
        .collect()
}

pub(crate) fn to_runtime(dtype: DataType) -> Option<Dtype> {
    Some(match dtype {
        DataType::Float => Dtype::F32,
        DataType::Float16 => Dtype::F16,
        DataType::Bfloat16 => Dtype::Bf16,
        DataType::Int64 => Dtype::I64,
        DataType::Int32 => Dtype::I32,
        DataType::Uint8 => Dtype::U8,
        DataType::Bool => Dtype::Bool,
        _ => return None,
    })
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
    }
}
