//! CogVideoX's 3D causal autoencoder, driven in chunks of time and tiles of space.
//!
//! Components `vae_encoder` and `vae_decoder` have the graphs `first` and `rest`. The encoder maps `x` `[B, 3, F, H, W]` to
//! `mean` and `logvar` `[B, C, T, h, w]`, the decoder `z` `[B, C, T, h, w]` to `sample` `[B, 3, F, H, W]`. Every causal
//! convolution hands its last frames on: an input `conv_cache.<module>` of `rest` is what the call before gave as
//! `next_conv_cache.<module>`. Caches live and die with a tile.
//!
//! Group norms see one chunk of one tile, so results depend on the cuts: they are those of diffusers and CogVideoX-Fun
//! (`_encode`, `_decode`, `tiled_encode`, `tiled_decode`). `logvar` must be unclamped: tiles are blended before the
//! clamp to [-30, 20], and the two do not commute where a tile leaves that range. [`Moments`] clamps on use.
//! The scaling factor is not applied here.

use std::ops::Range;

use ndarray::{Array5, ArrayView5, Axis, Ix5, Zip, concatenate, s};

use crate::components::{ComponentError, Components, Needs};
pub use crate::components::{VAE_DECODER as DECODER, VAE_ENCODER as ENCODER};
use crate::engine::footprint::{Shapes, tensor_bytes};
use crate::engine::session::{Session, SessionError};
use crate::error::{Classified, ErrorClass};
use crate::events::{Cancelled, Observer, Progress, Stage};
use crate::memory::{NotEnough, check_room};
use crate::pipeline::{Chunking, DecodeChunks, VaeConfig, float_tensor};
use crate::tensor::{Dtype, NamedTensors, Tensor};

const CACHE: &str = "conv_cache.";
const NEXT_CACHE: &str = "next_conv_cache.";
const LOGVAR_RANGE: (f32, f32) = (-30.0, 20.0);

/// What one direction takes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VaeNeeds {
    pub(crate) weights: u64,
    pub(crate) activations: u64,
    pub(crate) data: u64,
    pub(crate) complete: bool,
}

/// Tells what a graph needs for inputs of these shapes, if its engine knows.
pub(crate) type Ask<'a> = dyn FnMut(&'static str, &Shapes) -> Result<Option<Needs>, ComponentError> + 'a;

/// What [`encode`] (of pixels) or [`decode`] (of latents) of this shape takes, by what `ask` says of its graphs.
pub(crate) fn needs(
    config: &VaeConfig,
    component: &'static str,
    shape: [usize; 5],
    ask: &mut Ask<'_>,
) -> Result<VaeNeeds, ComponentError> {
    let [batch, channels, frames, height, width] = shape;
    let encoder = component == ENCODER;
    let (chunks, cuts) = if encoder {
        // What cannot be cut is refused later, with its reason.
        let whole = || Cuts { rows: Cut::whole(height), columns: Cut::whole(width) };
        let cuts = Cuts::encoder(config, height, width).unwrap_or_else(|_| whole());
        (encode_chunks(frames.max(1), config.chunking.encode_frames), cuts)
    } else {
        (decode_chunks(frames.max(1), &config.chunking), Cuts::decoder(config, height, width))
    };
    let longest = |cut: &Cut| cut.windows.iter().map(Range::len).max().unwrap_or(0);
    let tile = [longest(&cuts.rows), longest(&cuts.columns)];
    let input = if encoder { "x" } else { "z" };
    let chunk = |length: usize| (input.to_owned(), vec![batch, channels, length, tile[0], tile[1]]);
    let mut found = VaeNeeds { complete: true, ..VaeNeeds::default() };
    let mut caches = Shapes::new();
    let lengths = [("first", chunks.first()), ("rest", chunks[1..].iter().max_by_key(|chunk| chunk.len()))];
    for (graph, range) in lengths {
        let Some(range) = range else { continue };
        let mut shapes = std::mem::take(&mut caches);
        shapes.extend([chunk(range.len())]);
        let Some(needs) = ask(graph, &shapes)? else {
            found.complete = false;
            continue;
        };
        found.complete &= needs.run.complete;
        found.weights = found.weights.max(needs.weights);
        // Each of the two graphs keeps what it computed with.
        found.activations = found.activations.saturating_add(needs.run.activations);
        // Caches go in while others come out.
        found.data = found.data.max(needs.run.outputs.saturating_mul(2));
        for (name, shape) in needs.run.shapes {
            if let Some(module) = name.strip_prefix(NEXT_CACHE) {
                caches.insert(format!("{CACHE}{module}"), shape);
            }
        }
    }
    let (space, time) = (config.spatial_compression_ratio, config.temporal_compression_ratio);
    let output = if encoder {
        [batch, 2 * config.latent_channels, frames.div_ceil(time), height.div_ceil(space), width.div_ceil(space)]
    } else {
        [batch, 3, (frames * time).max(time) - time + 1, height * space, width * space]
    };
    let output = tensor_bytes(Dtype::F32, &output);
    let covered =
        |cut: &Cut, extent: usize| cut.windows.iter().map(Range::len).sum::<usize>() as f64 / extent.max(1) as f64;
    let tiles = covered(&cuts.rows, height) * covered(&cuts.columns, width);
    // One tile is joined in time; of several, all and then rows of them.
    let copies = if cuts.are_whole() { 2.0 } else { (tiles + 1.0).max(3.0) };
    let data = (output as f64 * copies) as u64;
    found.data = found.data.saturating_add(data).saturating_add(tensor_bytes(Dtype::F32, &shape).saturating_mul(2));
    Ok(found)
}

