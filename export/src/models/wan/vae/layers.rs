//! Layers of the autoencoder, and the caches that they hand from chunk to chunk.

use v2l_graphs::blocks::{self, TimeCache};
use v2l_graphs::{Builder, Extent, Value};

use super::cells;
use crate::ExportError;
use crate::models::autoencoder::{Chunk, Chunked, KEPT};

impl Chunked<'_> {
    /// 3×3×3 convolution, causal in time.
    pub(super) fn causal_conv(&mut self, path: &str, x: &Value, channels: [usize; 2]) -> Result<Value, ExportError> {
        let vars = self.vars.child(path);
        self.causal(path, &vars, x, channels, TimeCache::Zeros)
    }

    /// The 1×1×1 convolution `name` beside encoder and decoder.
    pub(super) fn quant_conv(&mut self, name: &str, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let [weight, bias] = self.kernel(&self.root.child(name), &[channels, channels, 1, 1, 1])?;
        Ok(self.b.scope(name, |b| blocks::conv3d(b, x, &weight, &bias)))
    }

    /// Norm over channels and SiLU.
    fn activate(&mut self, path: &str, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let gamma = self.vars.child(path).get(&mut self.b, "gamma", &[channels, 1, 1, 1])?;
        Ok(self.b.scope(path, |b| {
            let x = blocks::channel_norm(b, x, channels, &gamma);
            blocks::silu(b, &x)
        }))
    }

    /// Last norm and convolution.
    pub(super) fn head(&mut self, x: &Value, [out, input]: [usize; 2]) -> Result<Value, ExportError> {
        let x = self.activate("norm_out", x, input)?;
        self.causal_conv("conv_out", &x, [out, input])
    }

    pub(super) fn resnet(&mut self, path: &str, x: &Value, input: usize, out: usize) -> Result<Value, ExportError> {
        let h = self.activate(&format!("{path}.norm1"), x, input)?;
        let h = self.causal_conv(&format!("{path}.conv1"), &h, [out, input])?;
        let h = self.activate(&format!("{path}.norm2"), &h, out)?;
        let h = self.causal_conv(&format!("{path}.conv2"), &h, [out, out])?;
        let shortcut = if input == out {
            x.clone()
        } else {
            let path = format!("{path}.conv_shortcut");
            let [weight, bias] = self.kernel(&self.vars.child(&path), &[out, input, 1, 1, 1])?;
            self.b.scope(path, |b| blocks::conv3d(b, x, &weight, &bias))
        };
        Ok(self.b.scope(path, |b| b.op("Add", &[&h, &shortcut])))
    }

    pub(super) fn mid_block(&mut self, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let x = self.resnet("mid_block.resnets.0", x, channels, channels)?;
        let x = self.attention("mid_block.attentions.0", &x, channels)?;
        self.resnet("mid_block.resnets.1", &x, channels, channels)
    }

    /// Attention with one head among the cells of each frame.
    fn attention(&mut self, path: &str, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let vars = self.vars.child(path);
        let b = &mut self.b;
        let gamma = vars.child("norm").get(b, "gamma", &[channels, 1, 1])?;
        let (qkv, proj) = (vars.child("to_qkv"), vars.child("proj"));
        let qkv = [qkv.matrix(b, "weight", &[3 * channels, channels, 1, 1])?, qkv.get(b, "bias", &[3 * channels])?];
        let proj = [proj.matrix(b, "weight", &[channels, channels, 1, 1])?, proj.get(b, "bias", &[channels])?];
        Ok(b.scope(path, |b| {
            let gamma = b.unsqueeze(&gamma, &[3]);
            let normal = blocks::channel_norm(b, x, channels, &gamma);
            let rows = b.transpose(&normal, &[0, 2, 3, 4, 1]);
            let rows = b.reshape(&rows, &[(-1i64).into(), channels.into()]);
            let rows = blocks::linear(b, &rows, &qkv[0], Some(&qkv[1]));
            let [batch, time, height, width] = [0, 2, 3, 4].map(|axis| b.extent(x, axis));
            let frames = b.op("Mul", &[&batch, &time]);
            let heads: Vec<Value> = b
                .split(&rows, 1, 3)
                .iter()
                .map(|part| {
                    let heads = blocks::split_heads(b, part, &frames, 1, channels);
                    b.transpose(&heads, &[0, 2, 1, 3])
                })
                .collect();
            let scale = 1.0 / (channels as f32).sqrt();
            let mixed = blocks::scaled_dot_product_attention(b, &heads[0], &heads[1], &heads[2], Some(scale), None);
            let rows = blocks::merge_heads(b, &mixed, 1, channels);
            let rows = blocks::linear(b, &rows, &proj[0], Some(&proj[1]));
            let extents = [&batch, &time, &height, &width].map(Extent::from);
            let [batch, time, height, width] = extents;
            let cells = b.reshape(&rows, &[batch, time, height, width, channels.into()]);
            let cells = b.transpose(&cells, &[0, 4, 1, 2, 3]);
            b.op("Add", &[&cells, x])
        }))
    }

    /// Halves height and width, then, with `time`, the frames behind the first.
    pub(super) fn downsample(
        &mut self,
        path: &str,
        x: &Value,
        channels: usize,
        time: bool,
    ) -> Result<Value, ExportError> {
        let vars = self.vars.child(path);
        let [weight, bias] = self.kernel(&vars.child("resample.1"), &[channels, channels, 3, 3])?;
        let x = self.b.scope(path, |b| blocks::conv2d_per_frame(b, x, &weight, &bias, [channels; 2], 2, [0, 0, 1, 1]));
        self.side *= 2;
        if !time {
            return Ok(x);
        }
        let path = format!("{path}.time_conv");
        self.hand_on(&path, x.clone(), channels, 1);
        if self.chunk == Chunk::First {
            return Ok(x);
        }
        let [weight, bias] = self.kernel(&vars.child("time_conv"), &[channels, channels, 3, 1, 1])?;
        let before = self.cached(&path, channels, 1);
        let (x, next) = self.b.scope(path, |b| {
            let next = b.slice(&x, 2, (-1i64).into(), i64::MAX.into());
            let joined = b.concat(&[&before, &x], 2);
            let conv = b.node("Conv", &[&joined, &weight, &bias]);
            (conv.attr("kernel_shape", vec![3, 1, 1]).attr("strides", vec![2, 1, 1]).out(), next)
        });
        self.hand_on_instead(next);
        Ok(x)
    }

    /// With `time`, doubles the frames behind the first; then doubles height and width.
    pub(super) fn upsample(
        &mut self,
        path: &str,
        x: &Value,
        [out, input]: [usize; 2],
        time: bool,
    ) -> Result<Value, ExportError> {
        let mut x = x.clone();
        if time {
            x = self.double_time(&format!("{path}.time_conv"), &x, input)?;
        }
        let [weight, bias] = self.kernel(&self.vars.child(path).child("resample.1"), &[out, input, 3, 3])?;
        self.side /= 2;
        Ok(self.b.scope(path, |b| {
            let x = blocks::double_space(b, &x);
            blocks::conv2d_per_frame(b, &x, &weight, &bias, [out, input], 1, [1, 1, 1, 1])
        }))
    }

    /// The first frame stands for itself, and its successors do not see it.
    fn double_time(&mut self, path: &str, x: &Value, channels: usize) -> Result<Value, ExportError> {
        let extents = [0, 3, 4].map(|axis| self.b.extent(x, axis));
        let [batch, height, width] = extents.each_ref().map(Extent::from);
        if self.chunk == Chunk::First {
            let zeros = self.b.scope(path, |b| {
                let shape = b.shape(&[batch, channels.into(), KEPT.into(), height, width]);
                let zero = b.float(0.0);
                b.op("Expand", &[&zero, &shape])
            });
            self.hand_on(path, zeros, channels, KEPT);
            return Ok(x.clone());
        }
        let [weight, bias] = self.kernel(&self.vars.child(path), &[2 * channels, channels, 3, 1, 1])?;
        let before = self.cached(path, channels, KEPT);
        let (x, next) = self.b.scope(path, |b| {
            let (x, next) = blocks::causal_time_conv(b, x, &weight, &bias, &TimeCache::Previous(before));
            let time = b.extent(&x, 2);
            let split =
                [batch.clone(), 2usize.into(), channels.into(), Extent::from(&time), height.clone(), width.clone()];
            let split = b.reshape(&x, &split);
            let woven = b.transpose(&split, &[0, 2, 3, 1, 4, 5]);
            (b.reshape(&woven, &[batch, channels.into(), (-1i64).into(), height, width]), next)
        });
        self.hand_on(path, next, channels, KEPT);
        Ok(x)
    }

    /// `x` and the averages of `start`.
    pub(super) fn add_averaged(&mut self, path: &str, x: &Value, start: &Value, shortcut: Shortcut) -> Value {
        let first = self.chunk == Chunk::First;
        self.b.scope(format!("{path}.avg_shortcut"), |b| {
            let start =
                if first && shortcut.time > 1 { blocks::zero_frames_before(b, start, 1) } else { start.clone() };
            let averaged = shortcut.average(b, &start);
            b.op("Add", &[x, &averaged])
        })
    }

    /// `x` and `start`, repeated.
    pub(super) fn add_repeated(&mut self, path: &str, x: &Value, start: &Value, shortcut: Shortcut) -> Value {
        let first = self.chunk == Chunk::First;
        self.b.scope(format!("{path}.avg_shortcut"), |b| {
            let mut repeated = shortcut.repeat(b, start);
            if first && shortcut.time > 1 {
                repeated = b.slice(&repeated, 2, (shortcut.time - 1).into(), i64::MAX.into());
            }
            b.op("Add", &[x, &repeated])
        })
    }
}

