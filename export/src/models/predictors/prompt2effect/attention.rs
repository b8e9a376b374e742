//! PyTorch's `MultiheadAttention`, taken apart: its matrices are packed, queries before keys before values.

use v2l_graphs::{Builder, Extent, Value, blocks};

use crate::{ExportError, Vars};

/// Sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) width: usize,
    pub(super) heads: usize,
}

impl Sizes {
    pub(super) fn head(self) -> usize {
        self.width / self.heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }
}

/// One of the three packed projections.
#[derive(Clone, Copy)]
pub(super) enum Projection {
    Query = 0,
    Key = 1,
    Value = 2,
}

/// An attention's parameters in a graph.
pub(super) struct Attention {
    sizes: Sizes,
    weight: Value,
    bias: Value,
    out_weight: Value,
    out_bias: Value,
}

impl Attention {
    pub(super) fn get(b: &mut Builder, vars: &Vars<'_>, sizes: Sizes) -> Result<Self, ExportError> {
        let d = sizes.width;
        let out = vars.child("out_proj");
        Ok(Self {
            sizes,
            weight: vars.get(b, "in_proj_weight", &[3 * d, d])?,
            bias: vars.get(b, "in_proj_bias", &[3 * d])?,
            out_weight: out.get(b, "weight", &[d, d])?,
            out_bias: out.get(b, "bias", &[d])?,
        })
    }

    /// Matrix `[d, d]` and bias `[d]` of a projection.
    pub(super) fn part(&self, b: &mut Builder, which: Projection) -> (Value, Value) {
        let (start, end) = (which as usize * self.sizes.width, (which as usize + 1) * self.sizes.width);
        let cut = |b: &mut Builder, value: &Value| b.slice(value, 0, start.into(), end.into());
        (cut(b, &self.weight), cut(b, &self.bias))
    }

    /// Rows `[s, d]` projected.
    pub(super) fn project(&self, b: &mut Builder, which: Projection, rows: &Value) -> Value {
        let (weight, bias) = self.part(b, which);
        blocks::linear(b, rows, &weight, Some(&bias))
    }

    /// Rows `[s, d]` projected and split, `[h, s, d/h]`.
    pub(super) fn heads(&self, b: &mut Builder, which: Projection, rows: &Value) -> Value {
        let x = self.project(b, which, rows);
        let x = b.reshape(&x, &[(-1i64).into(), self.sizes.heads.into(), self.sizes.head().into()]);
        b.transpose(&x, &[1, 0, 2])
    }

    /// Queries `[…, s, d/h]`, scaled.
    pub(super) fn scaled(&self, b: &mut Builder, queries: &Value) -> Value {
        let scale = b.float(self.sizes.scale());
        b.op("Mul", &[queries, &scale])
    }

    /// Rows `[s, d]` behind the heads, projected out.
    pub(super) fn out(&self, b: &mut Builder, rows: &Value) -> Value {
        blocks::linear(b, rows, &self.out_weight, Some(&self.out_bias))
    }

    /// The projection out `[d, d]`, and its bias.
    pub(super) fn out_part(&self) -> (&Value, &Value) {
        (&self.out_weight, &self.out_bias)
    }

    /// Attention of `[b·s, d]` to itself, `batch` sequences; `apart` computes one head after the other, which bounds what
    /// logits take.
    pub(super) fn to_itself(&self, b: &mut Builder, rows: &Value, batch: &Value, apart: bool) -> Value {
        let Sizes { width, heads } = self.sizes;
        let all = blocks::linear(b, rows, &self.weight, Some(&self.bias));
        let all = b
            .reshape(&all, &[Extent::from(batch), (-1i64).into(), 3usize.into(), heads.into(), (width / heads).into()]);
        let all = b.transpose(&all, &[2, 0, 3, 1, 4]);
        let parts: Vec<Value> = b.split(&all, 0, 3).iter().map(|part| b.squeeze(part, &[0])).collect();
        let [q, k, v] = [&parts[0], &parts[1], &parts[2]];
        let mixed = if apart && heads > 1 {
            let [q, k, v] = [q, k, v].map(|part| b.split(part, 1, heads));
            let each: Vec<Value> = (0..heads)
                .map(|h| blocks::scaled_dot_product_attention(b, &q[h], &k[h], &v[h], Some(self.sizes.scale()), None))
                .collect();
            b.concat(&each.iter().collect::<Vec<_>>(), 1)
        } else {
            blocks::scaled_dot_product_attention(b, q, k, v, Some(self.sizes.scale()), None)
        };
        let rows = blocks::merge_heads(b, &mixed, heads, width / heads);
        self.out(b, &rows)
    }

    /// Attention of `[b·s, d]`, `batch` sequences, to keys and values `[h, t, d/h]` that all share; `penalty` `[t]` is added to
    /// logits.
    pub(super) fn to_shared(
        &self,
        b: &mut Builder,
        rows: &Value,
        (key, value): (&Value, &Value),
        penalty: &Value,
    ) -> Value {
        let q = self.heads(b, Projection::Query, rows);
        let q = self.scaled(b, &q);
        let key = b.transpose(key, &[0, 2, 1]);
        let logits = b.op("MatMul", &[&q, &key]);
        let logits = b.op("Add", &[&logits, penalty]);
        let weights = b.node("Softmax", &[&logits]).attr("axis", -1).out();
        let mixed = b.op("MatMul", &[&weights, value]);
        let rows = self.merged(b, &mixed);
        self.out(b, &rows)
    }

    /// `[h, s, d/h]` to `[s, d]`.
    pub(super) fn merged(&self, b: &mut Builder, mixed: &Value) -> Value {
        let mixed = b.transpose(mixed, &[1, 0, 2]);
        b.reshape(&mixed, &[(-1i64).into(), self.sizes.width.into()])
    }
}
