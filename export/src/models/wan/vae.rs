//! `AutoencoderKLWan`: the 3-D causal autoencoders of Wan 2.1 and of Wan 2.2's small model.
//!
//! Follows diffusers' `autoencoder_kl_wan.py`. Encoder and decoder become two components with two graphs each: `first`
//! starts a video with its first frame, `rest` continues it with the causal caches of the previous chunk
//! (`conv_cache.<module>` in, `next_conv_cache.<module>` out). Pixels have three channels in both versions: the patches
//! of Wan 2.2 are made and joined in the graphs.

mod cells;
mod layers;
pub(super) mod native;

use serde::Deserialize;
use v2l_graphs::{DataType, Model};

use self::layers::Shortcut;
use crate::models::autoencoder::{self, Chunk, Chunked, video};
use crate::{Checkpoint, Component, ExportError};

/// The class that `config.json` names.
pub const CLASS: &str = "AutoencoderKLWan";

/// Pixel frames that become one latent frame, fixed in `AutoencoderKLWan`.
pub const FRAMES: usize = 4;

/// Channels of a pixel.
const COLOURS: usize = 3;

/// Wan 2.1's means of the latent's channels.
const MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
/// Wan 2.1's deviations of the latent's channels.
const DEVIATION: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

/// `config.json` of the autoencoder; absent keys take diffusers' defaults, those of Wan 2.1.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub base_dim: usize,
    pub decoder_base_dim: Option<usize>,
    pub z_dim: usize,
    pub dim_mult: Vec<usize>,
    pub num_res_blocks: usize,
    pub attn_scales: Vec<f64>,
    pub temperal_downsample: Vec<bool>,
    pub latents_mean: Vec<f64>,
    pub latents_std: Vec<f64>,
    pub is_residual: bool,
    pub in_channels: usize,
    pub out_channels: usize,
    pub patch_size: Option<usize>,
    pub scale_factor_temporal: Option<usize>,
    pub scale_factor_spatial: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            latents_mean: MEAN.into(),
            latents_std: DEVIATION.into(),
            is_residual: false,
            in_channels: COLOURS,
            out_channels: COLOURS,
            patch_size: None,
            scale_factor_temporal: Some(4),
            scale_factor_spatial: Some(8),
        }
    }
}

impl Config {
    /// Side of the patches that pixels are taken in.
    fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// Pixels per latent cell along one side.
    pub fn spatial_factor(&self) -> usize {
        self.patch() << (self.dim_mult.len() - 1)
    }

    /// Channels before and after each block of the encoder.
    fn encoder_widths(&self) -> Vec<usize> {
        [1].iter().chain(&self.dim_mult).map(|factor| self.base_dim * factor).collect()
    }

    /// Channels before and after each block of the decoder, as `dim_mult` names them.
    fn decoder_widths(&self) -> Vec<usize> {
        let base = self.decoder_base_dim.unwrap_or(self.base_dim);
        self.dim_mult.last().into_iter().chain(self.dim_mult.iter().rev()).map(|factor| base * factor).collect()
    }

    /// True if block `i` of the encoder halves the time axis; those of the decoder double it in reverse order.
    fn halves_time(&self, i: usize) -> bool {
        self.temperal_downsample.get(i).copied().unwrap_or(false)
    }

    fn validate(&self) -> Result<(), ExportError> {
        let levels = self.dim_mult.len();
        if !(1..=8).contains(&levels) || self.temperal_downsample.len() + 1 != levels {
            return Err(unsupported(
                &format!("{levels} dim_mult with {} temperal_downsample", self.temperal_downsample.len()),
                "expected 1 to 8, and one less of the other",
            ));
        }
        let factors = self.dim_mult.iter().map(|&factor| ("dim_mult", factor));
        let sizes = [
            ("base_dim", self.base_dim),
            ("decoder_base_dim", self.decoder_base_dim.unwrap_or(1)),
            ("z_dim", self.z_dim),
            ("num_res_blocks", self.num_res_blocks),
            ("patch_size", self.patch()),
        ];
        for (name, value) in sizes.into_iter().chain(factors) {
            if !(1..=1 << 12).contains(&value) {
                return Err(unsupported(&format!("{name} {value}"), "expected 1 to 4096"));
            }
        }
        if !self.attn_scales.is_empty() {
            return Err(unsupported(&format!("attn_scales {:?}", self.attn_scales), "expected an empty list"));
        }
        let channels = COLOURS * self.patch() * self.patch();
        if self.in_channels != channels || self.out_channels != channels {
            return Err(unsupported(
                &format!("in_channels {} and out_channels {}", self.in_channels, self.out_channels),
                format!("patch_size {} makes both {channels}", self.patch()),
            ));
        }
        self.check_factors()?;
        self.check_statistics()?;
        if self.is_residual { self.check_shortcuts() } else { Ok(()) }
    }

