//! What CogVideoX's sections of a `pipeline.json` hold.

use serde::{Deserialize, Serialize};

use super::rope::{RotaryConfig, RotaryGrid};
use crate::error::{Classified, ErrorClass};
use crate::values::{WrongValue, between, real};
use crate::wording;

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
    /// The positions are learned, for frames of `sample_width` and `sample_height` alone.
    pub learned_positions: bool,
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

    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        let conditioning = format!("{:?}", self.conditioning).to_lowercase();
        let patch =
            self.patch_size_t.map_or_else(|| self.patch_size.to_string(), |n| format!("{n}x{}", self.patch_size));
        format!(
            "conditioning {conditioning}: {} -> {} channels, patch {patch}, {} text tokens{}{}",
            self.in_channels,
            self.out_channels,
            self.max_text_seq_length,
            if self.rotary { ", rotary" } else { "" },
            if self.ofs { ", ofs" } else { "" },
        )
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

    /// The same, switched off if its tiles would not join: what a tile advances by must be a multiple of `ratio`, the
    /// pixels per latent pixel. The defaults of very small models are not.
    #[must_use]
    pub fn off_unless_tiles_join(mut self, ratio: usize) -> Self {
        self.enabled &= ratio > 0
            && tiles_join(self.tile_sample_min_height, ratio, self.tile_overlap_factor_height)
            && tiles_join(self.tile_sample_min_width, ratio, self.tile_overlap_factor_width);
        self
    }
}

impl TransformerConfig {
    pub(super) fn check(&self) -> Result<(), WrongValue> {
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
            return Err(WrongValue::new("transformer.in_channels", &self.in_channels, &expected));
        }
        Ok(())
    }
}

impl VaeConfig {
    /// In a line, for people.
    pub(super) fn describe(&self) -> String {
        let decode = format!("{:?}", self.chunking.decode).to_lowercase();
        let tiling = match self.tiling.enabled {
            true => format!("tiles of {}x{}", self.tiling.tile_sample_min_width, self.tiling.tile_sample_min_height),
            false => "no tiling".to_owned(),
        };
        format!(
            "vae scaling {}, {} channels, 1/{} in space, 1/{} in time, {decode} chunks, {tiling}",
            self.scaling_factor, self.latent_channels, self.spatial_compression_ratio, self.temporal_compression_ratio,
        )
    }

    pub(super) fn check(&self) -> Result<(), WrongValue> {
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

/// True if tiles advance by what is kept of them, in pixels and in latent pixels; otherwise the result would be
/// shifted.
fn tiles_join(tile: usize, ratio: usize, overlap: f64) -> bool {
    let part = |extent: usize, factor: f64| (extent as f64 * factor) as usize;
    let latent = tile / ratio;
    let (stride, latent_stride) = (part(tile, 1.0 - overlap), part(latent, 1.0 - overlap));
    latent_stride > 0
        && stride == (latent - part(latent, overlap).min(latent)) * ratio
        && latent_stride * ratio == tile - part(tile, overlap).min(tile)
}

/// An autoencoder's tiles do not join.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "`{}`: this model's tiles of {}x{} pixels, which overlap by {:.3} and {:.3} of their sides, \
     do not join in latent pixels of {ratio}; leave it out, or change vae.tiling in pipeline.json",
    wording::TILING,
    tiling.tile_sample_min_width,
    tiling.tile_sample_min_height,
    tiling.tile_overlap_factor_width,
    tiling.tile_overlap_factor_height
)]
pub struct TilesError {
    /// The tiles.
    pub tiling: Tiling,
    /// Pixels per latent pixel.
    pub ratio: usize,
}

impl Classified for TilesError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Usage
    }
}

#[cfg(test)]
mod tests;
