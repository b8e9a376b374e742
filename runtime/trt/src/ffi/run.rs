//! The shim's functions that run plans.

use std::ffi::{c_char, c_void};

pub(crate) type CreateRuntime = unsafe extern "C" fn(logger: *mut c_void, version: i32) -> *mut c_void;
pub(crate) type CreateRefitter =
    unsafe extern "C" fn(engine: *mut c_void, logger: *mut c_void, version: i32) -> *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RunEntry {
    pub(crate) create_runtime: CreateRuntime,
    pub(crate) create_refitter: CreateRefitter,
}

#[repr(C)]
pub(crate) struct Log {
    pub(crate) context: *const c_void,
    pub(crate) log: unsafe extern "C" fn(*const c_void, i32, *const c_char),
}

pub(crate) const MAX_RANK: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rank: i32,
    pub(crate) extents: [i64; MAX_RANK],
}

#[repr(C)]
pub(crate) struct Tensor {
    pub(crate) name: *const c_char,
    pub(crate) is_input: i32,
    pub(crate) dtype: i32,
    pub(crate) is_plain: i32,
    pub(crate) shape: Shape,
}

#[repr(C)]
pub(crate) struct Prototype {
    pub(crate) dtype: i32,
    pub(crate) count: i64,
}

pub(crate) const INVALID: i32 = 2;

/// An object of TensorRT's, or the shim's around one.
pub(crate) type Handle = *mut c_void;
/// Frees one.
pub(crate) type Free = unsafe extern "C" fn(Handle);

#[repr(C)]
pub(crate) struct RunApi {
    pub(crate) version: i32,
    pub(crate) runtime: unsafe extern "C" fn(*const RunEntry, *const Log) -> Handle,
    pub(crate) free_runtime: Free,
    pub(crate) validity: unsafe extern "C" fn(Handle, *const c_void, usize, *mut u64) -> i32,
    pub(crate) engine: unsafe extern "C" fn(Handle, *const c_void, usize) -> Handle,
    pub(crate) free_engine: Free,
    pub(crate) tensor_count: unsafe extern "C" fn(Handle) -> i32,
    pub(crate) tensor: unsafe extern "C" fn(Handle, i32, *mut Tensor) -> i32,
    pub(crate) device_memory: unsafe extern "C" fn(Handle) -> i64,
    pub(crate) refitter: unsafe extern "C" fn(Handle, Handle, i32, i32) -> Handle,
    pub(crate) free_refitter: Free,
    pub(crate) weights: unsafe extern "C" fn(Handle, i32, i32, *mut *const c_char) -> i32,
    pub(crate) prototype: unsafe extern "C" fn(Handle, *const c_char, *mut Prototype) -> i32,
    pub(crate) set_weight: unsafe extern "C" fn(Handle, *const c_char, i32, *const c_void, i64, i32) -> i32,
    pub(crate) unset_weight: unsafe extern "C" fn(Handle, *const c_char) -> i32,
    pub(crate) refit: unsafe extern "C" fn(Handle, Handle) -> i32,
    pub(crate) context: unsafe extern "C" fn(Handle) -> Handle,
    pub(crate) free_context: Free,
    pub(crate) set_profile: unsafe extern "C" fn(Handle, i32, Handle) -> i32,
    pub(crate) set_shape: unsafe extern "C" fn(Handle, *const c_char, *const Shape) -> i32,
    pub(crate) shape: unsafe extern "C" fn(Handle, *const c_char) -> Shape,
    pub(crate) infer_shapes: unsafe extern "C" fn(Handle, i32, *mut *const c_char) -> i32,
    pub(crate) set_address: unsafe extern "C" fn(Handle, *const c_char, Handle) -> i32,
    pub(crate) enqueue: unsafe extern "C" fn(Handle, Handle) -> i32,
}
