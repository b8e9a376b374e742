//! What is asked of a model, and what that comes to.

use ndarray::{Array5, ArrayD};
use serde::{Deserialize, Serialize};

use crate::error::{Classified, ErrorClass};
use crate::media::video::{FRAME_RATES, Frames};
use crate::values::{WrongValue, between, real};
use crate::wording::{HEIGHT, WIDTH, Words};

/// The negative prompt of Video2LoRA's official scripts.
pub const NEGATIVE_PROMPT: &str = "The video is not of a high quality, it has a low resolution. Watermark present in each \
    frame. The background is solid. Strange body and strange trajectory. Distortion.";

/// A video to generate. What is `None` comes from the pipeline's defaults.
///
/// ```
/// use v2l_runtime::Request;
///
/// let mut request = Request::new("a paper boat");
/// request.num_frames = Some(17);
/// request.seed = Some(7);
/// assert_eq!(request.width, None, "as the image or the model says");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What to show.
    pub prompt: String,
    /// What not to show; unused without guidance.
    pub negative_prompt: Option<String>,
    /// The first frame; of several frames the first counts.
    pub image: Option<Frames>,
    /// The last frame, for models that end at an image; of several frames the first counts.
    pub last_image: Option<Frames>,
    /// Width in pixels.
    pub width: Option<usize>,
    /// Height in pixels.
    pub height: Option<usize>,
    /// Pixel frames.
    pub num_frames: Option<usize>,
    /// Length in seconds, where [`Self::num_frames`] says nothing: the video gets the number of frames nearest to it that the model can make.
    pub seconds: Option<f64>,
    /// Sampler steps.
    pub num_inference_steps: Option<usize>,
    /// The scheduler, by the name of its sampler or of diffusers' class; the model's own if not given.
    pub scheduler: Option<String>,
    /// How far the scheduler moves levels of noise towards noise, for models of flow matching.
    pub shift: Option<f64>,
    /// Guidance; 1 or less: none, and half the work.
    pub guidance_scale: Option<f64>,
    /// Guidance of the second of two transformers; that of the first if nothing says it. Whether there is guidance at all says
    /// the first alone.
    pub guidance_scale_2: Option<f64>,
    /// Where the second of two transformers takes over, as a part of the noise levels, 0 to 1; the model's own if not given.
    pub boundary_ratio: Option<f64>,
    /// Frames per second of the result.
    pub fps: Option<f64>,
    /// Seed of every draw.
    pub seed: Option<u64>,
    /// Standard deviation of the noise on the image; 0: none.
    pub noise_aug_strength: Option<f64>,
    /// Numbers for the model's controls, by their names; those that are not named are off.
    pub controls: Vec<(String, f32)>,
    /// A latent (padding frames included) instead of noise drawn from the seed, its axes in the model's order.
    pub initial_noise: Option<Array5<f32>>,
    /// `[1, 3, 1, H, W]` (or all frames) standard normal values instead of those drawn from the seed.
    pub augmentation_noise: Option<Array5<f32>>,
    /// Embeddings `[2 or 1, tokens, width]`, negative first, instead of the text encoder's.
    pub prompt_embeds: Option<ArrayD<f32>>,
    /// Those of the negative prompt, `[1, tokens, width]`, if [`Self::prompt_embeds`] holds one prompt alone; unused
    /// without guidance.
    pub negative_prompt_embeds: Option<ArrayD<f32>>,
}

impl Request {
    /// A video of what `prompt` says, with the pipeline's defaults for all else.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }
}

/// What a request takes if it does not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// Guidance; 1 or less: none.
    pub guidance_scale: f64,
    /// Guidance of a second transformer; absent: as the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// Pixel frames.
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
            guidance_scale_2: None,
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

impl Defaults {
    pub(crate) fn check(&self) -> Result<(), WrongValue> {
        between("defaults.num_inference_steps", self.num_inference_steps, 1, 100_000)?;
        between("defaults.num_frames", self.num_frames, 1, 100_000)?;
        real("defaults.guidance_scale", self.guidance_scale, true, "a number")?;
        if let Some(guidance) = self.guidance_scale_2 {
            real("defaults.guidance_scale_2", guidance, true, "a number")?;
        }
        real("defaults.fps", self.fps, FRAME_RATES.contains(&self.fps), "0.01 to 1000")?;
        let strength = self.noise_aug_strength;
        real("defaults.noise_aug_strength", strength, strength >= 0.0, "0 or more")?;
        for (key, side) in [("defaults.width", self.width), ("defaults.height", self.height)] {
            between(key, side.unwrap_or(1), 1, 65_536)?;
        }
        Ok(())
    }
}

/// A request with every question answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Pixel frames of the result.
    pub num_frames: usize,
    /// Latent frames that the model needs besides; they are cut off in the end.
    pub padding_frames: usize,
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// The scheduler that was asked for in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The scheduler's shift, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Guidance.
    pub guidance_scale: f64,
    /// Guidance of the second of two transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// Where the second of two transformers takes over, if that was asked for in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary_ratio: Option<f64>,
    /// The negative prompt, if it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Frames per second.
    pub fps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Standard deviation of the noise on the image, 0 if the model was not trained with it.
    pub noise_aug_strength: f64,
    /// Numbers for the model's controls, those that are on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<(String, f32)>,
}

impl Settings {
    /// True if the model also predicts for the negative prompt.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Prompts that a step predicts for: 2 with guidance, the negative one first, else 1.
    pub fn batch(&self) -> usize {
        if self.is_guided() { 2 } else { 1 }
    }
}

/// A request does not fit the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A part of it is not what it should be.
    #[error("{what} is {found}, expected {expected}")]
    Part {
        /// Which part of the request.
        what: &'static str,
        /// What it is.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Width or height do not divide into patches.
    #[error(
        "{width}x{height} pixels do not divide by {multiple}; the nearest size is {nearest_width}x{nearest_height}"
    )]
    FrameSize {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for.
        height: usize,
        /// Pixels per token side.
        multiple: usize,
        /// A width that works.
        nearest_width: usize,
        /// A height that works.
        nearest_height: usize,
    },
    /// The video is larger, wider or longer than a transformer's table of positions reaches.
    #[error(
        "{what} is {found}, which takes {positions} positions; the transformer's table has {table} ({key}), enough for {largest}; set \
         `{option}` to {largest} or less{remedy}"
    )]
    Positions {
        /// Which part of the request.
        what: &'static str,
        /// What it is.
        found: usize,
        /// Positions that it takes.
        positions: usize,
        /// Positions that there are.
        table: usize,
        /// What of the model's configuration says so.
        key: &'static str,
        /// The largest value that works.
        largest: usize,
        /// The option that says it.
        option: &'static Words,
        /// Another way out, if there is one.
        remedy: &'static str,
    },
    /// The transformer has positions for one size alone.
    #[error(
        "the size is {width}x{height}, expected {sample_width}x{sample_height}: this model has learned positions for that size \
         alone; set `{WIDTH}` and `{HEIGHT}` to it, or leave both out"
    )]
    LearnedSize {
        /// Width asked for, in pixels.
        width: usize,
        /// Height asked for.
        height: usize,
        /// The width that was learned.
        sample_width: usize,
        /// The height that was learned.
        sample_height: usize,
    },
}

impl RequestError {
    pub(crate) fn part(what: &'static str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Part { what, found: found.into(), expected: expected.into() }
    }
}

impl Classified for RequestError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Usage
    }
}