/// Why a video was not encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaeError {
    /// The observer asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is too little memory.
    #[error(transparent)]
    Memory(#[from] NotEnough),
    /// A graph is not available.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A graph did not run.
    #[error("{component}, graph `{graph}`: {source}")]
    Session {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: &'static str,
        /// Its words.
        source: SessionError,
    },
    /// The video or latent has an impossible shape.
    #[error("{component} takes {expected}, found shape {found:?}")]
    Input {
        /// The component.
        component: &'static str,
        /// The shape expected.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A graph does not keep the naming convention.
    #[error("{component}, graph `{graph}`: expected {expected}; export the model again")]
    Convention {
        /// The component.
        component: &'static str,
        /// The graph.
        graph: &'static str,
        /// What is missing or wrong.
        expected: String,
    },
    /// A tile at the edge is smaller than one latent pixel.
    #[error(
        "a {extent}-pixel side leaves a last tile of {rest} pixels, expected at least {ratio}; choose another size, or switch tiling off"
    )]
    Tile {
        /// The side.
        extent: usize,
        /// What remains for the last tile.
        rest: usize,
        /// Pixels per latent pixel.
        ratio: usize,
    },
}

impl Classified for VaeError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Cancelled(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Component(error) => error.class(),
            Self::Session { source, .. } => source.class(),
            Self::Input { .. } | Self::Tile { .. } => ErrorClass::Usage,
            Self::Convention { .. } => ErrorClass::BadModel,
        }
    }
}

/// The encoder's answer: a normal distribution per latent value, `[B, C, T, h, w]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Mean; also the distribution's mode.
    pub mean: Array5<f32>,
    /// Logarithm of the variance as the encoder gives it, not clamped.
    pub logvar: Array5<f32>,
}

impl Moments {
    /// The log-variance clamped to [-30, 20], as diffusers' `DiagonalGaussianDistribution` has it.
    pub fn clamped_logvar(&self) -> Array5<f32> {
        self.logvar.mapv(|v| v.clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1))
    }

    /// `mean + exp(logvar / 2) · noise`, with the clamped log-variance. `noise` holds standard normal values.
    ///
    /// # Errors
    /// [`VaeError::Input`] if `noise` has another shape.
    pub fn sample(&self, noise: &Array5<f32>) -> Result<Array5<f32>, VaeError> {
        if noise.shape() != self.mean.shape() {
            let expected = format!("noise of shape {:?}", self.mean.shape());
            return Err(VaeError::Input { component: ENCODER, expected, found: noise.shape().to_vec() });
        }
        let logvar = self.clamped_logvar();
        Ok(Zip::from(&self.mean).and(&logvar).and(noise).map_collect(|&m, &l, &n| m + (0.5 * l).exp() * n))
    }

    /// Mean and unclamped log-variance on the channel axis, `[B, 2C, T, h, w]`: diffusers' `parameters`.
    ///
    /// # Errors
    /// [`VaeError::Input`] if the two differ in shape.
    pub fn parameters(&self) -> Result<Array5<f32>, VaeError> {
        concatenate(Axis(1), &[self.mean.view(), self.logvar.view()]).map_err(|_| VaeError::Input {
            component: ENCODER,
            expected: format!("logvar of shape {:?}", self.mean.shape()),
            found: self.logvar.shape().to_vec(),
        })
    }
}

