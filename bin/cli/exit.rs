use std::io;
use std::process::ExitCode;

use v2l_export::engine_writer::EngineWriteError;
use v2l_export::trt::builder::{BuildError, ParserError};
use v2l_export::{ExportError, Remedy};
use v2l_runtime::backends::BackendError;
use v2l_runtime::backends::onnxruntime::OrtError;
use v2l_runtime::components::ComponentError;
use v2l_runtime::directory::DirectoryError;
use v2l_runtime::engine::EngineError;
use v2l_runtime::engine::session::SessionError;
use v2l_runtime::error::{Classified, Error, ErrorClass};
use v2l_runtime::events::Cancelled;
use v2l_runtime::generator::GeneratorError;
use v2l_runtime::io::library::LibraryError;
use v2l_runtime::io::weights::WeightError;
use v2l_runtime::lora::adapter::AdapterError;
use v2l_runtime::lora::algebra::AlgebraError;
use v2l_runtime::lora::fuse::FuseError;
use v2l_runtime::lora::mode::ModeError;
use v2l_runtime::media::resize::ResizeError;
use v2l_runtime::media::video::VideoError;
use v2l_runtime::memory::NotEnough;
use v2l_runtime::models::vae::VaeError;
use v2l_runtime::pipeline::PipelineError;
use v2l_runtime::pipeline::config::ConfigError;
use v2l_runtime::pipeline::tokenizer::TokenizerError;
use v2l_runtime::predict::cache::CacheError;
use v2l_runtime::predict::{PredictorError, UnknownPredictor};
use v2l_runtime::request::RequestError;
use v2l_runtime::schedulers::SchedulerError;

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
    /// The terminal went away (SIGHUP).
    HungUp = 129,
    /// The user interrupted (SIGINT).
    Interrupted = 130,
    /// Somebody asked the program to end (SIGTERM).
    Terminated = 143,
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
            Self::HungUp | Self::Interrupted | Self::Terminated => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorClass> for Exit {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Usage => Self::Usage,
            ErrorClass::BadModel => Self::BadModel,
            ErrorClass::Unsupported => Self::Unsupported,
            ErrorClass::BadAdapter => Self::BadAdapter,
            ErrorClass::Version => Self::Version,
            ErrorClass::Numeric => Self::Numeric,
            ErrorClass::Memory => Self::Memory,
            ErrorClass::Io => Self::Io,
            ErrorClass::Cancelled => Self::Interrupted,
        }
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

/// What to do about an error of the compiler, in the tools' flags.
pub(crate) fn flags_for(error: &anyhow::Error) -> Option<String> {
    let error = error.chain().find_map(|cause| cause.downcast_ref::<ExportError>())?;
    flags(&error.remedies())
}

/// What to do, in the tools' flags; each of the remedies is enough.
pub fn flags(remedies: &[Remedy]) -> Option<String> {
    let flag = |remedy: &Remedy| match remedy {
        Remedy::WithoutWeights => "leave --weights out".to_owned(),
        Remedy::OtherWeights => "give that one with --weights".to_owned(),
        Remedy::WithoutLoraRank => "compile without --lora-rank".to_owned(),
        Remedy::OtherStepInputs => "name others with --step-inputs".to_owned(),
        Remedy::WithProfiles => "give --minShapes, --optShapes and --maxShapes".to_owned(),
        Remedy::WithoutRequest => "leave --precision out".to_owned(),
        Remedy::WithoutPlan => "leave --precision-plan out, which plans anew".to_owned(),
        Remedy::OtherInputs => "give inputs that fit with --inputs".to_owned(),
        Remedy::WithoutCheck => "compile it unchecked with --no-verify".to_owned(),
        other => other.to_string(),
    };
    (!remedies.is_empty()).then(|| remedies.iter().map(flag).collect::<Vec<_>>().join(", or "))
}

