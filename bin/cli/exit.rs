use std::io;
use std::process::ExitCode;

use v2l_export::ExportError;
use v2l_runtime::adapter::AdapterError;
use v2l_runtime::engine::EngineError;
use v2l_runtime::engine_directory::DirectoryError;
use v2l_runtime::fuse::FuseError;
use v2l_runtime::library::LibraryError;
use v2l_runtime::ort_backend::OrtError;
use v2l_runtime::pipeline::{ComponentError, PipelineError};
use v2l_runtime::predictor::PredictorError;
use v2l_runtime::session::SessionError;
use v2l_runtime::vae::VaeError;
use v2l_runtime::video::VideoError;
use v2l_runtime::weights::WeightError;

/// Exit codes, one per class of failure. They never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Ok = 0,
    /// The command line, or an input given on it, is wrong.
    Usage = 2,
    /// A checkpoint, ONNX file, bundle or engine is malformed or does not fit its configuration.
    BadModel = 3,
    /// A model uses an operator or feature that is not supported.
    Unsupported = 4,
    /// An adapter is malformed, or does not cover or fit the model.
    BadAdapter = 5,
    /// A library or file has the wrong version, or is missing from this machine.
    Version = 6,
    /// A numeric check failed.
    Numeric = 7,
    /// Memory does not suffice.
    Memory = 8,
    /// A file could not be read or written, or an external program failed.
    Io = 9,
    /// The user interrupted.
    Interrupted = 130,
}

impl Exit {
    /// The class's name in JSON events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Usage => "usage",
            Self::BadModel => "bad_model",
            Self::Unsupported => "unsupported",
            Self::BadAdapter => "bad_adapter",
            Self::Version => "version",
            Self::Numeric => "numeric",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that knows its own exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its class.
    pub exit: Exit,
    /// What went wrong, what was expected, what was found, and the way out.
    pub message: String,
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Usage, message: message.into() }.into()
    }
}

/// The exit code of an error: that of the most specific error of v2l in its chain.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().filter_map(|cause| class(cause)).next_back().unwrap_or(Exit::Io)
}

fn class(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    macro_rules! of {
        ($($ty:ty => $map:expr),* $(,)?) => {
            $(if let Some(e) = error.downcast_ref::<$ty>() {
                #[allow(clippy::redundant_closure_call)]
                return ($map)(e);
            })*
        };
    }
    of!(
        Failure => |e: &Failure| Some(e.exit),
        ExportError => export,
        WeightError => |e: &WeightError| Some(match e {
            WeightError::Io { .. } | WeightError::Unwritable { .. } => Exit::Io,
            _ => Exit::BadModel,
        }),
        EngineError => |e: &EngineError| Some(match e {
            EngineError::Version { .. } => Exit::Version,
            _ => Exit::BadModel,
        }),
        AdapterError => |_: &AdapterError| Some(Exit::BadAdapter),
        FuseError => |_: &FuseError| Some(Exit::BadAdapter),
        PredictorError => |_: &PredictorError| Some(Exit::BadAdapter),
        LibraryError => |_: &LibraryError| Some(Exit::Version),
        OrtError => |e: &OrtError| Some(match e {
            OrtError::Memory { .. } => Exit::Memory,
            OrtError::WrongBackend { .. } => Exit::Version,
            OrtError::Placeholder { .. } => Exit::Io,
            _ => Exit::BadModel,
        }),
        DirectoryError => |_: &DirectoryError| Some(Exit::BadModel),
        ComponentError => |_: &ComponentError| Some(Exit::BadModel),
        SessionError => |e: &SessionError| Some(match e {
            SessionError::Backend { .. } => Exit::BadModel,
            _ => Exit::Usage,
        }),
        VideoError => |_: &VideoError| Some(Exit::Io),
        VaeError => |_: &VaeError| Some(Exit::BadModel),
        PipelineError => |e: &PipelineError| Some(if e.is_cancelled() { Exit::Interrupted } else { Exit::Usage }),
        io::Error => |_: &io::Error| Some(Exit::Io),
    );
    None
}

fn export(error: &ExportError) -> Option<Exit> {
    Some(match error {
        ExportError::Io { .. } | ExportError::Engine(_) => Exit::Io,
        ExportError::Unsupported { .. } => Exit::Unsupported,
        ExportError::Predictor(_) => Exit::BadAdapter,
        _ => Exit::BadModel,
    })
}
