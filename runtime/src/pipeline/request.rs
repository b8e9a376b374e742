//! What is asked of a pipeline, and what that comes to.

use ndarray::{Array5, ArrayD};
use serde::Serialize;

use super::{Conditioning, Event, Observer, Pipeline, PipelineError, TransformerConfig, VaeConfig};
use crate::media::video::{Frames, MAX_BYTES, MAX_FRAMES, MAX_SIDE};

/// A video to generate. What is `None` comes from the pipeline's defaults.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What to show.
    pub prompt: String,
    /// What not to show; unused without guidance.
    pub negative_prompt: Option<String>,
    /// The first frame; of several frames the first counts.
    pub image: Option<Frames>,
    /// Width in pixels.
    pub width: Option<usize>,
    /// Height in pixels.
    pub height: Option<usize>,
    /// Pixel frames.
    pub num_frames: Option<usize>,
    /// Sampler steps.
    pub num_inference_steps: Option<usize>,
    /// Guidance; 1 or less: none, and half the work.
    pub guidance_scale: Option<f64>,
    /// Frames per second of the result.
    pub fps: Option<f64>,
    /// Seed of every draw.
    pub seed: Option<u64>,
    /// Standard deviation of the noise on the image; 0: none.
    pub noise_aug_strength: Option<f64>,
    /// `[1, T, 16, h, w]` (padding frames included) instead of noise drawn from the seed.
    pub initial_noise: Option<Array5<f32>>,
    /// `[1, 3, 1, H, W]` (or all frames) standard normal values instead of those drawn from the seed.
    pub augmentation_noise: Option<Array5<f32>>,
    /// Embeddings `[2 or 1, tokens, width]`, negative first, instead of the text encoder's.
    pub prompt_embeds: Option<ArrayD<f32>>,
}

impl Request {
    /// A video of what `prompt` says, with the pipeline's defaults for all else.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }
}

/// A request with every question answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Pixel frames of the result, 4n + 1.
    pub num_frames: usize,
    /// Latent frames that CogVideoX 1.5 needs besides; they are cut off in the end.
    pub padding_frames: usize,
    /// Sampler steps.
    pub num_inference_steps: usize,
    /// Guidance.
    pub guidance_scale: f64,
    /// Frames per second.
    pub fps: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Standard deviation of the noise on the image, 0 if the model was not trained with it.
    pub noise_aug_strength: f64,
}

impl Settings {
    /// True if the model also predicts for the negative prompt.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// `[1, T, C, h, w]`, padding frames included.
    pub fn latent_shape(&self, transformer: &TransformerConfig, vae: &VaeConfig) -> [usize; 5] {
        let frames = latent_frames(self.num_frames, transformer) + self.padding_frames;
        let ratio = vae.spatial_compression_ratio;
        [1, frames, vae.latent_channels, self.height / ratio, self.width / ratio]
    }
}

fn latent_frames(pixel_frames: usize, transformer: &TransformerConfig) -> usize {
    (pixel_frames - 1) / transformer.temporal_compression_ratio + 1
}

fn nearest(extent: usize, multiple: usize) -> usize {
    ((extent + multiple / 2) / multiple).max(1) * multiple
}

impl Pipeline {
    /// Width and height of a video: those asked for, the defaults, the image's (for inpainting models), or the training
    /// resolution, in this order. `None` if the pipeline does not know the last.
    pub fn frame_size(
        &self,
        (width, height): (Option<usize>, Option<usize>),
        image: Option<&Frames>,
    ) -> Option<(usize, usize)> {
        let (defaults, vae) = (&self.config().defaults, self.config().vae.as_ref());
        let transformer = self.config().transformer.as_ref();
        let image = image.filter(|_| transformer.is_none_or(|t| t.conditioning == Conditioning::Inpaint));
        let trained = vae.map(|vae| match transformer {
            Some(transformer) => {
                let ratio = vae.spatial_compression_ratio;
                (transformer.sample_width * ratio, transformer.sample_height * ratio)
            }
            None => (vae.sample_width, vae.sample_height),
        });
        let width = width.or(defaults.width).or(image.map(Frames::width)).or(trained.map(|(width, _)| width))?;
        let height = height.or(defaults.height).or(image.map(Frames::height)).or(trained.map(|(_, height)| height))?;
        Some((width, height))
    }

