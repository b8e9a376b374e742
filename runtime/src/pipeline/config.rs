//! `pipeline.json`: what a bundle or an engine directory says of itself.
//!
//! Written by `v2l-export`, copied by `v2l-compile` with the components' paths replaced, read by the runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component as PathPart, Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{Classified, ErrorClass};
use crate::io::map::read_text;
use crate::models::cogvideox::rope::{RotaryConfig, RotaryGrid};
use crate::schedulers::{self, Scheduler, SchedulerError};

/// The value of `format`.
pub const FORMAT: &str = "v2l-pipeline";
/// The value of `version` that this build reads and writes.
pub const VERSION: u32 = 1;
/// Name of the file in its directory.
pub const FILE_NAME: &str = "pipeline.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The negative prompt of Video2LoRA's official scripts.
pub const NEGATIVE_PROMPT: &str = "The video is not of a high quality, it has a low resolution. Watermark present in each \
    frame. The background is solid. Strange body and strange trajectory. Distortion.";

/// Why a `pipeline.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// It is no JSON, or a key is missing or of the wrong type.
    #[error("pipeline.json: {0}")]
    Json(#[from] serde_json::Error),
    /// It is another kind of file.
    #[error("pipeline.json: `format` is {found:?}, expected {FORMAT:?}; is this a v2l bundle or engine directory?")]
    Format {
        /// Value found.
        found: String,
    },
    /// It was written by another version.
    #[error("pipeline.json: `version` is {found}, expected {VERSION}; {}", if *found > VERSION { "update v2l" } else { "export the model again" })]
    Version {
        /// Value found.
        found: u32,
    },
    /// A value makes no sense.
    #[error("pipeline.json: `{key}` is {found}, expected {expected}")]
    Value {
        /// Dotted key.
        key: String,
        /// Value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A path leads out of the directory.
    #[error("pipeline.json: `{key}` is {found:?}, expected a relative path without `..`, inside the directory")]
    Path {
        /// Dotted key.
        key: String,
        /// Value found.
        found: String,
    },
    /// The scheduler cannot be used.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}

impl Classified for ConfigError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::Version { .. } => ErrorClass::Version,
            Self::Scheduler(error) => error.class(),
            _ => ErrorClass::BadModel,
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The networks: `transformer`, `vae_encoder`, `vae_decoder`, `text_encoder`, `hypernetwork`. Any may be absent.
    pub components: IndexMap<String, ComponentFiles>,
    /// The video transformer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformer: Option<TransformerConfig>,
    /// The video autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaeConfig>,
    /// The sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerSection>,
    /// Prompt to ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
    /// How a reference video becomes a latent.
    #[serde(default)]
    pub reference: ReferenceConfig,
    /// What a request takes if it does not say otherwise.
    #[serde(default)]
    pub defaults: Defaults,
}

/// The files of a component, relative to the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ComponentFiles {
    /// In an engine directory.
    Engine(EngineFiles),
    /// In a bundle.
    Graphs(GraphFiles),
}

/// A compiled component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFiles {
    /// The `.engine` file.
    pub engine: String,
}

/// An exported component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFiles {
    /// ONNX files by graph name, e.g. `step`.
    pub graphs: BTreeMap<String, String>,
    /// The weights that the graphs share.
    pub weights: String,
}

/// How the transformer is told what to animate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conditioning {
    /// Text only: `hidden_states` has 16 channels.
    Text,
    /// diffusers' image-to-video: the image's latent follows the noise, 32 channels.
    Image,
    /// CogVideoX-Fun inpainting: mask and masked video in `inpaint_latents`, 17 channels, `in_channels` 33.
    Inpaint,
}

