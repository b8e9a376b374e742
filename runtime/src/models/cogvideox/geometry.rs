//! From a video's size to its latent's.

use super::config::{Conditioning, TransformerConfig, VaeConfig};
use crate::request::{RequestError, ResolvedRequest};
use crate::wording::{HEIGHT, WIDTH};

/// `[1, T, C, h, w]`, padding frames included.
pub(super) fn latent_shape(
    settings: &ResolvedRequest,
    (transformer, vae): (&TransformerConfig, &VaeConfig),
) -> [usize; 5] {
    let frames = latent_frames(settings.num_frames, transformer) + settings.padding_frames;
    let ratio = vae.spatial_compression_ratio;
    [1, frames, vae.latent_channels, settings.height / ratio, settings.width / ratio]
}

/// Refuses sizes for which the model has no positions: learned ones are for one size, and the tables of CogVideoX 1.5 end with the
/// training resolution.
pub(super) fn check_positions(
    settings: &ResolvedRequest,
    (transformer, vae): (&TransformerConfig, &VaeConfig),
) -> Result<(), RequestError> {
    let (width, height) = (settings.width, settings.height);
    let (ratio, patch) = (vae.spatial_compression_ratio, transformer.patch_size);
    let (sample_width, sample_height) = (transformer.sample_width * ratio, transformer.sample_height * ratio);
    if transformer.learned_positions && (width, height) != (sample_width, sample_height) {
        return Err(RequestError::LearnedSize { width, height, sample_width, sample_height });
    }
    if !transformer.rotary || transformer.patch_size_t.is_none() {
        return Ok(());
    }
    for (what, option, key, found, sample) in [
        ("the height", &HEIGHT, "`sample_height`", height, transformer.sample_height),
        ("the width", &WIDTH, "`sample_width`", width, transformer.sample_width),
    ] {
        let (positions, table) = (found / ratio / patch, sample / patch);
        if positions > table {
            let largest = table * patch * ratio;
            return Err(RequestError::Positions { what, found, positions, table, key, largest, option, remedy: "" });
        }
    }
    Ok(())
}

fn latent_frames(pixel_frames: usize, transformer: &TransformerConfig) -> usize {
    pixel_frames.saturating_sub(1) / transformer.temporal_compression_ratio + 1
}

/// Pixel frames that the model can make, and latent padding frames.
///
/// Frames are cut to 4n + 1. With `patch_size_t` latent frames must divide: diffusers pads them, CogVideoX-Fun
/// (inpainting) cuts more frames off.
pub(super) fn snap(frames: usize, transformer: &TransformerConfig) -> (usize, usize) {
    let ratio = transformer.temporal_compression_ratio;
    let frames = frames.saturating_sub(1) / ratio * ratio + 1;
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