/// Encodes pixels `[B, 3, F, H, W]`.
///
/// # Errors
/// [`VaeError`].
pub fn encode(
    config: &VaeConfig,
    components: &mut dyn Components,
    pixels: &Array5<f32>,
    stage: Stage,
    observer: &mut dyn Observer,
) -> Result<Moments, VaeError> {
    let (_, channels, frames, height, width) = pixels.dim();
    let ratio = config.spatial_compression_ratio;
    if channels != 3 || pixels.is_empty() || height < ratio || width < ratio {
        let expected = format!("x [batch, 3, frames, height >= {ratio}, width >= {ratio}]");
        return Err(VaeError::Input { component: ENCODER, expected, found: pixels.shape().to_vec() });
    }
    let job = Job { component: ENCODER, input: "x", outputs: &["mean", "logvar"] };
    let chunks = encode_chunks(frames, config.chunking.encode_frames);
    let cuts = Cuts::encoder(config, height, width)?;
    let moments = job.run(config, components, pixels, &chunks, &cuts, stage, observer)?;
    let latent = moments.len_of(Axis(1)) / 2;
    let part = |range: Range<usize>| moments.slice(s![.., range, .., .., ..]).to_owned();
    Ok(Moments { mean: part(0..latent), logvar: part(latent..2 * latent) })
}

/// Decodes latents `[B, C, T, h, w]` (divided by the scaling factor) to pixels `[B, 3, F, H, W]`, about [-1, 1].
///
/// # Errors
/// [`VaeError`].
pub fn decode(
    config: &VaeConfig,
    components: &mut dyn Components,
    latents: &Array5<f32>,
    stage: Stage,
    observer: &mut dyn Observer,
) -> Result<Array5<f32>, VaeError> {
    let (_, channels, frames, height, width) = latents.dim();
    if channels != config.latent_channels || latents.is_empty() {
        let expected = format!("z [batch, {}, frames, height, width]", config.latent_channels);
        return Err(VaeError::Input { component: DECODER, expected, found: latents.shape().to_vec() });
    }
    let job = Job { component: DECODER, input: "z", outputs: &["sample"] };
    let chunks = decode_chunks(frames, &config.chunking);
    let cuts = Cuts::decoder(config, height, width);
    job.run(config, components, latents, &chunks, &cuts, stage, observer)
}

/// Frames per encoder call: `frames mod size` joins the first of `frames / size` calls, at least one.
fn encode_chunks(frames: usize, size: usize) -> Vec<Range<usize>> {
    let rest = frames % size;
    (0..(frames / size).max(1))
        .map(|i| if i == 0 { 0..(size + rest).min(frames) } else { size * i + rest..size * (i + 1) + rest })
        .collect()
}

/// Latent frames per decoder call.
fn decode_chunks(frames: usize, chunking: &Chunking) -> Vec<Range<usize>> {
    match chunking.decode {
        DecodeChunks::Diffusers => encode_chunks(frames, 2),
        DecodeChunks::Fun => {
            std::iter::once(0..1).chain((1..frames).step_by(2).map(|i| i..(i + 2).min(frames))).collect()
        }
    }
}

/// Where one axis is cut, and how its pieces are joined again.
struct Cut {
    /// Pieces of the input.
    windows: Vec<Range<usize>>,
    /// How far a piece of the output is blended with the one before.
    blend: usize,
    /// How much of a piece of the output is kept.
    keep: usize,
}

impl Cut {
    fn whole(extent: usize) -> Self {
        Self { windows: std::iter::once(0..extent).collect(), blend: 0, keep: usize::MAX }
    }

    /// `input` and `output` are a tile's extents before and after the network.
    fn tiles(extent: usize, input: usize, output: usize, overlap: f64) -> Self {
        let stride = ((input as f64 * (1.0 - overlap)) as usize).max(1);
        let blend = (output as f64 * overlap) as usize;
        let windows = (0..extent).step_by(stride).map(|i| i..(i + input).min(extent)).collect();
        Self { windows, blend, keep: output.saturating_sub(blend).max(1) }
    }
}

struct Cuts {
    rows: Cut,
    columns: Cut,
}

impl Cuts {
    /// True if there is one tile.
    fn are_whole(&self) -> bool {
        self.rows.windows.len() == 1 && self.columns.windows.len() == 1
    }