/// A shortcut of Wan 2.2 around a block that resamples.
#[derive(Clone, Copy)]
pub(super) struct Shortcut {
    input: usize,
    out: usize,
    /// Frames that become one, or that one becomes.
    time: usize,
    /// Cells along a side that become one, or that one becomes.
    side: usize,
}

impl Shortcut {
    pub(super) fn new(input: usize, out: usize, time: bool, space: bool) -> Self {
        Self { input, out, time: if time { 2 } else { 1 }, side: if space { 2 } else { 1 } }
    }

    fn cells(self) -> usize {
        self.time * self.side * self.side
    }

    /// True if the folded channels of the input fall into groups, one for each channel of the output.
    pub(super) fn averages_groups(self) -> bool {
        (self.input * self.cells()).is_multiple_of(self.out)
    }

    /// True if each channel of the input stands for as many folded channels of the output.
    pub(super) fn repeats_groups(self) -> bool {
        (self.out * self.cells()).is_multiple_of(self.input)
    }

    /// Folds neighbours in time and space into channels and averages groups of these.
    fn average(self, b: &mut Builder, x: &Value) -> Value {
        if self.cells() == 1 && self.input == self.out {
            return x.clone();
        }
        let x = cells::fold(b, x, self.input, [self.time, self.side, self.side], [0, 1, 2]);
        let [batch, time, height, width] = [0, 2, 3, 4].map(|axis| Extent::from(&b.extent(&x, axis)));
        let groups = self.input * self.cells() / self.out;
        let x = b.reshape(&x, &[batch, self.out.into(), groups.into(), time, height, width]);
        let axes = b.ints(&[2]);
        b.node("ReduceMean", &[&x, &axes]).attr("keepdims", 0).out()
    }

    /// Repeats channels and unfolds them into time and space.
    fn repeat(self, b: &mut Builder, x: &Value) -> Value {
        let folded = self.out * self.cells();
        let sources: Vec<i64> = (0..folded).map(|channel| (channel / (folded / self.input)) as i64).collect();
        let sources = b.ints(&sources);
        let x = b.gather(x, &sources, 1);
        cells::unfold(b, &x, self.out, [self.time, self.side, self.side], [0, 1, 2])
    }
}
