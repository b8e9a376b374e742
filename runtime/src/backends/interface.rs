//! A graph that belongs to no engine: what it takes and gives, and its weights.

use bytes::Bytes;

use crate::engine::session::Port;
use crate::tensor::Dtype;

/// A weight for a graph that names it as external data.
#[derive(Clone, Debug)]
pub struct GraphWeight {
    /// Initializer.
    pub name: String,
    /// Element type, as the graph declares it.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian elements; not copied if they are aligned.
    pub data: Bytes,
}

/// A graph's name in messages, and what it takes and gives.
#[derive(Clone, Debug)]
pub struct Interface {
    /// What messages call the graph.
    pub name: String,
    /// Inputs, in graph order.
    pub inputs: Vec<Port>,
    /// Outputs, in graph order.
    pub outputs: Vec<Port>,
}
