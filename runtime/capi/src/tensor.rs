//! Tensors across the boundary: the caller's, read in place where they lie right, and the library's.

use std::ffi::{CString, c_char, c_void};

use v2l_runtime::io::raw::{byte_len, standard_layout, tensor_from_bytes};
use v2l_runtime::memory::available_memory;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor, TensorView};

use crate::failure::{Failure, guard};
use crate::handles::{Handle, Kind, free, required};
use crate::pointers::{Out, slice, text};
use crate::status::{V2L_ERROR_INVALID_ARGUMENT, V2L_ERROR_MEMORY, V2L_ERROR_TENSOR, v2l_status};
use crate::texts::c_name;

/// Type of a tensor's elements.
pub type v2l_dtype = i32;
/// IEEE 754 binary32.
pub const V2L_F32: v2l_dtype = 1;
/// IEEE 754 binary16.
pub const V2L_F16: v2l_dtype = 2;
/// bfloat16: the upper half of a binary32.
pub const V2L_BF16: v2l_dtype = 3;
/// 64-bit signed integer.
pub const V2L_I64: v2l_dtype = 4;
/// 32-bit signed integer.
pub const V2L_I32: v2l_dtype = 5;
/// 8-bit unsigned integer.
pub const V2L_U8: v2l_dtype = 6;
/// One byte: 0 is false, anything else true, and taken for 1. Outputs hold 0 and 1.
pub const V2L_BOOL: v2l_dtype = 7;
/// IEEE 754 binary64.
pub const V2L_F64: v2l_dtype = 8;
/// 8-bit signed integer.
pub const V2L_I8: v2l_dtype = 9;
/// 16-bit signed integer.
pub const V2L_I16: v2l_dtype = 10;
/// 16-bit unsigned integer.
pub const V2L_U16: v2l_dtype = 11;
/// 32-bit unsigned integer.
pub const V2L_U32: v2l_dtype = 12;
/// 64-bit unsigned integer.
pub const V2L_U64: v2l_dtype = 13;

/// Largest rank of a tensor.
pub const V2L_MAX_RANK: u32 = 16;

/// A tensor in host memory; it owns nothing. This structure never grows.
///
/// As an input it is the caller's, and read until the call returns. It is used in place, without a copy, if it lies in row-major order,
/// `data` is aligned to the elements and `dtype` is the graph's; otherwise it is copied, and converted to the graph's type if every
/// number in it is the same number there: i64 timesteps for a graph that takes f32, say. Else the call gives
/// V2L_ERROR_INVALID_ARGUMENT, and its message names the first number that is lost.
/// A copy that does not fit in the memory that the machine has available is refused with V2L_ERROR_MEMORY.
///
/// As an output it lies in memory of the handle that it came from, lives as long, and must not be written to; its strides are set. The
/// tensors of a v2l_tensors lie in row-major order.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_tensor {
    /// The name of an input or output. May be NULL where no name is asked for.
    pub name: *const c_char,
    /// The first element: the one at index 0, 0, …
    pub data: *const c_void,
    /// Type of the elements.
    pub dtype: v2l_dtype,
    /// Number of extents, at most V2L_MAX_RANK.
    pub rank: u32,
    /// `rank` extents, outermost first. May be NULL for rank 0.
    pub shape: *const i64,
    /// `rank` distances, in bytes, from one index to the next; negative and 0 will do. May be NULL: row-major order.
    pub strides: *const i64,
}

/// Named tensors that the library owns.
pub struct v2l_tensors(Vec<Owned>);

impl Handle for v2l_tensors {
    const KIND: Kind = Kind::Tensors;
}

const DTYPES: [(v2l_dtype, Dtype); 13] = [
    (V2L_F32, Dtype::F32),
    (V2L_F16, Dtype::F16),
    (V2L_BF16, Dtype::Bf16),
    (V2L_I64, Dtype::I64),
    (V2L_I32, Dtype::I32),
    (V2L_U8, Dtype::U8),
    (V2L_BOOL, Dtype::Bool),
    (V2L_F64, Dtype::F64),
    (V2L_I8, Dtype::I8),
    (V2L_I16, Dtype::I16),
    (V2L_U16, Dtype::U16),
    (V2L_U32, Dtype::U32),
    (V2L_U64, Dtype::U64),
];