/// The transformer's configuration, with diffusers' names; sizes in latent pixels and latent frames unless said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Channels of the patch embedding, conditioning included.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Patch side.
    pub patch_size: usize,
    /// Patch length, absent for CogVideoX 1.0.
    #[serde(default)]
    pub patch_size_t: Option<usize>,
    /// Channels per head.
    pub attention_head_dim: usize,
    /// Width at the training resolution.
    pub sample_width: usize,
    /// Height at the training resolution.
    pub sample_height: usize,
    /// Training clip length in pixel frames.
    pub sample_frames: usize,
    /// Tokens of text.
    pub max_text_seq_length: usize,
    /// Takes `image_rotary_emb_cos` and `image_rotary_emb_sin`.
    pub rotary: bool,
    /// Placement of the rotary grid; absent: `fun` for inpainting, else `diffusers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_grid: Option<RotaryGrid>,
    /// Takes `ofs` (CogVideoX 1.5 image-to-video), always 2.
    #[serde(default)]
    pub ofs: bool,
    /// Pixel frames per latent frame.
    pub temporal_compression_ratio: usize,
    /// Trained with noise on the condition image.
    #[serde(default)]
    pub add_noise_in_inpaint_model: bool,
    /// How it is conditioned.
    pub conditioning: Conditioning,
}

impl TransformerConfig {
    /// What the rotary tables depend on.
    pub fn rotary_config(&self) -> RotaryConfig {
        RotaryConfig {
            attention_head_dim: self.attention_head_dim,
            patch_size: self.patch_size,
            patch_size_t: self.patch_size_t,
            sample_width: self.sample_width,
            sample_height: self.sample_height,
            grid: self.rotary_grid.unwrap_or(match self.conditioning {
                Conditioning::Inpaint => RotaryGrid::Fun,
                Conditioning::Text | Conditioning::Image => RotaryGrid::Diffusers,
            }),
        }
    }
}

/// The autoencoder's configuration; sizes in pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Latents are multiplied by this for the transformer.
    pub scaling_factor: f64,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Pixel frames per latent frame.
    pub temporal_compression_ratio: usize,
    /// Pixels per latent pixel, `2 ^ (blocks - 1)`.
    pub spatial_compression_ratio: usize,
    /// Width at the training resolution.
    pub sample_width: usize,
    /// Height at the training resolution.
    pub sample_height: usize,
    /// Condition images are divided by the scaling factor (CogVideoX 1.5 image-to-video).
    #[serde(default)]
    pub invert_scale_latents: bool,
    /// Pieces in time.
    #[serde(default)]
    pub chunking: Chunking,
    /// Pieces in space.
    pub tiling: Tiling,
}

/// How long videos are cut in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunking {
    /// Pixel frames per encoder call; what remains joins the first call.
    pub encode_frames: usize,
    /// Latent frames per decoder call.
    pub decode: DecodeChunks,
}

impl Default for Chunking {
    fn default() -> Self {
        Self { encode_frames: 8, decode: DecodeChunks::Fun }
    }
}

/// Latent frames per decoder call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeChunks {
    /// 1, 2, 2, …: CogVideoX-Fun.
    Fun,
    /// 2 + T mod 2, 2, 2, …: diffusers.
    Diffusers,
}

/// How large frames are cut in space.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiling {
    /// Cut frames that are larger than a tile.
    pub enabled: bool,
    /// Height of a tile in pixels.
    pub tile_sample_min_height: usize,
    /// Width of a tile in pixels.
    pub tile_sample_min_width: usize,
    /// Part of a tile's height that overlaps the next one.
    pub tile_overlap_factor_height: f64,
    /// Part of a tile's width that overlaps the next one.
    pub tile_overlap_factor_width: f64,
}

impl Tiling {
    /// Half the training resolution per tile, overlaps of 1/6 and 1/5: the default of diffusers and CogVideoX-Fun.
    /// Official Fun scripts switch it on, diffusers pipelines leave it off.
    pub const fn for_sample(height: usize, width: usize, enabled: bool) -> Self {
        Self {
            enabled,
            tile_sample_min_height: height / 2,
            tile_sample_min_width: width / 2,
            tile_overlap_factor_height: 1.0 / 6.0,
            tile_overlap_factor_width: 1.0 / 5.0,
        }
    }