    /// What the file says of the compression must be what the blocks do.
    fn check_factors(&self) -> Result<(), ExportError> {
        let temporal = 1usize << self.temperal_downsample.iter().filter(|halves| **halves).count();
        for (name, said, found, expected) in [
            ("temperal_downsample", None, temporal, FRAMES),
            ("scale_factor_temporal", self.scale_factor_temporal, temporal, FRAMES),
            ("scale_factor_spatial", self.scale_factor_spatial, self.spatial_factor(), self.spatial_factor()),
        ] {
            let said = said.unwrap_or(found);
            if said != expected {
                return Err(unsupported(
                    &format!("{name} of a factor {said}"),
                    format!("expected a factor {expected}"),
                ));
            }
        }
        Ok(())
    }

    fn check_statistics(&self) -> Result<(), ExportError> {
        for (name, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim {
                return Err(unsupported(
                    &format!("{name} of {} values", values.len()),
                    format!("z_dim {} needs as many", self.z_dim),
                ));
            }
        }
        match self.latents_std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            Some(std) => Err(unsupported(&format!("latents_std {std}"), "expected numbers above 0")),
            None => Ok(()),
        }
    }

    /// Shortcuts average or repeat whole groups of channels.
    fn check_shortcuts(&self) -> Result<(), ExportError> {
        let down = self.encoder_widths();
        let up = self.decoder_widths();
        for i in 0..self.dim_mult.len() {
            let last = i + 1 == self.dim_mult.len();
            let down = Shortcut::new(down[i], down[i + 1], self.halves_time(i), !last);
            let up = Shortcut::new(up[i], up[i + 1], !last && self.halves_time(self.dim_mult.len() - 2 - i), !last);
            if !down.averages_groups() || !(last || up.repeats_groups()) {
                return Err(unsupported(
                    &format!("is_residual with base_dim {}, dim_mult {:?}", self.base_dim, self.dim_mult),
                    format!("channels of block {i} do not fall into groups"),
                ));
            }
        }
        Ok(())
    }
}

fn unsupported(what: &str, reason: impl Into<String>) -> ExportError {
    ExportError::Unsupported { what: format!("{CLASS}: {what}"), reason: reason.into() }
}

/// Exports the components `vae_encoder` (`x` → `mean`, `logvar`) and `vae_decoder` (`z` → `sample`).
///
/// `x` is `[B, 3, F, H, W]` in [−1, 1], `mean` and `logvar` `[B, z, T, h, w]` (before any clamp), `z` likewise, `sample`
/// `[B, 3, F, H, W]`, clamped to [−1, 1]. Mean and deviation of the latent are not applied. The graph `first` takes one
/// frame; `rest` takes `4·k` pixel frames, or `k` latent frames.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub fn export(config: &Config, checkpoint: &Checkpoint) -> Result<[Component; 2], ExportError> {
    config.validate()?;
    let (encoder, decoder) = (|chunk| encoder(config, checkpoint, chunk), |chunk| decoder(config, checkpoint, chunk));
    autoencoder::components(CLASS, checkpoint, encoder, decoder)
}

