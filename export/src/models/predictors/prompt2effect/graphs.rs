//! The graphs of a network.

use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value, blocks};
use v2l_runtime::predict::prompt2effect::{AttentionScope, Group};

use super::attention::{Attention, Projection, Sizes};
use super::describe::{CondForm, Description};
use super::names::{AttentionKind, BlockNames, Names, vars};
use crate::models::layers;
use crate::{Checkpoint, ExportError, Vars, component};

const EPSILON: f32 = 1e-5;

/// Every graph, by name.
pub(super) fn all(
    checkpoint: &Checkpoint,
    names: &Names,
    description: &Description,
) -> Result<Vec<(String, Model)>, ExportError> {
    let net = &description.network;
    let sizes = Sizes { width: net.hidden_dim, heads: net.n_heads };
    let make = Maker { checkpoint, names, description, sizes };
    let mut graphs = vec![
        ("condition".to_owned(), make.condition()?),
        ("text".to_owned(), make.text()?),
        ("compress".to_owned(), make.compress()?),
        ("backbone".to_owned(), make.backbone()?),
    ];
    for (index, group) in net.groups.iter().enumerate() {
        for (stream, rows) in [("rows", true), ("columns", false)] {
            graphs.push((format!("encode_{stream}_{index}"), make.encode(group, rows)?));
            graphs.push((format!("decode_{stream}_{index}"), make.decode(group, rows)?));
        }
    }
    Ok(graphs)
}

struct Maker<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
    description: &'a Description,
    sizes: Sizes,
}

/// The tokens of a panel: `weight · tableᵀ + bias`, and what is added to them.
struct Tokens {
    weight: Value,
    table: Value,
    bias: Option<Value>,
    added: Vec<Value>,
}

impl Tokens {
    /// `[p, d]`.
    fn rows(&self, b: &mut Builder) -> Value {
        let mut rows = blocks::linear(b, &self.weight, &self.table, self.bias.as_ref());
        for added in &self.added {
            rows = b.op("Add", &[&rows, added]);
        }
        rows
    }
}

