//! Loading TensorRT and its ONNX parser.

#[cfg(not(feature = "build"))]
mod absent;
#[cfg(feature = "build")]
mod loaded;
#[cfg(any(feature = "build", feature = "run"))]
pub(crate) mod opened;

use std::path::PathBuf;

use v2l_search::wording::TRT_LIBRARY;

use crate::Version;
use crate::search::{NotThere, VARIABLE};

#[cfg(not(feature = "build"))]
pub use self::absent::Library;
#[cfg(feature = "build")]
pub use self::loaded::Library;

/// Why TensorRT cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// This v2l has no shim.
    #[error(
        "this v2l was built without {title}, as its packages are; build it from source with `cargo build --release --features tensorrt`, which takes a C++ compiler"
    )]
    NotBuiltIn {
        /// `TensorRT-RTX` or `TensorRT`.
        title: &'static str,
    },
    /// An option or variable names something that is not there.
    #[error(transparent)]
    NotThere(#[from] NotThere),
    /// It is nowhere.
    #[error("{title} was not found; looked at {looked}; {way_out}; or name yours with `{TRT_LIBRARY}` or {VARIABLE}")]
    Missing {
        /// `TensorRT-RTX` or `TensorRT`.
        title: &'static str,
        /// Every place that was tried.
        looked: String,
        /// How to come by it.
        way_out: &'static str,
    },
    /// The system cannot load a library, or it is something else.
    #[error("{path} (from {from}) cannot be loaded as {title}: {reason}; pass another with `{TRT_LIBRARY}`")]
    Unloadable {
        /// `TensorRT-RTX` or `TensorRT`.
        title: &'static str,
        /// The library.
        path: PathBuf,
        /// How it was found.
        from: String,
        /// The loader's words.
        reason: String,
    },
    /// A library has another version than the headers.
    #[error(
        "{path} (from {from}) is {title} {found}; expected {}.{}, since every minor version has another layout: {way_out}",
        expected.major, expected.minor
    )]
    Version {
        /// `TensorRT-RTX` or `TensorRT`.
        title: &'static str,
        /// The library.
        path: PathBuf,
        /// How it was found.
        from: String,
        /// The version of the headers.
        expected: Version,
        /// What the library says of itself.
        found: Version,
        /// How to come by the right one.
        way_out: &'static str,
    },
}