/// The number of a type.
pub(crate) fn dtype_number(dtype: Dtype) -> v2l_dtype {
    DTYPES.into_iter().find(|(_, known)| *known == dtype).map_or(0, |(number, _)| number)
}

/// A caller's tensor: where it lies, or copied into row-major order.
pub(crate) enum Input<'a> {
    InPlace { dtype: Dtype, shape: Vec<usize>, data: &'a [u8] },
    Copied(Tensor),
}

impl<'a> Input<'a> {
    /// Copies only what does not lie in row-major order or is not aligned; `name` is for messages.
    ///
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn new(tensor: &v2l_tensor, name: &str) -> Result<Self, Failure> {
        let fail = |message: String| Failure::new(V2L_ERROR_TENSOR, format!("tensor `{name}`: {message}"));
        let dtype = DTYPES.into_iter().find(|(number, _)| *number == tensor.dtype).map(|(_, dtype)| dtype);
        let dtype =
            dtype.ok_or_else(|| fail(format!("dtype is {}; expected one of V2L_F32 to V2L_U64", tensor.dtype)))?;
        if tensor.rank > V2L_MAX_RANK {
            return Err(fail(format!("rank is {}; expected at most {V2L_MAX_RANK}", tensor.rank)));
        }
        let rank = tensor.rank as usize;
        // SAFETY: the caller's promise.
        let extents = unsafe { slice(tensor.shape, rank, "shape") }?;
        let shape: Result<Vec<usize>, _> = extents.iter().map(|&extent| usize::try_from(extent)).collect();
        let shape = shape.map_err(|_| fail(format!("shape is {extents:?}; expected extents of 0 or more")))?;
        let length = byte_len(dtype, &shape).filter(|&length| isize::try_from(length).is_ok());
        // Extents that do not fit in memory are no tensor's, though another one is 0.
        let spread = shape.iter().filter(|&&extent| extent > 0).try_fold(1usize, |all, &n| all.checked_mul(n));
        let length = length.filter(|_| spread.is_some_and(|spread| isize::try_from(spread).is_ok()));
        let length = length.ok_or_else(|| fail(format!("{shape:?} {dtype} do not fit in memory")))?;
        if length == 0 {
            return Ok(Self::InPlace { dtype, shape, data: &[] });
        }
        if tensor.data.is_null() {
            return Err(fail("data is NULL".to_owned()));
        }
        let data = tensor.data.cast::<u8>();
        let dense = dense_strides(&shape, dtype.size());
        let strides = match tensor.strides.is_null() {
            true => dense.clone(),
            // SAFETY: the caller's promise.
            false => unsafe { slice(tensor.strides, rank, "strides") }?.to_vec(),
        };
        let row_major =
            shape.iter().zip(strides.iter().zip(&dense)).all(|(&n, (found, dense))| n == 1 || found == dense);
        if row_major && data.addr().is_multiple_of(dtype.size()) {
            // SAFETY: not NULL, aligned for bytes, `length` fits an isize, and the caller's promise.
            let data = unsafe { std::slice::from_raw_parts(data, length) };
            if dtype != Dtype::Bool || data.iter().all(|&byte| byte <= 1) {
                return Ok(Self::InPlace { dtype, shape, data });
            }
        }
        let far = || fail(format!("strides {strides:?} over {shape:?} reach out of any memory"));
        check_reach(&shape, &strides).ok_or_else(far)?;
        let mut bytes = room_for(length).map_err(|message| {
            Failure::new(V2L_ERROR_MEMORY, format!("tensor `{name}`: a copy of {shape:?} {dtype} {message}"))
        })?;
        // SAFETY: offsets fit an isize, and the caller's promise.
        unsafe { gather(data, &shape, &strides, dtype.size(), length, &mut bytes) };
        tensor_from_bytes(dtype, &shape, &bytes).map(Self::Copied).ok_or_else(far)
    }

