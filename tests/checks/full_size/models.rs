//! The models whose shapes are checked.

use clap::ValueEnum;
use serde_json::{Value as Json, json};

/// A model of full size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// CogVideoX-Fun-V1.1-5b-InP's transformer.
    Cogvideox,
    /// Wan 2.1's transformer of 1.3 billion parameters.
    #[value(name = "wan-1.3b")]
    Wan1_3b,
    /// Wan 2.2's two transformers of 14 billion parameters each; by default 8 of their 40 layers.
    #[value(name = "wan-14b")]
    Wan14b,
}

/// What a transformer's checkpoint is made of.
pub(crate) struct Shapes {
    /// Names and shapes.
    pub(crate) tensors: Vec<(String, Vec<usize>)>,
    /// What `config.json` says.
    pub(crate) config: Json,
}

impl Model {
    /// Layers unless others are asked for.
    pub(crate) fn usual_layers(self) -> usize {
        match self {
            Self::Cogvideox => 42,
            Self::Wan1_3b => 30,
            Self::Wan14b => 8,
        }
    }

    /// The folders of its transformers in diffusers' layout.
    pub(crate) fn transformers(self) -> &'static [&'static str] {
        match self {
            Self::Wan14b => &["transformer", "transformer_2"],
            Self::Cogvideox | Self::Wan1_3b => &["transformer"],
        }
    }

    /// What `model_index.json` says beside the transformers.
    pub(crate) fn index(self) -> Json {
        match self {
            Self::Cogvideox => json!({ "_class_name": "CogVideoXFunInpaintPipeline" }),
            Self::Wan1_3b => json!({ "_class_name": "WanPipeline" }),
            Self::Wan14b => json!({ "_class_name": "WanPipeline", "boundary_ratio": 0.875 }),
        }
    }

    /// One of its transformers.
    ///
    /// # Panics
    /// If the shapes of all its layers do not add up to the published number of parameters.
    pub(crate) fn shapes(self, layers: usize) -> Shapes {
        let (shapes, full, parameters) = match self {
            Self::Cogvideox => (cogvideox(layers), 42, 5_570_491_968),
            Self::Wan1_3b => (wan(12, 8960, layers), 30, 1_418_996_800),
            Self::Wan14b => (wan(40, 13_824, layers), 40, 14_288_491_584),
        };
        let found: usize = shapes.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert!(layers != full || found == parameters, "the shapes are not the model's");
        shapes
    }
}

/// Adds a layer's weight and its bias.
fn with_bias(tensors: &mut Vec<(String, Vec<usize>)>, name: &str, shape: &[usize]) {
    tensors.push((format!("{name}.bias"), shape[..1].to_vec()));
    tensors.push((format!("{name}.weight"), shape.to_vec()));
}

fn cogvideox(layers: usize) -> Shapes {
    const HEADS: usize = 48;
    const HEAD_DIM: usize = 64;
    const WIDTH: usize = HEADS * HEAD_DIM;
    const TIME: usize = 512;
    const TEXT: usize = 4096;
    const IN_CHANNELS: usize = 33;
    const OUT_CHANNELS: usize = 16;
    const PATCH: usize = 2;
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize]| with_bias(&mut tensors, name, shape);
    add("patch_embed.proj", &[WIDTH, IN_CHANNELS, PATCH, PATCH]);
    add("patch_embed.text_proj", &[WIDTH, TEXT]);
    add("time_embedding.linear_1", &[TIME, WIDTH]);
    add("time_embedding.linear_2", &[TIME, TIME]);
    for i in 0..layers {
        let mut part = |name: &str, shape: &[usize]| add(&format!("transformer_blocks.{i}.{name}"), shape);
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
    add("norm_final", &[WIDTH]);
    add("norm_out.linear", &[2 * WIDTH, TIME]);
    add("norm_out.norm", &[WIDTH]);
    add("proj_out", &[OUT_CHANNELS * PATCH * PATCH, WIDTH]);
    let config = json!({
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
        "num_layers": layers,
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
    });
    Shapes { tensors, config }
}

/// Text to video of Wan with so many heads.
fn wan(heads: usize, inner: usize, layers: usize) -> Shapes {
    const HEAD_DIM: usize = 128;
    const CHANNELS: usize = 16;
    const TEXT: usize = 4096;
    const FREQUENCIES: usize = 256;
    let width = heads * HEAD_DIM;
    let mut tensors = vec![("scale_shift_table".to_owned(), vec![1, 2, width])];
    with_bias(&mut tensors, "patch_embedding", &[width, CHANNELS, 1, 2, 2]);
    for (name, shape) in [
        ("time_embedder.linear_1", [width, FREQUENCIES]),
        ("time_embedder.linear_2", [width, width]),
        ("time_proj", [6 * width, width]),
        ("text_embedder.linear_1", [width, TEXT]),
        ("text_embedder.linear_2", [width, width]),
    ] {
        with_bias(&mut tensors, &format!("condition_embedder.{name}"), &shape);
    }
    for i in 0..layers {
        let name = |part: &str| format!("blocks.{i}.{part}");
        tensors.push((name("scale_shift_table"), vec![1, 6, width]));
        for attention in ["attn1", "attn2"] {
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                with_bias(&mut tensors, &name(&format!("{attention}.{projection}")), &[width, width]);
            }
            for norm in ["norm_q", "norm_k"] {
                tensors.push((name(&format!("{attention}.{norm}.weight")), vec![width]));
            }
        }
        with_bias(&mut tensors, &name("norm2"), &[width]);
        with_bias(&mut tensors, &name("ffn.net.0.proj"), &[inner, width]);
        with_bias(&mut tensors, &name("ffn.net.2"), &[width, inner]);
    }
    with_bias(&mut tensors, "proj_out", &[4 * CHANNELS, width]);
    let config = json!({
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": heads,
        "ffn_dim": inner,
        "num_layers": layers,
    });
    Shapes { tensors, config }
}