/// What usually helps against an error of the system, which only says what went wrong.
pub(crate) fn way_out(error: &anyhow::Error) -> Option<&'static str> {
    use io::ErrorKind::{
        FileTooLarge, NotFound, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let source = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).next_back()?;
    match source.kind() {
        // Made by v2l, with its own way out.
        _ if source.get_ref().is_some() => None,
        StorageFull | QuotaExceeded | FileTooLarge => {
            Some("free space there or choose another place, and run it again")
        }
        PermissionDenied | ReadOnlyFilesystem => Some("check the permissions, or choose another place"),
        NotFound => Some("check the path"),
        OutOfMemory => Some("there is not enough memory: free some, or ask for less at once"),
        _ => None,
    }
}

fn class(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(error) = error.downcast_ref::<ExportError>() {
        return Some(export(error));
    }
    if let Some(error) = error.downcast_ref::<EngineWriteError>() {
        return Some(engine_write(error));
    }
    if let Some(error) = error.downcast_ref::<Error>() {
        return Some(error.class().into());
    }
    of_runtime(error).map(Exit::from)
}

/// The class of an error of the runtime, or of the system.
fn of_runtime(error: &(dyn std::error::Error + 'static)) -> Option<ErrorClass> {
    macro_rules! class_of {
        ($($error:ty),* $(,)?) => {
            None$(.or_else(|| error.downcast_ref::<$error>().map(Classified::class)))*
        };
    }
    class_of!(
        AdapterError,
        AlgebraError,
        BackendError,
        CacheError,
        Cancelled,
        ComponentError,
        ConfigError,
        DirectoryError,
        EngineError,
        FuseError,
        GeneratorError,
        LibraryError,
        ModeError,
        NotEnough,
        OrtError,
        PipelineError,
        PredictorError,
        RequestError,
        ResizeError,
        SchedulerError,
        SessionError,
        TokenizerError,
        UnknownPredictor,
        VaeError,
        VideoError,
        WeightError,
        io::Error,
    )
}

// A transparent error stands for the one that it holds, and only the outer one is in the chain.

fn export(error: &ExportError) -> Exit {
    match error {
        ExportError::Io { .. } => Exit::Io,
        ExportError::Advised { error, .. } => export(error),
        ExportError::Engine(e) => engine_write(e),
        ExportError::Pipeline { source, .. } => source.class().into(),
        ExportError::Weights(e) => e.class().into(),
        ExportError::TensorRtLibrary(_) => Exit::Version,
        ExportError::TensorRt { source, .. } => build(source),
        ExportError::FreeExtents { .. }
        | ExportError::Inputs { .. }
        | ExportError::Occupied { .. }
        | ExportError::Profile { .. }
        | ExportError::ProfileInput { .. }
        | ExportError::Plan(_)
        | ExportError::Calibration { .. } => Exit::Usage,
        ExportError::Numeric(_) | ExportError::NotChecked(_) => Exit::Numeric,
        ExportError::Predictor(_) | ExportError::Adapter(_) => Exit::BadAdapter,
        e if e.is_unsupported() => Exit::Unsupported,
        _ => Exit::BadModel,
    }
}

fn build(error: &BuildError) -> Exit {
    match error {
        BuildError::Unavailable { .. } | BuildError::TimingCache { .. } => Exit::Version,
        BuildError::Profile { .. } => Exit::Usage,
        BuildError::Cancelled => Exit::Interrupted,
        BuildError::Parse { errors } if !errors.iter().any(ParserError::is_unsupported) => Exit::BadModel,
        BuildError::Process { .. } => Exit::Io,
        BuildError::Capability { .. }
        | BuildError::Parse { .. }
        | BuildError::Build { .. }
        | BuildError::Died { .. } => Exit::Unsupported,
        _ => Exit::BadModel,
    }
}

fn engine_write(error: &EngineWriteError) -> Exit {
    match error {
        EngineWriteError::Io { .. } | EngineWriteError::Source { .. } => Exit::Io,
        _ => Exit::BadModel,
    }
}
