//! The graphs of a network. Text and weight meet after the first block's attention to itself, so what comes before is apart.

use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value, blocks};

use super::describe::Sizes;
use crate::models::layers;
use crate::{Checkpoint, ExportError, Vars, component};

/// Of the norms before attention and feed-forward layers.
const EPSILON: f32 = 1e-6;
/// Of the norms of queries and keys, and of the last.
const DEFAULT_EPSILON: f32 = 1e-5;
/// Beside the squares of a weight's columns.
const WEIGHT_EPSILON: f32 = 1e-6;
/// `torch.finfo(torch.float32).eps`, which `RMSNorm` takes where none is given.
const RMS_EPSILON: f32 = f32::EPSILON;

/// Every graph, by name.
pub(super) fn all(checkpoint: &Checkpoint, sizes: &Sizes) -> Result<Vec<(String, Model)>, ExportError> {
    let mut graphs = Vec::new();
    for number in [1, 2] {
        let stage = Stage { vars: Vars::root(checkpoint).child(format!("stage{number}")), sizes, number };
        graphs.push((format!("text_{number}"), stage.text()?));
        graphs.push((format!("start_{number}"), stage.start()?));
        graphs.push((format!("stage_{number}"), stage.stage()?));
    }
    Ok(graphs)
}

/// One of the two networks.
struct Stage<'a> {
    vars: Vars<'a>,
    sizes: &'a Sizes,
    number: usize,
}

