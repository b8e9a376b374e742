//! Tensors in memory that somebody else holds.

use super::{Dtype, Tensor, each};
use crate::io::raw;

/// A dense row-major tensor in memory that somebody else holds, aligned to its elements.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of `data`; `None` if their number is not that of `dtype` and `shape`, or they are not aligned to `dtype`.
    pub fn new(dtype: Dtype, shape: &'a [usize], data: &'a [u8]) -> Option<Self> {
        let fits = raw::byte_len(dtype, shape) == Some(data.len());
        (fits && data.as_ptr().addr().is_multiple_of(dtype.size())).then_some(Self { dtype, shape, data })
    }

    /// Element type.
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents, outermost first.
    pub const fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements, row-major.
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// A copy that owns its elements.
    pub fn to_tensor(&self) -> Tensor {
        match raw::tensor_from_bytes(self.dtype, self.shape, self.data) {
            Some(tensor) => tensor,
            None => unreachable!("the length was checked when the view was made"),
        }
    }
}

impl Tensor {
    /// The elements in place; `None` if they do not lie in row-major order.
    pub fn view(&self) -> Option<TensorView<'_>> {
        let data = each!(self, a => a.as_slice().map(bytemuck::cast_slice))?;
        TensorView::new(self.dtype(), self.shape(), data)
    }
}
