//! What `pipeline.json` says of the networks.

use serde_json::Value as Json;
use v2l_runtime::models::wan::Wan as Model;
use v2l_runtime::models::wan::config::{Conditioning, ImageEmbeddings, TransformerConfig, VaeConfig};
use v2l_runtime::pipeline::config::PipelineConfig;

use super::{transformer, vae};
use crate::ExportError;

/// Rows of the text embeddings, fixed in the attention to images.
const TEXT_TOKENS: usize = 512;

/// What `pipeline` says of the model so far.
pub(super) fn of(pipeline: &PipelineConfig) -> Model {
    pipeline.family.as_ref().and_then(|family| family.downcast_ref()).cloned().unwrap_or_default()
}

/// The section of a transformer of a pipeline whose `model_index.json` is `index`, null without one.
pub(super) fn transformer(config: &transformer::Config, index: &Json) -> Result<TransformerConfig, ExportError> {
    let (input, out) = (config.in_channels, config.out_channels);
    let conditioning = if input == out {
        Conditioning::Text
    } else if Some(input) == out.checked_mul(2).and_then(|both| both.checked_add(vae::FRAMES)) {
        Conditioning::Image
    } else {
        return Err(ExportError::Unsupported {
            what: format!("{}: in_channels {input} with out_channels {out}", transformer::CLASS),
            reason: format!("expected as many, or twice as many and {} of a mask", vae::FRAMES),
        });
    };
    let image_embeddings = match (config.image_dim, config.pos_embed_seq_len) {
        (None, _) => ImageEmbeddings::None,
        (Some(_), None) => ImageEmbeddings::First,
        (Some(_), Some(_)) => ImageEmbeddings::FirstAndLast,
    };
    let expand_timesteps = match index {
        Json::Null => config.has_first_frame_timestep(),
        index => index["expand_timesteps"].as_bool().unwrap_or(false),
    };
    Ok(TransformerConfig {
        in_channels: input,
        out_channels: out,
        patch_size: config.patch_size,
        max_text_seq_length: TEXT_TOKENS,
        conditioning,
        image_embeddings,
        expand_timesteps,
        boundary_ratio: index["boundary_ratio"].as_f64(),
        rope_max_seq_len: config.rope_max_seq_len,
    })
}

/// The section of an autoencoder.
pub(super) fn vae(config: &vae::Config) -> VaeConfig {
    VaeConfig {
        z_dim: config.z_dim,
        latents_mean: config.latents_mean.clone(),
        latents_std: config.latents_std.clone(),
        scale_factor_temporal: vae::FRAMES,
        scale_factor_spatial: config.spatial_factor(),
    }
}
