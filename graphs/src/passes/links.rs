//! Looking around in a graph.

use std::collections::HashMap;

use crate::operators::is_onnx;
use crate::tensor::{self, Numbers, Tensor};
use crate::{DataType, Dim, Graph, Node, TensorType};

/// Who makes and who reads each value, and what is known of it.
pub(super) struct Links<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    reads: HashMap<&'a str, usize>,
    types: HashMap<&'a str, &'a TensorType>,
}

impl<'a> Links<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        let (mut producers, mut reads, mut types) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (index, node) in graph.nodes.iter().enumerate() {
            for output in &node.outputs {
                producers.insert(&output[..], index);
            }
            for value in node.uses() {
                *reads.entry(value).or_default() += 1;
            }
        }
        for output in &graph.outputs {
            *reads.entry(&output.name[..]).or_default() += 1;
        }
        for info in graph.inputs.iter().chain(&graph.value_info).chain(&graph.outputs) {
            if let Some(ty) = &info.ty {
                types.insert(&info.name[..], ty);
            }
        }
        Self { graph, producers, reads, types }
    }

    /// Index of the node that makes `value`.
    pub(super) fn index(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The node of ONNX's own operator `op` that makes `value`.
    pub(super) fn made_by(&self, value: &str, op: &str) -> Option<&'a Node> {
        let node = &self.graph.nodes[self.index(value)?];
        (is_onnx(node) && node.op_type == op).then_some(node)
    }

    /// True if one node reads `value` and no output is it.
    pub(super) fn is_read_once(&self, value: &str) -> bool {
        self.reads.get(value) == Some(&1)
    }

    /// Extents of a value that is no initializer.
    pub(super) fn shape(&self, value: &str) -> Option<&'a [Dim]> {
        self.types.get(value)?.shape.as_deref()
    }

    /// True if `value` is no initializer and of float32, the type that ONNX Runtime's own operators are used in.
    pub(super) fn is_f32(&self, value: &str) -> bool {
        self.types.get(value).is_some_and(|ty| ty.dtype == DataType::Float)
    }

    /// The number in an f32 constant of one element, whatever its rank.
    pub(super) fn scalar(&self, value: &str) -> Option<f32> {
        match self.constant(value)?.numbers()? {
            Numbers::Float(numbers) if numbers.len() == 1 => Some(numbers[0]),
            _ => None,
        }
    }

    /// An initializer that the graph holds and that no input replaces.
    pub(super) fn constant(&self, value: &str) -> Option<Tensor> {
        if self.graph.inputs.iter().any(|input| input.name == value) {
            return None;
        }
        Tensor::from_initializer(self.graph.initializers.get(value).filter(|c| !c.external)?)
    }

    /// `value = x · constant`: `x` and the constant.
    pub(super) fn scaled(&self, value: &str) -> Option<(&'a str, f32)> {
        let node = self.made_by(value, "Mul")?;
        let [a, b] = &node.inputs[..] else { return None };
        match (self.scalar(a), self.scalar(b)) {
            (None, Some(factor)) => Some((a, factor)),
            (Some(factor), None) => Some((b, factor)),
            _ => None,
        }
    }

    /// `value = Transpose(x, perm)`: `x`.
    pub(super) fn transposed(&self, value: &str, perm: &[i64]) -> Option<&'a str> {
        let node = self.made_by(value, "Transpose")?;
        (node.ints("perm") == Some(perm)).then(|| &node.inputs[0][..])
    }

    /// Both inputs of a node of two, in either order: the one that `fits` gives something for, and the other.
    pub(super) fn either<T>(node: &'a Node, fits: impl Fn(&'a str) -> Option<T>) -> Option<(T, &'a str)> {
        let [a, b] = &node.inputs[..] else { return None };
        fits(a).map(|found| (found, &b[..])).or_else(|| fits(b).map(|found| (found, &a[..])))
    }
}

/// The extent as a number.
pub(super) fn fixed(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Fixed(n) => Some(*n),
        _ => None,
    }
}

/// True if both extents are certainly equal.
pub(super) fn same(a: &Dim, b: &Dim) -> bool {
    a == b && *a != Dim::Unknown
}

/// True for a node whose axis, `default` if the attribute is absent, is the last of `rank`.
pub(super) fn is_last(node: &Node, default: Option<i64>, rank: usize) -> bool {
    let axis = node.int("axis").or(default).and_then(|axis| tensor::axis(axis, rank));
    axis.is_some_and(|axis| axis + 1 == rank)
}
