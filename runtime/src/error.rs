//! What kind of failure an error is: the classes behind the tools' exit codes and the C ABI's status codes.

use std::io;

use v2l_cuda::CudaError;

use crate::backends::BackendError;
use crate::backends::onnxruntime::OrtError;
use crate::backends::tensorrt::TrtError;
use crate::directory::DirectoryError;
use crate::engine::EngineError;
use crate::engine::session::SessionError;
use crate::io::library::LibraryError;
use crate::io::map::Unusable;
use crate::io::weights::WeightError;
use crate::lora::adapter::AdapterError;
use crate::lora::fuse::FuseError;
use crate::media::video::VideoError;
use crate::models::cogvideox::vae::VaeError;
use crate::pipeline::tokenizer::TokenizerError;
use crate::pipeline::{ComponentError, ConfigError, NotEnough, PipelineError};
use crate::predict::cache::CacheError;
use crate::predict::video2lora::PredictorError;
use crate::schedulers::SchedulerError;

/// A class of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A request, or an input given with it, is wrong.
    Usage,
    /// A checkpoint, bundle or engine is malformed or does not fit its configuration.
    BadModel,
    /// A model asks for something that is not supported.
    Unsupported,
    /// An adapter is malformed, or does not cover or fit the model.
    BadAdapter,
    /// A library or file has the wrong version, or is missing from this machine.
    Version,
    /// A number is not finite where it should be.
    Numeric,
    /// Memory does not suffice.
    Memory,
    /// A file could not be read or written, or an external program failed.
    Io,
    /// The caller asked to stop.
    Cancelled,
}

impl ErrorClass {
    /// The class of one error of this crate, or of the system; `None` for others. What it was caused by is not looked at.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        macro_rules! of {
            ($($ty:ty => $map:expr),* $(,)?) => {
                $(if let Some(e) = error.downcast_ref::<$ty>() {
                    return Some($map(e));
                })*
            };
        }
        of!(
            WeightError => weight,
            EngineError => engine,
            AdapterError => |_: &AdapterError| Self::BadAdapter,
            FuseError => fuse,
            PredictorError => predictor,
            CacheError => |_: &CacheError| Self::Io,
            LibraryError => |_: &LibraryError| Self::Version,
            OrtError => ort,
            TrtError => trt,
            BackendError => backend,
            DirectoryError => directory,
            ConfigError => config,
            ComponentError => |_: &ComponentError| Self::BadModel,
            SessionError => session,
            VideoError => video,
            VaeError => vae,
            PipelineError => pipeline,
            NotEnough => |_: &NotEnough| Self::Memory,
            io::Error => |e: &io::Error| match e.get_ref().is_some_and(|inner| inner.is::<Unusable>()) {
                true => Self::BadModel,
                false if e.kind() == io::ErrorKind::OutOfMemory => Self::Memory,
                false => Self::Io,
            },
        );
        None
    }

    /// The class of the most specific error of this crate, or of the system, among an error and its causes.
    pub fn of_chain(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |error| error.source()).filter_map(Self::of).last()
    }
}

// A transparent error stands for the one that it holds, and only the outer one is in the chain.

fn weight(error: &WeightError) -> ErrorClass {
    match error {
        WeightError::Io { .. } | WeightError::Unwritable { .. } => ErrorClass::Io,
        _ => ErrorClass::BadModel,
    }
}

fn engine(error: &EngineError) -> ErrorClass {
    match error {
        EngineError::Weights(e) => weight(e),
        EngineError::Version { .. } => ErrorClass::Version,
        _ => ErrorClass::BadModel,
    }
}

fn fuse(error: &FuseError) -> ErrorClass {
    match error {
        FuseError::Engine(e) => engine(e),
        FuseError::Memory { .. } => ErrorClass::Memory,
        FuseError::Cancelled => ErrorClass::Cancelled,
        FuseError::Device(e) => cuda(e),
        _ => ErrorClass::BadAdapter,
    }
}

fn cuda(error: &CudaError) -> ErrorClass {
    match error {
        CudaError::OutOfMemory { .. } => ErrorClass::Memory,
        _ => ErrorClass::Version,
    }
}

fn backend(error: &BackendError) -> ErrorClass {
    match error {
        BackendError::Ort(e) => ort(e),
        BackendError::Trt(e) => trt(e),
    }
}

