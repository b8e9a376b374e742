//! `AutoencoderKLCogVideoX`: the 3-D causal VAE of CogVideoX.
//!
//! Encoder and decoder become two components with two graphs each: `first` starts a video, `rest` continues it with the
//! causal caches of the previous chunk (`conv_cache.<module>` in, `next_conv_cache.<module>` out). Any number of frames
//! goes through either, so that the runtime can follow diffusers' chunking as well as CogVideoX-Fun's.

use serde::Deserialize;
use v2l_graphs::blocks::{self, TimeCache};
use v2l_graphs::{DataType, Model, Value};

use crate::models::autoencoder::{self, Chunk, Chunked, video};
use crate::{Checkpoint, Component, ExportError};

/// The class that `config.json` names.
pub const CLASS: &str = "AutoencoderKLCogVideoX";

/// Epsilon of the norms that `norm_eps` does not reach: `norm_out` and the decoder's spatial norms.
const FIXED_EPS: f32 = 1e-6;

/// `config.json` of the VAE; absent keys take diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub latent_channels: usize,
    pub layers_per_block: usize,
    pub act_fn: String,
    pub norm_eps: f32,
    pub norm_num_groups: usize,
    pub temporal_compression_ratio: f32,
    pub sample_height: usize,
    pub sample_width: usize,
    pub scaling_factor: f32,
    pub shift_factor: Option<f32>,
    pub latents_mean: Option<Vec<f32>>,
    pub latents_std: Option<Vec<f32>>,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub invert_scale_latents: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![128, 256, 256, 512],
            down_block_types: vec!["CogVideoXDownBlock3D".into(); 4],
            up_block_types: vec!["CogVideoXUpBlock3D".into(); 4],
            latent_channels: 16,
            layers_per_block: 3,
            act_fn: "silu".into(),
            norm_eps: 1e-6,
            norm_num_groups: 32,
            temporal_compression_ratio: 4.0,
            sample_height: 480,
            sample_width: 720,
            scaling_factor: 1.152_582_6,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: false,
            use_post_quant_conv: false,
            invert_scale_latents: false,
        }
    }
}

impl Config {
    /// Pixels per latent cell along one side.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// How many of the blocks also halve or double the time axis.
    fn time_levels(&self) -> usize {
        self.temporal_compression_ratio.log2() as usize
    }

    fn validate(&self) -> Result<(), ExportError> {
        let unsupported = |what: String, reason: &str| {
            Err(ExportError::Unsupported { what: format!("{CLASS}: {what}"), reason: reason.into() })
        };
        let blocks = self.block_out_channels.len();
        if blocks == 0 || blocks > 8 || self.down_block_types.len() != blocks || self.up_block_types.len() != blocks {
            return unsupported(
                format!(
                    "{blocks} block_out_channels, {} down and {} up blocks",
                    self.down_block_types.len(),
                    self.up_block_types.len()
                ),
                "expected 1 to 8 of each, and as many of one as of the others",
            );
        }
        if let Some(other) = self.down_block_types.iter().find(|t| *t != "CogVideoXDownBlock3D") {
            return unsupported(format!("down block `{other}`"), "expected `CogVideoXDownBlock3D`");
        }
        if let Some(other) = self.up_block_types.iter().find(|t| *t != "CogVideoXUpBlock3D") {
            return unsupported(format!("up block `{other}`"), "expected `CogVideoXUpBlock3D`");
        }
        if !matches!(self.act_fn.as_str(), "silu" | "swish") {
            return unsupported(format!("act_fn `{}`", self.act_fn), "expected `silu`");
        }
        if self.use_quant_conv || self.use_post_quant_conv {
            return unsupported("use_quant_conv or use_post_quant_conv".into(), "no published CogVideoX VAE has them");
        }
        if self.shift_factor.is_some_and(|s| s != 0.0) || self.latents_mean.is_some() || self.latents_std.is_some() {
            return unsupported("shift_factor, latents_mean or latents_std".into(), "expected scaling_factor alone");
        }
        let divisible = |c: &usize| *c > 0 && c.is_multiple_of(self.norm_num_groups);
        if self.norm_num_groups == 0 || !self.block_out_channels.iter().all(divisible) {
            return unsupported(
                format!("norm_num_groups {} over channels {:?}", self.norm_num_groups, self.block_out_channels),
                "the groups must divide every channel count",
            );
        }
        if !(1.0..=256.0).contains(&self.temporal_compression_ratio) || self.layers_per_block == 0 {
            return unsupported(
                format!(
                    "temporal_compression_ratio {}, layers_per_block {}",
                    self.temporal_compression_ratio, self.layers_per_block
                ),
                "expected a ratio of 1 to 256, and 1 layer or more",
            );
        }
        Ok(())
    }
}