    /// The same, switched off if its tiles would not join: what a tile advances by must be a multiple of `ratio`, the pixels
    /// per latent pixel. The defaults of very small models are not.
    #[must_use]
    pub fn off_unless_tiles_join(mut self, ratio: usize) -> Self {
        self.enabled &= ratio > 0
            && tiles_join(self.tile_sample_min_height, ratio, self.tile_overlap_factor_height)
            && tiles_join(self.tile_sample_min_width, ratio, self.tile_overlap_factor_width);
        self
    }
}

/// The sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// diffusers' `scheduler_config.json` as it is.
    pub config: serde_json::Value,
    /// Which sampler to use; absent: what the config's class says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
}

/// Prompt to ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// `tokenizer.json`, relative to the directory.
    pub file: String,
    /// Ids per prompt.
    pub max_length: usize,
    /// Id that fills up; absent: the tokenizer's own, or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_id: Option<u32>,
}

/// How a reference video becomes a latent. Checkpoints differ: they were trained by scripts that differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceConfig {
    /// Range of the pixels.
    pub range: PixelRange,
    /// Which frames.
    pub frames: ReferenceFrames,
    /// How frames get the target size.
    pub resize: ReferenceResize,
    /// Which latent of the distribution.
    pub latent: LatentChoice,
}

impl Default for ReferenceConfig {
    /// As Video2LoRA's `predict_i2v.py`, except that the latent is the mean where it draws a sample.
    fn default() -> Self {
        Self {
            range: PixelRange::Unit,
            frames: ReferenceFrames::All,
            resize: ReferenceResize::Stretch,
            latent: LatentChoice::Mean,
        }
    }
}

/// Range of reference pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelRange {
    /// [0, 1].
    Unit,
    /// [-1, 1].
    Signed,
}

/// Which frames of a reference video count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceFrames {
    /// All of them.
    All,
    /// The first n, or fewer if there are fewer.
    FirstN(usize),
    /// Up to `count` frames at `fps`: for each time k / fps the nearest frame. A source that does not know its own rate is
    /// taken to have `fps`.
    Resample {
        /// Frames at most.
        count: usize,
        /// Frames per second.
        fps: f64,
    },
}

/// How reference frames get the target size. Bicubic as in Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceResize {
    /// Width and height independently.
    Stretch,
    /// Keeping the aspect ratio until the target is covered; then the centre is cut out.
    CoverCrop,
    /// Not at all.
    None,
}

/// Which latent of the encoder's distribution is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentChoice {
    /// Its mean (diffusers' `mode()`).
    Mean,
    /// A sample, drawn from the run's seed.
    Sample,
}

/// What a request takes if it does not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// Guidance; 1 or less: none.
    pub guidance_scale: f64,
    /// Pixel frames, 4n + 1.
    pub num_frames: usize,
    /// Frames per second of the result.
    pub fps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Standard deviation of the noise on the condition image.
    pub noise_aug_strength: f64,
    /// Negative prompt.
    pub negative_prompt: String,
    /// Width in pixels; absent: the condition image's, or the training resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
}

impl Default for Defaults {
    /// Those of Video2LoRA's `predict_i2v.py`.
    fn default() -> Self {
        Self {
            num_inference_steps: 50,
            guidance_scale: 6.0,
            num_frames: 49,
            fps: 8.0,
            seed: 43,
            noise_aug_strength: 0.0563,
            negative_prompt: NEGATIVE_PROMPT.to_owned(),
            width: None,
            height: None,
        }
    }
}

