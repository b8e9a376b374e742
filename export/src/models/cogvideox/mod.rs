//! CogVideoX 1.0 and 1.5, and CogVideoX-Fun: transformer and autoencoder.

pub mod transformer;
pub mod vae;

use std::sync::Arc;

use v2l_runtime::models::cogvideox::CogVideoX as Model;
use v2l_runtime::models::cogvideox::config::{
    Chunking, Conditioning, DecodeChunks, Tiling, TransformerConfig, VaeConfig,
};
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::request::NEGATIVE_PROMPT;
use v2l_runtime::schedulers::Kind;

use super::family::{Architecture, Family, Part, Place};
use crate::{Component, ExportError};

/// The family.
pub(super) struct CogVideoX;

impl Family for CogVideoX {
    fn architectures(&self) -> &'static [&'static dyn Architecture] {
        &[&Transformer, &Vae]
    }

    fn sampling(&self) -> Kind {
        Kind::Diffusion
    }

    /// The official Fun scripts sample with plain DDIM whatever class the folder names (`DDIM_Origin`).
    fn sampler(&self, pipeline: &PipelineConfig) -> Option<&'static str> {
        is_fun(pipeline).then_some("ddim")
    }
}

/// True for CogVideoX-Fun's inpainting form.
fn is_fun(pipeline: &PipelineConfig) -> bool {
    described(pipeline).transformer.is_some_and(|t| t.conditioning == Conditioning::Inpaint)
}

/// What `pipeline` says of the model so far.
fn described(pipeline: &PipelineConfig) -> Model {
    pipeline.family.as_ref().and_then(|family| family.downcast_ref()).cloned().unwrap_or_default()
}

struct Transformer;

impl Architecture for Transformer {
    fn class(&self) -> &'static str {
        transformer::CLASS
    }

    fn part(&self) -> Part {
        Part::Transformer
    }

    fn export(&self, place: &Place<'_>, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: transformer::Config = place.origin.config()?;
        let component = transformer::export(&config, &place.checkpoint()?, place.controls)?;
        describe_transformer(pipeline, &config)?;
        Ok(vec![component])
    }
}

struct Vae;

impl Architecture for Vae {
    fn class(&self) -> &'static str {
        vae::CLASS
    }

    fn part(&self) -> Part {
        Part::Vae
    }

    fn export(&self, place: &Place<'_>, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: vae::Config = place.origin.config()?;
        let components = vae::export(&config, &place.checkpoint()?)?;
        let vae = Some(describe_vae(&config, is_fun(pipeline)));
        pipeline.family = Some(Arc::new(Model { vae, ..described(pipeline) }));
        Ok(components.into())
    }
}

fn describe_transformer(pipeline: &mut PipelineConfig, config: &transformer::Config) -> Result<(), ExportError> {
    let conditioning = match config.conditioning()? {
        transformer::Conditioning::Text => Conditioning::Text,
        transformer::Conditioning::Image => Conditioning::Image,
        transformer::Conditioning::Inpaint => Conditioning::Inpaint,
    };
    let transformer = Some(TransformerConfig {
        in_channels: config.in_channels,
        out_channels: config.out_channels,
        patch_size: config.patch_size,
        patch_size_t: config.patch_size_t,
        attention_head_dim: config.attention_head_dim,
        sample_width: config.sample_width,
        sample_height: config.sample_height,
        sample_frames: config.sample_frames,
        max_text_seq_length: config.max_text_seq_length,
        rotary: config.use_rotary_positional_embeddings,
        rotary_grid: None,
        learned_positions: config.use_learned_positional_embeddings,
        ofs: config.ofs_embed_dim.is_some(),
        temporal_compression_ratio: config.temporal_compression_ratio,
        add_noise_in_inpaint_model: config.add_noise_in_inpaint_model,
        conditioning,
    });
    pipeline.family = Some(Arc::new(Model { transformer, ..described(pipeline) }));
    // Official inference defaults: Video2LoRA's for its backbone, diffusers' for the others.
    if conditioning == Conditioning::Inpaint {
        pipeline.defaults.negative_prompt = NEGATIVE_PROMPT.into();
    } else {
        pipeline.defaults.num_frames = config.sample_frames;
        pipeline.defaults.fps = if config.patch_size_t.is_some() { 16.0 } else { 8.0 };
    }
    Ok(())
}

fn describe_vae(config: &vae::Config, fun: bool) -> VaeConfig {
    VaeConfig {
        scaling_factor: shortest_decimal(config.scaling_factor),
        latent_channels: config.latent_channels,
        temporal_compression_ratio: config.temporal_compression_ratio as usize,
        spatial_compression_ratio: config.spatial_factor(),
        sample_width: config.sample_width,
        sample_height: config.sample_height,
        invert_scale_latents: config.invert_scale_latents,
        chunking: Chunking { encode_frames: 8, decode: if fun { DecodeChunks::Fun } else { DecodeChunks::Diffusers } },
        tiling: Tiling::for_sample(config.sample_height, config.sample_width, fun)
            .off_unless_tiles_join(config.spatial_factor()),
    }
}

/// The f64 that a person would write for an f32.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