/// Exports the components `vae_encoder` (`x` → `mean`, `logvar`) and `vae_decoder` (`z` → `sample`).
///
/// `x` is `[B, 3, F, H, W]` in [−1, 1], `mean` and `logvar` `[B, 16, T, h, w]` (before any clamp), `z` likewise,
/// `sample` `[B, 3, F, H, W]`; the scaling factor is not applied.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub fn export(config: &Config, checkpoint: &Checkpoint) -> Result<[Component; 2], ExportError> {
    config.validate()?;
    let (encoder, decoder) = (|chunk| encoder(config, checkpoint, chunk), |chunk| decoder(config, checkpoint, chunk));
    autoencoder::components(CLASS, checkpoint, encoder, decoder)
}

/// A graph under construction.
struct Network<'a> {
    net: Chunked<'a>,
    config: &'a Config,
    /// The decoder's latent, which its norms are conditioned on.
    latent: Option<Latent>,
}

struct Latent {
    value: Value,
    /// Time indices of the latent for the current level; `None` while nothing has been upsampled.
    frames: Option<Value>,
}

impl Network<'_> {
    fn causal_conv(&mut self, path: &str, x: &Value, out: usize, input: usize) -> Result<Value, ExportError> {
        let vars = self.net.vars.child(path).child("conv");
        self.net.causal(path, &vars, x, [out, input], TimeCache::RepeatFirst)
    }

    /// Group norm; in the decoder modulated by the latent (`CogVideoXSpatialNorm3D`).
    fn norm(&mut self, path: &str, x: &Value, channels: usize, epsilon: f32) -> Result<Value, ExportError> {
        let groups = self.config.norm_num_groups;
        let vars = self.net.vars.child(path);
        let b = &mut self.net.b;
        let Some(latent) = &self.latent else {
            let (scale, bias) = (vars.get(b, "weight", &[channels])?, vars.get(b, "bias", &[channels])?);
            return Ok(b.scope(path, |b| blocks::group_norm(b, x, groups, &scale, &bias, epsilon)));
        };
        let norm = vars.child("norm_layer");
        let (scale, bias) = (norm.get(b, "weight", &[channels])?, norm.get(b, "bias", &[channels])?);
        let zq_channels = self.config.latent_channels;
        b.scope(path, |b| {
            // A 1×1×1 convolution commutes with nearest-neighbour resizing: it runs on the small latent.
            let mut condition = |name: &str| {
                let vars = vars.child(name).child("conv");
                let weight = vars.get(b, "weight", &[channels, zq_channels, 1, 1, 1])?;
                let bias = vars.get(b, "bias", &[channels])?;
                let projected = blocks::conv3d(b, &latent.value, &weight, &bias);
                Ok::<_, ExportError>(match &latent.frames {
                    None => projected,
                    Some(frames) => {
                        let in_time = b.gather(&projected, frames, 2);
                        blocks::resize_space_like(b, &in_time, channels, x)
                    }
                })
            };
            let (factor, offset) = (condition("conv_y")?, condition("conv_b")?);
            let normal = blocks::group_norm(b, x, groups, &scale, &bias, FIXED_EPS);
            let scaled = b.op("Mul", &[&normal, &factor]);
            Ok(b.op("Add", &[&scaled, &offset]))
        })
    }

    fn silu(&mut self, path: &str, x: &Value) -> Value {
        self.net.b.scope(path, |b| blocks::silu(b, x))
    }

    fn resnet(&mut self, path: &str, x: &Value, input: usize, out: usize) -> Result<Value, ExportError> {
        let epsilon = self.config.norm_eps;
        let h = self.norm(&format!("{path}.norm1"), x, input, epsilon)?;
        let h = self.silu(path, &h);
        let h = self.causal_conv(&format!("{path}.conv1"), &h, out, input)?;
        let h = self.norm(&format!("{path}.norm2"), &h, out, epsilon)?;
        let h = self.silu(path, &h);
        let h = self.causal_conv(&format!("{path}.conv2"), &h, out, out)?;
        let shortcut = if input == out {
            x.clone()
        } else {
            let vars = self.net.vars.child(format!("{path}.conv_shortcut"));
            let [weight, bias] = self.net.kernel(&vars, &[out, input, 1, 1, 1])?;
            self.net.b.scope(path, |b| blocks::conv3d(b, x, &weight, &bias))
        };
        Ok(self.net.b.scope(path, |b| b.op("Add", &[&h, &shortcut])))
    }

    fn mid_block(&mut self, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let x = self.resnet("mid_block.resnets.0", x, channels, channels)?;
        self.resnet("mid_block.resnets.1", &x, channels, channels)
    }

    fn sampler_conv(&mut self, path: &str, x: &Value, channels: usize, down: bool) -> Result<Value, ExportError> {
        let vars = self.net.vars.child(path).child("conv");
        let [weight, bias] = self.net.kernel(&vars, &[channels, channels, 3, 3])?;
        let (stride, pads) = if down { (2, [0, 0, 1, 1]) } else { (1, [1, 1, 1, 1]) };
        Ok(self.net.b.scope(path, |b| blocks::conv2d_per_frame(b, x, &weight, &bias, [channels; 2], stride, pads)))
    }
}