impl PipelineConfig {
    /// Reads and checks `directory/pipeline.json`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE_NAME);
        let text = read_text(&path, MAX_FILE).map_err(|source| ConfigError::Io { path, source })?;
        Self::from_json(&text)
    }

    /// Parses and checks the text of a `pipeline.json`. Format and version are looked at before anything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != FORMAT {
            return Err(ConfigError::Format { found: head.format });
        }
        if head.version != VERSION {
            return Err(ConfigError::Version { found: head.version });
        }
        let config: Self = serde_json::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The text of the file, with a final newline.
    ///
    /// # Errors
    /// [`ConfigError`] if the values would not be read again.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        self.check()?;
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The scheduler, if the pipeline has one.
    ///
    /// # Errors
    /// [`SchedulerError`] if its configuration is not supported.
    pub fn scheduler(&self) -> Result<Option<Box<dyn Scheduler>>, SchedulerError> {
        self.scheduler.as_ref().map(|s| schedulers::read(&s.config, s.sampler.as_deref())).transpose()
    }

    /// Checks every value and path.
    ///
    /// # Errors
    /// [`ConfigError`], naming the first key that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, files) in &self.components {
            let key = |part: &str| format!("components.{name}.{part}");
            match files {
                ComponentFiles::Engine(files) => check_path(&key("engine"), &files.engine)?,
                ComponentFiles::Graphs(files) => {
                    check_path(&key("weights"), &files.weights)?;
                    for (graph, path) in &files.graphs {
                        check_path(&key(&format!("graphs.{graph}")), path)?;
                    }
                }
            }
        }
        if let Some(transformer) = &self.transformer {
            transformer.check()?;
        }
        if let Some(vae) = &self.vae {
            vae.check()?;
        }
        if let (Some(transformer), Some(vae)) = (&self.transformer, &self.vae)
            && transformer.out_channels != vae.latent_channels
        {
            let expected = format!("{} (vae.latent_channels)", vae.latent_channels);
            return Err(value("transformer.out_channels", &transformer.out_channels, &expected));
        }
        if let Some(tokenizer) = &self.tokenizer {
            check_path("tokenizer.file", &tokenizer.file)?;
            between("tokenizer.max_length", tokenizer.max_length, 2, 65_536)?;
        }
        self.scheduler()?;
        self.reference.check()?;
        self.defaults.check()
    }
}

/// A confined path joined to the directory.
///
/// # Errors
/// [`ConfigError::Path`] if `relative` is empty, absolute or contains `..`.
pub fn resolve(directory: &Path, key: &str, relative: &str) -> Result<PathBuf, ConfigError> {
    check_path(key, relative)?;
    Ok(directory.join(relative))
}

fn check_path(key: &str, found: &str) -> Result<(), ConfigError> {
    let confined = Path::new(found).components().all(|part| matches!(part, PathPart::Normal(_)));
    if found.is_empty() || !confined || found.contains(['\\', '\0']) {
        return Err(ConfigError::Path { key: key.to_owned(), found: found.to_owned() });
    }
    Ok(())
}

fn value(key: &str, found: &dyn fmt::Display, expected: &str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), found: format!("{found}"), expected: expected.to_owned() }
}

fn between(key: &str, found: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    if (low..=high).contains(&found) { Ok(()) } else { Err(value(key, &found, &format!("{low} to {high}"))) }
}

fn real(key: &str, found: f64, good: bool, expected: &str) -> Result<(), ConfigError> {
    if good && found.is_finite() { Ok(()) } else { Err(value(key, &found, expected)) }
}

impl TransformerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        for (key, found, high) in [
            ("transformer.out_channels", self.out_channels, 4096),
            ("transformer.patch_size", self.patch_size, 64),
            ("transformer.patch_size_t", self.patch_size_t.unwrap_or(1), 64),
            ("transformer.attention_head_dim", self.attention_head_dim, 4096),
            ("transformer.sample_width", self.sample_width, 65_536),
            ("transformer.sample_height", self.sample_height, 65_536),
            ("transformer.sample_frames", self.sample_frames, 1 << 20),
            ("transformer.max_text_seq_length", self.max_text_seq_length, 65_536),
            ("transformer.temporal_compression_ratio", self.temporal_compression_ratio, 64),
        ] {
            between(key, found, 1, high)?;
        }
        let expected = match self.conditioning {
            Conditioning::Text => self.out_channels,
            Conditioning::Image => 2 * self.out_channels,
            Conditioning::Inpaint => 2 * self.out_channels + 1,
        };
        if self.in_channels != expected {
            let expected = format!("{expected} for {:?} conditioning", self.conditioning).to_lowercase();
            return Err(value("transformer.in_channels", &self.in_channels, &expected));
        }
        Ok(())
    }
}

