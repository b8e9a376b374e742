//! How the transformer is told about the first frame.

use ndarray::{Array5, Axis, Slice, s};

use super::{Components, Conditioning, Observer, Pipeline, PipelineError, Request, Settings, Stage, array5, join};
use crate::media::resize::{Filter, resize_rgb};
use crate::media::video::{Frames, frames_to_pixels};
use crate::models::cogvideox::vae;
use crate::pipeline::noise::{NoisePurpose, standard_normal};

/// What follows or accompanies the noisy latent, `[1, T, channels, h, w]`: nothing, the image's latent, or mask and masked
/// video.
pub(super) fn condition(
    pipeline: &Pipeline,
    components: &mut dyn Components,
    request: &Request,
    settings: &Settings,
    shape: [usize; 5],
    observer: &mut dyn Observer,
) -> Result<Option<Array5<f32>>, PipelineError> {
    match (pipeline.transformer()?.conditioning, &request.image) {
        (Conditioning::Text, _) | (Conditioning::Image, None) => Ok(None),
        (Conditioning::Image, Some(image)) => {
            image_latents(pipeline, components, image, settings, shape, observer).map(Some)
        }
        // Text alone on an inpainting model: nothing is known, and the official pipeline encodes nothing.
        (Conditioning::Inpaint, None) => {
            Ok(Some(Array5::zeros([shape[0], shape[1], shape[2] + 1, shape[3], shape[4]])))
        }
        (Conditioning::Inpaint, Some(image)) => {
            inpaint_latents(pipeline, components, image, request, settings, observer).map(Some)
        }
    }
}

/// One frame of the target size in [-1, 1], `[1, 3, 1, H, W]`.
fn first_frame(image: &Frames, settings: &Settings, filter: Filter) -> Result<Array5<f32>, PipelineError> {
    let bytes = image.iter().next().unwrap_or_default();
    let size = (settings.width, settings.height);
    let resized = resize_rgb(bytes, (image.width(), image.height()), size, filter)?;
    Ok(frames_to_pixels(&Frames::new(size.0, size.1, resized, None)?, true))
}

/// diffusers' image-to-video: the mode of the image's latent, then zeros.
///
/// diffusers draws a sample where this takes the mode; the encoder's variance is tiny.
fn image_latents(
    pipeline: &Pipeline,
    components: &mut dyn Components,
    image: &Frames,
    settings: &Settings,
    shape: [usize; 5],
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, PipelineError> {
    let config = pipeline.vae()?;
    let pixels = first_frame(image, settings, Filter::Lanczos)?;
    let moments = vae::encode(config, components, &pixels, Stage::EncodeCondition, observer)?;
    let scale = if config.invert_scale_latents { 1.0 / config.scaling_factor } else { config.scaling_factor } as f32;
    let image = moments.mean.permuted_axes([0, 2, 1, 3, 4]).mapv(|x| scale * x);
    let padding = Array5::zeros([1, shape[1].saturating_sub(image.len_of(Axis(1))), shape[2], shape[3], shape[4]]);
    join(&[image.view(), padding.view()], 1)
}

/// CogVideoX-Fun's inpainting: a mask channel and the latent of the video of which only the first frame is known.
fn inpaint_latents(
    pipeline: &Pipeline,
    components: &mut dyn Components,
    image: &Frames,
    request: &Request,
    settings: &Settings,
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, PipelineError> {
    let config = pipeline.vae()?;
    let mut frame = first_frame(image, settings, Filter::Bicubic)?;
    augment(&mut frame, request, settings)?;
    let mut video = Array5::from_elem([1, 3, settings.num_frames, settings.height, settings.width], -1.0);
    video.slice_mut(s![.., .., 0..1, .., ..]).assign(&frame);
    let moments = vae::encode(config, components, &video, Stage::EncodeCondition, observer)?;
    let scale = config.scaling_factor as f32;
    let masked = moments.mean.permuted_axes([0, 2, 1, 3, 4]).mapv(|x| x * scale);
    // 1 where the frame is known. The mask, too, is multiplied by the scaling factor.
    let (_, frames, _, height, width) = masked.dim();
    let mut mask = Array5::zeros([1, frames, 1, height, width]);
    mask.slice_axis_mut(Axis(1), Slice::from(0..1)).fill(scale);
    join(&[mask.view(), masked.view()], 2)
}

/// Adds noise to the first frame, except where it is exactly -1 (black).
fn augment(frame: &mut Array5<f32>, request: &Request, settings: &Settings) -> Result<(), PipelineError> {
    let strength = settings.noise_aug_strength as f32;
    if strength == 0.0 {
        return Ok(());
    }
    let noise = match &request.augmentation_noise {
        None => array5(standard_normal(settings.seed, NoisePurpose::ConditionAugmentation, frame.shape()))?,
        Some(noise) => {
            let (_, _, frames, height, width) = noise.dim();
            if noise.shape()[..2] != [1, 3] || frames == 0 || (height, width) != (settings.height, settings.width) {
                return Err(PipelineError::Request {
                    what: "the augmentation noise",
                    found: format!("{:?}", noise.shape()),
                    expected: format!("{:?}", frame.shape()),
                });
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
