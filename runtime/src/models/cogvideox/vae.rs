//! CogVideoX's 3D causal autoencoder.
//!
//! Group norms see one chunk of one tile, so results depend on the cuts: they are those of diffusers and CogVideoX-Fun
//! (`_encode`, `_decode`, `tiled_encode`, `tiled_decode`).

use std::ops::Range;

use ndarray::Array5;

use super::config::{Chunking, DecodeChunks, VaeConfig};
use crate::components::{ComponentError, Components, VAE_DECODER, VAE_ENCODER};
use crate::events::{Observer, Phase};
use crate::models::chunks::{ChunkLayout, Cut, Cuts, DECODER, ENCODER};
use crate::models::vae::{Ask, Moments, Take, Vae, VaeError, VaeNeeds};

impl Vae for VaeConfig {
    fn encode(
        &self,
        components: &mut dyn Components,
        pixels: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Moments, VaeError> {
        let (batch, channels, frames, height, width) = pixels.dim();
        let ratio = self.spatial_compression_ratio;
        if channels != 3 || pixels.is_empty() || height < ratio || width < ratio {
            let expected = format!("x [batch, 3, frames, height >= {ratio}, width >= {ratio}]");
            return Err(VaeError::Input { component: VAE_ENCODER, expected, found: pixels.shape().to_vec() });
        }
        let shape = [batch, channels, frames, height, width];
        let cuts = encoder_cuts(self, height, width)?;
        let tiled = tiled(self)
            .and_then(|tiled| Some(encoder_layout(&tiled, shape, encoder_cuts(&tiled, height, width).ok()?)));
        let layout = encoder_layout(self, shape, cuts);
        Ok(ENCODER.run((&layout, tiled.as_ref()), components, pixels, phase, observer)?.into())
    }

    /// The latents are divided by the scaling factor.
    fn decode(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError> {
        let (layout, tiled) = decoding(self, latents)?;
        DECODER.run((&layout, tiled.as_ref()), components, latents, phase, observer)
    }

    fn decode_each(
        &self,
        components: &mut dyn Components,
        latents: &Array5<f32>,
        progress: (Phase, &mut dyn Observer),
        take: &mut Take<'_>,
    ) -> Result<(), VaeError> {
        let (layout, tiled) = decoding(self, latents)?;
        DECODER.each((&layout, tiled.as_ref()), components, latents, progress, take)
    }

    fn needs(&self, component: &'static str, shape: [usize; 5], ask: &mut Ask<'_>) -> Result<VaeNeeds, ComponentError> {
        if component == VAE_DECODER {
            return DECODER.needs(&decoder_layout(self, shape), (shape, true), ask);
        }
        let [.., height, width] = shape;
        // What cannot be cut is refused later, with its reason.
        let cuts = encoder_cuts(self, height, width).unwrap_or_else(|_| Cuts::whole(height, width));
        ENCODER.needs(&encoder_layout(self, shape, cuts), (shape, false), ask)
    }

    fn normalized(&self, latents: Array5<f32>) -> Array5<f32> {
        latents * self.scaling_factor as f32
    }

    fn sample_size(&self) -> (usize, usize) {
        (self.sample_width, self.sample_height)
    }

    fn is_tiled(&self) -> bool {
        self.tiling.enabled
    }
}

/// How these latents are decoded, and how with tiles, if that is another way.
fn decoding(config: &VaeConfig, latents: &Array5<f32>) -> Result<(ChunkLayout, Option<ChunkLayout>), VaeError> {
    let (batch, channels, frames, height, width) = latents.dim();
    if channels != config.latent_channels || latents.is_empty() {
        let expected = format!("z [batch, {}, frames, height, width]", config.latent_channels);
        return Err(VaeError::Input { component: VAE_DECODER, expected, found: latents.shape().to_vec() });
    }
    let shape = [batch, channels, frames, height, width];
    Ok((decoder_layout(config, shape), tiled(config).map(|tiled| decoder_layout(&tiled, shape))))
}

/// The same with tiles, if it has none and they would join.
fn tiled(config: &VaeConfig) -> Option<VaeConfig> {
    let mut tiled = config.clone();
    tiled.tiling.enabled = true;
    (!config.tiling.enabled && tiled.check().is_ok()).then_some(tiled)
}

fn encoder_layout(config: &VaeConfig, [batch, _, frames, height, width]: [usize; 5], cuts: Cuts) -> ChunkLayout {
    let (space, time) = (config.spatial_compression_ratio, config.temporal_compression_ratio);
    let output =
        [batch, 2 * config.latent_channels, frames.div_ceil(time), height.div_ceil(space), width.div_ceil(space)];
    ChunkLayout { chunks: encode_chunks(frames.max(1), config.chunking.encode_frames), cuts, output }
}

fn decoder_layout(config: &VaeConfig, [batch, _, frames, height, width]: [usize; 5]) -> ChunkLayout {
    let (space, time) = (config.spatial_compression_ratio, config.temporal_compression_ratio);
    let output = [batch, 3, (frames * time).max(time) - time + 1, height * space, width * space];
    let chunks = decode_chunks(frames.max(1), &config.chunking);
    ChunkLayout { chunks, cuts: decoder_cuts(config, height, width), output }
}

/// Frames per encoder call: `frames mod size` joins the first of `frames / size` calls, at least one.
fn encode_chunks(frames: usize, size: usize) -> Vec<Range<usize>> {
    let rest = frames % size;
    (0..(frames / size).max(1))
        .map(|i| if i == 0 { 0..(size + rest).min(frames) } else { size * i + rest..size * (i + 1) + rest })
        .collect()
}

/// Latent frames per decoder call.
fn decode_chunks(frames: usize, chunking: &Chunking) -> Vec<Range<usize>> {
    match chunking.decode {
        DecodeChunks::Diffusers => encode_chunks(frames, 2),
        DecodeChunks::Fun => {
            std::iter::once(0..1).chain((1..frames).step_by(2).map(|i| i..(i + 2).min(frames))).collect()
        }
    }
}

fn encoder_cuts(config: &VaeConfig, height: usize, width: usize) -> Result<Cuts, VaeError> {
    let (tiling, ratio) = (&config.tiling, config.spatial_compression_ratio);
    let (tile_height, tile_width) = (tiling.tile_sample_min_height, tiling.tile_sample_min_width);
    if !tiling.enabled || (width <= tile_width && height <= tile_height) {
        return Ok(Cuts::whole(height, width));
    }
    let cut = |extent, tile: usize, overlap| {
        let cut = Cut::tiles(extent, tile, tile / ratio, overlap);
        match cut.windows.iter().find(|w| w.len() < ratio) {
            Some(window) => Err(VaeError::Tile { extent, rest: window.len(), ratio }),
            None => Ok(cut),
        }
    };
    Ok(Cuts {
        rows: cut(height, tile_height, tiling.tile_overlap_factor_height)?,
        columns: cut(width, tile_width, tiling.tile_overlap_factor_width)?,
    })
}

fn decoder_cuts(config: &VaeConfig, height: usize, width: usize) -> Cuts {
    let (tiling, ratio) = (&config.tiling, config.spatial_compression_ratio);
    let (tile_height, tile_width) = (tiling.tile_sample_min_height, tiling.tile_sample_min_width);
    if !tiling.enabled || (width <= tile_width / ratio && height <= tile_height / ratio) {
        return Cuts::whole(height, width);
    }
    Cuts {
        rows: Cut::tiles(height, tile_height / ratio, tile_height, tiling.tile_overlap_factor_height),
        columns: Cut::tiles(width, tile_width / ratio, tile_width, tiling.tile_overlap_factor_width),
    }
}

#[cfg(test)]
mod tests;
