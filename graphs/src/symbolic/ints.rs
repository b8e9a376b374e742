//! Small integer tensors whose elements are expressions: what shapes are computed from.

use super::expr::Expr;
use crate::tensor::{Numbers, Tensor};
use crate::{DataType, Initializer};

/// Shape arithmetic has no longer tensors.
pub(crate) const MAX_ELEMENTS: usize = 64;

/// An int32 or int64 tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ints {
    pub(crate) dtype: DataType,
    pub(crate) shape: Vec<usize>,
    pub(crate) items: Vec<Expr>,
}

impl Ints {
    /// `None` for another type, a length that does not fit the shape, or too many elements.
    pub(crate) fn new(dtype: DataType, shape: Vec<usize>, items: Vec<Expr>) -> Option<Self> {
        let integer = matches!(dtype, DataType::Int64 | DataType::Int32);
        let fits = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(items.len());
        (integer && fits && items.len() <= MAX_ELEMENTS).then_some(Self { dtype, shape, items })
    }

    /// A constant of the graph.
    pub(crate) fn constant(value: &Initializer) -> Option<Self> {
        let count = value.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let small = count <= MAX_ELEMENTS && matches!(value.dtype, DataType::Int64 | DataType::Int32);
        if small { Self::from_tensor(&Tensor::from_initializer(value)?) } else { None }
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> Option<Self> {
        let Numbers::Int(numbers) = tensor.numbers()? else { return None };
        Self::new(tensor.dtype, tensor.shape.clone(), numbers.into_iter().map(Expr::from).collect())
    }

    /// The elements of a tensor with at most one extent.
    pub(crate) fn list(&self) -> Option<&[Expr]> {
        (self.shape.len() <= 1).then_some(&self.items)
    }

    /// The elements, if all are numbers.
    pub(crate) fn numbers(&self) -> Option<Vec<i64>> {
        self.items.iter().map(Expr::number).collect()
    }

    /// The tensor, if all elements are numbers.
    pub(crate) fn tensor(&self) -> Option<Tensor> {
        Tensor::from_numbers(self.dtype, self.shape.clone(), &Numbers::Int(self.numbers()?))
    }
}