impl Stage<'_> {
    fn norm(&self, b: &mut Builder, vars: &Vars<'_>, x: &Value, epsilon: f32) -> Result<Value, ExportError> {
        layers::layer_norm(b, vars, x, self.sizes.d, epsilon)
    }

    fn linear(&self, b: &mut Builder, vars: &Vars<'_>, x: &Value, sizes: [usize; 2]) -> Result<Value, ExportError> {
        layers::linear(b, vars, x, sizes, true)
    }

    /// Normalises each head of `[…, dh]`.
    fn head_norm(&self, b: &mut Builder, vars: &Vars<'_>, x: &Value) -> Result<Value, ExportError> {
        layers::layer_norm(b, vars, x, self.head(), DEFAULT_EPSILON)
    }

    fn head(&self) -> usize {
        self.sizes.d / self.sizes.heads
    }

    fn scale(&self) -> Option<f32> {
        Some(1.0 / (self.head() as f32).sqrt())
    }

    /// `text_hidden` `[t, context]` → the keys and values of every block, `[1, h, t, dh]`. The text is not normalised.
    fn text(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("text");
        let b = &mut builder;
        let Sizes { d, heads, context, .. } = *self.sizes;
        let hidden = b.input("text_hidden", DataType::Float, ["text_length".into(), Dim::Fixed(context)]);
        let rows = self.linear(b, &self.vars.child("text_proj"), &hidden, [d, context])?;
        let one = b.ints(&[1]);
        for block in 0..self.sizes.blocks {
            let vars = self.vars.child(format!("blocks.{block}.cross_attn"));
            let (key, value) = self.keys_and_values(b, &vars, &rows, &one)?;
            for (name, part) in [("key", key), ("value", value)] {
                let shape = [1.into(), heads.into(), "text_length".into(), Dim::Fixed(self.head())];
                b.output(&format!("{name}.{block}"), &part, DataType::Float, shape);
            }
        }
        component::finish("hypernetwork/text", builder)
    }

    /// Keys, normalised, and values `[batch, h, t, dh]` of rows `[batch·t, d]`.
    fn keys_and_values(
        &self,
        b: &mut Builder,
        vars: &Vars<'_>,
        rows: &Value,
        batch: &Value,
    ) -> Result<(Value, Value), ExportError> {
        let Sizes { d, heads, .. } = *self.sizes;
        let both = self.linear(b, &vars.child("kv"), rows, [2 * d, d])?;
        let parts =
            b.reshape(&both, &[Extent::from(batch), (-1i64).into(), 2usize.into(), heads.into(), self.head().into()]);
        let parts = b.transpose(&parts, &[2, 0, 3, 1, 4]);
        let parts: Vec<Value> = b.split(&parts, 0, 2).iter().map(|part| b.squeeze(part, &[0])).collect();
        Ok((self.head_norm(b, &vars.child("k_norm"), &parts[0])?, parts[1].clone()))
    }

    /// `weight` `[b, w, w]`, `depth`, `kind` `[b]` → `start` `[b, n, d]`: patches with their meta, behind the first block's attention to
    /// itself. It does not depend on the text.
    fn start(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("start");
        let b = &mut builder;
        let Sizes { d, grid, width, .. } = *self.sizes;
        let batch = || Dim::from("batch");
        let weight = b.input("weight", DataType::Float, [batch(), width.into(), width.into()]);
        let [depth, kind] = ["depth", "kind"].map(|name| b.input(name, DataType::Int64, ["batch"]));
        let patches = self.patches(b, &weight)?;
        let tokens = self.with_meta(b, &patches, &depth, &kind)?;
        let count = b.extent(&weight, 0);
        let class = self.vars.get(b, "cls_token", &[1, 1, d])?;
        let shape = b.shape(&[Extent::from(&count), 1usize.into(), d.into()]);
        let class = b.op("Expand", &[&class, &shape]);
        let all = b.concat(&[&class, &tokens], 1);
        let rows = b.reshape(&all, &[(-1i64).into(), d.into()]);
        let rows = self.to_itself(b, 0, &rows, &count)?;
        let tokens = grid * grid + 1;
        let start = b.reshape(&rows, &[(-1i64).into(), tokens.into(), d.into()]);
        b.output("start", &start, DataType::Float, [batch(), tokens.into(), d.into()]);
        component::finish("hypernetwork/start", builder)
    }

    /// Patches of weights, `[b, grid², d]`: each column is divided by its root mean square over the rows, and each patch is a row of
    /// pixels.
    fn patches(&self, b: &mut Builder, weight: &Value) -> Result<Value, ExportError> {
        let Sizes { d, patch, grid, .. } = *self.sizes;
        let square = b.op("Mul", &[weight, weight]);
        let axes = b.ints(&[1]);
        let mean = b.op("ReduceMean", &[&square, &axes]);
        let epsilon = b.float(WEIGHT_EPSILON);
        let mean = b.op("Add", &[&mean, &epsilon]);
        let root = b.op("Sqrt", &[&mean]);
        let normal = b.op("Div", &[weight, &root]);
        let cells = b.reshape(&normal, &[(-1i64).into(), grid.into(), patch.into(), grid.into(), patch.into()]);
        let cells = b.transpose(&cells, &[0, 1, 3, 2, 4]);
        let cells = b.reshape(&cells, &[(-1i64).into(), (patch * patch).into()]);
        let vars = self.vars.child("patch_embed");
        let kernel = vars.child("proj").matrix(b, "weight", &[d, 1, patch, patch])?;
        let bias = vars.child("proj").get(b, "bias", &[d])?;
        let rows = blocks::linear(b, &cells, &kernel, Some(&bias));
        let scale = vars.child("norm").get(b, "weight", &[d])?;
        let rows = blocks::rms_norm(b, &rows, &scale, RMS_EPSILON);
        Ok(b.reshape(&rows, &[(-1i64).into(), (grid * grid).into(), d.into()]))
    }

    /// Patches, and the embeddings of their places, of the layer's depth and of its type.
    fn with_meta(&self, b: &mut Builder, patches: &Value, depth: &Value, kind: &Value) -> Result<Value, ExportError> {
        let Sizes { d, grid, depths, types, .. } = *self.sizes;
        let row = self.vars.get(b, "pos.row", &[1, grid, 1, d])?;
        let column = self.vars.get(b, "pos.col", &[1, 1, grid, d])?;
        let places = b.op("Add", &[&row, &column]);
        let places = b.reshape(&places, &[1usize.into(), (grid * grid).into(), d.into()]);
        let mut tokens = b.op("Add", &[patches, &places]);
        for (name, rows, ids) in [("depth_embed", depths, depth), ("type_embed", types, kind)] {
            let table = self.vars.child(name).get(b, "weight", &[rows, d])?;
            let own = b.gather(&table, ids, 0);
            let own = b.unsqueeze(&own, &[1]);
            tokens = b.op("Add", &[&tokens, &own]);
        }
        Ok(tokens)
    }

    /// A block's attention of rows `[b·n, d]` to themselves and its feed-forward layer.
    fn to_itself(&self, b: &mut Builder, block: usize, rows: &Value, batch: &Value) -> Result<Value, ExportError> {
        let Sizes { d, heads, .. } = *self.sizes;
        let vars = self.vars.child(format!("blocks.{block}"));
        let own = vars.child("self_attn");
        let h = self.norm(b, &vars.child("norm1"), rows, EPSILON)?;
        let all = self.linear(b, &own.child("qkv"), &h, [3 * d, d])?;
        let all =
            b.reshape(&all, &[Extent::from(batch), (-1i64).into(), 3usize.into(), heads.into(), self.head().into()]);
        let all = b.transpose(&all, &[2, 0, 3, 1, 4]);
        let parts: Vec<Value> = b.split(&all, 0, 3).iter().map(|part| b.squeeze(part, &[0])).collect();
        let q = self.head_norm(b, &own.child("q_norm"), &parts[0])?;
        let k = self.head_norm(b, &own.child("k_norm"), &parts[1])?;
        let mixed = blocks::scaled_dot_product_attention(b, &q, &k, &parts[2], self.scale(), None);
        let mixed = blocks::merge_heads(b, &mixed, heads, self.head());
        let mixed = self.linear(b, &own.child("proj"), &mixed, [d, d])?;
        let rows = self.scaled_sum(b, &vars, "ls1", rows, &mixed)?;
        let h = self.norm(b, &vars.child("norm2"), &rows, EPSILON)?;
        let h = self.feed_forward(b, &vars.child("mlp_sa"), &h)?;
        self.scaled_sum(b, &vars, "ls2", &rows, &h)
    }

    /// `rows + gamma · h`.
    fn scaled_sum(
        &self,
        b: &mut Builder,
        vars: &Vars<'_>,
        name: &str,
        rows: &Value,
        h: &Value,
    ) -> Result<Value, ExportError> {
        let gamma = vars.child(name).get(b, "gamma", &[self.sizes.d])?;
        let scaled = b.op("Mul", &[h, &gamma]);
        Ok(b.op("Add", &[rows, &scaled]))
    }

    fn feed_forward(&self, b: &mut Builder, vars: &Vars<'_>, h: &Value) -> Result<Value, ExportError> {
        let d = self.sizes.d;
        let h = self.linear(b, &vars.child("fc1"), h, [4 * d, d])?;
        let h = blocks::gelu(b, &h);
        self.linear(b, &vars.child("fc2"), &h, [d, 4 * d])
    }

    /// Attention of rows `[b·n, d]` to keys and values that are made already, projected out.
    fn attend(
        &self,
        b: &mut Builder,
        vars: &Vars<'_>,
        rows: &Value,
        batch: &Value,
        (key, value): (&Value, &Value),
    ) -> Result<Value, ExportError> {
        let Sizes { d, heads, .. } = *self.sizes;
        let q = self.linear(b, &vars.child("q"), rows, [d, d])?;
        let q = blocks::split_heads(b, &q, batch, heads, self.head());
        let q = b.transpose(&q, &[0, 2, 1, 3]);
        let q = self.head_norm(b, &vars.child("q_norm"), &q)?;
        let mixed = blocks::scaled_dot_product_attention(b, &q, key, value, self.scale(), None);
        let mixed = blocks::merge_heads(b, &mixed, heads, self.head());
        self.linear(b, &vars.child("proj"), &mixed, [d, d])
    }

    /// `start` `[b, n, d]`, `key.<b>`, `value.<b>` → `response` `[b, n, d]` of the first stage. The second takes `response`, too, and gives
    /// `a` `[b, r, w]`, `b` `[b, w, r]` and `alpha` `[b, 1]`.
    fn stage(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("stage");
        let b = &mut builder;
        let Sizes { d, heads, grid, .. } = *self.sizes;
        let tokens = grid * grid + 1;
        let shape = || [Dim::from("batch"), tokens.into(), d.into()];
        let start = b.input("start", DataType::Float, shape());
        let response = (self.number == 2).then(|| b.input("response", DataType::Float, shape()));
        let batch = b.extent(&start, 0);
        let mut rows = b.reshape(&start, &[(-1i64).into(), d.into()]);
        for block in 0..self.sizes.blocks {
            let text = [1.into(), heads.into(), "text_length".into(), Dim::Fixed(self.head())];
            let [key, value] =
                ["key", "value"].map(|name| b.input(&format!("{name}.{block}"), DataType::Float, text.clone()));
            if block > 0 {
                rows = self.to_itself(b, block, &rows, &batch)?;
            }
            let vars = self.vars.child(format!("blocks.{block}"));
            let h = self.norm(b, &vars.child("norm3"), &rows, EPSILON)?;
            let h = self.attend(b, &vars.child("cross_attn"), &h, &batch, (&key, &value))?;
            rows = self.scaled_sum(b, &vars, "ls3", &rows, &h)?;
            let h = self.norm(b, &vars.child("norm4"), &rows, EPSILON)?;
            let h = self.feed_forward(b, &vars.child("mlp_ca"), &h)?;
            rows = self.scaled_sum(b, &vars, "ls4", &rows, &h)?;
            if let Some(response) = response.as_ref().filter(|_| self.sizes.inject.contains(&block)) {
                rows = self.injected(b, block, &rows, response, &batch)?;
            }
        }
        let rows = self.norm(b, &self.vars.child("norm"), &rows, DEFAULT_EPSILON)?;
        let all = b.reshape(&rows, &[(-1i64).into(), tokens.into(), d.into()]);
        if self.number == 1 {
            b.output("response", &all, DataType::Float, shape());
        } else {
            self.factors(b, &all)?;
        }
        component::finish("hypernetwork/stage", builder)
    }

    /// Attention to the first stage's features, and a feed-forward layer. Neither queries nor features are normalised.
    fn injected(
        &self,
        b: &mut Builder,
        block: usize,
        rows: &Value,
        response: &Value,
        batch: &Value,
    ) -> Result<Value, ExportError> {
        let vars = self.vars.child(format!("cross_attn_blocks.{block}"));
        let own = vars.child("cross_attn");
        let features = b.reshape(response, &[(-1i64).into(), self.sizes.d.into()]);
        let (key, value) = self.keys_and_values(b, &own, &features, batch)?;
        let h = self.attend(b, &own, rows, batch, (&key, &value))?;
        let rows = self.scaled_sum(b, &vars, "ls1", rows, &h)?;
        let h = self.norm(b, &vars.child("norm2"), &rows, EPSILON)?;
        let h = self.feed_forward(b, &vars.child("mlp"), &h)?;
        self.scaled_sum(b, &vars, "ls2", &rows, &h)
    }

    /// Factors and their scale from the mean of all tokens `[b, n, d]`.
    fn factors(&self, b: &mut Builder, tokens: &Value) -> Result<(), ExportError> {
        let Sizes { d, rank, width, .. } = *self.sizes;
        let axes = b.ints(&[1]);
        let mean = b.node("ReduceMean", &[tokens, &axes]).attr("keepdims", 0).out();
        for (output, head, shape) in [("a", "head_A", [rank, width]), ("b", "head_B", [width, rank])] {
            let factor = self.linear(b, &self.vars.child(head), &mean, [rank * width, d])?;
            let factor = b.reshape(&factor, &[(-1i64).into(), shape[0].into(), shape[1].into()]);
            b.output(output, &factor, DataType::Float, ["batch".into(), Dim::Fixed(shape[0]), Dim::Fixed(shape[1])]);
        }
        let alpha = self.linear(b, &self.vars.child("head_alpha"), &mean, [1, d])?;
        let alpha = b.op("Softplus", &[&alpha]);
        b.output("alpha", &alpha, DataType::Float, ["batch".into(), Dim::Fixed(1)]);
        Ok(())
    }
}
