//! Why a pipeline did not finish.

use std::path::PathBuf;

use super::config::ConfigError;
use super::tokenizer::TokenizerError;
use crate::components::ComponentError;
use crate::engine::session::SessionError;
use crate::error::{Classified, Error, ErrorClass};
use crate::events::Cancelled;
use crate::media::resize::ResizeError;
use crate::media::video::VideoError;
use crate::memory::NotEnough;
use crate::models::family::MissingSection;
use crate::models::vae::VaeError;
use crate::request::RequestError;
use crate::schedulers::SchedulerError;

/// Root mean square of a latent above which it is no video's. Latents that models make lie near 1, burnt ones below 10.
pub(super) const MOST_ROOT_MEAN_SQUARE: f64 = 50.0;

/// Why a pipeline did not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The observer asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] NotEnough),
    /// `pipeline.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `pipeline.json` lacks a section that the request needs.
    #[error(transparent)]
    MissingSection(#[from] MissingSection),
    /// A file of the directory cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The request does not fit the model.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The latent is no longer finite.
    #[error(
        "the latent holds NaN or infinity after step {step} of {total}; compile with `v2l-compile --precision fp32`, or lower \
         the strength of adapters"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Steps in all.
        total: usize,
    },
    /// The latent is finite, but far from any that the model makes.
    #[error(
        "the latent's root mean square is {found:.0} after step {step} of {total}, expected at most {MOST_ROOT_MEAN_SQUARE} (a video's \
         is about 1): the result would be noise; lower the guidance, or the strength or alpha of adapters"
    )]
    Saturated {
        /// The step, from 1.
        step: usize,
        /// Steps in all.
        total: usize,
        /// The root mean square.
        found: f64,
    },
    /// A tensor that was given, or made, holds NaN or infinity.
    #[error("{what} hold {value} at {at:?}; expected finite numbers")]
    Infinite {
        /// Which one.
        what: &'static str,
        /// The first such value.
        value: f32,
        /// Where it is.
        at: Vec<usize>,
    },
    /// A graph gave something else than it should.
    #[error("{component}, graph `{graph}`: output `{output}` is {found}, expected {expected}")]
    Output {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: String,
        /// The output.
        output: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A graph did not run.
    #[error("{component}, graph `{graph}`: {source}")]
    Session {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: String,
        /// Its words.
        source: SessionError,
    },
    /// A graph is not available.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The prompt has no ids.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The sampler refused.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The model's family refused, or what it ran failed.
    #[error(transparent)]
    Family(#[from] Error),
    /// The autoencoder failed.
    #[error(transparent)]
    Vae(#[from] VaeError),
    /// A frame cannot be resized.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// Frames cannot be made.
    #[error(transparent)]
    Video(#[from] VideoError),
}

impl Classified for PipelineError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Cancelled(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Config(error) => error.class(),
            Self::Component(error) => error.class(),
            Self::Tokenizer(error) => error.class(),
            Self::Scheduler(error) => error.class(),
            Self::Family(error) => error.class(),
            Self::Request(error) => error.class(),
            Self::MissingSection(error) => error.class(),
            Self::Vae(error) => error.class(),
            Self::Resize(error) => error.class(),
            Self::Video(error) => error.class(),
            Self::Session { source, .. } => source.class(),
            Self::Io { source, .. } => source.class(),
            Self::NotFinite { .. } | Self::Saturated { .. } | Self::Infinite { .. } => ErrorClass::Numeric,
            Self::Output { .. } => ErrorClass::BadModel,
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::Scheduler(error) => error.field(),
            Self::Family(error) => error.field(),
            Self::Request(error) => error.field(),
            _ => None,
        }
    }
}
