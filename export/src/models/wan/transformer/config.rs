//! What `config.json` of a transformer says.

use serde::Deserialize;
use v2l_runtime::engine::manifest::Slot;

use crate::ExportError;

/// The class that `config.json` names.
pub const CLASS: &str = "WanTransformer3DModel";

/// Widest head: its tables are made before any weight is read.
const MAX_HEAD: usize = 1024;

/// Longest side of a patch.
const MAX_PATCH: usize = 64;

/// Most positions on one axis that are computed.
const MAX_POSITIONS: usize = 1 << 14;

/// `config.json` of a Wan transformer; absent keys take diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub patch_size: [usize; 3],
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub text_dim: usize,
    pub freq_dim: usize,
    pub ffn_dim: usize,
    pub num_layers: usize,
    pub cross_attn_norm: bool,
    pub qk_norm: Option<String>,
    pub eps: f32,
    pub image_dim: Option<usize>,
    pub added_kv_proj_dim: Option<usize>,
    pub rope_max_seq_len: usize,
    pub pos_embed_seq_len: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: 16,
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some("rms_norm_across_heads".into()),
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
        }
    }
}

/// Channels of the latents of Wan 2.2's small model, which alone has a timestep for the first frame.
const CHANNELS_WITH_FIRST_FRAME: usize = 48;

impl Config {
    /// Width of the token stream: heads × head dimension.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// True if the first frame has a timestep of its own, where no `model_index.json` says whether it has.
    pub fn has_first_frame_timestep(&self) -> bool {
        self.in_channels == CHANNELS_WITH_FIRST_FRAME && self.out_channels == CHANNELS_WITH_FIRST_FRAME
    }

    /// Elements of a patch in one channel.
    pub(super) fn patch_volume(&self) -> usize {
        self.patch_size.iter().product()
    }

    /// Every linear layer, in the order of PyTorch's `named_modules`.
    pub fn linear_layers(&self) -> Vec<Slot> {
        let d = self.width();
        let condition = |name: &str, out, input| Slot::linear(format!("condition_embedder.{name}"), out, input);
        let mut slots = vec![
            condition("time_embedder.linear_1", d, self.freq_dim),
            condition("time_embedder.linear_2", d, d),
            condition("time_proj", 6 * d, d),
            condition("text_embedder.linear_1", d, self.text_dim),
            condition("text_embedder.linear_2", d, d),
        ];
        if let Some(image) = self.image_dim {
            slots.push(condition("image_embedder.ff.net.0.proj", image, image));
            slots.push(condition("image_embedder.ff.net.2", d, image));
        }
        for i in 0..self.num_layers {
            let block = |name: &str, out, input| Slot::linear(format!("blocks.{i}.{name}"), out, input);
            for attention in ["attn1", "attn2"] {
                for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                    slots.push(block(&format!("{attention}.{layer}"), d, d));
                }
            }
            if let Some(added) = self.added_kv_proj_dim {
                slots.extend([block("attn2.add_k_proj", d, added), block("attn2.add_v_proj", d, added)]);
            }
            slots.extend([block("ffn.net.0.proj", self.ffn_dim, d), block("ffn.net.2", d, self.ffn_dim)]);
        }
        slots.push(Slot::linear("proj_out", self.out_channels * self.patch_volume(), d));
        slots
    }

    pub(super) fn validate(&self) -> Result<(), ExportError> {
        let [depth, height, width] = self.patch_size;
        let positive = [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("text_dim", self.text_dim),
            ("freq_dim", self.freq_dim),
            ("ffn_dim", self.ffn_dim),
            ("num_layers", self.num_layers),
            ("image_dim", self.image_dim.unwrap_or(1)),
            ("pos_embed_seq_len", self.pos_embed_seq_len.unwrap_or(2)),
        ];
        for (axis, side) in [depth, height, width].into_iter().enumerate() {
            if !(1..=MAX_PATCH).contains(&side) {
                return Err(unsupported(&format!("patch_size[{axis}] {side}"), format!("expected 1 to {MAX_PATCH}")));
            }
        }
        for (name, value) in positive {
            if value == 0 || value > 1 << 20 {
                return Err(unsupported(&format!("{name} {value}"), "expected 1 to 1048576"));
            }
        }
        if self.attention_head_dim > MAX_HEAD {
            let what = format!("attention_head_dim {}", self.attention_head_dim);
            return Err(unsupported(&what, format!("expected 2 to {MAX_HEAD}")));
        }
        for (name, value) in [("attention_head_dim", self.attention_head_dim), ("freq_dim", self.freq_dim)] {
            if !value.is_multiple_of(2) {
                return Err(unsupported(&format!("{name} {value}"), "positions need an even number"));
            }
        }
        if !(1..=MAX_POSITIONS).contains(&self.rope_max_seq_len) {
            let what = format!("rope_max_seq_len {}", self.rope_max_seq_len);
            return Err(unsupported(&what, format!("expected 1 to {MAX_POSITIONS}")));
        }
        if let Some(norm) = self.qk_norm.as_deref().filter(|norm| *norm != "rms_norm_across_heads") {
            return Err(unsupported(&format!("qk_norm `{norm}`"), "expected `rms_norm_across_heads`"));
        }
        let d = self.width();
        match (self.image_dim, self.added_kv_proj_dim) {
            (None, None) if self.pos_embed_seq_len.is_none() => Ok(()),
            (Some(_), Some(added)) if added == d => Ok(()),
            (image, added) => Err(unsupported(
                &format!(
                    "image_dim {image:?} with added_kv_proj_dim {added:?} and pos_embed_seq_len {:?}",
                    self.pos_embed_seq_len
                ),
                format!("expected image_dim with added_kv_proj_dim {d}, or none of the three"),
            )),
        }
    }
}

