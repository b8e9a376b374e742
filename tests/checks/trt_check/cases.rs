//! Which graphs are built, and for which shapes.

use std::path::Path;

use anyhow::Context;
use v2l_graphs::{Dim, ReadOptions, read_model};
use v2l_runtime::engine::manifest::{Profile, ShapeRange};
use v2l_runtime::io::map::map_file;

/// A symbol of a graph's inputs: smallest, preferred, largest extent.
type Extents = (&'static str, [usize; 3]);

/// A graph of the miniature's bundle.
pub(crate) struct Case {
    /// `<component>/<graph>`.
    pub(crate) graph: &'static str,
    symbols: &'static [Extents],
}

impl Case {
    /// Ranges of all inputs of the graph at `model`; or the preferred extents alone.
    pub(crate) fn profile(&self, model: &Path, dynamic: bool) -> anyhow::Result<Profile> {
        let graph = read_model(model, &ReadOptions { open: &|path| map_file(path) })?.graph;
        let extent = |dim: &Dim, which: usize| match dim {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(name) => {
                let known = self.symbols.iter().find(|(symbol, _)| symbol == name);
                known.map(|(_, extents)| extents[which]).with_context(|| format!("{}: `{name}`", self.graph))
            }
            Dim::Unknown => anyhow::bail!("{}: an extent without a name", self.graph),
        };
        let range = |input: v2l_graphs::ValueInfo| {
            let shape = input.ty.and_then(|ty| ty.shape).with_context(|| format!("`{}` has no shape", input.name))?;
            let extents = |which| shape.iter().map(|dim| extent(dim, which)).collect::<anyhow::Result<Vec<_>>>();
            let (min, max) = if dynamic { (0, 2) } else { (1, 1) };
            Ok((input.name, ShapeRange { min: extents(min)?, opt: extents(1)?, max: extents(max)? }))
        };
        graph.inputs.into_iter().map(range).collect()
    }
}

/// 48×48 pixels and 9 frames, which are 3 × 6 × 6 latents and 27 tokens; dynamic ones from less than half of it to twice as much.
pub(crate) const CASES: &[Case] = &[
    Case {
        graph: "transformer/step",
        symbols: &[
            ("batch", [1, 1, 2]),
            ("frames", [1, 3, 5]),
            ("height", [6, 6, 8]),
            ("width", [6, 6, 8]),
            ("text_length", [16; 3]),
            ("tokens", [9, 27, 80]),
        ],
    },
    Case { graph: "vae_decoder/first", symbols: LATENTS },
    Case { graph: "vae_decoder/rest", symbols: LATENTS },
    Case { graph: "text_encoder/encode", symbols: &[("batch", [1, 1, 2]), ("text_length", [4, 16, 16])] },
    Case {
        graph: "hypernetwork/predict",
        symbols: &[
            ("batch", [1, 1, 2]),
            ("latent_frames", [2, 3, 4]),
            ("latent_height", [6; 3]),
            ("latent_width", [6; 3]),
        ],
    },
];

/// Of the decoder: everything is free in one profile, odd and even numbers of frames and the one of an image among them.
const LATENTS: &[Extents] = &[
    ("batch", [1, 1, 2]),
    ("latent_frames", [1, 3, 5]),
    ("latent_height", [4, 6, 8]),
    ("latent_width", [4, 6, 8]),
    // Of the caches.
    ("height/8", [4, 6, 8]),
    ("width/8", [4, 6, 8]),
    ("height/4", [8, 12, 16]),
    ("width/4", [8, 12, 16]),
    ("height/2", [16, 24, 32]),
    ("width/2", [16, 24, 32]),
    ("height", [32, 48, 64]),
    ("width", [32, 48, 64]),
];