fn encoder(config: &Config, checkpoint: &Checkpoint, chunk: Chunk) -> Result<Model, ExportError> {
    let mut net = Chunked::new("vae_encoder", "encoder", checkpoint, chunk, config.patch());
    let x = net.b.input("x", DataType::Float, video(COLOURS, false, chunk == Chunk::First));
    let x = cells::from_pixels(&mut net.b, &x, COLOURS, config.patch());
    let widths = config.encoder_widths();
    let mut x = net.causal_conv("conv_in", &x, [widths[0], config.in_channels])?;
    let last = config.dim_mult.len() - 1;
    // The blocks of Wan 2.1 stand in one list.
    let mut place = 0;
    for (i, ends) in widths.windows(2).enumerate() {
        let (start, out) = (x.clone(), ends[1]);
        for j in 0..config.num_res_blocks {
            let path = match config.is_residual {
                true => format!("down_blocks.{i}.resnets.{j}"),
                false => format!("down_blocks.{place}"),
            };
            x = net.resnet(&path, &x, if j == 0 { ends[0] } else { out }, out)?;
            place += 1;
        }
        if i < last {
            let path = match config.is_residual {
                true => format!("down_blocks.{i}.downsampler"),
                false => format!("down_blocks.{place}"),
            };
            x = net.downsample(&path, &x, out, config.halves_time(i))?;
            place += 1;
        }
        if config.is_residual {
            let shortcut = Shortcut::new(ends[0], out, config.halves_time(i), i < last);
            x = net.add_averaged(&format!("down_blocks.{i}"), &x, &start, shortcut);
        }
    }
    let width = widths[last + 1];
    let x = net.mid_block(&x, width)?;
    let moments = net.head(&x, [2 * config.z_dim, width])?;
    let moments = net.quant_conv("quant_conv", &moments, 2 * config.z_dim)?;
    let parts = net.b.split(&moments, 1, 2);
    for (name, part) in ["mean", "logvar"].iter().zip(&parts) {
        net.b.output(name, part, DataType::Float, video(config.z_dim, true, chunk == Chunk::First));
    }
    net.finish("vae_encoder")
}

fn decoder(config: &Config, checkpoint: &Checkpoint, chunk: Chunk) -> Result<Model, ExportError> {
    let mut net = Chunked::new("vae_decoder", "decoder", checkpoint, chunk, config.spatial_factor());
    let z = net.b.input("z", DataType::Float, video(config.z_dim, true, chunk == Chunk::First));
    let z = net.quant_conv("post_quant_conv", &z, config.z_dim)?;
    let widths = config.decoder_widths();
    let x = net.causal_conv("conv_in", &z, [widths[0], config.z_dim])?;
    let mut x = net.mid_block(&x, widths[0])?;
    let last = config.dim_mult.len() - 1;
    for (i, ends) in widths.windows(2).enumerate() {
        let (start, out) = (x.clone(), ends[1]);
        // Upsampling halves the channels in Wan 2.1.
        let input = if i > 0 && !config.is_residual { ends[0] / 2 } else { ends[0] };
        for j in 0..=config.num_res_blocks {
            x = net.resnet(&format!("up_blocks.{i}.resnets.{j}"), &x, if j == 0 { input } else { out }, out)?;
        }
        if i == last {
            break;
        }
        let doubles_time = config.halves_time(last - 1 - i);
        if config.is_residual {
            x = net.upsample(&format!("up_blocks.{i}.upsampler"), &x, [out, out], doubles_time)?;
            let shortcut = Shortcut::new(ends[0], out, doubles_time, true);
            x = net.add_repeated(&format!("up_blocks.{i}"), &x, &start, shortcut);
        } else {
            x = net.upsample(&format!("up_blocks.{i}.upsamplers.0"), &x, [out / 2, out], doubles_time)?;
        }
    }
    let x = net.head(&x, [config.out_channels, widths[last + 1]])?;
    let x = cells::to_pixels(&mut net.b, &x, COLOURS, config.patch());
    let (low, high) = (net.b.float(-1.0), net.b.float(1.0));
    let sample = net.b.op("Clip", &[&x, &low, &high]);
    net.b.output("sample", &sample, DataType::Float, video(COLOURS, false, chunk == Chunk::First));
    net.finish("vae_decoder")
}

#[cfg(test)]
mod tests;