fn unsupported(what: &str, reason: impl Into<String>) -> ExportError {
    ExportError::Unsupported { what: format!("{CLASS}: {what}"), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: &str) -> String {
        let config: Config = serde_json::from_str(config).unwrap();
        let error = config.validate().unwrap_err();
        assert!(error.is_unsupported());
        error.to_string()
    }

    #[test]
    fn published_configurations_have_their_layers() {
        let count = |config: &str| {
            let config: Config = serde_json::from_str(config).unwrap();
            config.validate().unwrap();
            config.linear_layers().len()
        };
        // Ten in a block, twelve with image embeddings, and those around the blocks.
        assert_eq!(count("{}"), 400 + 6);
        let small = r#"{"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}"#;
        assert_eq!(count(small), 300 + 6);
        let image = r#"{"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}"#;
        assert_eq!(count(image), 480 + 8);
    }

    #[test]
    fn configurations_of_no_wan_model_are_refused_by_key() {
        for (config, key) in [
            (r#"{"num_layers": 0}"#, "num_layers 0"),
            (r#"{"attention_head_dim": 127}"#, "attention_head_dim 127"),
            (r#"{"attention_head_dim": 4096}"#, "attention_head_dim 4096"),
            (r#"{"rope_max_seq_len": 100000}"#, "rope_max_seq_len 100000"),
            (r#"{"qk_norm": "layer_norm"}"#, "qk_norm `layer_norm`"),
            (r#"{"image_dim": 1280}"#, "image_dim Some(1280)"),
            (r#"{"image_dim": 1280, "added_kv_proj_dim": 1280}"#, "added_kv_proj_dim Some(1280)"),
            (r#"{"pos_embed_seq_len": 514}"#, "pos_embed_seq_len Some(514)"),
            (r#"{"patch_size": [1, 0, 2]}"#, "patch_size[1] 0"),
        ] {
            let message = refusal(config);
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn only_the_model_of_48_channels_has_a_timestep_for_the_first_frame() {
        let has = |input, output| {
            let config = Config { in_channels: input, out_channels: output, ..Config::default() };
            config.has_first_frame_timestep()
        };
        assert!(has(48, 48) && !has(48, 16) && !has(16, 16) && !has(36, 16));
    }
}
