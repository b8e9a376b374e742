//! Status codes: numbers that never change their meaning.

use v2l_runtime::error::ErrorClass;

/// The outcome of a call: V2L_OK or the class of its failure. A number keeps its meaning for ever; up to 9 and at 130 it is the
/// exit code of v2l's tools for the same class. Later versions may add codes: treat unknown ones as failures.
pub type v2l_status = i32;

/// Everything was done.
pub const V2L_OK: v2l_status = 0;
/// An argument is wrong: a value out of range, a name that does not exist, an input that does not fit the graph.
pub const V2L_ERROR_INVALID_ARGUMENT: v2l_status = 2;
/// An engine or engine directory is malformed or does not fit its configuration.
pub const V2L_ERROR_BAD_MODEL: v2l_status = 3;
/// A model uses a feature that is not supported.
pub const V2L_ERROR_UNSUPPORTED: v2l_status = 4;
/// An adapter is malformed, or does not cover or fit the model.
pub const V2L_ERROR_BAD_ADAPTER: v2l_status = 5;
/// A library or file has the wrong version, or is missing from this machine.
pub const V2L_ERROR_VERSION: v2l_status = 6;
/// A number is NaN or infinite where it must not be.
pub const V2L_ERROR_NUMERIC: v2l_status = 7;
/// Memory does not suffice; nothing was allocated.
pub const V2L_ERROR_MEMORY: v2l_status = 8;
/// A file could not be read or written, or an external program failed.
pub const V2L_ERROR_IO: v2l_status = 9;
/// A pointer is NULL that must not be, or is not aligned.
pub const V2L_ERROR_NULL: v2l_status = 20;
/// A string is not UTF-8.
pub const V2L_ERROR_INVALID_UTF8: v2l_status = 21;
/// The `size` of a structure is none that this library knows.
pub const V2L_ERROR_SIZE: v2l_status = 22;
/// A v2l_tensor contradicts itself: its type, rank, extents or strides.
pub const V2L_ERROR_TENSOR: v2l_status = 23;
/// A callback called a function that callbacks may not call.
pub const V2L_ERROR_REENTRANT: v2l_status = 24;
/// A defect of the library; please report the message.
pub const V2L_ERROR_INTERNAL: v2l_status = 25;
/// The caller asked to stop; everything is as it was before the call.
pub const V2L_ERROR_CANCELLED: v2l_status = 130;

/// The status of a class of the runtime's errors.
pub(crate) const fn of_class(class: ErrorClass) -> v2l_status {
    match class {
        ErrorClass::Usage => V2L_ERROR_INVALID_ARGUMENT,
        ErrorClass::BadModel => V2L_ERROR_BAD_MODEL,
        ErrorClass::Unsupported => V2L_ERROR_UNSUPPORTED,
        ErrorClass::BadAdapter => V2L_ERROR_BAD_ADAPTER,
        ErrorClass::Version => V2L_ERROR_VERSION,
        ErrorClass::Numeric => V2L_ERROR_NUMERIC,
        ErrorClass::Memory => V2L_ERROR_MEMORY,
        ErrorClass::Io => V2L_ERROR_IO,
        ErrorClass::Cancelled => V2L_ERROR_CANCELLED,
    }
}
