//! ONNX for v2l: an IR over committed protobuf code, a builder, passes, structural checks, and reading and writing
//! with external data of any size.
//!
//! Weights are [`bytes::Bytes`] throughout: a model read over a memory map, or built over a mapped checkpoint, never
//! holds a second copy of them; they are streamed from the map to wherever the model is written.

pub mod blocks;
mod builder;
pub mod check;
mod data;
mod functions;
mod model;
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
mod onnx;
mod operators;
pub mod passes;
mod precision;
pub mod quantize;
mod read;
pub mod slots;
mod summary;
mod symbolic;
mod tensor;
mod versions;
mod walk;
mod write;

pub use builder::{Builder, Extent, KEPT_IN_FP32, NodeBuilder, Value};
pub use data::{DataType, Decode, TensorData};
pub use model::{Attribute, Dim, Function, Graph, Initializer, Model, Node, TensorType, ValueInfo};
pub use operators::{Argument, Kind, argument, kind, passes_on};
pub use precision::{
    Freedom, apply_precision, computes_in_16_bits, count_casts, emulate_precision, freedom, is_movement,
    lower_precision, matrix_types, node_labels, raise_precision, save_casts, tables, uses_narrow_floats, value_types,
};
pub use read::{ReadError, ReadOptions, read_model};
pub use write::{ExternalDataWriter, Location, encode_model};

/// The ONNX operator set of graphs built here: the first in which every operator used takes bfloat16.
pub const OPSET: i64 = 22;

/// The newest of ONNX's own operator sets whose changes are known here; [`read_model`] refuses newer ones.
pub const NEWEST_OPSET: i64 = 28;

/// The newest ONNX IR version whose content is known here; [`read_model`] refuses newer ones.
pub const NEWEST_IR_VERSION: i64 = 14;

/// The ONNX IR version of graphs built here.
pub const IR_VERSION: i64 = 10;
