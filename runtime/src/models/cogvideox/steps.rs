//! What a step of the transformer takes: text, conditions, position tables.

use ndarray::{Array5, ArrayD, Axis, IxDyn, Slice, s};

use super::config::{Conditioning, TransformerConfig, VaeConfig};
use super::rope::rotary_tables;
use crate::components::Components;
use crate::engine::footprint::Shapes;
use crate::error::Error;
use crate::events::{Observer, Phase};
use crate::media::resize::{Filter, resize_rgb};
use crate::media::video::{Frames, frames_to_pixels};
use crate::models::arrays::{array5, join, repeat};
use crate::models::family::Steps;
use crate::models::vae::Vae;
use crate::noise::{NoisePurpose, standard_normal};
use crate::request::{Request, RequestError, ResolvedRequest};
use crate::tensor::{NamedTensors, Tensor};

const HIDDEN: &str = "hidden_states";
const TEXT: &str = "encoder_hidden_states";
const TIMESTEP: &str = "timestep";
const INPAINT: &str = "inpaint_latents";
const COS: &str = "image_rotary_emb_cos";
const SIN: &str = "image_rotary_emb_sin";
const OFS: &str = "ofs";
/// The value of CogVideoX 1.5's `ofs` input.
const OFS_VALUE: f32 = 2.0;

/// Shapes of the inputs of a step for a latent `[1, T, C, h, w]`; the width of the text is left out.
pub(super) fn shapes(transformer: &TransformerConfig, request: &Request, batch: usize, latent: [usize; 5]) -> Shapes {
    let [_, frames, channels, height, width] = latent;
    let extra = if transformer.conditioning == Conditioning::Image { channels } else { 0 };
    let tokens = request.prompt_embeds.as_ref().and_then(|text| text.shape().get(1).copied());
    let mut shapes = Shapes::from([
        (HIDDEN.to_owned(), vec![batch, frames, channels + extra, height, width]),
        (TEXT.to_owned(), vec![batch, tokens.unwrap_or(transformer.max_text_seq_length)]),
        (TIMESTEP.to_owned(), vec![batch]),
    ]);
    if transformer.conditioning == Conditioning::Inpaint {
        shapes.insert(INPAINT.to_owned(), vec![batch, frames, channels + 1, height, width]);
    }
    if transformer.rotary {
        let (rows, columns) = (height / transformer.patch_size, width / transformer.patch_size);
        let times = frames.div_ceil(transformer.patch_size_t.unwrap_or(1));
        let table = vec![times * rows * columns, transformer.attention_head_dim];
        shapes.insert(COS.to_owned(), table.clone());
        shapes.insert(SIN.to_owned(), table);
    }
    if transformer.ofs {
        shapes.insert(OFS.to_owned(), vec![1]);
    }
    shapes
}

/// What every step's call has in common.
pub(super) struct CogVideoXSteps {
    fixed: NamedTensors,
    /// Appended to the latent's channels.
    image_latents: Option<Array5<f32>>,
    batch: usize,
    guidance: f32,
    padding_frames: usize,
}

/// Encodes the condition and computes the position tables.
pub(super) fn begin(
    (transformer, vae): (&TransformerConfig, &VaeConfig),
    components: &mut dyn Components,
    (request, settings): (&Request, &ResolvedRequest),
    text: ArrayD<f32>,
    observer: &mut dyn Observer,
) -> Result<CogVideoXSteps, Error> {
    let shape = super::geometry::latent_shape(settings, (transformer, vae));
    let condition = condition((transformer, vae), components, (request, settings), shape, observer)?;
    let batch = settings.batch();
    let mut fixed = NamedTensors::new();
    fixed.insert(TEXT.to_owned(), Tensor::F32(text));
    let mut image_latents = None;
    match (transformer.conditioning, condition) {
        (Conditioning::Inpaint, Some(condition)) => {
            fixed.insert(INPAINT.to_owned(), Tensor::F32(repeat(&condition, batch)?.into_dyn()));
        }
        (_, condition) => image_latents = condition,
    }
    if transformer.rotary {
        let tables = rotary_tables(&transformer.rotary_config(), shape[1], shape[3], shape[4])?;
        fixed.insert(COS.to_owned(), Tensor::F32(tables.cos.into_dyn()));
        fixed.insert(SIN.to_owned(), Tensor::F32(tables.sin.into_dyn()));
    }
    if transformer.ofs {
        fixed.insert(OFS.to_owned(), Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), OFS_VALUE)));
    }
    let guidance = settings.guidance_scale as f32;
    Ok(CogVideoXSteps { fixed, image_latents, batch, guidance, padding_frames: settings.padding_frames })
}

impl Steps for CogVideoXSteps {
    fn fixed(&self) -> &NamedTensors {
        &self.fixed
    }

    fn shared(&self) -> &'static [&'static str] {
        &[COS, SIN, OFS]
    }

    fn timesteps(&self, timesteps: &[f64]) -> NamedTensors {
        let timesteps = ArrayD::from_shape_fn(IxDyn(&[timesteps.len()]), |at| timesteps[at[0]] as i64);
        NamedTensors::from([(TIMESTEP.to_owned(), Tensor::I64(timesteps))])
    }

    fn inputs(&self, latents: &Array5<f32>, timestep: f64) -> Result<NamedTensors, Error> {
        let hidden = match &self.image_latents {
            Some(image) => repeat(&join(&[latents.view(), image.view()], 2)?, self.batch)?,
            None => repeat(latents, self.batch)?,
        };
        let mut inputs = NamedTensors::from([(HIDDEN.to_owned(), Tensor::F32(hidden.into_dyn()))]);
        inputs.extend(self.timesteps(&vec![timestep; self.batch]));
        Ok(inputs)
    }

    fn guidance(&self, _timestep: f64) -> f32 {
        self.guidance
    }

    fn finish(&self, latents: Array5<f32>) -> Array5<f32> {
        latents.slice_axis(Axis(1), Slice::from(self.padding_frames..)).to_owned()
    }
}

