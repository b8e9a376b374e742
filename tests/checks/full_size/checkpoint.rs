//! A random checkpoint with the shapes of CogVideoX-Fun-V1.1-5b-InP's transformer.

use std::borrow::Cow;
use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::json;

/// Blocks of the real model.
pub(crate) const FULL_LAYERS: usize = 42;
/// Parameters of the real model; the shapes below must add up to it.
const FULL_PARAMETERS: u64 = 5_570_491_968;

const WIDTH: usize = 3072;
const HEADS: usize = 48;
const HEAD_DIM: usize = WIDTH / HEADS;
const TIME: usize = 512;
const TEXT: usize = 4096;
const IN_CHANNELS: usize = 33;
const OUT_CHANNELS: usize = 16;
const PATCH: usize = 2;

/// Bytes of weights per shard at most; a shard holds whole tensors.
const SHARD_BYTES: usize = 5_000_000_000;

/// Names and shapes of the checkpoint.
pub(crate) struct Checkpoint {
    tensors: Vec<(String, Vec<usize>)>,
    layers: usize,
}

impl Checkpoint {
    pub(crate) fn new(layers: usize) -> Self {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
        let mut with_bias = |name: String, shape: &[usize]| {
            add(format!("{name}.bias"), &shape[..1]);
            add(format!("{name}.weight"), shape);
        };
        with_bias("patch_embed.proj".into(), &[WIDTH, IN_CHANNELS, PATCH, PATCH]);
        with_bias("patch_embed.text_proj".into(), &[WIDTH, TEXT]);
        with_bias("time_embedding.linear_1".into(), &[TIME, WIDTH]);
        with_bias("time_embedding.linear_2".into(), &[TIME, TIME]);
        for i in 0..layers {
            let mut part = |name: &str, shape: &[usize]| with_bias(format!("transformer_blocks.{i}.{name}"), shape);
            for norm in ["norm1", "norm2"] {
                part(&format!("{norm}.linear"), &[6 * WIDTH, TIME]);
                part(&format!("{norm}.norm"), &[WIDTH]);
            }
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                part(&format!("attn1.{projection}"), &[WIDTH, WIDTH]);
            }
            part("attn1.norm_q", &[HEAD_DIM]);
            part("attn1.norm_k", &[HEAD_DIM]);
            part("ff.net.0.proj", &[4 * WIDTH, WIDTH]);
            part("ff.net.2", &[WIDTH, 4 * WIDTH]);
        }
        with_bias("norm_final".into(), &[WIDTH]);
        with_bias("norm_out.linear".into(), &[2 * WIDTH, TIME]);
        with_bias("norm_out.norm".into(), &[WIDTH]);
        with_bias("proj_out".into(), &[OUT_CHANNELS * PATCH * PATCH, WIDTH]);
        let checkpoint = Self { tensors, layers };
        assert!(layers != FULL_LAYERS || checkpoint.bytes() == 2 * FULL_PARAMETERS, "the shapes are not the model's");
        checkpoint
    }

    /// Bytes of all weights.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, shape)| byte_len(shape) as u64).sum()
    }

    /// Writes `config.json`, the shards and their index into `folder`, one tensor at a time.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        let shards = self.shards();
        let name = |i: usize| format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let mut weight_map = serde_json::Map::new();
        let noise = Noise(Cell::new(0x9E37_79B9_7F4A_7C15));
        for (i, shard) in shards.iter().enumerate() {
            weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name(i)))));
            let views = shard.iter().map(|(tensor, shape)| (tensor, RandomTensor { shape, noise: &noise }));
            let path = folder.join(name(i));
            serialize_to_file(views, None, &path).with_context(|| path.display().to_string())?;
        }
        let index = json!({ "metadata": { "total_size": self.bytes() }, "weight_map": weight_map });
        std::fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), format!("{index:#}\n"))?;
        std::fs::write(folder.join("config.json"), format!("{:#}\n", self.config()))?;
        Ok(())
    }

    fn shards(&self) -> Vec<&[(String, Vec<usize>)]> {
        let mut shards = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (i, (_, shape)) in self.tensors.iter().enumerate() {
            if bytes + byte_len(shape) > SHARD_BYTES {
                shards.push(&self.tensors[start..i]);
                (start, bytes) = (i, 0);
            }
            bytes += byte_len(shape);
        }
        shards.push(&self.tensors[start..]);
        shards
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "_class_name": "CogVideoXTransformer3DModel",
            "activation_fn": "gelu-approximate",
            "add_noise_in_inpaint_model": true,
            "attention_bias": true,
            "attention_head_dim": HEAD_DIM,
            "dropout": 0.0,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": IN_CHANNELS,
            "max_text_seq_length": 226,
            "norm_elementwise_affine": true,
            "norm_eps": 1e-5,
            "num_attention_heads": HEADS,
            "num_layers": self.layers,
            "out_channels": OUT_CHANNELS,
            "patch_size": PATCH,
            "sample_frames": 49,
            "sample_height": 60,
            "sample_width": 90,
            "spatial_interpolation_scale": 1.875,
            "temporal_compression_ratio": 4,
            "temporal_interpolation_scale": 1.0,
            "text_embed_dim": TEXT,
            "time_embed_dim": TIME,
            "timestep_activation_fn": "silu",
            "use_learned_positional_embeddings": false,
            "use_rotary_positional_embeddings": true,
        })
    }
}

fn byte_len(shape: &[usize]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// A stream of pseudo-random bf16 values with magnitudes from 2⁻⁷ to 2⁻³.
struct Noise(Cell<u64>);

impl Noise {
    /// Four values as bytes: xorshift64 gives sign, mantissa and two exponent bits, the rest of the exponent is fixed.
    fn next(&self) -> [u8; 8] {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        ((x & 0x81FF_81FF_81FF_81FF) | 0x3C00_3C00_3C00_3C00).to_le_bytes()
    }
}

/// A tensor that is made up when it is written.
struct RandomTensor<'a> {
    shape: &'a [usize],
    noise: &'a Noise,
}

impl View for RandomTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.noise.next()[..piece.len()]);
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        byte_len(self.shape)
    }
}

/// The regular files of a folder, at any depth.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
