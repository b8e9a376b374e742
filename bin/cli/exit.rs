use std::io;
use std::process::ExitCode;

use v2l_export::ExportError;
use v2l_export::engine_writer::EngineWriteError;
use v2l_runtime::adapter::AdapterError;
use v2l_runtime::engine::EngineError;
use v2l_runtime::engine_directory::DirectoryError;
use v2l_runtime::fuse::FuseError;
use v2l_runtime::library::LibraryError;
use v2l_runtime::ort_backend::OrtError;
use v2l_runtime::pipeline::{ComponentError, ConfigError, PipelineError};
use v2l_runtime::prediction_cache::CacheError;
use v2l_runtime::predictor::PredictorError;
use v2l_runtime::scheduler::SchedulerError;
use v2l_runtime::session::SessionError;
use v2l_runtime::tokenizer::TokenizerError;
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
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().filter_map(class).next_back().unwrap_or(Exit::Io)
}

/// What usually helps against an error of the system, which only says what went wrong.
pub(crate) fn way_out(error: &anyhow::Error) -> Option<&'static str> {
    use io::ErrorKind::{FileTooLarge, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let source = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).next_back()?;
    match source.kind() {
        // Made by v2l, with its own way out.
        _ if source.get_ref().is_some() => None,
        StorageFull | QuotaExceeded | FileTooLarge => {
            Some("free space there or choose another place, and run it again")
        }
        PermissionDenied | ReadOnlyFilesystem => Some("check the permissions, or choose another place"),
        NotFound => Some("check the path"),
        _ => None,
    }
}

fn class(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    macro_rules! of {
        ($($ty:ty => $map:expr),* $(,)?) => {
            $(if let Some(e) = error.downcast_ref::<$ty>() {
                return Some($map(e));
            })*
        };
    }
    of!(
        Failure => |e: &Failure| e.exit,
        ExportError => export,
        EngineWriteError => engine_write,
        WeightError => weight,
        EngineError => engine,
        AdapterError => |_: &AdapterError| Exit::BadAdapter,
        FuseError => fuse,
        PredictorError => predictor,
        CacheError => |_: &CacheError| Exit::Io,
        LibraryError => |_: &LibraryError| Exit::Version,
        OrtError => ort,
        DirectoryError => directory,
        ConfigError => config,
        ComponentError => |_: &ComponentError| Exit::BadModel,
        SessionError => session,
        VideoError => video,
        VaeError => vae,
        PipelineError => pipeline,
        io::Error => |_: &io::Error| Exit::Io,
    );
    None
}

// A transparent error stands for the one that it holds, and only the outer one is in the chain.

fn export(error: &ExportError) -> Exit {
    match error {
        ExportError::Io { .. } => Exit::Io,
        ExportError::Engine(e) => engine_write(e),
        ExportError::Weights(e) => weight(e),
        ExportError::Inputs { .. }
        | ExportError::Occupied { .. }
        | ExportError::Profile { .. }
        | ExportError::ProfileInput { .. }
        | ExportError::Plan(_)
        | ExportError::Calibration { .. } => Exit::Usage,
        ExportError::Numeric(_) | ExportError::NotChecked { .. } => Exit::Numeric,
        ExportError::Predictor(_) | ExportError::Adapter(_) => Exit::BadAdapter,
        e if e.is_unsupported() => Exit::Unsupported,
        _ => Exit::BadModel,
    }
}

fn engine_write(error: &EngineWriteError) -> Exit {
    match error {
        EngineWriteError::Io { .. } | EngineWriteError::Source { .. } => Exit::Io,
        _ => Exit::BadModel,
    }
}

fn weight(error: &WeightError) -> Exit {
    match error {
        WeightError::Io { .. } | WeightError::Unwritable { .. } => Exit::Io,
        _ => Exit::BadModel,
    }
}

fn engine(error: &EngineError) -> Exit {
    match error {
        EngineError::Weights(e) => weight(e),
        EngineError::Version { .. } => Exit::Version,
        _ => Exit::BadModel,
    }
}

fn fuse(error: &FuseError) -> Exit {
    match error {
        FuseError::Engine(e) => engine(e),
        FuseError::Memory { .. } => Exit::Memory,
        FuseError::Cancelled => Exit::Interrupted,
        _ => Exit::BadAdapter,
    }
}

fn predictor(error: &PredictorError) -> Exit {
    match error {
        PredictorError::Config { .. } => Exit::BadModel,
        PredictorError::Open(e) => ort(e),
        PredictorError::Engine(e) => engine(e),
        PredictorError::Session(e) => session(e),
        PredictorError::NotFinite { .. } => Exit::Numeric,
        PredictorError::MapFile { .. } => Exit::Io,
        _ => Exit::BadAdapter,
    }
}

fn ort(error: &OrtError) -> Exit {
    match error {
        OrtError::Library(_) | OrtError::WrongBackend { .. } | OrtError::Arithmetic { .. } => Exit::Version,
        OrtError::Engine(e) => engine(e),
        OrtError::Fuse(e) => fuse(e),
        OrtError::Memory { .. } => Exit::Memory,
        OrtError::Placeholder { .. } => Exit::Io,
        _ => Exit::BadModel,
    }
}

fn directory(error: &DirectoryError) -> Exit {
    match error {
        DirectoryError::Config(e) => config(e),
        DirectoryError::Engine(e) => engine(e),
        DirectoryError::Ort(e) => ort(e),
        DirectoryError::Missing { .. } | DirectoryError::NotCompiled { .. } => Exit::Usage,
        _ => Exit::BadModel,
    }
}

fn config(error: &ConfigError) -> Exit {
    match error {
        ConfigError::Io { .. } => Exit::Io,
        ConfigError::Version { .. } => Exit::Version,
        _ => Exit::BadModel,
    }
}

fn session(error: &SessionError) -> Exit {
    match error {
        SessionError::Backend { .. } => Exit::BadModel,
        _ => Exit::Usage,
    }
}

fn video(error: &VideoError) -> Exit {
    match error {
        VideoError::Io { .. } | VideoError::Spawn { .. } | VideoError::Ffmpeg { .. } | VideoError::Image { .. } => {
            Exit::Io
        }
        VideoError::NoFfmpeg { .. } => Exit::Version,
        _ => Exit::Usage,
    }
}

fn vae(error: &VaeError) -> Exit {
    match error {
        VaeError::Cancelled(_) => Exit::Interrupted,
        VaeError::Input { .. } | VaeError::Tile { .. } => Exit::Usage,
        _ => Exit::BadModel,
    }
}

fn pipeline(error: &PipelineError) -> Exit {
    match error {
        PipelineError::Cancelled(_) => Exit::Interrupted,
        PipelineError::Config(e) => config(e),
        PipelineError::Vae(e) => vae(e),
        PipelineError::Video(e) => video(e),
        PipelineError::Io { .. } => Exit::Io,
        PipelineError::NotFinite { .. } => Exit::Numeric,
        PipelineError::Output { .. }
        | PipelineError::Session { .. }
        | PipelineError::Component(_)
        | PipelineError::MissingSection(_)
        | PipelineError::Tokenizer(TokenizerError::File(_)) => Exit::BadModel,
        PipelineError::Scheduler(e) if !matches!(e, SchedulerError::Steps { .. }) => Exit::BadModel,
        _ => Exit::Usage,
    }
}
