//! Autoencoders driven in chunks of time and tiles of space.
//!
//! Components `vae_encoder` and `vae_decoder` have the graphs `first` and `rest`. The encoder maps `x` `[B, 3, F, H,
//! W]` to `mean` and `logvar` `[B, C, T, h, w]`, the decoder `z` `[B, C, T, h, w]` to `sample` `[B, 3, F, H, W]`.
//! Every causal convolution hands its last frames on: an input `conv_cache.<module>` of `rest` is what the call
//! before gave as `next_conv_cache.<module>`. Caches live and die with a tile.
//!
//! `logvar` must be unclamped: tiles are blended before the clamp to [-30, 20], and the two do not commute where a
//! tile leaves that range. [`Moments`] clamps on use.

use std::ops::Range;

use ndarray::{Array5, ArrayView5, Axis, Ix5, Zip, concatenate, s};

use super::vae::{Ask, Moments, Take, VaeError, VaeNeeds};
use crate::components::{ComponentError, Components, VAE_DECODER, VAE_ENCODER};
use crate::engine::footprint::{Shapes, tensor_bytes};
use crate::engine::session::{Session, SessionError};
use crate::events::{Observer, Phase, PhaseProgress};
use crate::memory::check_room;
use crate::tensor::{Dtype, NamedTensors, Tensor};
use crate::wording::TILING;

const CACHE: &str = "conv_cache.";
const NEXT_CACHE: &str = "next_conv_cache.";

/// Pixels to latents.
pub(crate) const ENCODER: Job = Job { component: VAE_ENCODER, input: "x", outputs: &["mean", "logvar"] };
/// Latents to pixels.
pub(crate) const DECODER: Job = Job { component: VAE_DECODER, input: "z", outputs: &["sample"] };

/// How one video or latent is cut.
pub(crate) struct ChunkLayout {
    /// Frames of the input for each call; the first is of graph `first`, the others of `rest`.
    pub(crate) chunks: Vec<Range<usize>>,
    /// Tiles.
    pub(crate) cuts: Cuts,
    /// Shape of all outputs together, joined on the channel axis.
    pub(crate) output: [usize; 5],
}

impl ChunkLayout {
    /// Runs of graphs.
    fn calls(&self) -> usize {
        self.cuts.rows.windows.len() * self.cuts.columns.windows.len() * self.chunks.len()
    }
}

/// Where one axis is cut, and how its pieces are joined again.
pub(crate) struct Cut {
    /// Pieces of the input.
    pub(crate) windows: Vec<Range<usize>>,
    /// How far a piece of the output is blended with the one before.
    pub(crate) blend: usize,
    /// How much of a piece of the output is kept.
    pub(crate) keep: usize,
}

impl Cut {
    pub(crate) fn whole(extent: usize) -> Self {
        Self { windows: std::iter::once(0..extent).collect(), blend: 0, keep: usize::MAX }
    }

    /// `input` and `output` are a tile's extents before and after the network.
    pub(crate) fn tiles(extent: usize, input: usize, output: usize, overlap: f64) -> Self {
        let stride = ((input as f64 * (1.0 - overlap)) as usize).max(1);
        let blend = (output as f64 * overlap) as usize;
        let windows = (0..extent).step_by(stride).map(|i| i..(i + input).min(extent)).collect();
        Self { windows, blend, keep: output.saturating_sub(blend).max(1) }
    }
}

/// Where frames are cut.
pub(crate) struct Cuts {
    pub(crate) rows: Cut,
    pub(crate) columns: Cut,
}

impl Cuts {
    /// True if there is one tile.
    fn are_whole(&self) -> bool {
        self.rows.windows.len() == 1 && self.columns.windows.len() == 1
    }

    pub(crate) fn whole(height: usize, width: usize) -> Self {
        Self { rows: Cut::whole(height), columns: Cut::whole(width) }
    }
}

/// One direction of the autoencoder.
pub(crate) struct Job {
    component: &'static str,
    input: &'static str,
    /// Joined on the channel axis.
    outputs: &'static [&'static str],
}

