//! ONNX Runtime: on the CPU, the default backend, or with its CUDA provider.
//!
//! Every weight reaches ONNX Runtime as an override over memory that v2l holds: the engine's map or a private buffer.
//! The stored graphs name one external file, which is empty, so nothing can be read behind the overrides' back.

mod backend;
mod bounded;
mod builder;
mod cancel;
mod graph;
mod open;
mod opened_graph;
mod operator_times;
pub(crate) mod options;
mod promote;
mod provider;
mod scratch;
mod session;
mod shared;
mod value;
mod weight_decision;
mod weighted;

pub use backend::OnnxRuntime;
pub use open::{FusedState, OrtEngine};
pub use operator_times::OperatorTimes;
pub use options::{Arithmetic, DeviceWeightChoice, OrtOptions, Provider};
pub use session::OrtSession;
pub use shared::SharedWeights;

use crate::options::WeightMode;

use crate::backends::error::BackendFailure;

use crate::engine::EngineError;
use crate::engine::session::SessionError;
use crate::error::{Classified, ErrorClass};
use crate::io::library::LibraryError;
use crate::lora::fuse::FuseError;
use crate::memory::memory_limit;
use crate::wording::{ARITHMETIC_FP32, ORT_LIBRARY, WEIGHTS_STORED};

/// What users and manifests call this backend.
const NAME: &str = "ort";

/// What ONNX Runtime says of an operator that it does not implement.
const NO_KERNEL: &str = "Could not find an implementation for";

/// Why ONNX Runtime could not open a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrtError {
    /// The library is missing or unusable.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The engine lacks something.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An adapter cannot be fused.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The private memory needed exceeds what there is; nothing was allocated.
    #[error("{mode} weights need {needed} bytes of memory, {available} are available; {way_out}")]
    Memory {
        /// The mode asked for.
        mode: WeightMode,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// What to do.
        way_out: String,
    },
    /// A graph is compiled for another backend.
    #[error(
        "graph `{graph}` is compiled for `{found}`; expected `ort`: open it with that backend, or compile for `ort`"
    )]
    WrongBackend {
        /// The graph.
        graph: String,
        /// Its backend.
        found: String,
    },
    /// A graph cannot compute by its precision plan here.
    #[error("graph `{graph}` {reason}, or run it in float32 with `{ARITHMETIC_FP32}`")]
    Arithmetic {
        /// The graph.
        graph: String,
        /// Why, and a way out.
        reason: String,
    },
    /// The provider cannot be used on this machine.
    #[error("ONNX Runtime's CUDA provider: {reason}")]
    Provider {
        /// Why, and a way out.
        reason: String,
    },
    /// The stored graph is not what the manifest says.
    #[error("graph `{graph}`: {what}: the manifest says {expected}, the stored graph {found}; compile the model again")]
    Interface {
        /// The graph.
        graph: String,
        /// `input 0`, …
        what: String,
        /// From the manifest.
        expected: String,
        /// From the stored graph.
        found: String,
    },
    /// An override does not fit its weight.
    #[error("override of `{name}`: expected {expected} bytes, found {found}")]
    Override {
        /// The weight.
        name: String,
        /// Bytes in the graph's type.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The empty stand-in for external data could not be made.
    #[error("cannot make an empty file in the temporary folder: {source}; set TMPDIR to a writable folder")]
    Placeholder {
        /// The system's reason.
        source: std::io::Error,
    },
    /// ONNX Runtime found no memory.
    #[error("graph `{graph}`: ONNX Runtime: not enough memory: {message}; use `{WEIGHTS_STORED}`, or free memory")]
    OutOfMemory {
        /// The graph.
        graph: String,
        /// Its own words.
        message: String,
    },
    /// ONNX Runtime knows an operator, but has no implementation of it for these types.
    #[error(
        "graph `{graph}`: this ONNX Runtime does not implement one of its operators: {message}; use a newer one (`{ORT_LIBRARY}`), or \
         write the operator otherwise"
    )]
    NoKernel {
        /// The graph.
        graph: String,
        /// Its own words.
        message: String,
    },
    /// ONNX Runtime refused.
    #[error("graph `{graph}`: ONNX Runtime: {message}")]
    Backend {
        /// The graph.
        graph: String,
        /// Its own words.
        message: String,
    },
}

impl Classified for OrtError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Library(error) => error.class(),
            Self::Engine(error) => error.class(),
            Self::Fuse(error) => error.class(),
            Self::WrongBackend { .. } | Self::Arithmetic { .. } | Self::Provider { .. } => ErrorClass::Version,
            Self::Memory { .. } | Self::OutOfMemory { .. } => ErrorClass::Memory,
            Self::Placeholder { source } => source.class(),
            Self::NoKernel { .. } => ErrorClass::Unsupported,
            _ => ErrorClass::BadModel,
        }
    }
}

impl BackendFailure for OrtError {
    fn branches_may_help(&self) -> bool {
        match self {
            Self::Fuse(FuseError::Overflow { .. }) => true,
            Self::Memory { needed, .. } => memory_limit().is_some_and(|all| *needed > all),
            _ => false,
        }
    }
}

impl OrtError {
    /// What ONNX Runtime says when it does not open a graph.
    fn refused(graph: &str, message: String) -> Self {
        let graph = graph.to_owned();
        if is_allocation_failure(&message) {
            Self::OutOfMemory { graph, message }
        } else if message.contains(NO_KERNEL) {
            Self::NoKernel { graph, message }
        } else {
            Self::Backend { graph, message }
        }
    }
}

/// What ONNX Runtime says when it does not run a graph.
fn failed(message: String) -> SessionError {
    let backend = NAME;
    if is_allocation_failure(&message) {
        let message = format!("not enough memory: {message}; give smaller inputs, or free memory");
        SessionError::Memory { backend, message }
    } else {
        SessionError::Backend { backend, message }
    }
}

/// True if these words of ONNX Runtime's, or of the libraries under it, say that memory ran out.
fn is_allocation_failure(message: &str) -> bool {
    let message = message.to_lowercase();
    ["bad_alloc", "bad alloc", "failed to allocate memory", "bfcarena", "out of memory", "cannot allocate memory"]
        .iter()
        .any(|words| message.contains(words))
}

#[cfg(test)]
pub(super) mod tests;
