//! TensorRT, found and loaded at run time through a thin C shim: plans from ONNX graphs, and which weights go into them.
//!
//! Nothing here links to NVIDIA's libraries. The headers that the shim is compiled against are Apache-2.0 and lie in `headers/`;
//! with the features `build` and `run`, a C++ compiler is needed. Without features the crate is plain Rust: flavours, look-up, and
//! the refit planner.

pub mod builder;
mod data_type;
#[cfg(any(feature = "build", feature = "run"))]
mod ffi;
mod flavour;
pub mod library;
#[cfg(any(feature = "build", feature = "run"))]
mod messages;
pub mod refit;
#[cfg(feature = "run")]
pub mod run;

pub use data_type::DataType;
pub use flavour::{Capability, CapabilityError, Flavour, Version};
