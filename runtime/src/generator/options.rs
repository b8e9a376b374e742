//! How a [`Generator`](super::Generator) is opened, and how it prepares a reference.

use std::path::PathBuf;

use crate::error::Error;
use crate::io::user_cache::user_cache;
use crate::lora::mode::AdapterMode;
use crate::media::video::Frames;
use crate::options::OpenOptions;
use crate::pipeline::{LatentChoice, PipelineConfig, PixelRange, ReferenceConfig, ReferenceFrames, ReferenceResize};
use crate::predict::cache::PredictionCache;

/// How a [`Generator`](super::Generator) is opened.
///
/// ```
/// use v2l_runtime::Options;
/// use v2l_runtime::generator::PredictionCacheOptions;
/// use v2l_runtime::options::OpenOptions;
///
/// let options = Options {
///     engines: OpenOptions { backend: "ort".parse().expect("it is a backend"), ..OpenOptions::default() },
///     prediction_cache: Some(PredictionCacheOptions { folder: "cache".into(), bytes: 1 << 30 }),
///     ..Options::default()
/// };
/// assert!(options.ffmpeg.is_none(), "it is searched for");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Adapters from files that stay in memory for the next time, those used last; each takes what its file takes in f32.
    pub kept_adapters: usize,
    /// How engines are opened.
    pub engines: OpenOptions,
    /// How adapters are applied.
    pub adapter_mode: AdapterMode,
    /// The ffmpeg program, for video files; searched for if not given.
    pub ffmpeg: Option<PathBuf>,
    /// Cut large frames into tiles for the autoencoder; as `pipeline.json` says if not given.
    pub vae_tiling: Option<bool>,
    /// Where to keep predictions.
    pub prediction_cache: Option<PredictionCacheOptions>,
}

/// Where predictions are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredictionCacheOptions {
    /// The folder; it is made if need be.
    pub folder: PathBuf,
    /// Bytes that it may take; what was not used for longest goes.
    pub bytes: u64,
}

impl Options {
    /// The prediction cache, if one is asked for.
    pub(super) fn open_cache(&self) -> Result<Option<PredictionCache>, Error> {
        let cache = self.prediction_cache.as_ref();
        Ok(cache.map(|cache| PredictionCache::open(&cache.folder, cache.bytes)).transpose()?)
    }

    /// Where predictors keep what does not depend on the prompt: with the predictions, or among the user's caches.
    pub(super) fn intermediates(&self) -> Option<PathBuf> {
        let own = self.prediction_cache.as_ref().map(|cache| cache.folder.clone());
        own.or_else(|| user_cache("predictors"))
    }

    /// Puts what changes the pipeline's own settings into `config`.
    pub(super) fn adjust(&self, config: &mut PipelineConfig) -> Result<(), Error> {
        if let (Some(on), Some(family)) = (self.vae_tiling, &mut config.family) {
            *family = family.tiled(on)?;
        }
        Ok(())
    }
}

/// How an adapter is predicted. What is `None` is as `pipeline.json` says.
#[derive(Clone, Copy, Debug, Default)]
pub struct PredictOptions<'a> {
    /// Width of the video to generate, in pixels: reference frames are brought to its size.
    pub width: Option<usize>,
    /// Height of the video to generate.
    pub height: Option<usize>,
    /// First frame of the video to generate, which may say its size.
    pub image: Option<&'a Frames>,
    /// Seed of the reference's latent, where that is drawn.
    pub seed: Option<u64>,
    /// How the reference is prepared.
    pub reference: ReferenceOptions,
}

/// How a reference is prepared. What is `None` is as `pipeline.json` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReferenceOptions {
    /// Range of pixels that the checkpoint was trained with.
    pub range: Option<PixelRange>,
    /// Frames to use.
    pub frames: Option<ReferenceFrames>,
    /// How frames get the size of the video.
    pub resize: Option<ReferenceResize>,
    /// Which latent the predictor gets.
    pub latent: Option<LatentChoice>,
}

impl ReferenceOptions {
    /// These, and else those of `config`.
    pub(super) fn applied(&self, config: ReferenceConfig) -> ReferenceConfig {
        ReferenceConfig {
            range: self.range.unwrap_or(config.range),
            frames: self.frames.unwrap_or(config.frames),
            resize: self.resize.unwrap_or(config.resize),
            latent: self.latent.unwrap_or(config.latent),
        }
    }
}