fn trt(error: &TrtError) -> ErrorClass {
    match error {
        TrtError::Library(_)
        | TrtError::NoGpu { .. }
        | TrtError::WrongBackend { .. }
        | TrtError::NoPlan { .. }
        | TrtError::Refused { .. } => ErrorClass::Version,
        TrtError::Engine(e) => engine(e),
        TrtError::Fuse(e) => fuse(e),
        TrtError::Device(e) => cuda(e),
        TrtError::Memory(_) => ErrorClass::Memory,
        TrtError::Gone { cause, .. } => trt(cause),
        TrtError::Differs { .. } => ErrorClass::Numeric,
        TrtError::Reference { reason, .. } => ort(reason),
        TrtError::Interface { .. } | TrtError::Failed(_) | TrtError::Refit { .. } => ErrorClass::BadModel,
    }
}

fn predictor(error: &PredictorError) -> ErrorClass {
    match error {
        PredictorError::Config { .. } => ErrorClass::BadModel,
        PredictorError::Open(e) => backend(e),
        PredictorError::Engine(e) => engine(e),
        PredictorError::Session(e) => session(e),
        PredictorError::NotFinite { .. } => ErrorClass::Numeric,
        PredictorError::MapFile { .. } => ErrorClass::Io,
        _ => ErrorClass::BadAdapter,
    }
}

fn ort(error: &OrtError) -> ErrorClass {
    match error {
        OrtError::Library(_)
        | OrtError::WrongBackend { .. }
        | OrtError::Arithmetic { .. }
        | OrtError::Provider { .. } => ErrorClass::Version,
        OrtError::Engine(e) => engine(e),
        OrtError::Fuse(e) => fuse(e),
        OrtError::Memory { .. } | OrtError::OutOfMemory { .. } => ErrorClass::Memory,
        OrtError::Placeholder { .. } => ErrorClass::Io,
        _ => ErrorClass::BadModel,
    }
}

fn directory(error: &DirectoryError) -> ErrorClass {
    match error {
        DirectoryError::Config(e) => config(e),
        DirectoryError::Engine(e) => engine(e),
        DirectoryError::Ort(e) => ort(e),
        DirectoryError::Trt(e) => trt(e),
        DirectoryError::Missing { .. } | DirectoryError::NotCompiled { .. } => ErrorClass::Usage,
    }
}

fn config(error: &ConfigError) -> ErrorClass {
    match error {
        ConfigError::Io { .. } => ErrorClass::Io,
        ConfigError::Version { .. } => ErrorClass::Version,
        ConfigError::Scheduler(e) => scheduler(e),
        _ => ErrorClass::BadModel,
    }
}

fn scheduler(error: &SchedulerError) -> ErrorClass {
    match error {
        SchedulerError::Unsupported { .. } => ErrorClass::Unsupported,
        SchedulerError::Steps { .. } => ErrorClass::Usage,
        _ => ErrorClass::BadModel,
    }
}

fn session(error: &SessionError) -> ErrorClass {
    match error {
        SessionError::Memory { .. } => ErrorClass::Memory,
        SessionError::Backend { .. } => ErrorClass::BadModel,
        SessionError::Empty { .. } => ErrorClass::Unsupported,
        SessionError::Stopped { .. } => ErrorClass::Cancelled,
        _ => ErrorClass::Usage,
    }
}

fn video(error: &VideoError) -> ErrorClass {
    match error {
        VideoError::Io { .. } | VideoError::Spawn { .. } | VideoError::Ffmpeg { .. } | VideoError::Image { .. } => {
            ErrorClass::Io
        }
        VideoError::NoFfmpeg { .. } => ErrorClass::Version,
        _ => ErrorClass::Usage,
    }
}

fn vae(error: &VaeError) -> ErrorClass {
    match error {
        VaeError::Cancelled(_) => ErrorClass::Cancelled,
        VaeError::Memory(_) => ErrorClass::Memory,
        VaeError::Input { .. } | VaeError::Tile { .. } => ErrorClass::Usage,
        _ => ErrorClass::BadModel,
    }
}

fn pipeline(error: &PipelineError) -> ErrorClass {
    match error {
        PipelineError::Cancelled(_) => ErrorClass::Cancelled,
        PipelineError::Memory(_) => ErrorClass::Memory,
        PipelineError::Config(e) => config(e),
        PipelineError::Vae(e) => vae(e),
        PipelineError::Video(e) => video(e),
        PipelineError::Io { .. } => ErrorClass::Io,
        PipelineError::NotFinite { .. } | PipelineError::Infinite { .. } => ErrorClass::Numeric,
        PipelineError::Output { .. }
        | PipelineError::Session { .. }
        | PipelineError::Component(_)
        | PipelineError::MissingSection(_)
        | PipelineError::Tokenizer(TokenizerError::File(_)) => ErrorClass::BadModel,
        PipelineError::Scheduler(e) => scheduler(e),
        _ => ErrorClass::Usage,
    }
}
