//! Tensors that ONNX Runtime borrows, and tensors copied out of it.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::sys;

use ort::value::{DynTensorValueType, DynValue, TensorElementType};

use crate::io::raw::{byte_len, tensor_from_bytes};
use crate::tensor::{Dtype, Tensor};

/// ONNX Runtime's name for `dtype`.
pub(super) fn element_type(dtype: Dtype) -> TensorElementType {
    match dtype {
        Dtype::F32 => TensorElementType::Float32,
        Dtype::F16 => TensorElementType::Float16,
        Dtype::Bf16 => TensorElementType::Bfloat16,
        Dtype::I64 => TensorElementType::Int64,
        Dtype::I32 => TensorElementType::Int32,
        Dtype::U8 => TensorElementType::Uint8,
        Dtype::Bool => TensorElementType::Bool,
        Dtype::F64 => TensorElementType::Float64,
        Dtype::I8 => TensorElementType::Int8,
        Dtype::I16 => TensorElementType::Int16,
        Dtype::U16 => TensorElementType::Uint16,
        Dtype::U32 => TensorElementType::Uint32,
        Dtype::U64 => TensorElementType::Uint64,
    }
}

/// v2l's name for `element`, if it handles it.
pub(super) fn dtype_of(element: TensorElementType) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|&dtype| element_type(dtype) == element)
}

/// A value over `data`, without a copy.
///
/// # Errors
/// ONNX Runtime's words, or ours if `data` has the wrong length or is not aligned to its elements.
///
/// # Safety
/// `data` must stay alive and unchanged until the value, and every session that was given it, are gone.
#[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
pub(super) unsafe fn borrow(dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<DynValue, String> {
    // SAFETY: as the caller promises; the elements are in host memory.
    unsafe { borrow_at(&MemoryInfo::default(), dtype, shape, data.as_ptr().cast_mut().cast(), data.len()) }
}

/// A value over a block of a device's memory, host memory if `ordinal` is `None`, without a copy.
///
/// # Errors
/// As [`borrow`].
///
/// # Safety
/// `address` is followed by `length` bytes of that device, which stay unchanged until the value is gone.
#[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
pub(super) unsafe fn borrow_block(
    ordinal: Option<i32>,
    dtype: Dtype,
    shape: &[usize],
    address: u64,
    length: usize,
) -> Result<DynValue, String> {
    let info = match ordinal {
        None => MemoryInfo::default(),
        Some(gpu) => MemoryInfo::new(AllocationDevice::CUDA, gpu, AllocatorType::Device, MemoryType::Default)
            .map_err(|e| e.to_string())?,
    };
    let address = usize::try_from(address).map_err(|_| "an address is too large".to_owned())?;
    // SAFETY: as the caller promises.
    unsafe { borrow_at(&info, dtype, shape, ptr::with_exposed_provenance_mut(address), length) }
}

/// # Safety
/// `data` is followed by `length` bytes of the device that `info` names; they stay alive and unchanged until the value, and every
/// session that was given it, are gone.
#[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
unsafe fn borrow_at(
    info: &MemoryInfo<'_>,
    dtype: Dtype,
    shape: &[usize],
    data: *mut c_void,
    length: usize,
) -> Result<DynValue, String> {
    if byte_len(dtype, shape) != Some(length) {
        return Err(format!("{length} bytes do not make a tensor {dtype} {shape:?}"));
    }
    if length > 0 && !data.addr().is_multiple_of(dtype.size()) {
        return Err(format!("data of a {dtype} tensor are not aligned"));
    }
    let extents = shape
        .iter()
        .map(|&extent| i64::try_from(extent).map_err(|_| format!("extent {extent} is too large")))
        .collect::<Result<Vec<i64>, String>>()?;
    let mut value: *mut sys::OrtValue = ptr::null_mut();
    // SAFETY: the pointers are valid for the lengths given with them; the data have the length that type and extents
    // imply and outlive the value, as the caller promises. ONNX Runtime takes `*mut` but writes to no initializer and
    // no input.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            info.ptr(),
            data,
            length,
            extents.as_ptr(),
            extents.len(),
            element_type(dtype).into(),
            &raw mut value,
        )
    };
    // SAFETY: the status is the one just returned and is given away here only.
    unsafe { ort::Error::result_from_status(status) }.map_err(|e| e.to_string())?;
    let value = NonNull::new(value).ok_or("no tensor was made")?;
    // SAFETY: the value was just made, is owned by nobody else, and frees no memory: any allocator does, the default one too.
    Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
}

/// Copies a session's output into a tensor.
///
/// # Errors
/// What is wrong, if it is no tensor in CPU memory or has a type that v2l does not handle.
pub(super) fn copy_out(value: &DynValue) -> Result<Tensor, String> {
    let view = value.view().downcast::<DynTensorValueType>().map_err(|_| "the output is not a tensor".to_owned())?;
    let dtype = dtype_of(*view.data_type()).ok_or_else(|| format!("type {} is not supported", view.data_type()))?;
    let shape = view
        .shape()
        .iter()
        .map(|&extent| usize::try_from(extent).map_err(|_| format!("extent {extent}")))
        .collect::<Result<Vec<usize>, String>>()?;
    let length = byte_len(dtype, &shape).ok_or("the output is too large")?;
    if !view.memory_info().is_cpu_accessible() {
        return Err("the output is not in CPU memory".to_owned());
    }
    let bytes = if length == 0 {
        &[][..]
    } else {
        // SAFETY: the tensor is in CPU memory and holds as many bytes as its type and extents imply; `view` keeps it
        // alive and unchanged while the slice is in use.
        #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
        unsafe {
            std::slice::from_raw_parts(view.data_ptr().cast::<u8>(), length)
        }
    };
    tensor_from_bytes(dtype, &shape, bytes).ok_or_else(|| "the output's length disagrees with its shape".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::library;

    #[test]
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    fn borrow_makes_a_value_over_the_callers_memory() {
        library::onnxruntime(None).unwrap();
        let data = [1f32, -2.0, 3.0, 0.5];
        let bytes: &[u8] = bytemuck::cast_slice(&data);
        // SAFETY: `data` outlives the value.
        let value = unsafe { borrow(Dtype::F32, &[2, 2], bytes) }.unwrap();
        let view = value.view().downcast::<DynTensorValueType>().ok().unwrap();
        assert_eq!(view.data_ptr().cast::<u8>(), bytes.as_ptr());
    }

    #[test]
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    fn borrow_refuses_other_lengths_and_misaligned_data() {
        library::onnxruntime(None).unwrap();
        let data = [0u64; 3];
        let bytes: &[u8] = bytemuck::cast_slice(&data);
        // SAFETY: `data` outlives what could be made.
        let message = |bytes| unsafe { borrow(Dtype::F32, &[2, 2], bytes) }.err().unwrap();
        assert!(message(&bytes[..12]).contains("12 bytes do not make a tensor f32 [2, 2]"));
        assert!(message(&bytes[1..17]).contains("not aligned"));
    }
}
