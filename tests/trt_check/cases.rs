//! Which graphs are built, and for which shapes.

use v2l_runtime::engine::manifest::{Profile, ShapeRange};

/// Extents of an input: smallest, preferred, largest.
type Extents = (&'static str, &'static [usize], &'static [usize], &'static [usize]);

/// A graph of the miniature's bundle.
pub(crate) struct Case {
    /// `<component>/<graph>`.
    pub(crate) graph: &'static str,
    inputs: &'static [Extents],
}

impl Case {
    /// Ranges of all inputs; or the preferred extents alone.
    pub(crate) fn profile(&self, dynamic: bool) -> Profile {
        let range = |(name, min, opt, max): &Extents| {
            let (min, max) = if dynamic { (*min, *max) } else { (*opt, *opt) };
            ((*name).to_owned(), ShapeRange { min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() })
        };
        self.inputs.iter().map(range).collect()
    }
}

/// 48×48 pixels and 9 frames, which are 3 × 6 × 6 latents and 27 tokens; dynamic ones from half of it to twice as much.
pub(crate) const CASES: &[Case] = &[
    Case {
        graph: "transformer/step",
        inputs: &[
            ("hidden_states", &[1, 1, 16, 6, 6], &[1, 3, 16, 6, 6], &[2, 5, 16, 8, 8]),
            ("inpaint_latents", &[1, 1, 17, 6, 6], &[1, 3, 17, 6, 6], &[2, 5, 17, 8, 8]),
            ("encoder_hidden_states", &[1, 16, 64], &[1, 16, 64], &[2, 16, 64]),
            ("timestep", &[1], &[1], &[2]),
            ("image_rotary_emb_cos", &[9, 32], &[27, 32], &[80, 32]),
            ("image_rotary_emb_sin", &[9, 32], &[27, 32], &[80, 32]),
        ],
    },
    // TensorRT-RTX does not build it for a free number of frames (docs/gpu.md).
    Case { graph: "vae_decoder/first", inputs: &[("z", &[1, 16, 2, 4, 4], &[1, 16, 2, 6, 6], &[1, 16, 2, 8, 8])] },
    Case { graph: "text_encoder/encode", inputs: &[("input_ids", &[1, 4], &[1, 16], &[2, 16])] },
    Case {
        graph: "hypernetwork/predict",
        inputs: &[("latents", &[1, 16, 2, 6, 6], &[1, 16, 3, 6, 6], &[2, 16, 4, 6, 6])],
    },
];
