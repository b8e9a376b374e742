//! The arguments of a node that is evaluated over constants, for shape arithmetic and small tables.
//!
//! Evaluation answers `None` when in doubt: unknown attribute, overflow, division by zero, an operand out of range, a
//! result above 64 KiB. Floating-point results are only given where IEEE 754 leaves no choice.

use crate::tensor::{Numbers, Tensor, broadcast, broadcast_sources, result_count};
use crate::{Attribute, DataType, Node};

/// A node, and the constants that it reads.
pub(crate) struct Args<'a> {
    pub(crate) node: &'a Node,
    /// `None` for one that is left out.
    pub(crate) inputs: &'a [Option<&'a Tensor>],
}

/// Two operands that are broadcast to one shape: type, shape, elements.
pub(super) type Pair = (DataType, Vec<usize>, Numbers, Numbers);

impl<'a> Args<'a> {
    pub(super) fn get(&self, index: usize) -> Option<&'a Tensor> {
        self.inputs.get(index).copied().flatten()
    }

    /// All inputs, if there are `N` of them.
    pub(super) fn exactly<const N: usize>(&self) -> Option<[&'a Tensor; N]> {
        let inputs: Vec<&'a Tensor> = self.inputs.iter().copied().collect::<Option<_>>()?;
        inputs.try_into().ok()
    }

    /// An integer attribute with its default; `None` if it is of another kind.
    pub(super) fn int(&self, name: &str, default: i64) -> Option<i64> {
        match self.node.attributes.get(name) {
            None => Some(default),
            Some(Attribute::Int(v)) => Some(*v),
            Some(_) => None,
        }
    }

    /// Axes from input `index` or, as older operator sets had it, from the attribute; `Some(None)` if neither is given.
    pub(super) fn axes(&self, index: usize) -> Option<Option<Vec<i64>>> {
        match (self.get(index), self.node.attributes.get("axes")) {
            (Some(tensor), None) => tensor.indices().map(Some),
            (None, Some(Attribute::Ints(v))) => Some(Some(v.clone())),
            (None, None) => Some(None),
            _ => None,
        }
    }

    /// Both operands broadcast to one shape.
    pub(super) fn pair(&self) -> Option<Pair> {
        let [a, b] = self.exactly()?;
        pair(a, b)
    }
}

/// Two tensors of one type broadcast to one shape.
pub(super) fn pair(a: &Tensor, b: &Tensor) -> Option<Pair> {
    if a.dtype != b.dtype {
        return None;
    }
    let shape = broadcast(&a.shape, &b.shape)?;
    let (x, y) = (spread(a, &shape)?.numbers()?, spread(b, &shape)?.numbers()?);
    Some((a.dtype, shape, x, y))
}

/// A tensor broadcast to a shape.
pub(super) fn spread(x: &Tensor, shape: &[usize]) -> Option<Tensor> {
    result_count(shape, x.dtype)?;
    x.pick(&broadcast_sources(&x.shape, shape)?, shape.to_vec())
}

/// `f` of the elements pair by pair.
pub(super) fn zip<T: Copy, R>(x: &[T], y: &[T], f: impl Fn(T, T) -> Option<R>) -> Option<Vec<R>> {
    x.iter().zip(y).map(|(&a, &b)| f(a, b)).collect()
}

pub(super) fn floats(shape: Vec<usize>, values: Vec<f32>) -> Option<Tensor> {
    Tensor::from_numbers(DataType::Float, shape, &Numbers::Float(values))
}