    /// What a request comes to: defaults filled in, sizes checked, frames snapped to 4n + 1 (with a warning).
    ///
    /// Width and height come from the request, the defaults, the image (for inpainting models) or the training
    /// resolution, in this order.
    ///
    /// # Errors
    /// [`PipelineError::FrameSize`], [`PipelineError::Request`] or [`PipelineError::MissingSection`].
    pub fn settings(&self, request: &Request, observer: &mut dyn Observer) -> Result<Settings, PipelineError> {
        let (transformer, vae, defaults) = (self.transformer()?, self.vae()?, &self.config().defaults);
        let bad =
            |what, found: String, expected: &str| PipelineError::Request { what, found, expected: expected.into() };
        let image = request.image.as_ref();
        match (transformer.conditioning, image) {
            (Conditioning::Image, None) => {
                return Err(bad("the image", "absent".to_owned(), "one, because this model animates an image"));
            }
            (Conditioning::Text, Some(_)) => {
                return Err(bad("the image", "given".to_owned(), "none, because this model takes text only"));
            }
            _ => {}
        }
        let ratio = vae.spatial_compression_ratio;
        let (width, height) =
            self.frame_size((request.width, request.height), image).ok_or(PipelineError::MissingSection("vae"))?;
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(bad("the size", format!("{width}x{height}"), "sides of at most 8192 pixels"));
        }
        let multiple = ratio * transformer.patch_size;
        if width == 0 || height == 0 || !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            let (nearest_width, nearest_height) = (nearest(width, multiple), nearest(height, multiple));
            return Err(PipelineError::FrameSize { width, height, multiple, nearest_width, nearest_height });
        }

        let asked = request.num_frames.unwrap_or(defaults.num_frames);
        let pixels = width * height * 3;
        if asked == 0 || asked > MAX_FRAMES || asked > MAX_BYTES / 4 / pixels {
            let most = MAX_FRAMES.min(MAX_BYTES / 4 / pixels);
            return Err(bad("the number of frames", asked.to_string(), &format!("1 to {most} at this size")));
        }
        let (num_frames, padding_frames) = snap(asked, transformer);
        if num_frames != asked {
            let message = format!("{asked} frames are not possible with this model: {num_frames} will be made");
            observer.event(&Event::Warning { message });
        }

        let guidance_scale = request.guidance_scale.unwrap_or(defaults.guidance_scale);
        let strength = request.noise_aug_strength.unwrap_or(defaults.noise_aug_strength);
        let fps = request.fps.unwrap_or(defaults.fps);
        if !guidance_scale.is_finite() {
            return Err(bad("the guidance scale", guidance_scale.to_string(), "a finite number"));
        }
        if !(strength >= 0.0 && strength.is_finite()) {
            return Err(bad("the noise augmentation strength", strength.to_string(), "0 or more"));
        }
        if !(fps > 0.0 && fps <= 1000.0) {
            return Err(bad("the frame rate", fps.to_string(), "more than 0 and at most 1000"));
        }
        Ok(Settings {
            width,
            height,
            num_frames,
            padding_frames,
            num_inference_steps: request.num_inference_steps.unwrap_or(defaults.num_inference_steps),
            guidance_scale,
            fps,
            seed: request.seed.unwrap_or(defaults.seed),
            noise_aug_strength: if transformer.add_noise_in_inpaint_model { strength } else { 0.0 },
        })
    }
}

/// Pixel frames that the model can make, and latent padding frames.
///
/// Frames are cut to 4n + 1. With `patch_size_t` latent frames must divide: diffusers pads them, CogVideoX-Fun (inpainting)
/// cuts more frames off.
fn snap(frames: usize, transformer: &TransformerConfig) -> (usize, usize) {
    let ratio = transformer.temporal_compression_ratio;
    let frames = (frames - 1) / ratio * ratio + 1;
    let surplus = latent_frames(frames, transformer) % transformer.patch_size_t.unwrap_or(1);
    if surplus == 0 {
        return (frames, 0);
    }
    let padding = transformer.patch_size_t.unwrap_or(1) - surplus;
    match transformer.conditioning {
        Conditioning::Inpaint => match frames.checked_sub(surplus * ratio) {
            Some(shorter) if shorter > 0 => (shorter, 0),
            _ => (frames, padding),
        },
        Conditioning::Text | Conditioning::Image => (frames, padding),
    }
}
