//! OpenVINO: on CPUs, in bfloat16 where they have it.
//!
//! It runs the graphs that the compiler stores for it (`v2l-compile --backend openvino`). Their matrices are inputs: pristine weights are read
//! where the engine is mapped, fused ones where they were fused, and no session is opened again for other adapters of linear
//! layers. Vectors lie in the graphs.

#[cfg(feature = "openvino")]
mod backend;
#[cfg(feature = "openvino")]
mod embed;
#[cfg(feature = "openvino")]
mod engine;
#[cfg(feature = "openvino")]
mod error;
#[cfg(feature = "openvino")]
mod loose;
#[cfg(feature = "openvino")]
mod opened_graph;
pub(crate) mod options;
#[cfg(feature = "openvino")]
mod precision;
#[cfg(feature = "openvino")]
mod probe;
#[cfg(feature = "openvino")]
mod verdict;

#[cfg(feature = "openvino")]
pub use backend::OpenVino;
#[cfg(feature = "openvino")]
pub use engine::{FusedState, OpenVinoEngine, OpenVinoSession};
#[cfg(feature = "openvino")]
pub use error::OvError;
pub use options::{OpenVinoOptions, OpenVinoPrecision};

/// What users call this backend.
#[cfg(feature = "openvino")]
const NAME: &str = "openvino";