impl<'a> Maker<'a> {
    fn vars(&self, path: &str) -> Vars<'a> {
        vars(self.checkpoint, path)
    }

    fn attention(&self, b: &mut Builder, path: &str) -> Result<Attention, ExportError> {
        Attention::get(b, &self.vars(path), self.sizes)
    }

    fn norm(&self, b: &mut Builder, path: &str, x: &Value) -> Result<Value, ExportError> {
        layers::layer_norm(b, &self.vars(path), x, self.sizes.width, EPSILON)
    }

    /// `x + FF(LN(x))`, of rows.
    fn feed_forward(&self, b: &mut Builder, names: &BlockNames, x: &Value) -> Result<Value, ExportError> {
        let d = self.sizes.width;
        let h = self.norm(b, &names.ff_norm, x)?;
        let h = layers::linear(b, &self.vars(&names.up), &h, [4 * d, d], true)?;
        let h = blocks::gelu(b, &h);
        let h = layers::linear(b, &self.vars(&names.down), &h, [d, 4 * d], true)?;
        Ok(b.op("Add", &[x, &h]))
    }

    /// `layer`, `module` `[L]` → `condition` `[L, d]`: zeros of a network without embeddings.
    fn condition(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("condition");
        let b = &mut builder;
        let d = self.sizes.width;
        let [layer, module] = ["layer", "module"].map(|name| b.input(name, DataType::Int64, ["layers"]));
        let condition = match &self.description.condition {
            None => {
                let zeros = b.floats(&[1, d], &vec![0.0; d]);
                let both = b.op("Add", &[&layer, &module]);
                let count = b.extent(&both, 0);
                let shape = b.shape(&[Extent::from(&count), d.into()]);
                b.op("Expand", &[&zeros, &shape])
            }
            Some(tables) => {
                let look_up = |b: &mut Builder, name: &str, rows: usize, width: usize, ids: &Value| {
                    let table = self.vars(name).get(b, "weight", &[rows, width])?;
                    Ok::<_, ExportError>(b.gather(&table, ids, 0))
                };
                let layer = look_up(b, self.names.layer_emb(), tables.layers, tables.layer_width, &layer)?;
                let module = look_up(b, self.names.module_emb(), tables.modules, tables.module_width, &module)?;
                match tables.form {
                    CondForm::Sum => b.op("Add", &[&layer, &module]),
                    CondForm::ConcatProj => {
                        let both = b.concat(&[&layer, &module], -1);
                        let width = tables.layer_width + tables.module_width;
                        layers::linear(b, &self.vars("cond_proj"), &both, [d, width], true)?
                    }
                }
            }
        };
        b.output("condition", &condition, DataType::Float, ["layers".into(), Dim::Fixed(d)]);
        component::finish("hypernetwork/condition", builder)
    }

    /// `text_hidden` `[t, text_dim]` → the keys and values of every block's attention to the text.
    fn text(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("text");
        let b = &mut builder;
        let (net, d) = (&self.description.network, self.sizes.width);
        let hidden = b.input("text_hidden", DataType::Float, ["text_length".into(), Dim::Fixed(net.text_dim)]);
        let mut context = layers::linear(b, &self.vars(self.names.text_proj()), &hidden, [d, net.text_dim], true)?;
        if self.description.text_norm {
            context = self.norm(b, "text_proj.ln", &context)?;
        }
        for block in 0..net.n_layer {
            let names = self.names.block(AttentionKind::CrossAttention, block);
            let attention = self.attention(b, &names.attention)?;
            for (name, which) in [("key", Projection::Key), ("value", Projection::Value)] {
                let part = attention.heads(b, which, &context);
                let shape = [net.n_heads.into(), "text_length".into(), Dim::Fixed(self.sizes.head())];
                b.output(&format!("{name}.{block}"), &part, DataType::Float, shape);
            }
        }
        component::finish("hypernetwork/text", builder)
    }

    /// A panel's tokens, with the inputs that they take.
    fn tokens(&self, b: &mut Builder, group: &Group, rows: bool) -> Result<Tokens, ExportError> {
        let (net, d) = (&self.description.network, self.sizes.width);
        let width = if rows { group.d_in } else { group.d_out };
        let weight = b.input("weight", DataType::Float, ["tokens".into(), Dim::Fixed(width)]);
        let vars = self.vars(&self.names.table(&group.name, rows));
        let table = vars.get(b, "weight", &[d, width])?;
        let bias = vars.contains("bias").then(|| vars.get(b, "bias", &[d])).transpose()?;
        let mut added = Vec::new();
        if net.position_code {
            added.push(b.input("code", DataType::Float, ["tokens".into(), Dim::Fixed(d)]));
        }
        if net.cond_inject.tokens() {
            added.push(b.input("condition", DataType::Float, [1, d]));
        }
        Ok(Tokens { weight, table, bias, added })
    }

    /// The latents as queries of the compressor, `[h, n, d/h]`, scaled.
    fn compressor_queries(&self, b: &mut Builder, attention: &Attention) -> Result<Value, ExportError> {
        let mut latents = self.latents(b)?;
        if self.description.codec_residual {
            latents = self.norm(b, "compressor.ln1", &latents)?;
        }
        let queries = attention.heads(b, Projection::Query, &latents);
        Ok(attention.scaled(b, &queries))
    }

    fn latents(&self, b: &mut Builder) -> Result<Value, ExportError> {
        Vars::root(self.checkpoint).get(
            b,
            self.names.latents(),
            &[self.description.network.num_latents, self.sizes.width],
        )
    }

    /// A panel → the softmax over its tokens, for each head and latent.
    fn encode(&self, group: &Group, rows: bool) -> Result<Model, ExportError> {
        let mut builder = Builder::new("encode");
        let b = &mut builder;
        let net = &self.description.network;
        let tokens = self.tokens(b, group, rows)?;
        let attention = self.attention(b, self.names.compressor())?;
        let queries = self.compressor_queries(b, &attention)?;
        let (maximum, total, mixed) = if net.absorbed {
            self.absorbed_softmax(b, &tokens, &attention, &queries)
        } else {
            let rows = tokens.rows(b);
            let key = attention.heads(b, Projection::Key, &rows);
            let key = b.transpose(&key, &[0, 2, 1]);
            let logits = b.op("MatMul", &[&queries, &key]);
            let (maximum, weights, total) = softmax_parts(b, &logits);
            let value = attention.heads(b, Projection::Value, &rows);
            (maximum, total, b.op("MatMul", &[&weights, &value]))
        };
        let shape = |width: usize| [net.n_heads, net.num_latents, width];
        b.output("maximum", &maximum, DataType::Float, shape(1));
        b.output("total", &total, DataType::Float, shape(1));
        b.output("mixed", &mixed, DataType::Float, shape(self.sizes.head()));
        component::finish("hypernetwork/encode", builder)
    }

    /// Attention to the tokens `W · tableᵀ + bias` that never makes them: with `M = q · K · table`, the logits are `M · Wᵀ`, and
    /// the values are projected behind the sum over tokens.
    fn absorbed_softmax(
        &self,
        b: &mut Builder,
        tokens: &Tokens,
        attention: &Attention,
        queries: &Value,
    ) -> (Value, Value, Value) {
        let (heads, head, d) = (self.sizes.heads, self.sizes.head(), self.sizes.width);
        let latents = self.description.network.num_latents;
        let split = |b: &mut Builder, part: &(Value, Value)| {
            let weight = b.reshape(&part.0, &[heads.into(), head.into(), d.into()]);
            let bias = b.reshape(&part.1, &[heads.into(), head.into(), 1usize.into()]);
            (weight, bias)
        };
        let key = attention.part(b, Projection::Key);
        let (key, key_bias) = split(b, &key);
        // [h, n, d]: what a token meets.
        let met = b.op("MatMul", &[queries, &key]);
        let flat = b.reshape(&met, &[(heads * latents).into(), d.into()]);
        let map = b.op("MatMul", &[&flat, &tokens.table]);
        let turned = b.transpose(&tokens.weight, &[1, 0]);
        let logits = b.op("MatMul", &[&map, &turned]);
        let mut constant = b.op("MatMul", &[queries, &key_bias]);
        constant = b.reshape(&constant, &[(heads * latents).into(), 1usize.into()]);
        if let Some(bias) = &tokens.bias {
            let column = b.reshape(bias, &[d.into(), 1usize.into()]);
            let own = b.op("MatMul", &[&flat, &column]);
            constant = b.op("Add", &[&constant, &own]);
        }
        let logits = b.op("Add", &[&logits, &constant]);
        let (maximum, weights, total) = softmax_parts(b, &logits);
        let sum = b.op("MatMul", &[&weights, &tokens.weight]);
        let mut sum = blocks::linear(b, &sum, &tokens.table, None);
        if let Some(bias) = &tokens.bias {
            let bias = b.reshape(bias, &[1usize.into(), d.into()]);
            let own = b.op("Mul", &[&total, &bias]);
            sum = b.op("Add", &[&sum, &own]);
        }
        let value = attention.part(b, Projection::Value);
        let (value, value_bias) = split(b, &value);
        let sum = b.reshape(&sum, &[heads.into(), latents.into(), d.into()]);
        let turned = b.transpose(&value, &[0, 2, 1]);
        let mixed = b.op("MatMul", &[&sum, &turned]);
        let [maximum, total] =
            [maximum, total].map(|part| b.reshape(&part, &[heads.into(), latents.into(), 1usize.into()]));
        let bias = b.transpose(&value_bias, &[0, 2, 1]);
        let own = b.op("Mul", &[&total, &bias]);
        let mixed = b.op("Add", &[&mixed, &own]);
        (maximum, total, mixed)
    }

    /// `mixed` `[b, n, d]`, `condition` `[b, 1, d]` → `compressed` `[b, n, d]`, with what of the first block has no text in it.
    fn compress(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("compress");
        let b = &mut builder;
        let (net, d) = (&self.description.network, self.sizes.width);
        let n = net.num_latents;
        let shape = || ["batch".into(), Dim::Fixed(n), Dim::Fixed(d)];
        let mixed = b.input("mixed", DataType::Float, shape());
        let batch = b.extent(&mixed, 0);
        let attention = self.attention(b, self.names.compressor())?;
        let back = |b: &mut Builder, rows: &Value| b.reshape(rows, &[Extent::from(&batch), n.into(), d.into()]);
        let rows = flat(b, &mixed, d);
        let rows = attention.out(b, &rows);
        let mut z = back(b, &rows);
        if self.description.codec_residual {
            let latents = self.latents(b)?;
            z = b.op("Add", &[&z, &latents]);
        }
        if self.description.compressor_ffn {
            let rows = flat(b, &z, d);
            let rows = self.feed_forward(b, &self.names.codec("compressor"), &rows)?;
            z = back(b, &rows);
        }
        if net.cond_inject.latents() {
            let condition = b.input("condition", DataType::Float, ["batch".into(), Dim::Fixed(1), Dim::Fixed(d)]);
            z = b.op("Add", &[&z, &condition]);
        }
        if net.attn_scope == AttentionScope::Layer {
            let rows = flat(b, &z, d);
            let rows = self.self_block(b, 0, &rows, &batch)?;
            z = back(b, &rows);
        }
        b.output("compressed", &z, DataType::Float, shape());
        component::finish("hypernetwork/compress", builder)
    }

    /// A block's attention of latents to each other, with the feed-forward layers behind it; rows `[b·m, d]`.
    fn self_block(&self, b: &mut Builder, block: usize, rows: &Value, batch: &Value) -> Result<Value, ExportError> {
        let names = self.names.block(AttentionKind::SelfAttention, block);
        let attention = self.attention(b, &names.attention)?;
        let h = self.norm(b, &names.norm, rows)?;
        let apart = self.description.network.attn_scope != AttentionScope::Layer;
        let h = attention.to_itself(b, &h, batch, apart);
        let rows = b.op("Add", &[rows, &h]);
        if self.description.ffn_after_self { self.feed_forward(b, &names, &rows) } else { Ok(rows) }
    }

    /// `compressed` `[b, m, d]` and the text's keys, values and `penalty` `[t]` → `refined`.
    fn backbone(&self) -> Result<Model, ExportError> {
        let mut builder = Builder::new("backbone");
        let b = &mut builder;
        let (net, d) = (&self.description.network, self.sizes.width);
        let shape = || ["batch".into(), "latents_length".into(), Dim::Fixed(d)];
        let latents = b.input("compressed", DataType::Float, shape());
        let penalty = b.input("penalty", DataType::Float, ["text_length"]);
        let (batch, length) = (b.extent(&latents, 0), b.extent(&latents, 1));
        let mut rows = flat(b, &latents, d);
        for block in 0..net.n_layer {
            let part = |b: &mut Builder, name: &str| {
                let shape = [net.n_heads.into(), "text_length".into(), Dim::Fixed(self.sizes.head())];
                b.input(&format!("{name}.{block}"), DataType::Float, shape)
            };
            let (key, value) = (part(b, "key"), part(b, "value"));
            // The first block's is in `compress` where it is the same for every prompt and layer.
            if block > 0 || net.attn_scope != AttentionScope::Layer {
                rows = self.self_block(b, block, &rows, &batch)?;
            }
            let names = self.names.block(AttentionKind::CrossAttention, block);
            let attention = self.attention(b, &names.attention)?;
            let h = self.norm(b, &names.norm, &rows)?;
            let h = attention.to_shared(b, &h, (&key, &value), &penalty);
            rows = b.op("Add", &[&rows, &h]);
            if self.description.ffn_after_cross {
                rows = self.feed_forward(b, &names, &rows)?;
            }
        }
        let found = b.reshape(&rows, &[Extent::from(&batch), Extent::from(&length), d.into()]);
        b.output("refined", &found, DataType::Float, shape());
        component::finish("hypernetwork/backbone", builder)
    }

    /// A panel, `refined` `[n, d]` → `factors` `[p, rank]`.
    fn decode(&self, group: &Group, rows: bool) -> Result<Model, ExportError> {
        let mut builder = Builder::new("decode");
        let b = &mut builder;
        let (net, d) = (&self.description.network, self.sizes.width);
        let tokens = self.tokens(b, group, rows)?;
        let latents = b.input("refined", DataType::Float, [net.num_latents, d]);
        let attention = self.attention(b, self.names.decompressor())?;
        let head = self.vars(self.names.head(rows));
        let (head, bias) = (head.get(b, "weight", &[net.rank, d])?, head.get(b, "bias", &[net.rank])?);
        let factors = if self.description.decompressor_ffn {
            self.decode_with_ffn(b, &tokens, &attention, &latents, (&head, &bias))?
        } else {
            self.decode_lean(b, &tokens, &attention, &latents, (&head, &bias))?
        };
        b.output("factors", &factors, DataType::Float, ["tokens".into(), Dim::Fixed(net.rank)]);
        component::finish("hypernetwork/decode", builder)
    }

    /// The weights `[h, p, n]` with which the tokens look at the latents, and the tokens `[p, d]` where they are made.
    fn decoder_weights(
        &self,
        b: &mut Builder,
        tokens: &Tokens,
        attention: &Attention,
        latents: &Value,
    ) -> Result<(Value, Option<Value>), ExportError> {
        let net = &self.description.network;
        let (heads, head, d) = (self.sizes.heads, self.sizes.head(), self.sizes.width);
        let key = attention.heads(b, Projection::Key, latents);
        if !net.absorbed {
            let rows = tokens.rows(b);
            let normal =
                if self.description.codec_residual { self.norm(b, "decompressor.ln1", &rows)? } else { rows.clone() };
            let query = attention.heads(b, Projection::Query, &normal);
            let query = attention.scaled(b, &query);
            let key = b.transpose(&key, &[0, 2, 1]);
            let logits = b.op("MatMul", &[&query, &key]);
            return Ok((b.node("Softmax", &[&logits]).attr("axis", -1).out(), Some(rows)));
        }
        let key = attention.scaled(b, &key);
        let (query, query_bias) = attention.part(b, Projection::Query);
        let query = b.reshape(&query, &[heads.into(), head.into(), d.into()]);
        let query_bias = b.reshape(&query_bias, &[heads.into(), head.into(), 1usize.into()]);
        let met = b.op("MatMul", &[&key, &query]);
        let flat = b.reshape(&met, &[(heads * net.num_latents).into(), d.into()]);
        let map = b.op("MatMul", &[&flat, &tokens.table]);
        let mut constant = b.op("MatMul", &[&key, &query_bias]);
        constant = b.reshape(&constant, &[(heads * net.num_latents).into()]);
        if let Some(bias) = &tokens.bias {
            let own = b.op("MatMul", &[&flat, bias]);
            constant = b.op("Add", &[&constant, &own]);
        }
        let logits = blocks::linear(b, &tokens.weight, &map, Some(&constant));
        let logits = b.reshape(&logits, &[(-1i64).into(), heads.into(), net.num_latents.into()]);
        let logits = b.transpose(&logits, &[1, 0, 2]);
        Ok((b.node("Softmax", &[&logits]).attr("axis", -1).out(), None))
    }

    /// Without feed-forward layers, the heads of the factors go into the values: `head · W_o` is `[rank, d]`.
    fn decode_lean(
        &self,
        b: &mut Builder,
        tokens: &Tokens,
        attention: &Attention,
        latents: &Value,
        (head, bias): (&Value, &Value),
    ) -> Result<Value, ExportError> {
        let net = &self.description.network;
        let (weights, rows) = self.decoder_weights(b, tokens, attention, latents)?;
        let (out, out_bias) = attention.out_part();
        let absorbed = b.op("MatMul", &[head, out]);
        let absorbed = b.reshape(&absorbed, &[net.rank.into(), net.n_heads.into(), self.sizes.head().into()]);
        let absorbed = b.transpose(&absorbed, &[1, 2, 0]);
        let value = attention.heads(b, Projection::Value, latents);
        // [h, n, rank], heads beside each other.
        let value = b.op("MatMul", &[&value, &absorbed]);
        let value = b.reshape(&value, &[(net.n_heads * net.num_latents).into(), net.rank.into()]);
        let weights = b.transpose(&weights, &[1, 0, 2]);
        let weights = b.reshape(&weights, &[(-1i64).into(), (net.n_heads * net.num_latents).into()]);
        let mut factors = b.op("MatMul", &[&weights, &value]);
        let out_bias = b.op("MatMul", &[head, out_bias]);
        let constant = b.op("Add", &[&out_bias, bias]);
        factors = b.op("Add", &[&factors, &constant]);
        match rows.filter(|_| self.description.codec_residual) {
            Some(rows) => {
                let own = blocks::linear(b, &rows, head, None);
                Ok(b.op("Add", &[&factors, &own]))
            }
            None => Ok(factors),
        }
    }

    fn decode_with_ffn(
        &self,
        b: &mut Builder,
        tokens: &Tokens,
        attention: &Attention,
        latents: &Value,
        (head, bias): (&Value, &Value),
    ) -> Result<Value, ExportError> {
        let (weights, rows) = self.decoder_weights(b, tokens, attention, latents)?;
        let value = attention.heads(b, Projection::Value, latents);
        let mixed = b.op("MatMul", &[&weights, &value]);
        let mixed = attention.merged(b, &mixed);
        let mut x = attention.out(b, &mixed);
        if let Some(rows) = rows.filter(|_| self.description.codec_residual) {
            x = b.op("Add", &[&rows, &x]);
        }
        let x = self.feed_forward(b, &self.names.codec("decompressor"), &x)?;
        Ok(blocks::linear(b, &x, head, Some(bias)))
    }
}

/// `[…, d]` to rows.
fn flat(b: &mut Builder, x: &Value, width: usize) -> Value {
    b.reshape(x, &[(-1i64).into(), width.into()])
}

/// Of logits, over the last axis: the largest, the exponentials of what is left when it is taken off, and their sum.
fn softmax_parts(b: &mut Builder, logits: &Value) -> (Value, Value, Value) {
    let axes = b.ints(&[-1]);
    let maximum = b.op("ReduceMax", &[logits, &axes]);
    let less = b.op("Sub", &[logits, &maximum]);
    let weights = b.op("Exp", &[&less]);
    let total = b.op("ReduceSum", &[&weights, &axes]);
    (maximum, weights, total)
}