impl VaeConfig {
    /// Refuses impossible numbers.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        real("vae.scaling_factor", self.scaling_factor, self.scaling_factor > 0.0, "more than 0")?;
        for (key, found, high) in [
            ("vae.latent_channels", self.latent_channels, 4096),
            ("vae.temporal_compression_ratio", self.temporal_compression_ratio, 64),
            ("vae.spatial_compression_ratio", self.spatial_compression_ratio, 64),
            ("vae.sample_width", self.sample_width, 1 << 20),
            ("vae.sample_height", self.sample_height, 1 << 20),
            ("vae.chunking.encode_frames", self.chunking.encode_frames, 1 << 10),
        ] {
            between(key, found, 1, high)?;
        }
        let (tiling, ratio) = (&self.tiling, self.spatial_compression_ratio);
        between("vae.tiling.tile_sample_min_height", tiling.tile_sample_min_height, ratio, 1 << 20)?;
        between("vae.tiling.tile_sample_min_width", tiling.tile_sample_min_width, ratio, 1 << 20)?;
        for (key, overlap, tile) in [
            ("vae.tiling.tile_overlap_factor_height", tiling.tile_overlap_factor_height, tiling.tile_sample_min_height),
            ("vae.tiling.tile_overlap_factor_width", tiling.tile_overlap_factor_width, tiling.tile_sample_min_width),
        ] {
            let good = (0.0..1.0).contains(&overlap) && (!tiling.enabled || tiles_join(tile, ratio, overlap));
            real(key, overlap, good, "0 to 1, such that tiles of pixels and of latent pixels advance alike")?;
        }
        Ok(())
    }
}

/// True if tiles advance by what is kept of them, in pixels and in latent pixels; otherwise the result would be shifted.
fn tiles_join(tile: usize, ratio: usize, overlap: f64) -> bool {
    let part = |extent: usize, factor: f64| (extent as f64 * factor) as usize;
    let latent = tile / ratio;
    let (stride, latent_stride) = (part(tile, 1.0 - overlap), part(latent, 1.0 - overlap));
    latent_stride > 0
        && stride == (latent - part(latent, overlap).min(latent)) * ratio
        && latent_stride * ratio == tile - part(tile, overlap).min(tile)
}

impl ReferenceConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.frames {
            ReferenceFrames::All => Ok(()),
            ReferenceFrames::FirstN(n) => between("reference.frames.first_n", n, 1, 100_000),
            ReferenceFrames::Resample { count, fps } => {
                between("reference.frames.resample.count", count, 1, 100_000)?;
                real("reference.frames.resample.fps", fps, fps > 0.0, "more than 0")
            }
        }
    }
}

impl Defaults {
    fn check(&self) -> Result<(), ConfigError> {
        between("defaults.num_inference_steps", self.num_inference_steps, 1, 100_000)?;
        between("defaults.num_frames", self.num_frames, 1, 100_000)?;
        real("defaults.guidance_scale", self.guidance_scale, true, "a number")?;
        real("defaults.fps", self.fps, self.fps > 0.0 && self.fps <= 1000.0, "more than 0, at most 1000")?;
        let strength = self.noise_aug_strength;
        real("defaults.noise_aug_strength", strength, strength >= 0.0, "0 or more")?;
        for (key, side) in [("defaults.width", self.width), ("defaults.height", self.height)] {
            between(key, side.unwrap_or(1), 1, 65_536)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