/// What follows or accompanies the noisy latent, `[1, T, channels, h, w]`: nothing, the image's latent, or mask and
/// masked video.
fn condition(
    (transformer, vae): (&TransformerConfig, &VaeConfig),
    components: &mut dyn Components,
    (request, settings): (&Request, &ResolvedRequest),
    shape: [usize; 5],
    observer: &mut dyn Observer,
) -> Result<Option<Array5<f32>>, Error> {
    match (transformer.conditioning, &request.image) {
        (Conditioning::Text, _) | (Conditioning::Image, None) => Ok(None),
        (Conditioning::Image, Some(image)) => {
            image_latents(vae, components, image, settings, shape, observer).map(Some)
        }
        // Text alone on an inpainting model: nothing is known, and the official pipeline encodes nothing.
        (Conditioning::Inpaint, None) => {
            Ok(Some(Array5::zeros([shape[0], shape[1], shape[2] + 1, shape[3], shape[4]])))
        }
        (Conditioning::Inpaint, Some(image)) => {
            inpaint_latents(vae, components, image, (request, settings), observer).map(Some)
        }
    }
}

/// One frame of the target size in [-1, 1], `[1, 3, 1, H, W]`.
fn first_frame(image: &Frames, settings: &ResolvedRequest, filter: Filter) -> Result<Array5<f32>, Error> {
    let bytes = image.iter().next().unwrap_or_default();
    let size = (settings.width, settings.height);
    let resized = resize_rgb(bytes, (image.width(), image.height()), size, filter)?;
    Ok(frames_to_pixels(&Frames::new(size.0, size.1, resized, None)?, true))
}

/// diffusers' image-to-video: the mode of the image's latent, then zeros.
///
/// diffusers draws a sample where this takes the mode; the encoder's variance is tiny.
fn image_latents(
    vae: &VaeConfig,
    components: &mut dyn Components,
    image: &Frames,
    settings: &ResolvedRequest,
    shape: [usize; 5],
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, Error> {
    let pixels = first_frame(image, settings, Filter::Lanczos)?;
    let moments = vae.encode(components, &pixels, Phase::EncodeCondition, observer)?;
    let scale = if vae.invert_scale_latents { 1.0 / vae.scaling_factor } else { vae.scaling_factor } as f32;
    let image = moments.mean.permuted_axes([0, 2, 1, 3, 4]).mapv(|x| scale * x);
    let padding = Array5::zeros([1, shape[1].saturating_sub(image.len_of(Axis(1))), shape[2], shape[3], shape[4]]);
    Ok(join(&[image.view(), padding.view()], 1)?)
}

/// CogVideoX-Fun's inpainting: a mask channel and the latent of the video of which only the first frame is known.
fn inpaint_latents(
    vae: &VaeConfig,
    components: &mut dyn Components,
    image: &Frames,
    (request, settings): (&Request, &ResolvedRequest),
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, Error> {
    let mut frame = first_frame(image, settings, Filter::Bicubic)?;
    augment(&mut frame, request, settings)?;
    let mut video = Array5::from_elem([1, 3, settings.num_frames, settings.height, settings.width], -1.0);
    video.slice_mut(s![.., .., 0..1, .., ..]).assign(&frame);
    let moments = vae.encode(components, &video, Phase::EncodeCondition, observer)?;
    let scale = vae.scaling_factor as f32;
    let masked = moments.mean.permuted_axes([0, 2, 1, 3, 4]).mapv(|x| x * scale);
    // 1 where the frame is known. The mask, too, is multiplied by the scaling factor.
    let (_, frames, _, height, width) = masked.dim();
    let mut mask = Array5::zeros([1, frames, 1, height, width]);
    mask.slice_axis_mut(Axis(1), Slice::from(0..1)).fill(scale);
    Ok(join(&[mask.view(), masked.view()], 2)?)
}

/// Adds noise to the first frame, except where it is exactly -1 (black).
fn augment(frame: &mut Array5<f32>, request: &Request, settings: &ResolvedRequest) -> Result<(), RequestError> {
    let strength = settings.noise_aug_strength as f32;
    if strength == 0.0 {
        return Ok(());
    }
    let noise = match &request.augmentation_noise {
        None => array5(standard_normal(settings.seed, NoisePurpose::ConditionAugmentation, frame.shape()))?,
        Some(noise) => {
            let (_, _, frames, height, width) = noise.dim();
            if noise.shape()[..2] != [1, 3] || frames == 0 || (height, width) != (settings.height, settings.width) {
                let (found, expected) = (format!("{:?}", noise.shape()), format!("{:?}", frame.shape()));
                return Err(RequestError::part("the augmentation noise", found, expected));
            }
            noise.slice(s![.., .., 0..1, .., ..]).to_owned()
        }
    };
    frame.zip_mut_with(&noise, |x, &n| {
        if *x != -1.0 {
            *x += n * strength;
        }
    });
    Ok(())
}
