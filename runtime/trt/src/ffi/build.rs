//! The shim's functions that build plans.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) create_builder: CreateBuilder,
    pub(crate) create_parser: CreateParser,
}

pub(crate) type CreateBuilder = unsafe extern "C" fn(logger: *mut c_void, version: i32) -> *mut c_void;
pub(crate) type CreateParser =
    unsafe extern "C" fn(network: *mut c_void, logger: *mut c_void, version: c_int) -> *mut c_void;

#[repr(C)]
pub(crate) struct Weight {
    pub(crate) name: *const c_char,
    pub(crate) data: *const c_void,
    pub(crate) size: usize,
}

#[repr(C)]
pub(crate) struct Range {
    pub(crate) input: *const c_char,
    pub(crate) rank: i32,
    pub(crate) min: *const i64,
    pub(crate) opt: *const i64,
    pub(crate) max: *const i64,
}

#[repr(C)]
pub(crate) struct Profile {
    pub(crate) ranges: *const Range,
    pub(crate) count: usize,
}

pub(crate) const REFIT_NONE: i32 = 0;
pub(crate) const REFIT_PLACEHOLDERS: i32 = 1;
pub(crate) const REFIT_MARKED: i32 = 2;

#[repr(C)]
pub(crate) struct Request {
    pub(crate) model: *const c_void,
    pub(crate) model_size: usize,
    pub(crate) weights: *const Weight,
    pub(crate) weight_count: usize,
    pub(crate) profiles: *const Profile,
    pub(crate) profile_count: usize,
    pub(crate) capabilities: *const i32,
    pub(crate) capability_count: usize,
    pub(crate) refittable: *const *const c_char,
    pub(crate) refittable_count: usize,
    pub(crate) refit: i32,
    pub(crate) timing_cache: *const c_void,
    pub(crate) timing_cache_size: usize,
}

#[repr(C)]
pub(crate) struct ParserError {
    pub(crate) code: i32,
    pub(crate) node: i32,
    pub(crate) node_name: *const c_char,
    pub(crate) op_type: *const c_char,
    pub(crate) description: *const c_char,
}

#[repr(C)]
pub(crate) struct RefitRecord {
    pub(crate) name: *const c_char,
    pub(crate) initializer: *const c_char,
    pub(crate) dtype: i32,
    pub(crate) count: i64,
}

#[repr(C)]
pub(crate) struct Callbacks {
    pub(crate) context: *const c_void,
    pub(crate) log: unsafe extern "C" fn(*const c_void, i32, *const c_char),
    pub(crate) parser_error: unsafe extern "C" fn(*const c_void, *const ParserError),
    pub(crate) record: unsafe extern "C" fn(*const c_void, *const RefitRecord),
    pub(crate) progress: unsafe extern "C" fn(*const c_void, *const c_char, i32, i32) -> i32,
    pub(crate) timing_cache: unsafe extern "C" fn(*const c_void, *const c_void, usize),
}

pub(crate) const OK: i32 = 0;
pub(crate) const NO_BUILDER: i32 = 1;
pub(crate) const NO_NETWORK: i32 = 2;
pub(crate) const NO_PARSER: i32 = 3;
pub(crate) const CAPABILITY: i32 = 4;
pub(crate) const PARSE: i32 = 5;
pub(crate) const WEIGHT: i32 = 6;
pub(crate) const PROFILE: i32 = 7;
pub(crate) const MARK: i32 = 8;
pub(crate) const TIMING_CACHE: i32 = 11;

#[repr(C)]
pub(crate) struct Plan {
    pub(crate) status: i32,
    pub(crate) detail: i64,
    pub(crate) handle: *mut c_void,
    pub(crate) data: *const c_void,
    pub(crate) size: usize,
}

#[repr(C)]
pub(crate) struct Api {
    pub(crate) version: i32,
    pub(crate) parser_version: i32,
    pub(crate) build: unsafe extern "C" fn(*const Entry, *const Request, *const Callbacks) -> Plan,
    pub(crate) free_plan: unsafe extern "C" fn(*mut c_void),
}
