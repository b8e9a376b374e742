//! What goes wrong with OpenVINO.

use v2l_openvino::OpenVinoError;

use crate::backends::error::BackendFailure;
use crate::engine::EngineError;
use crate::engine::session::SessionError;
use crate::error::{Classified, ErrorClass};
use crate::events::Cancelled;
use crate::lora::fuse::FuseError;
use crate::wording::{BACKEND_ORT, OPENVINO_F32};

use super::NAME;

/// Why OpenVINO could not open an engine or replace its adapters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OvError {
    /// The library is missing or unusable.
    #[error(transparent)]
    Library(OpenVinoError),
    /// The engine lacks something.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An adapter cannot be fused.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The engine was not compiled for it.
    #[error(
        "{component}, graph `{graph}`: the engine holds no form for OpenVINO; compile it with `v2l-compile --backend openvino`, or \
         run it with `{BACKEND_ORT}`"
    )]
    NoForm {
        /// The engine's component.
        component: String,
        /// The graph.
        graph: String,
    },
    /// The processor has no bfloat16.
    #[error(
        "{cpu} has no instructions for bfloat16, without which OpenVINO takes 50 times as long; use `{OPENVINO_F32}`"
    )]
    NoBf16 {
        /// The processor.
        cpu: String,
    },
    /// The stored graph is not what the manifest says.
    #[error("graph `{graph}`: {what}; compile the model again")]
    Interface {
        /// The graph.
        graph: String,
        /// What differs: expected and found.
        what: String,
    },
    /// OpenVINO did not open a graph.
    #[error("graph `{graph}`: {source}{}", way_out(source))]
    Graph {
        /// The graph.
        graph: String,
        /// Its words.
        source: OpenVinoError,
    },
}

/// What to do about it, where that is no other model.
fn way_out(source: &OpenVinoError) -> String {
    match source {
        OpenVinoError::OutOfMemory { .. } => format!("; free memory, or use `{BACKEND_ORT}`"),
        _ => String::new(),
    }
}

impl Classified for OvError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Library(source) | Self::Graph { source, .. } => class(source),
            Self::Engine(error) => error.class(),
            Self::Fuse(error) => error.class(),
            Self::NoForm { .. } | Self::NoBf16 { .. } => ErrorClass::Version,
            Self::Interface { .. } => ErrorClass::BadModel,
        }
    }
}

impl BackendFailure for OvError {
    /// Fused weights are rounded to the type that they are stored in.
    fn branches_may_help(&self) -> bool {
        matches!(self, Self::Fuse(FuseError::Overflow { .. }))
    }
}

fn class(error: &OpenVinoError) -> ErrorClass {
    match error {
        OpenVinoError::Library(_) | OpenVinoError::MissingFile { .. } => ErrorClass::Version,
        OpenVinoError::OutOfMemory { .. } => ErrorClass::Memory,
        OpenVinoError::Cancelled => ErrorClass::Cancelled,
        _ => ErrorClass::BadModel,
    }
}

/// What OpenVINO says when it does not run a graph.
pub(super) fn failed(error: OpenVinoError) -> SessionError {
    match error {
        OpenVinoError::Cancelled => Cancelled.into(),
        OpenVinoError::OutOfMemory { .. } => {
            SessionError::Memory { backend: NAME, message: format!("{error}; give smaller inputs, or free memory") }
        }
        error => SessionError::Backend { backend: NAME, message: error.to_string() },
    }
}
