//! The v2l runtime behind a C ABI. `include/v2l.h` is made from this crate; doc comments of public items are its text.
//!
//! Every entry goes through `failure::guard`: nothing unwinds into the caller, and whatever fails leaves a status and, for the
//! thread, a message.
//!
//! # Safety
//! Of every exported function: pointers are NULL or point to what their type says, alive and not written to until it returns
//! (for [`v2l_tensor`]: all elements that shape and strides reach); strings end in NUL; handles come from this library and were
//! not freed. The header says so to the caller; `SAFETY` comments below call it *the header's promise*.

#![allow(
    non_camel_case_types,
    unsafe_code,
    clippy::missing_safety_doc,
    reason = "a C ABI: C's names, pointers, and contracts that stand in the header"
)]

mod status;

mod version;

mod failure;

mod handles;

mod callbacks;

mod growing;

mod log;

mod pointers;

mod process;

mod serial;

mod tensor;

mod texts;

mod engine;

mod adapter;

mod session;

mod applied;

mod predictor;

mod predict;

mod pipeline;

mod job;

mod frames;

#[cfg(feature = "stand-in-backend")]
mod stand_in;

pub use adapter::*;
pub use callbacks::*;
pub use engine::*;
pub use failure::{v2l_last_error, v2l_last_error_field, v2l_status_name};
pub use job::*;
pub use log::{V2L_LOG_INFO, V2L_LOG_WARNING, v2l_log_callback, v2l_log_level};
pub use pipeline::*;
pub use predict::*;
pub use predictor::*;
pub use session::*;
pub use status::*;
pub use tensor::{
    V2L_BF16, V2L_BOOL, V2L_F16, V2L_F32, V2L_F64, V2L_I8, V2L_I16, V2L_I32, V2L_I64, V2L_MAX_RANK, V2L_U8, V2L_U16,
    V2L_U32, V2L_U64, v2l_dtype, v2l_tensor, v2l_tensors, v2l_tensors_count, v2l_tensors_find, v2l_tensors_free,
    v2l_tensors_get,
};
pub use version::*;
