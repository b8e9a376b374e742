//! What images become: latents beside or in place of the noise, and pixels for the image encoder.

use ndarray::{Array4, Array5, Axis, s};

use super::config::{ImageEncoderConfig, VaeConfig};
use crate::components::Components;
use crate::error::Error;
use crate::events::{Observer, Phase};
use crate::media::resize::{Filter, resize_rgb_13};
use crate::media::video::{Frames, frames_to_pixels};
use crate::models::arrays::join;
use crate::models::vae::Vae;
use crate::request::ResolvedRequest;

/// The normalised latent `[1, C, 1, h, w]` of an image.
pub(super) fn first_frame(
    vae: &VaeConfig,
    components: &mut dyn Components,
    (image, settings): (&Frames, &ResolvedRequest),
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, Error> {
    let pixels = stretched(image, settings)?;
    let moments = vae.encode(components, &pixels, Phase::EncodeCondition, observer)?;
    Ok(vae.normalized(moments.mean))
}

/// Mask and normalised latent of a video of which only the first, or the first and the last frame are known,
/// `[1, ratio + C, T, h, w]`. Other frames are grey.
pub(super) fn channels(
    vae: &VaeConfig,
    components: &mut dyn Components,
    (first, last): (&Frames, Option<&Frames>),
    settings: &ResolvedRequest,
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, Error> {
    let frames = settings.num_frames;
    let mut video = Array5::zeros([1, 3, frames, settings.height, settings.width]);
    video.slice_mut(s![.., .., 0..1, .., ..]).assign(&stretched(first, settings)?);
    if let Some(last) = last {
        video.slice_mut(s![.., .., frames - 1.., .., ..]).assign(&stretched(last, settings)?);
    }
    let moments = vae.encode(components, &video, Phase::EncodeCondition, observer)?;
    let latents = vae.normalized(moments.mean);
    let (_, _, times, height, width) = latents.dim();
    let ratio = vae.scale_factor_temporal;
    // A channel for each pixel frame of a latent frame: 1 where it is known. The first latent frame has one pixel frame, which
    // counts for all.
    let mut mask = Array5::zeros([1, ratio, times, height, width]);
    mask.slice_mut(s![.., .., 0, .., ..]).fill(1.0);
    if last.is_some() {
        mask.slice_mut(s![.., ratio - 1, times - 1, .., ..]).fill(1.0);
    }
    Ok(join(&[mask.view(), latents.view()], 1)?)
}

/// One frame of the target size in [-1, 1], `[1, 3, 1, H, W]`; the sides are stretched.
fn stretched(image: &Frames, settings: &ResolvedRequest) -> Result<Array5<f32>, Error> {
    let bytes = image.iter().next().unwrap_or_default();
    let size = (settings.width, settings.height);
    let resized = resize_rgb_13(bytes, (image.width(), image.height()), size, Filter::Lanczos)?;
    Ok(frames_to_pixels(&Frames::new(size.0, size.1, resized, None)?, true))
}

impl ImageEncoderConfig {
    /// Images as the encoder takes them, `[images, 3, height, width]`.
    pub(super) fn pixels(&self, images: &[&Frames]) -> Result<Array4<f32>, Error> {
        let [height, width] = self.crop_size;
        let mut pixels = Array4::zeros([images.len(), 3, height, width]);
        for (image, mut pixels) in images.iter().zip(pixels.outer_iter_mut()) {
            let bytes = image.iter().next().unwrap_or_default();
            let size = self.resized(image.width(), image.height());
            let resized = resize_rgb_13(bytes, (image.width(), image.height()), size, self.filter()?)?;
            // Unit range times 255 is a byte again.
            let resized = frames_to_pixels(&Frames::new(size.0, size.1, resized, None)?, false);
            let (top, left) = ((size.1 - height) / 2, (size.0 - width) / 2);
            let cut = resized.slice(s![0, .., 0, top..top + height, left..left + width]);
            pixels.assign(&cut);
            for (channel, mut pixels) in pixels.axis_iter_mut(Axis(0)).enumerate() {
                let (mean, std) = (self.image_mean[channel] as f32, self.image_std[channel] as f32);
                let scale = (self.rescale_factor * 255.0) as f32;
                pixels.mapv_inplace(|x| (x * scale - mean) / std);
            }
        }
        Ok(pixels)
    }

    /// Width and height with the shorter side as it should be.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        let long = |long: usize, short: usize| self.shortest_edge * long / short.max(1);
        if width <= height {
            (self.shortest_edge, long(height, width))
        } else {
            (long(width, height), self.shortest_edge)
        }
    }
}