fn encoder(config: &Config, checkpoint: &Checkpoint, chunk: Chunk) -> Result<Model, ExportError> {
    let mut net = Network { net: Chunked::new("vae_encoder", "encoder", checkpoint, chunk, 1), config, latent: None };
    let channels = &config.block_out_channels;
    let x = net.net.b.input("x", DataType::Float, video(config.in_channels, false, false));
    let mut x = net.causal_conv("conv_in", &x, channels[0], config.in_channels)?;
    let mut width = channels[0];
    for (i, &out) in channels.iter().enumerate() {
        for j in 0..config.layers_per_block {
            x = net.resnet(&format!("down_blocks.{i}.resnets.{j}"), &x, if j == 0 { width } else { out }, out)?;
        }
        width = out;
        if i + 1 < channels.len() {
            let path = format!("down_blocks.{i}.downsamplers.0");
            if i < config.time_levels() {
                x = net.net.b.scope(path.as_str(), |b| blocks::average_frame_pairs(b, &x));
            }
            x = net.sampler_conv(&path, &x, out, true)?;
            net.net.side *= 2;
        }
    }
    x = net.mid_block(&x, width)?;
    x = net.norm("norm_out", &x, width, FIXED_EPS)?;
    x = net.silu("conv_act", &x);
    let moments = net.causal_conv("conv_out", &x, 2 * config.latent_channels, width)?;
    let parts = net.net.b.split(&moments, 1, 2);
    net.net.b.output("mean", &parts[0], DataType::Float, video(config.latent_channels, true, false));
    net.net.b.output("logvar", &parts[1], DataType::Float, video(config.latent_channels, true, false));
    net.net.finish("vae_encoder")
}

fn decoder(config: &Config, checkpoint: &Checkpoint, chunk: Chunk) -> Result<Model, ExportError> {
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let side = 1 << (channels.len() - 1);
    let mut net =
        Network { net: Chunked::new("vae_decoder", "decoder", checkpoint, chunk, side), config, latent: None };
    let z = net.net.b.input("z", DataType::Float, video(config.latent_channels, true, false));
    let latent_frames = net.net.b.extent(&z, 2);
    // Only the start of a video has a frame that stands for itself; later chunks are doubled whole.
    let first_apart = chunk == Chunk::First;
    net.latent = Some(Latent { value: z.clone(), frames: None });
    let mut x = net.causal_conv("conv_in", &z, channels[0], config.latent_channels)?;
    x = net.mid_block(&x, channels[0])?;
    let mut width = channels[0];
    for (i, &out) in channels.iter().enumerate() {
        for j in 0..=config.layers_per_block {
            x = net.resnet(&format!("up_blocks.{i}.resnets.{j}"), &x, if j == 0 { width } else { out }, out)?;
        }
        width = out;
        if i + 1 < channels.len() {
            let path = format!("up_blocks.{i}.upsamplers.0");
            x = net.net.b.scope(path.as_str(), |b| {
                let x = if i < config.time_levels() { blocks::repeat_frames(b, &x, first_apart) } else { x };
                blocks::double_space(b, &x)
            });
            x = net.sampler_conv(&path, &x, out, false)?;
            net.net.side /= 2;
            let frames = net.net.b.scope(path.as_str(), |b| {
                let frames = b.extent(&x, 2);
                blocks::nearest_frames(b, &latent_frames, &frames, first_apart)
            });
            net.latent = Some(Latent { value: z.clone(), frames: Some(frames) });
        }
    }
    x = net.norm("norm_out", &x, width, FIXED_EPS)?;
    x = net.silu("conv_act", &x);
    let sample = net.causal_conv("conv_out", &x, config.out_channels, width)?;
    net.net.b.output("sample", &sample, DataType::Float, video(config.out_channels, false, false));
    net.net.finish("vae_decoder")
}