    fn encoder(config: &VaeConfig, height: usize, width: usize) -> Result<Self, VaeError> {
        let (tiling, ratio) = (&config.tiling, config.spatial_compression_ratio);
        let (tile_height, tile_width) = (tiling.tile_sample_min_height, tiling.tile_sample_min_width);
        if !tiling.enabled || (width <= tile_width && height <= tile_height) {
            return Ok(Self { rows: Cut::whole(height), columns: Cut::whole(width) });
        }
        let cut = |extent, tile: usize, overlap| {
            let cut = Cut::tiles(extent, tile, tile / ratio, overlap);
            match cut.windows.iter().find(|w| w.len() < ratio) {
                Some(window) => Err(VaeError::Tile { extent, rest: window.len(), ratio }),
                None => Ok(cut),
            }
        };
        Ok(Self {
            rows: cut(height, tile_height, tiling.tile_overlap_factor_height)?,
            columns: cut(width, tile_width, tiling.tile_overlap_factor_width)?,
        })
    }

    fn decoder(config: &VaeConfig, height: usize, width: usize) -> Self {
        let (tiling, ratio) = (&config.tiling, config.spatial_compression_ratio);
        let (tile_height, tile_width) = (tiling.tile_sample_min_height, tiling.tile_sample_min_width);
        if !tiling.enabled || (width <= tile_width / ratio && height <= tile_height / ratio) {
            return Self { rows: Cut::whole(height), columns: Cut::whole(width) };
        }
        Self {
            rows: Cut::tiles(height, tile_height / ratio, tile_height, tiling.tile_overlap_factor_height),
            columns: Cut::tiles(width, tile_width / ratio, tile_width, tiling.tile_overlap_factor_width),
        }
    }
}

/// One direction of the autoencoder.
struct Job {
    component: &'static str,
    input: &'static str,
    /// Joined on the channel axis.
    outputs: &'static [&'static str],
}

