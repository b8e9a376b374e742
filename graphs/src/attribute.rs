//! Node attributes.

use bytes::Bytes;

use crate::onnx;
use crate::{Graph, Initializer};

/// The value of a node attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A byte string, usually UTF-8.
    String(Bytes),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f32>),
    /// A tensor.
    Tensor(Initializer),
    /// The body of a control-flow operator.
    Graph(Box<Graph>),
    /// Any other kind, kept as it was read.
    Other(Other),
}

/// An attribute of a kind that v2l only carries along.
#[derive(Clone, Debug)]
pub struct Other(pub(crate) Box<onnx::AttributeProto>);

impl From<i64> for Attribute {
    fn from(v: i64) -> Self {
        Self::Int(v)
    }
}

impl From<f32> for Attribute {
    fn from(v: f32) -> Self {
        Self::Float(v)
    }
}

impl From<&str> for Attribute {
    fn from(v: &str) -> Self {
        Self::String(Bytes::copy_from_slice(v.as_bytes()))
    }
}

impl From<Vec<i64>> for Attribute {
    fn from(v: Vec<i64>) -> Self {
        Self::Ints(v)
    }
}
