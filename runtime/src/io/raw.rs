//! Tensors as the little-endian bytes that files and backends hold.

use std::borrow::Cow;

use bytemuck::{AnyBitPattern, NoUninit, cast_slice, cast_slice_mut};
use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;

use crate::tensor::{Dtype, Tensor, each};

#[cfg(not(target_endian = "little"))]
compile_error!("v2l reads weights in place and so needs a little-endian machine");

/// Elements that one thread converts at a time.
const PIECE: usize = 1 << 18;

/// Bytes of a tensor of `dtype` and `shape`; `None` if the product overflows.
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |n, &extent| n.checked_mul(extent))
}

/// Copies `bytes` into a tensor; they need no alignment. `None` if their number is not that of `dtype` and `shape`.
pub fn tensor_from_bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
    if byte_len(dtype, shape)? != bytes.len() {
        return None;
    }
    match dtype {
        Dtype::F32 => copied::<f32>(shape, bytes),
        Dtype::F16 => copied::<f16>(shape, bytes),
        Dtype::Bf16 => copied::<bf16>(shape, bytes),
        Dtype::I64 => copied::<i64>(shape, bytes),
        Dtype::I32 => copied::<i32>(shape, bytes),
        Dtype::U8 => copied::<u8>(shape, bytes),
        Dtype::Bool => array(shape, bytes.iter().map(|&b| b != 0).collect()).map(Tensor::Bool),
        Dtype::F64 => copied::<f64>(shape, bytes),
        Dtype::I8 => copied::<i8>(shape, bytes),
        Dtype::I16 => copied::<i16>(shape, bytes),
        Dtype::U16 => copied::<u16>(shape, bytes),
        Dtype::U32 => copied::<u32>(shape, bytes),
        Dtype::U64 => copied::<u64>(shape, bytes),
    }
}

/// The elements in row-major order as bytes, borrowed when the tensor already lies that way.
pub fn tensor_bytes(tensor: &Tensor) -> Cow<'_, [u8]> {
    each!(tensor, a => array_bytes(a))
}

/// The tensor itself if its elements lie in row-major order, else a copy whose elements do.
pub fn standard_layout(tensor: &Tensor) -> Cow<'_, Tensor> {
    fn copy<T: Clone>(array: &ArrayD<T>) -> Option<Tensor>
    where
        Tensor: From<ArrayD<T>>,
    {
        (!array.is_standard_layout()).then(|| array.as_standard_layout().into_owned().into())
    }
    let copied = each!(tensor, a => copy(a));
    copied.map_or(Cow::Borrowed(tensor), Cow::Owned)
}

/// Widens `bytes` of a floating-point `dtype` to f32 without loss, on all threads; they need no alignment.
/// `None` for other types. Costs 4 bytes of memory per element.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    if !dtype.is_float() {
        return None;
    }
    let mut values = vec![0f32; bytes.len() / dtype.size()];
    let pieces = bytes.par_chunks(PIECE * dtype.size());
    values.par_chunks_mut(PIECE).zip(pieces).for_each(|(out, bytes)| widen_into(dtype, bytes, out));
    Some(values)
}

/// Widens as many elements as `out` holds. Leaves `out` alone for a `dtype` that is not floating-point.
pub(crate) fn widen_into(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => widen_elements(bytes, out, |v: f32| v),
        Dtype::Bf16 => widen_elements(bytes, out, bf16::to_f32),
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if halves.len() == out.len() => halves.convert_to_f32_slice(out),
            _ => widen_elements(bytes, out, f16::to_f32),
        },
        _ => {}
    }
}

/// Copies elements of type `from` into `out` as `to`: the same type, or f32 from a floating-point one.
pub(crate) fn widen_bytes(from: Dtype, bytes: &[u8], to: Dtype, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(bytes);
    } else if let Ok(values) = bytemuck::try_cast_slice_mut(out) {
        widen_into(from, bytes, values);
    }
}

fn widen_elements<T: AnyBitPattern>(bytes: &[u8], out: &mut [f32], widen: impl Fn(T) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
        *value = widen(bytemuck::pod_read_unaligned(bytes));
    }
}

/// Hands a vector over as shared bytes, without a copy.
pub fn vec_into_bytes<T: NoUninit + Send + 'static>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: NoUninit> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Owner(values))
}

/// The bytes, copied only if they are not aligned to their elements.
pub(crate) fn aligned(dtype: Dtype, bytes: Bytes) -> Bytes {
    if bytes.as_ptr().addr().is_multiple_of(dtype.size()) { bytes } else { aligned_copy(&bytes) }
}

/// A copy that is aligned for every type.
pub(crate) fn aligned_copy(bytes: &[u8]) -> Bytes {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    vec_into_bytes(words).slice(..bytes.len())
}

fn array<T>(shape: &[usize], values: Vec<T>) -> Option<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(shape), values).ok()
}

fn array_bytes<T: NoUninit>(array: &ArrayD<T>) -> Cow<'_, [u8]> {
    match array.as_slice() {
        Some(slice) => Cow::Borrowed(cast_slice(slice)),
        None => Cow::Owned(array.iter().flat_map(|v| bytemuck::bytes_of(v).iter().copied()).collect()),
    }
}

/// A tensor of the elements in `bytes`. A trailing fraction of an element is dropped.
fn copied<T: AnyBitPattern>(shape: &[usize], bytes: &[u8]) -> Option<Tensor>
where
    Tensor: From<ArrayD<T>>,
{
    let values = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
    array(shape, values).map(Tensor::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_from_bytes_and_back_keeps_every_type() {
        for dtype in Dtype::ALL {
            let modulus = if dtype == Dtype::Bool { 2 } else { 256 };
            let bytes: Vec<u8> = (0..6 * dtype.size()).map(|i| (i % modulus) as u8).collect();
            let tensor = tensor_from_bytes(dtype, &[2, 3], &bytes).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[2, 3][..]));
            assert_eq!(&tensor_bytes(&tensor)[..], bytes);
        }
    }

    #[test]
    fn tensor_from_bytes_of_another_length_is_none() {
        assert!(tensor_from_bytes(Dtype::F32, &[2], &[0; 7]).is_none());
        assert!(tensor_from_bytes(Dtype::F32, &[usize::MAX, 2], &[0; 8]).is_none());
    }

    #[test]
    fn widen_of_unaligned_halves_is_exact() {
        let values = [1.5f32, -0.0, 65504.0, 6e-8];
        let mut bytes = vec![0u8];
        bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
        let expected: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        assert_eq!(widen(Dtype::F16, &bytes[1..]).unwrap(), expected);
        assert_eq!(widen(Dtype::Bf16, &bf16::from_f32(3.0).to_le_bytes()).unwrap(), [3.0]);
        assert!(widen(Dtype::I64, &[0; 8]).is_none());
    }

    #[test]
    fn tensor_bytes_of_a_transposed_array_are_row_major() {
        let a = ArrayD::from_shape_vec(IxDyn(&[2, 2]), vec![1u8, 2, 3, 4]).unwrap().reversed_axes();
        assert_eq!(&tensor_bytes(&Tensor::U8(a))[..], [1, 3, 2, 4]);
    }
}