    /// The elements, row-major.
    pub(crate) fn view(&self) -> TensorView<'_> {
        let view = match self {
            Self::InPlace { dtype, shape, data } => {
                TensorView::new(*dtype, shape, if data.is_empty() { EMPTY } else { data })
            }
            Self::Copied(tensor) => tensor.view(),
        };
        match view {
            Some(view) => view,
            None => unreachable!("length, order and alignment were checked"),
        }
    }
}

/// No elements, aligned to every type.
const EMPTY: &[u8] = {
    const WORDS: &[u64; 0] = &[];
    // SAFETY: no bytes, at an aligned address.
    unsafe { std::slice::from_raw_parts(WORDS.as_ptr().cast(), 0) }
};

/// Byte strides of row-major order.
fn dense_strides(shape: &[usize], size: usize) -> Vec<i64> {
    let mut strides = vec![0; shape.len()];
    let mut stride = size as i64;
    for (at, &extent) in shape.iter().enumerate().rev() {
        strides[at] = stride;
        stride = stride.wrapping_mul(extent as i64);
    }
    strides
}

/// `None` if some element is farther from the first than an isize says.
fn check_reach(shape: &[usize], strides: &[i64]) -> Option<()> {
    let (mut low, mut high) = (0isize, 0isize);
    for (&extent, &stride) in shape.iter().zip(strides) {
        let reach = isize::try_from(extent - 1).ok()?.checked_mul(isize::try_from(stride).ok()?)?;
        if reach < 0 {
            low = low.checked_add(reach)?;
        } else {
            high = high.checked_add(reach)?;
        }
    }
    high.checked_sub(low).map(|_| ())
}

/// An empty vector with room for a copy of `length` bytes, which is itself copied once; else why there is none.
fn room_for(length: usize) -> Result<Vec<u8>, String> {
    let needed = (length as u64).saturating_mul(2);
    let available = available_memory().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    if needed > available || bytes.try_reserve_exact(length).is_err() {
        return Err(format!(
            "in row-major order needs {needed} bytes of memory, {available} are available; give it in row-major order, or smaller"
        ));
    }
    Ok(bytes)
}

/// Appends `length` bytes of elements of `size` in row-major order; no extent is 0.
///
/// # Safety
/// All elements can be read, and their offsets fit an isize.
unsafe fn gather(data: *const u8, shape: &[usize], strides: &[i64], size: usize, length: usize, bytes: &mut Vec<u8>) {
    let mut index = vec![0usize; shape.len()];
    while bytes.len() < length {
        let offset: isize = index.iter().zip(strides).map(|(&i, &stride)| i as isize * stride as isize).sum();
        // SAFETY: the caller's promise.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(data.offset(offset), size) });
        for at in (0..shape.len()).rev() {
            index[at] += 1;
            if index[at] < shape[at] {
                break;
            }
            index[at] = 0;
        }
    }
}

/// The inputs of a run, by name.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn named_inputs<'a>(
    tensors: *const v2l_tensor,
    count: usize,
) -> Result<Vec<(&'a str, Input<'a>)>, Failure> {
    // SAFETY: the caller's promise, for all of these.
    unsafe {
        let tensors = slice(tensors, count, "inputs")?;
        tensors.iter().enumerate().map(|(at, tensor)| {
            let name = text(tensor.name, &format!("inputs[{at}].name"))?;
            Ok((name, Input::new(tensor, name)?))
        })
    }
    .collect()
}