impl Job {
    /// What [`Self::run`] or, if the outputs are handed on, [`Self::each`] takes for an input of this shape.
    pub(crate) fn needs(
        &self,
        layout: &ChunkLayout,
        (shape, handed_on): ([usize; 5], bool),
        ask: &mut Ask<'_>,
    ) -> Result<VaeNeeds, ComponentError> {
        let ChunkLayout { chunks, cuts, output } = layout;
        let [batch, channels, _, height, width] = shape;
        let longest = |cut: &Cut| cut.windows.iter().map(Range::len).max().unwrap_or(0);
        let tile = [longest(&cuts.rows), longest(&cuts.columns)];
        let chunk = |length: usize| (self.input.to_owned(), vec![batch, channels, length, tile[0], tile[1]]);
        let mut found = VaeNeeds { complete: true, ..VaeNeeds::default() };
        let mut caches = Shapes::new();
        let rest = chunks.iter().skip(1).max_by_key(|chunk| chunk.len());
        for (graph, range) in [("first", chunks.first()), ("rest", rest)] {
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
        let covered =
            |cut: &Cut, extent: usize| cut.windows.iter().map(Range::len).sum::<usize>() as f64 / extent.max(1) as f64;
        let tiles = covered(&cuts.rows, height) * covered(&cuts.columns, width);
        // One tile is joined in time; of several, all and then rows of them.
        let copies = if cuts.are_whole() { 2.0 } else { (tiles + 1.0).max(3.0) };
        // Handed on, of one tile there is only what a chunk gives.
        let longest = chunks.iter().map(Range::len).max().unwrap_or(0) as f64 / shape[2].max(1) as f64;
        let part = if handed_on && cuts.are_whole() { longest } else { 1.0 };
        let data = (tensor_bytes(Dtype::F32, output) as f64 * copies * part) as u64;
        found.data = found.data.saturating_add(data).saturating_add(tensor_bytes(Dtype::F32, &shape).saturating_mul(2));
        Ok(found)
    }

    /// Refuses what would not fit, before anything is opened. `tiled` is the layout with tiles, where `layout` has none
    /// and they can be used.
    fn check_memory(
        &self,
        (layout, tiled, handed_on): (&ChunkLayout, Option<&ChunkLayout>, bool),
        components: &mut dyn Components,
        input: &Array5<f32>,
    ) -> Result<(), VaeError> {
        let (batch, channels, frames, height, width) = input.dim();
        let held = components.held().saturating_add(4 * input.len() as u64);
        let mut total = |layout: &ChunkLayout| {
            let mut ask = |graph: &'static str, shapes: &Shapes| {
                components.needs(self.component, graph, shapes, (1, false, false))
            };
            let needs = self.needs(layout, ([batch, channels, frames, height, width], handed_on), &mut ask)?;
            Ok::<_, ComponentError>(needs.weights.saturating_add(needs.activations).saturating_add(needs.data))
        };
        let needed = total(layout)?;
        let what = if self.component == VAE_ENCODER { "encoding this video" } else { "decoding these latents" };
        check_room(what, needed, held, |available| {
            let helps = tiled.is_some_and(|tiled| total(tiled).is_ok_and(|needed| needed <= available));
            let smaller = "a smaller or shorter one".to_owned();
            helps.then(|| TILING.to_string()).into_iter().chain([smaller]).collect()
        })?;
        Ok(())
    }

    /// All chunks of all tiles, joined; the outputs stand one after the other on the channel axis.
    pub(crate) fn run(
        &self,
        (layout, tiled): (&ChunkLayout, Option<&ChunkLayout>),
        components: &mut dyn Components,
        input: &Array5<f32>,
        phase: Phase,
        observer: &mut dyn Observer,
    ) -> Result<Array5<f32>, VaeError> {
        self.check_memory((layout, tiled, false), components, input)?;
        let mut progress = PhaseProgress::start(observer, phase, layout.calls());
        let found = self.joined(layout, components, input, &mut progress)?;
        progress.finish();
        Ok(found)
    }

