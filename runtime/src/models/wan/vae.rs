//! Wan's causal autoencoder: the first frame alone, then groups of as many frames as a latent frame has.
//!
//! Its convolutions hand on what they need of earlier frames, so that the result does not depend on the cuts.

use std::ops::Range;

use ndarray::{Array5, Axis};

use super::config::VaeConfig;
use crate::components::{ComponentError, Components, VAE_DECODER, VAE_ENCODER};
use crate::events::{Observer, Phase};
use crate::models::chunks::{ChunkLayout, Cuts, DECODER, ENCODER};
use crate::models::vae::{Ask, Moments, Take, Vae, VaeError, VaeNeeds};

/// Width and height of published models' training videos.
const SAMPLE_SIZE: (usize, usize) = (832, 480);

impl Vae for VaeConfig {
    fn encode(
        &self,
        components: &mut dyn Components,
        pixels: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Moments, VaeError> {
        let (batch, channels, frames, height, width) = pixels.dim();
        let (space, time) = (self.scale_factor_spatial, self.scale_factor_temporal);
        let fits = |side: usize| side > 0 && side.is_multiple_of(space);
        if channels != 3 || batch == 0 || frames % time != 1 % time || !fits(height) || !fits(width) {
            let expected = format!("x [batch, 3, {time}n + 1 frames, height and width in multiples of {space}]");
            return Err(VaeError::Input { component: VAE_ENCODER, expected, found: pixels.shape().to_vec() });
        }
        let layout = self.encoder_layout([batch, channels, frames, height, width]);
        Ok(ENCODER.run((&layout, None), components, pixels, phase, observer)?.into())
    }

    fn decode(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError> {
        DECODER.run((&self.decoding(latents)?, None), components, latents, phase, observer)
    }

    fn decode_each(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        progress: (Phase, &mut dyn Observer),
        take: &mut Take<'_>,
    ) -> Result<(), VaeError> {
        DECODER.each((&self.decoding(latents)?, None), components, latents, progress, take)
    }

    fn needs(&self, component: &'static str, shape: [usize; 5], ask: &mut Ask<'_>) -> Result<VaeNeeds, ComponentError> {
        if component == VAE_DECODER {
            return DECODER.needs(&self.decoder_layout(shape), (shape, true), ask);
        }
        ENCODER.needs(&self.encoder_layout(shape), (shape, false), ask)
    }

    fn normalized(&self, mut latents: Array5<f32>) -> Array5<f32> {
        self.each_channel(&mut latents, |x, mean, std| (x - mean) / std);
        latents
    }

    fn sample_size(&self) -> (usize, usize) {
        SAMPLE_SIZE
    }

    fn is_tiled(&self) -> bool {
        false
    }
}

impl VaeConfig {
    /// What [`Vae::normalized`] undoes: the decoder's latents.
    pub(super) fn denormalized(&self, mut latents: Array5<f32>) -> Array5<f32> {
        self.each_channel(&mut latents, |x, mean, std| x * std + mean);
        latents
    }

    /// Replaces each value by what `change` makes of it and of its channel's mean and standard deviation.
    fn each_channel(&self, latents: &mut Array5<f32>, change: impl Fn(f32, f32, f32) -> f32) {
        for (mut channel, (&mean, &std)) in
            latents.axis_iter_mut(Axis(1)).zip(self.latents_mean.iter().zip(&self.latents_std))
        {
            channel.mapv_inplace(|x| change(x, mean as f32, std as f32));
        }
    }

    fn decoding(&self, latents: &Array5<f32>) -> Result<ChunkLayout, VaeError> {
        let (batch, channels, frames, height, width) = latents.dim();
        if channels != self.z_dim || latents.is_empty() {
            let expected = format!("z [batch, {}, frames, height, width]", self.z_dim);
            return Err(VaeError::Input { component: VAE_DECODER, expected, found: latents.shape().to_vec() });
        }
        Ok(self.decoder_layout([batch, channels, frames, height, width]))
    }

    fn encoder_layout(&self, [batch, _, frames, height, width]: [usize; 5]) -> ChunkLayout {
        let (space, time) = (self.scale_factor_spatial, self.scale_factor_temporal);
        let output = [batch, 2 * self.z_dim, frames.div_ceil(time), height / space, width / space];
        ChunkLayout { chunks: chunks(frames, time), cuts: Cuts::whole(height, width), output }
    }

    fn decoder_layout(&self, [batch, _, frames, height, width]: [usize; 5]) -> ChunkLayout {
        let (space, time) = (self.scale_factor_spatial, self.scale_factor_temporal);
        let output = [batch, 3, (frames * time).max(time) - time + 1, height * space, width * space];
        ChunkLayout { chunks: chunks(frames, 1), cuts: Cuts::whole(height, width), output }
    }
}

/// The first frame, then `size` at a time.
fn chunks(frames: usize, size: usize) -> Vec<Range<usize>> {
    std::iter::once(0..1).chain((1..frames).step_by(size).map(|i| i..(i + size).min(frames))).collect()
}
