//! TensorRT: plans with placeholders, given their weights as they are loaded, adapters fused on the way.
//!
//! **Never executed on a GPU yet.** All of it rests on the trait `device::Gpu`, and tests stand in for that with host memory and
//! ONNX Runtime.

mod backend;
mod device;
mod engine;
mod fusing;
#[cfg(feature = "tensorrt")]
mod gpu;
pub(crate) mod options;
mod plan;
mod session;
mod verify;

#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;

use v2l_cuda::CudaError;
use v2l_trt::library::LibraryError;

pub use v2l_trt::Flavour;

pub use self::backend::TensorRt;
pub use self::engine::TrtEngine;
pub use self::options::TrtOptions;
pub use self::session::TrtSession;
pub use self::verify::{PROBE_INPUT, PROBE_OUTPUT};

use crate::backends::error::BackendFailure;
use crate::backends::onnxruntime::OrtError;
use crate::engine::EngineError;
use crate::error::{Classified, ErrorClass};
use crate::lora::fuse::FuseError;
use crate::wording::{BACKEND, BACKEND_ORT, NO_VERIFY};

/// Why an engine does not run on TensorRT. Its weights are then the earlier ones, unless the error says that it is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrtError {
    /// TensorRT is missing or unusable.
    #[error(transparent)]
    Library(Box<LibraryError>),
    /// There is no GPU to run on.
    #[error(
        "graph compiled for {title}: {reason}; run it on a machine with an NVIDIA GPU, or use `{BACKEND_ORT}`, which takes the ONNX form that the engine holds, too"
    )]
    NoGpu {
        /// Which TensorRT.
        title: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// A graph is compiled for another backend.
    #[error(
        "graph `{graph}` is compiled for `{found}`; expected `{expected}`: leave `{BACKEND}` out, or compile with it"
    )]
    WrongBackend {
        /// The graph.
        graph: String,
        /// The backend that was asked for.
        expected: &'static str,
        /// Its own.
        found: String,
    },
    /// No plan is for this GPU.
    #[error(
        "graph `{graph}` has plans for compute capability {built}; this GPU ({gpu}) is {found}: compile with \
         `v2l-compile --compute-capability {found}`, or use `{BACKEND_ORT}`"
    )]
    NoPlan {
        /// The graph.
        graph: String,
        /// What there are plans for.
        built: String,
        /// The GPU's name.
        gpu: String,
        /// The GPU's capability.
        found: String,
    },
    /// TensorRT does not load the plan.
    #[error("graph `{graph}`: {reason}")]
    Refused {
        /// The graph.
        graph: String,
        /// TensorRT's words, and the way out.
        reason: String,
    },
    /// A plan has other inputs or outputs than the engine says.
    #[error("graph `{graph}`: {what}: the engine says {expected}, its plan {found}; compile the model again")]
    Interface {
        /// The graph.
        graph: String,
        /// `input x`, …
        what: String,
        /// From the manifest.
        expected: String,
        /// From the plan.
        found: String,
    },
    /// The engine lacks something.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An adapter cannot be fused.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The GPU refused.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// TensorRT takes more of the GPU's memory than is free.
    #[error("{0}")]
    Memory(String),
    /// TensorRT did not do what it was told.
    #[error("{0}")]
    Failed(String),
    /// The weights were not replaced as asked.
    #[error("graph `{graph}`: {reason}")]
    Refit {
        /// The graph.
        graph: String,
        /// Why, and what the engine holds now.
        reason: String,
    },
    /// A swap failed, and some graphs could not be brought back: they have no weights until adapters, or none, are set again.
    #[error("{cause}; the weights of {graphs} are lost: set adapters again, or set none")]
    Gone {
        /// Why the swap failed.
        cause: Box<TrtError>,
        /// The graphs, and why each could not be brought back.
        graphs: String,
    },
    /// The engine does not compute what it shall with its weights.
    #[error(
        "graph `{graph}`, output `{output}`, is {distance:.1e} from {reference} (relative L2), {tolerance:.1e} is allowed: the weights did not \
         arrive as they were given; use another version of TensorRT, or `{BACKEND_ORT}` (`{NO_VERIFY}` runs it all the same)"
    )]
    Differs {
        /// The graph.
        graph: String,
        /// The output that is furthest off.
        output: String,
        /// How far.
        distance: f64,
        /// How far it may be.
        tolerance: f64,
        /// What it was compared with.
        reference: &'static str,
    },
    /// What an engine was to be compared with cannot be computed.
    #[error("verifying the weights of graph `{graph}` on ONNX Runtime: {reason}; `{NO_VERIFY}` leaves it out")]
    Reference {
        /// The graph.
        graph: String,
        /// Why not.
        #[source]
        reason: Box<OrtError>,
    },
}

impl Classified for TrtError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Library(_) => ErrorClass::Version,
            Self::NoGpu { .. } | Self::WrongBackend { .. } | Self::NoPlan { .. } | Self::Refused { .. } => {
                ErrorClass::Version
            }
            Self::Engine(error) => error.class(),
            Self::Fuse(error) => error.class(),
            Self::Device(error) => error.class(),
            Self::Memory(_) => ErrorClass::Memory,
            Self::Gone { cause, .. } => cause.class(),
            Self::Differs { .. } => ErrorClass::Numeric,
            Self::Reference { reason, .. } => reason.class(),
            Self::Interface { .. } | Self::Failed(_) | Self::Refit { .. } => ErrorClass::BadModel,
        }
    }
}

impl BackendFailure for TrtError {}

impl From<LibraryError> for TrtError {
    fn from(error: LibraryError) -> Self {
        Self::Library(Box::new(error))
    }
}