    /// The same handed on in pieces of time, as they come. Of several tiles there is one piece.
    pub(crate) fn each(
        &self,
        (layout, tiled): (&ChunkLayout, Option<&ChunkLayout>),
        components: &mut dyn Components,
        input: &Array5<f32>,
        (phase, observer): (Phase, &mut dyn Observer),
        take: &mut Take<'_>,
    ) -> Result<(), VaeError> {
        self.check_memory((layout, tiled, true), components, input)?;
        let mut progress = PhaseProgress::start(observer, phase, layout.calls());
        if layout.cuts.are_whole() {
            self.tile(components, &input.view(), &layout.chunks, &mut progress, take)?;
        } else {
            take(self.joined(layout, components, input, &mut progress)?)?;
        }
        progress.finish();
        Ok(())
    }

    fn joined(
        &self,
        layout: &ChunkLayout,
        components: &mut dyn Components,
        input: &Array5<f32>,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<Array5<f32>, VaeError> {
        let ChunkLayout { chunks, cuts, .. } = layout;
        let mut rows = Vec::with_capacity(cuts.rows.windows.len());
        for y in &cuts.rows.windows {
            let mut row = Vec::with_capacity(cuts.columns.windows.len());
            for x in &cuts.columns.windows {
                let tile = input.slice(s![.., .., .., y.clone(), x.clone()]);
                let mut parts = Vec::with_capacity(chunks.len());
                self.tile(components, &tile, chunks, progress, &mut |part| {
                    parts.push(part);
                    Ok(())
                })?;
                row.push(self.concatenate(&parts, 2)?);
            }
            rows.push(row);
        }
        if cuts.are_whole()
            && let Some(only) = rows.pop().and_then(|mut row| row.pop())
        {
            return Ok(only);
        }
        blend(&mut rows, cuts);
        let rows: Vec<Array5<f32>> = rows.into_iter().map(|row| self.join(&row, cuts, 4)).collect::<Result<_, _>>()?;
        self.join(&rows, cuts, 3)
    }

    /// All chunks of one tile, one after the other.
    fn tile(
        &self,
        components: &mut dyn Components,
        tile: &ArrayView5<'_, f32>,
        chunks: &[Range<usize>],
        progress: &mut PhaseProgress<'_>,
        take: &mut Take<'_>,
    ) -> Result<(), VaeError> {
        let mut caches = NamedTensors::new();
        for (i, chunk) in chunks.iter().enumerate() {
            progress.check()?;
            let graph = if i == 0 { "first" } else { "rest" };
            let session = components.session(self.component, graph)?;
            let chunk = tile.slice(s![.., .., chunk.clone(), .., ..]).to_owned();
            let mut outputs = self.call(session, graph, (chunk, &caches), progress)?;
            let arrays = self
                .outputs
                .iter()
                .map(|&name| self.output(graph, name, outputs.shift_remove(name)))
                .collect::<Result<Vec<_>, _>>()?;
            take(self.concatenate(&arrays, 1)?)?;
            caches = outputs;
            progress.step();
        }
        Ok(())
    }

    fn call(
        &self,
        session: &mut dyn Session,
        graph: &'static str,
        (chunk, caches): (Array5<f32>, &NamedTensors),
        progress: &PhaseProgress<'_>,
    ) -> Result<NamedTensors, VaeError> {
        let convention = |expected: String| VaeError::Convention { component: self.component, graph, expected };
        let names: Vec<String> = session.inputs().iter().map(|port| port.name.clone()).collect();
        let dtype = session.inputs().iter().find(|port| port.name == self.input).map_or(Dtype::F32, |port| port.dtype);
        let chunk = Tensor::from_floats(chunk.into_dyn(), dtype)
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
        session.run_unless(&inputs, &|| progress.is_cancelled()).map_err(|source| match source {
            SessionError::Cancelled(cancelled) => cancelled.into(),
            source => VaeError::Session { component: self.component, graph, source },
        })
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

/// Blends every tile with the one above and then with the one to the left, in place: its neighbours are blended
/// already.
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

impl From<Array5<f32>> for Moments {
    /// From mean and log-variance, one after the other on the channel axis.
    fn from(both: Array5<f32>) -> Self {
        let channels = both.len_of(Axis(1)) / 2;
        let part = |range: Range<usize>| both.slice(s![.., range, .., .., ..]).to_owned();
        Self { mean: part(0..channels), logvar: part(channels..2 * channels) }
    }
}