impl Job {
    /// Refuses what would not fit, before anything is opened.
    fn check_memory(
        &self,
        config: &VaeConfig,
        components: &mut dyn Components,
        input: &Array5<f32>,
    ) -> Result<(), VaeError> {
        let (batch, channels, frames, height, width) = input.dim();
        let held = components.held().saturating_add(4 * input.len() as u64);
        let mut with = |config: &VaeConfig| {
            let shape = [batch, channels, frames, height, width];
            let mut ask = |graph: &'static str, shapes: &Shapes| {
                components.needs(self.component, graph, shapes, (1, false, false))
            };
            needs(config, self.component, shape, &mut ask)
        };
        let total = |needs: VaeNeeds| needs.weights.saturating_add(needs.activations).saturating_add(needs.data);
        let needed = total(with(config)?);
        let what = if self.component == ENCODER { "encoding this video" } else { "decoding these latents" };
        check_room(what, needed, held, |available| {
            let mut tiled = config.clone();
            tiled.tiling.enabled = true;
            let tiles = !config.tiling.enabled && tiled.check().is_ok();
            let helps = tiles && with(&tiled).is_ok_and(|needs| total(needs) <= available);
            let smaller = "a smaller or shorter one".to_owned();
            helps.then(|| "--vae-tiling on".to_owned()).into_iter().chain([smaller]).collect()
        })?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what, how and for whom")]
    fn run(
        &self,
        config: &VaeConfig,
        components: &mut dyn Components,
        input: &Array5<f32>,
        chunks: &[Range<usize>],
        cuts: &Cuts,
        stage: Stage,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError> {
        self.check_memory(config, components, input)?;
        let total = cuts.rows.windows.len() * cuts.columns.windows.len() * chunks.len();
        let mut progress = Progress::start(observer, stage, total);
        let mut rows = Vec::with_capacity(cuts.rows.windows.len());
        for y in &cuts.rows.windows {
            let mut row = Vec::with_capacity(cuts.columns.windows.len());
            for x in &cuts.columns.windows {
                let tile = input.slice(s![.., .., .., y.clone(), x.clone()]);
                row.push(self.tile(components, &tile, chunks, &mut progress)?);
            }
            rows.push(row);
        }
        progress.finish();
        if cuts.are_whole()
            && let Some(only) = rows.pop().and_then(|mut row| row.pop())
        {
            return Ok(only);
        }
        blend(&mut rows, cuts);
        let rows: Vec<Array5<f32>> = rows.into_iter().map(|row| self.join(&row, cuts, 4)).collect::<Result<_, _>>()?;
        self.join(&rows, cuts, 3)
    }

    /// All chunks of one tile, joined in time.
    fn tile(
        &self,
        components: &mut dyn Components,
        tile: &ArrayView5<'_, f32>,
        chunks: &[Range<usize>],
        progress: &mut Progress<'_>,
    ) -> Result<Array5<f32>, VaeError> {
        let mut caches = NamedTensors::new();
        let mut parts = Vec::with_capacity(chunks.len());
        for (i, chunk) in chunks.iter().enumerate() {
            progress.check()?;
            let graph = if i == 0 { "first" } else { "rest" };
            let session = components.session(self.component, graph)?;
            let chunk = tile.slice(s![.., .., chunk.clone(), .., ..]).to_owned();
            let mut outputs = self.call(session, graph, chunk, &caches)?;
            let arrays = self
                .outputs
                .iter()
                .map(|&name| self.output(graph, name, outputs.shift_remove(name)))
                .collect::<Result<Vec<_>, _>>()?;
            parts.push(self.concatenate(&arrays, 1)?);
            caches = outputs;
            progress.step();
        }
        self.concatenate(&parts, 2)
    }

    fn call(
        &self,
        session: &mut dyn Session,
        graph: &'static str,
        chunk: Array5<f32>,
        caches: &NamedTensors,
    ) -> Result<NamedTensors, VaeError> {
        let convention = |expected: String| VaeError::Convention { component: self.component, graph, expected };
        let names: Vec<String> = session.inputs().iter().map(|port| port.name.clone()).collect();
        let dtype = session.inputs().iter().find(|port| port.name == self.input).map_or(Dtype::F32, |port| port.dtype);
        let chunk = float_tensor(chunk.into_dyn(), dtype)
            .ok_or_else(|| convention(format!("input `{}` of a floating-point type", self.input)))?;
        let mut inputs: Vec<(&str, &Tensor)> = vec![(self.input, &chunk)];
        for name in &names {
            if let Some(module) = name.strip_prefix(CACHE) {
                let cache = caches
                    .get(&format!("{NEXT_CACHE}{module}"))
                    .ok_or_else(|| convention(format!("an output `{NEXT_CACHE}{module}` of the call before")))?;
                inputs.push((name, cache));
            }
        }
        session.run(&inputs).map_err(|source| VaeError::Session { component: self.component, graph, source })
    }

    fn output(&self, graph: &'static str, name: &str, tensor: Option<Tensor>) -> Result<Array5<f32>, VaeError> {
        tensor.and_then(Tensor::into_f32).and_then(|array| array.into_dimensionality::<Ix5>().ok()).ok_or_else(|| {
            VaeError::Convention {
                component: self.component,
                graph,
                expected: format!("a floating-point output `{name}` of rank 5"),
            }
        })
    }

    fn join(&self, parts: &[Array5<f32>], cuts: &Cuts, axis: usize) -> Result<Array5<f32>, VaeError> {
        let keep = if axis == 4 { cuts.columns.keep } else { cuts.rows.keep };
        let kept: Vec<_> = parts
            .iter()
            .map(|part| {
                let end = part.len_of(Axis(axis)).min(keep);
                part.slice_axis(Axis(axis), ndarray::Slice::from(0..end)).to_owned()
            })
            .collect();
        self.concatenate(&kept, axis)
    }

    fn concatenate(&self, parts: &[Array5<f32>], axis: usize) -> Result<Array5<f32>, VaeError> {
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        concatenate(Axis(axis), &views).map_err(|_| VaeError::Convention {
            component: self.component,
            graph: "rest",
            expected: format!("outputs that agree on all axes but {axis}"),
        })
    }
}

/// Blends every tile with the one above and then with the one to the left, in place: the neighbours are blended already.
fn blend(rows: &mut [Vec<Array5<f32>>], cuts: &Cuts) {
    for i in 0..rows.len() {
        let (above, below) = rows.split_at_mut(i);
        let Some(row) = below.first_mut() else { continue };
        for j in 0..row.len() {
            if let Some(upper) = above.last().and_then(|row| row.get(j)) {
                blend_axis(upper, &mut row[j], 3, cuts.rows.blend);
            }
            let (left, right) = row.split_at_mut(j);
            if let (Some(left), Some(tile)) = (left.last(), right.first_mut()) {
                blend_axis(left, tile, 4, cuts.columns.blend);
            }
        }
    }
}

/// Fades from the end of `before` to the start of `tile` over `extent` rows or columns.
fn blend_axis(before: &Array5<f32>, tile: &mut Array5<f32>, axis: usize, extent: usize) {
    let axis = Axis(axis);
    let extent = extent.min(before.len_of(axis)).min(tile.len_of(axis));
    for k in 0..extent {
        let weight = k as f64 / extent as f64;
        let (old, new) = ((1.0 - weight) as f32, weight as f32);
        let source = before.index_axis(axis, before.len_of(axis) - extent + k);
        Zip::from(tile.index_axis_mut(axis, k)).and(&source).for_each(|b, &a| *b = a * old + *b * new);
    }
}

#[cfg(test)]
mod tests;
