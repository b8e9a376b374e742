//! Loading TensorRT and its ONNX parser.

#[cfg(not(feature = "build"))]
mod absent;
#[cfg(feature = "build")]
mod loaded;
#[cfg(any(feature = "build", feature = "run"))]
pub(crate) mod opened;

pub use v2l_search::{Found, LibraryError};

#[cfg(not(feature = "build"))]
pub use self::absent::Library;
#[cfg(feature = "build")]
pub use self::loaded::Library;

/// The error of a v2l that has no shim.
pub const fn not_built_in(flavour: crate::Flavour) -> LibraryError {
    let build = "`cargo build --release --features tensorrt`, which takes a C++ compiler";
    LibraryError::NotBuiltIn { title: flavour.title(), build }
}