/// One tensor of the library's, with all that a [`v2l_tensor`] points to.
pub(crate) struct Owned {
    name: CString,
    tensor: Tensor,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Owned {
    pub(crate) fn new(name: &str, tensor: Tensor) -> Self {
        let tensor = match tensor.view() {
            Some(_) => tensor,
            None => standard_layout(&tensor).into_owned(),
        };
        let shape = tensor.shape().iter().map(|&extent| extent as i64).collect();
        let strides = dense_strides(tensor.shape(), tensor.dtype().size());
        Self { name: c_name(name), tensor, shape, strides }
    }

    pub(crate) fn borrowed(&self) -> v2l_tensor {
        let data = self.tensor.view().map_or(std::ptr::null(), |view| view.data().as_ptr().cast());
        v2l_tensor {
            name: self.name.as_ptr(),
            data,
            dtype: dtype_number(self.tensor.dtype()),
            rank: self.shape.len() as u32,
            shape: self.shape.as_ptr(),
            strides: self.strides.as_ptr(),
        }
    }
}

impl From<NamedTensors> for v2l_tensors {
    fn from(tensors: NamedTensors) -> Self {
        Self(tensors.into_iter().map(|(name, tensor)| Owned::new(&name, tensor)).collect())
    }
}

/// The number of tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_tensors_count(tensors: *const v2l_tensors, count: *mut usize) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (tensors, out) = unsafe { (required(tensors, "tensors")?, Out::new(count, "count")?) };
        out.set(tensors.0.len());
        Ok(())
    })
}

/// The tensor at `index`, from 0; it lives as long as `tensors`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_tensors_get(
    tensors: *const v2l_tensors,
    index: usize,
    tensor: *mut v2l_tensor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (tensors, out) = unsafe { (required(tensors, "tensors")?, Out::new(tensor, "tensor")?) };
        let found = tensors.0.get(index).ok_or_else(|| out_of_range("tensor", index, tensors.0.len()))?;
        out.set(found.borrowed());
        Ok(())
    })
}

/// The tensor called `name`; it lives as long as `tensors`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_tensors_find(
    tensors: *const v2l_tensors,
    name: *const c_char,
    tensor: *mut v2l_tensor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (tensors, name, out) =
            unsafe { (required(tensors, "tensors")?, text(name, "name")?, Out::new(tensor, "tensor")?) };
        let found = tensors.0.iter().find(|owned| owned.name.as_bytes() == name.as_bytes()).ok_or_else(|| {
            let names: Vec<_> = tensors.0.iter().map(|owned| owned.name.to_string_lossy()).collect();
            Failure::argument(format!("there is no tensor `{name}`; there are: {}", names.join(", ")))
        })?;
        out.set(found.borrowed());
        Ok(())
    })
}

/// Frees the tensors and everything that was had from them. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_tensors_free(tensors: *mut v2l_tensors) {
    // SAFETY: the header's promise.
    unsafe { free(tensors) }
}

