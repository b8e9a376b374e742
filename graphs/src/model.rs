//! The intermediate representation.

use std::fmt;

use bytes::Bytes;
use indexmap::IndexMap;

use crate::onnx;
use crate::{DataType, TensorData};

/// An ONNX model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// ONNX IR version.
    pub ir_version: i64,
    /// Who wrote the model.
    pub producer_name: String,
    /// The producer's version.
    pub producer_version: String,
    /// Operator-set version by domain; the default domain is `""`.
    pub opsets: IndexMap<String, i64>,
    /// `metadata_props`.
    pub metadata: IndexMap<String, String>,
    /// The main graph.
    pub graph: Graph,
    /// Model-local functions, kept as they were read.
    pub functions: Vec<Function>,
}

/// A model-local function, opaque here.
#[derive(Clone, Debug)]
pub struct Function(pub(crate) onnx::FunctionProto);

/// A graph, or the body of a control-flow operator.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Graph name.
    pub name: String,
    /// Inputs that a caller must give.
    pub inputs: Vec<ValueInfo>,
    /// Outputs.
    pub outputs: Vec<ValueInfo>,
    /// Nodes, in execution order once sorted.
    pub nodes: Vec<Node>,
    /// Constant tensors by name.
    pub initializers: IndexMap<String, Initializer>,
    /// Types of intermediate values, where known.
    pub value_info: Vec<ValueInfo>,
}

/// A constant tensor.
#[derive(Clone, Debug)]
pub struct Initializer {
    /// Element type of the values as the graph sees them.
    pub dtype: DataType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The values.
    pub data: TensorData,
    /// True for a weight, which is written to external data; false for a small constant kept in the graph file.
    pub external: bool,
}

impl Initializer {
    /// A small constant kept in the graph file.
    pub fn inline(dtype: DataType, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype, shape: shape.to_vec(), data: TensorData::raw(bytes), external: false }
    }

    /// A weight, written to external data.
    pub fn weight(dtype: DataType, shape: &[usize], data: TensorData) -> Self {
        Self { dtype, shape: shape.to_vec(), data, external: true }
    }

    /// Number of bytes that type and shape call for; `None` on overflow.
    pub fn expected_len(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d))
    }
}

/// A graph input, output or typed intermediate value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Value name.
    pub name: String,
    /// Tensor type; `None` if unknown or not a tensor.
    pub ty: Option<TensorType>,
}

/// Element type and extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DataType,
    /// Extents; `None` if even the rank is unknown.
    pub shape: Option<Vec<Dim>>,
}

/// One extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name such as `frames`.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => n.fmt(f),
            Self::Symbol(s) => s.fmt(f),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl From<&str> for Dim {
    fn from(s: &str) -> Self {
        Self::Symbol(s.to_owned())
    }
}

/// An operator call.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Node name, unique where the producer gave one.
    pub name: String,
    /// Operator, for example `Gemm`.
    pub op_type: String,
    /// Operator domain; `""` is ONNX's own.
    pub domain: String,
    /// Input value names; `""` marks an optional input left out.
    pub inputs: Vec<String>,
    /// Output value names; `""` marks an optional output left out.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: IndexMap<String, Attribute>,
    /// `metadata_props` of the node.
    pub metadata: IndexMap<String, String>,
}

impl Model {
    /// Version of ONNX's own operator set.
    pub fn opset(&self) -> Option<i64> {
        self.opsets.get("").or_else(|| self.opsets.get("ai.onnx")).copied()
    }
}

impl Node {
    /// The integer attribute `name`, if it is there and an integer.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// The integer-list attribute `name`, if it is there and a list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// True if the node has this input.
    pub(crate) fn has_input(&self, index: usize) -> bool {
        self.inputs.get(index).is_some_and(|name| !name.is_empty())
    }

    /// Every value that the node reads: its inputs, and what the bodies of control-flow operators capture.
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        let inputs = self.inputs.iter().map(String::as_str).filter(|s| !s.is_empty());
        let captured = self.attributes.values().filter_map(|a| match a {
            Attribute::Graph(g) => Some(g.captures()),
            _ => None,
        });
        inputs.chain(captured.flatten())
    }
}

impl Graph {
    /// Names that the graph reads and does not define itself.
    pub fn captures(&self) -> Vec<&str> {
        let defined: std::collections::HashSet<&str> = self
            .inputs
            .iter()
            .map(|v| v.name.as_str())
            .chain(self.initializers.keys().map(String::as_str))
            .chain(self.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)))
            .collect();
        let read = self.nodes.iter().flat_map(Node::uses).chain(self.outputs.iter().map(|v| v.name.as_str()));
        read.filter(|name| !defined.contains(name)).collect()
    }
}

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
