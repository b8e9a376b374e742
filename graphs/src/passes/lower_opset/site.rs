//! Where a node stands, and what becomes of it.

use std::collections::{HashMap, HashSet};

use crate::precision::value_types_within;
use crate::{DataType, Dim, Graph, Node};

/// What is known of the values of a graph and of those around it.
#[derive(Clone, Default)]
pub(super) struct Known {
    types: HashMap<String, DataType>,
    /// Extents that are numbers.
    shapes: HashMap<String, Vec<Option<usize>>>,
}

impl Known {
    pub(super) fn of(graph: &Graph, outer: &Self) -> Self {
        let mut shapes = outer.shapes.clone();
        for info in graph.inputs.iter().chain(&graph.value_info).chain(&graph.outputs) {
            let Some(dims) = info.ty.as_ref().and_then(|ty| ty.shape.as_ref()) else { continue };
            let extent = |dim: &Dim| match dim {
                Dim::Fixed(n) => Some(*n),
                _ => None,
            };
            shapes.insert(info.name.clone(), dims.iter().map(extent).collect());
        }
        for (name, value) in &graph.initializers {
            shapes.insert(name.clone(), value.shape.iter().copied().map(Some).collect());
        }
        Self { types: value_types_within(graph, &outer.types), shapes }
    }
}

/// Where a node stands.
pub(super) struct Site<'a> {
    pub(super) known: &'a Known,
    /// Every name of the model.
    pub(super) taken: &'a mut HashSet<String>,
    /// The lowest IR version so far.
    pub(super) ir_version: &'a mut i64,
    /// The operator set whose change is looked at.
    pub(super) version: i64,
}

impl Site<'_> {
    /// Element type of a node's input, where it is known.
    pub(super) fn dtype(&self, node: &Node, at: usize) -> Option<DataType> {
        self.known.types.get(node.inputs.get(at)?).copied()
    }

    /// Number of axes of a node's input, where it is known.
    pub(super) fn rank(&self, node: &Node, at: usize) -> Option<usize> {
        Some(self.known.shapes.get(node.inputs.get(at)?)?.len())
    }

    /// An extent of a node's input, where it is a number.
    pub(super) fn extent(&self, node: &Node, at: usize, axis: usize) -> Option<usize> {
        *self.known.shapes.get(node.inputs.get(at)?)?.get(axis)?
    }
}

/// What becomes of a node before one change of its operator.
pub(super) enum Step {
    /// The form before the change says the same.
    Older,
    /// Other nodes, of operator set [`crate::OPSET`], say the same.
    Instead(Vec<Node>),
    /// Only the form since the change says it.
    Stays,
}