/// What to say of an index that is none.
pub(crate) fn out_of_range(what: &str, index: usize, count: usize) -> Failure {
    Failure::new(V2L_ERROR_INVALID_ARGUMENT, format!("there is no {what} {index}; there are {count}, from 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(data: &[f32], shape: &[i64], strides: Option<&[i64]>) -> v2l_tensor {
        v2l_tensor {
            name: std::ptr::null(),
            data: data.as_ptr().cast(),
            dtype: V2L_F32,
            rank: shape.len() as u32,
            shape: shape.as_ptr(),
            strides: strides.map_or(std::ptr::null(), <[i64]>::as_ptr),
        }
    }

    fn read(tensor: &v2l_tensor) -> Result<Input<'_>, Failure> {
        // SAFETY: the tensors of these tests are what they claim to be, or refused before they are read.
        unsafe { Input::new(tensor, "x") }
    }

    fn values(tensor: &v2l_tensor) -> Vec<f32> {
        let input = read(tensor).unwrap_or_else(|failure| panic!("{}", failure.message));
        input.view().to_tensor().into_f32().unwrap().into_raw_vec_and_offset().0
    }

    const DATA: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

    #[test]
    fn input_in_row_major_order_is_not_copied() {
        for strides in [None, Some(&[12, 4][..])] {
            let tensor = tensor(&DATA, &[2, 3], strides);
            assert_eq!(read(&tensor).unwrap().view().data().as_ptr(), DATA.as_ptr().cast());
        }
        // What an axis of one element strides over does not matter.
        let one = tensor(&DATA, &[1, 6], Some(&[-99, 4]));
        assert_eq!(read(&one).unwrap().view().data().as_ptr(), DATA.as_ptr().cast());
    }

    #[test]
    fn input_with_other_strides_is_gathered() {
        assert_eq!(values(&tensor(&DATA, &[3, 2], Some(&[4, 12]))), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(values(&tensor(&DATA, &[2, 2], Some(&[0, 4]))), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(values(&tensor(&DATA[5..], &[3], Some(&[-8]))), [5.0, 3.0, 1.0]);
    }

    #[test]
    fn input_that_is_not_aligned_is_copied() {
        let mut bytes = [0u8; 12];
        let start = usize::from(bytes.as_ptr().addr().is_multiple_of(4));
        bytes[start..start + 8].copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
        let unaligned = v2l_tensor { data: bytes[start..].as_ptr().cast(), ..tensor(&DATA, &[2], None) };
        assert_eq!(values(&unaligned), [1.0, 2.0]);
    }

    #[test]
    fn input_without_elements_needs_no_data() {
        let empty = v2l_tensor { data: std::ptr::null(), ..tensor(&DATA, &[2, 0], None) };
        assert_eq!(read(&empty).unwrap().view().shape(), [2, 0]);
    }

    #[test]
    fn input_that_contradicts_itself_is_refused() {
        let good = tensor(&DATA, &[2, 3], None);
        let far = [i64::MAX, 4];
        let huge = [i64::MAX, i64::MAX];
        let negative = [2, -3];
        let wrong = [
            v2l_tensor { dtype: 0, ..good },
            v2l_tensor { dtype: 14, ..good },
            v2l_tensor { rank: 17, ..good },
            v2l_tensor { data: std::ptr::null(), ..good },
            v2l_tensor { shape: huge.as_ptr(), ..good },
            v2l_tensor { shape: negative.as_ptr(), ..good },
            v2l_tensor { shape: [3i64, 2].as_ptr(), strides: far.as_ptr(), ..good },
        ];
        for tensor in &wrong {
            assert_eq!(read(tensor).err().unwrap().status, V2L_ERROR_TENSOR);
        }
    }

    #[test]
    fn input_that_repeats_one_element_beyond_any_memory_is_refused_as_too_large() {
        for extents in [&[1i64 << 40][..], &[1 << 20, 1 << 20], &[1 << 58]] {
            let strides = vec![0; extents.len()];
            let refused = read(&tensor(&DATA, extents, Some(&strides))).err().unwrap();
            assert_eq!(refused.status, V2L_ERROR_MEMORY, "{}", refused.message);
            assert!(refused.message.contains("tensor `x`"), "{}", refused.message);
        }
    }

    #[test]
    fn input_of_booleans_holds_0_and_1_whatever_bytes_are_given() {
        for (given, in_place) in [([0u8, 1, 1, 0], true), ([0, 2, 255, 0], false)] {
            let tensor = v2l_tensor { dtype: V2L_BOOL, data: given.as_ptr().cast(), ..tensor(&DATA, &[4], None) };
            let input = read(&tensor).unwrap();
            assert_eq!(input.view().data(), [0, 1, 1, 0]);
            assert_eq!(input.view().data().as_ptr() == given.as_ptr(), in_place);
        }
    }

    #[test]
    fn every_type_of_the_runtime_has_a_number_of_its_own() {
        let numbers: Vec<v2l_dtype> = Dtype::ALL.into_iter().map(dtype_number).collect();
        assert_eq!(numbers, (V2L_F32..=V2L_U64).collect::<Vec<_>>());
    }

    #[test]
    fn owned_tensor_lies_in_row_major_order() {
        let array = ndarray::ArrayD::from_shape_vec(ndarray::IxDyn(&[2, 3]), DATA.to_vec()).unwrap().reversed_axes();
        let owned = Owned::new("y", Tensor::F32(array));
        assert_eq!(values(&owned.borrowed()), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!((owned.shape.as_slice(), owned.strides.as_slice()), (&[3, 2][..], &[8, 4][..]));
    }
}
