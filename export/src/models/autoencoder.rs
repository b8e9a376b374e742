//! Causal video autoencoders: graphs that take a video in chunks of time, and hand on what the next chunk needs.

use serde_json::json;
use v2l_graphs::blocks::{self, TimeCache};
use v2l_graphs::{Builder, DataType, Dim, Model, Value};

use crate::component::{self, Component};
use crate::{Checkpoint, ExportError, Vars};

/// Frames that a causal convolution over three frames keeps.
pub(crate) const KEPT: usize = 2;

/// Which part of a video a graph works on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Its start, before which there is nothing.
    First,
    /// Later frames.
    Rest,
}

impl Chunk {
    const fn graph(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Rest => "rest",
        }
    }
}

/// The components `vae_encoder` and `vae_decoder` of a class, each with the graphs `first` and `rest`.
///
/// # Errors
/// Those of the graphs, and [`ExportError`] for a tensor that none of them used.
pub(crate) fn components(
    class: &str,
    checkpoint: &Checkpoint,
    encoder: impl Fn(Chunk) -> Result<Model, ExportError>,
    decoder: impl Fn(Chunk) -> Result<Model, ExportError>,
) -> Result<[Component; 2], ExportError> {
    let precision = checkpoint.precision()?;
    let component = |name: &str, build: &dyn Fn(Chunk) -> Result<Model, ExportError>| {
        let graph = |chunk: Chunk| Ok::<_, ExportError>((chunk.graph().into(), build(chunk)?));
        Component {
            name: name.into(),
            graphs: vec![graph(Chunk::First)?, graph(Chunk::Rest)?],
            precision,
            slots: Vec::new(),
            attributes: json!({ "class": class }),
        }
        .seal()
    };
    let both = [component("vae_encoder", &encoder)?, component("vae_decoder", &decoder)?];
    checkpoint.finish(class)?;
    Ok(both)
}

/// `[batch, channels, frames, height, width]` of pixels or, with `latent`, of the latent; `alone`: of one frame.
pub(crate) fn video(channels: usize, latent: bool, alone: bool) -> [Dim; 5] {
    let names = if latent { ["latent_frames", "latent_height", "latent_width"] } else { ["frames", "height", "width"] };
    let frames = if alone { 1.into() } else { names[0].into() };
    ["batch".into(), channels.into(), frames, names[1].into(), names[2].into()]
}

/// Frames that a module hands on to the next chunk.
struct Cache {
    /// The module's path below the encoder or decoder.
    path: String,
    value: Value,
    shape: [Dim; 5],
}

/// A graph under construction, with the caches that it hands on.
pub(crate) struct Chunked<'a> {
    pub(crate) b: Builder,
    /// Below the encoder or decoder.
    pub(crate) vars: Vars<'a>,
    /// Of the whole checkpoint.
    pub(crate) root: Vars<'a>,
    pub(crate) chunk: Chunk,
    caches: Vec<Cache>,
    /// Pixels along the side of a cell of the current grid.
    pub(crate) side: usize,
}

impl<'a> Chunked<'a> {
    /// An empty graph, whose weights lie below `prefix`.
    pub(crate) fn new(graph: &str, prefix: &str, checkpoint: &'a Checkpoint, chunk: Chunk, side: usize) -> Self {
        let b = Builder::new(format!("{graph}/{}", chunk.graph()));
        let root = Vars::root(checkpoint);
        Self { b, vars: root.child(prefix), root, chunk, caches: Vec::new(), side }
    }

    /// `[batch, channels, frames, height, width]` of a cache on the current grid.
    fn cache_shape(&self, channels: usize, frames: usize) -> [Dim; 5] {
        let side = |name: &str| match self.side {
            1 => name.into(),
            side => Dim::Symbol(format!("{name}/{side}")),
        };
        ["batch".into(), channels.into(), frames.into(), side("height"), side("width")]
    }

    /// The frames that the chunk before handed on.
    pub(crate) fn cached(&mut self, path: &str, channels: usize, frames: usize) -> Value {
        let shape = self.cache_shape(channels, frames);
        self.b.input(&format!("conv_cache.{path}"), DataType::Float, shape)
    }

    /// Frames of a module for the next chunk.
    pub(crate) fn hand_on(&mut self, path: &str, value: Value, channels: usize, frames: usize) {
        let shape = self.cache_shape(channels, frames);
        self.caches.push(Cache { path: path.to_owned(), value, shape });
    }

    /// Other frames in place of those that were handed on last.
    pub(crate) fn hand_on_instead(&mut self, value: Value) {
        if let Some(cache) = self.caches.last_mut() {
            cache.value = value;
        }
    }

    /// Weight and bias of a convolution.
    pub(crate) fn kernel(&mut self, vars: &Vars<'_>, shape: &[usize]) -> Result<[Value; 2], ExportError> {
        Ok([vars.get(&mut self.b, "weight", shape)?, vars.get(&mut self.b, "bias", &shape[..1])?])
    }

    /// The 3×3×3 convolution `vars`, causal in time; `before` stands before the first frame of a video.
    pub(crate) fn causal(
        &mut self,
        path: &str,
        vars: &Vars<'_>,
        x: &Value,
        [out, input]: [usize; 2],
        before: TimeCache,
    ) -> Result<Value, ExportError> {
        let [weight, bias] = self.kernel(vars, &[out, input, 3, 3, 3])?;
        let cache = match self.chunk {
            Chunk::First => before,
            Chunk::Rest => TimeCache::Previous(self.cached(path, input, KEPT)),
        };
        let (result, next) = self.b.scope(path, |b| blocks::causal_conv3d(b, x, &weight, &bias, &cache));
        self.hand_on(path, next, input, KEPT);
        Ok(result)
    }

    /// Declares the caches as outputs.
    pub(crate) fn finish(mut self, label: &str) -> Result<Model, ExportError> {
        for Cache { path, value, shape } in std::mem::take(&mut self.caches) {
            self.b.output(&format!("next_conv_cache.{path}"), &value, DataType::Float, shape);
        }
        component::finish(label, self.b)
    }
}
