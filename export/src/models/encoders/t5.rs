//! `T5EncoderModel`: the text encoder of CogVideoX (T5 v1.1, gated GELU) and the original T5 (ReLU). `UMT5EncoderModel`:
//! that of Wan, in which every block has position biases of its own.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value as Json, json};
use v2l_graphs::blocks;
use v2l_graphs::{Builder, DataType, Extent, Model, Value};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::io::json::{self, JsonError};
use v2l_runtime::pipeline::config::PipelineConfig;

use crate::component::{self, Component};
use crate::models::family::{Architecture, Part, Place};
use crate::models::layers;
use crate::models::recognised::{Recognised, Shapes};
use crate::{Checkpoint, ExportError, Vars};

/// A class of encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum T5 {
    /// `T5EncoderModel`: the first block's position biases serve all.
    Shared,
    /// `UMT5EncoderModel`: each block has its own.
    Own,
}

impl T5 {
    /// The class that `config.json` names.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Shared => "T5EncoderModel",
            Self::Own => "UMT5EncoderModel",
        }
    }

    /// A configuration; absent keys take transformers' defaults for the class.
    fn config(self, mut value: Json) -> Result<Config, JsonError> {
        if let (Self::Own, Some(keys)) = (self, value.as_object_mut()) {
            let defaults = [
                ("vocab_size", json!(250_112)),
                ("d_ff", json!(1024)),
                ("num_layers", json!(8)),
                ("num_heads", json!(6)),
                ("feed_forward_proj", json!("gated-gelu")),
            ];
            for (key, default) in defaults {
                keys.entry(key).or_insert(default);
            }
        }
        json::typed(&value)
    }
}

impl Architecture for T5 {
    fn class(&self) -> &'static str {
        self.class_name()
    }

    fn part(&self) -> Part {
        Part::TextEncoder
    }

    fn export(&self, place: &Place<'_>, _: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let path = place.origin.config_path();
        let config = self.config(place.origin.config()?).map_err(|e| ExportError::config(&path, e.to_string()))?;
        Ok(vec![export(*self, &config, &place.checkpoint()?)?])
    }

    fn names(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>, ExportError> {
        let scheme = SCHEMES.iter().find(|scheme| checkpoint.contains(&scheme.name(0, scheme.bias)));
        Ok(match scheme {
            Some(scheme) => Recognised::names_by(checkpoint, "", |name| scheme.to_transformers(name)),
            None => BTreeMap::new(),
        })
    }

    fn recognise(&self, checkpoint: &Checkpoint, _: &Json) -> Result<Option<Recognised>, ExportError> {
        let bias = |block: usize| format!("encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight");
        let names = self.names(checkpoint)?;
        let has = |name: String| checkpoint.contains(&name) || names.values().any(|new| *new == name);
        if !has(bias(0)) || has(bias(1)) != (*self == Self::Own) {
            return Ok(None);
        }
        let config = config_of(&Shapes::new(checkpoint, &names))?;
        Ok(Some(Recognised { config, names }))
    }
}

/// Names of an encoder's tensors that are not transformers'.
struct Scheme {
    /// What stands before a block's number.
    blocks: &'static str,
    /// The position bias of a block.
    bias: &'static str,
    /// Tensors outside the blocks.
    roots: [(&'static str, &'static str); 2],
    /// Tensors of a block, in the order of `LAYERS`.
    layers: [&'static str; 10],
}

/// transformers' names of the tensors of a block.
const LAYERS: [&str; 10] = [
    "layer.0.layer_norm.weight",
    "layer.0.SelfAttention.q.weight",
    "layer.0.SelfAttention.k.weight",
    "layer.0.SelfAttention.v.weight",
    "layer.0.SelfAttention.o.weight",
    "layer.0.SelfAttention.relative_attention_bias.weight",
    "layer.1.layer_norm.weight",
    "layer.1.DenseReluDense.wi_0.weight",
    "layer.1.DenseReluDense.wi_1.weight",
    "layer.1.DenseReluDense.wo.weight",
];

/// The names in the code of Wan's authors, and llama.cpp's.
const SCHEMES: [Scheme; 2] = [
    Scheme {
        blocks: "blocks.",
        bias: "pos_embedding.embedding.weight",
        roots: [("token_embedding.weight", "shared.weight"), ("norm.weight", "encoder.final_layer_norm.weight")],
        layers: [
            "norm1.weight",
            "attn.q.weight",
            "attn.k.weight",
            "attn.v.weight",
            "attn.o.weight",
            "pos_embedding.embedding.weight",
            "norm2.weight",
            "ffn.gate.0.weight",
            "ffn.fc1.weight",
            "ffn.fc2.weight",
        ],
    },
    Scheme {
        blocks: "enc.blk.",
        bias: "attn_rel_b.weight",
        roots: [("token_embd.weight", "shared.weight"), ("enc.output_norm.weight", "encoder.final_layer_norm.weight")],
        layers: [
            "attn_norm.weight",
            "attn_q.weight",
            "attn_k.weight",
            "attn_v.weight",
            "attn_o.weight",
            "attn_rel_b.weight",
            "ffn_norm.weight",
            "ffn_gate.weight",
            "ffn_up.weight",
            "ffn_down.weight",
        ],
    },
];

impl Scheme {
    fn name(&self, block: usize, layer: &str) -> String {
        format!("{}{block}.{layer}", self.blocks)
    }

    fn to_transformers(&self, name: &str) -> Option<String> {
        if let Some((block, layer)) = name.strip_prefix(self.blocks).and_then(|rest| rest.split_once('.')) {
            let place = self.layers.iter().position(|own| *own == layer)?;
            return Some(format!("encoder.block.{block}.{}", LAYERS[place]));
        }
        self.roots.iter().find(|(own, _)| *own == name).map(|(_, new)| (*new).to_owned())
    }
}

/// What `config.json` would say, by the shapes.
fn config_of(shapes: &Shapes<'_>) -> Result<Json, ExportError> {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let bias = format!("{attention}.relative_attention_bias.weight");
    let heads = shapes.extent(&bias, 1)?;
    let gated = shapes.has("encoder.block.0.layer.1.DenseReluDense.wi_1.weight");
    let wide = if gated { "wi_0" } else { "wi" };
    Ok(json!({
        "vocab_size": shapes.extent("shared.weight", 0)?,
        "d_model": shapes.extent("shared.weight", 1)?,
        "d_kv": shapes.extent(&format!("{attention}.q.weight"), 0)? / heads.max(1),
        "d_ff": shapes.extent(&format!("encoder.block.0.layer.1.DenseReluDense.{wide}.weight"), 0)?,
        "num_layers": shapes.count("encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": shapes.extent(&bias, 0)?,
        "feed_forward_proj": if gated { "gated-gelu" } else { "relu" },
    }))
}

/// `config.json` of a T5 encoder; absent keys take transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub relative_attention_num_buckets: usize,
    pub relative_attention_max_distance: usize,
    pub layer_norm_epsilon: f32,
    pub feed_forward_proj: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
        }
    }
}

/// The two published feed-forward forms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FeedForward {
    Relu,
    GatedGelu,
}

impl Config {
    fn feed_forward(&self, class: T5) -> Result<FeedForward, ExportError> {
        match self.feed_forward_proj.as_str() {
            "relu" => Ok(FeedForward::Relu),
            "gated-gelu" => Ok(FeedForward::GatedGelu),
            other => {
                Err(unsupported(class, &format!("feed_forward_proj `{other}`"), "expected `relu` or `gated-gelu`"))
            }
        }
    }

    fn validate(&self, class: T5) -> Result<(), ExportError> {
        let sizes = [self.vocab_size, self.d_model, self.d_kv, self.d_ff, self.num_layers, self.num_heads];
        if sizes.iter().any(|&n| n == 0 || n > 1 << 24) {
            return Err(unsupported(class, &format!("sizes {sizes:?}"), "expected 1 to 16777216"));
        }
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || !buckets.is_multiple_of(2) || distance <= buckets / 4 || distance > 1 << 20 {
            return Err(unsupported(
                class,
                &format!("{buckets} relative attention buckets up to distance {distance}"),
                "expected an even number of at least 4, and a distance above a quarter of it",
            ));
        }
        self.feed_forward(class).map(drop)
    }

    /// Every linear layer, in the order of PyTorch's `named_modules`.
    fn linear_layers(&self, class: T5) -> Vec<Slot> {
        let (d, inner) = (self.d_model, self.num_heads * self.d_kv);
        let mut slots = Vec::new();
        for i in 0..self.num_layers {
            let layer = |name: &str, out, input| Slot::linear(format!("encoder.block.{i}.layer.{name}"), out, input);
            slots.extend([
                layer("0.SelfAttention.q", inner, d),
                layer("0.SelfAttention.k", inner, d),
                layer("0.SelfAttention.v", inner, d),
                layer("0.SelfAttention.o", d, inner),
            ]);
            match self.feed_forward(class) {
                Ok(FeedForward::GatedGelu) => slots.extend([
                    layer("1.DenseReluDense.wi_0", self.d_ff, d),
                    layer("1.DenseReluDense.wi_1", self.d_ff, d),
                ]),
                _ => slots.push(layer("1.DenseReluDense.wi", self.d_ff, d)),
            }
            slots.push(layer("1.DenseReluDense.wo", d, self.d_ff));
        }
        slots
    }

    /// Bucket of each distance 0, 1, … up to the first in the last bucket, for one direction.
    ///
    /// The logarithm is taken once here, so that no rounding at run time can move a distance into another bucket.
    fn distance_buckets(&self) -> Vec<i64> {
        let per_side = self.relative_attention_num_buckets / 2;
        let exact = per_side / 2;
        let span = (self.relative_attention_max_distance as f64 / exact as f64).ln();
        let bucket = |distance: usize| {
            if distance < exact {
                return distance;
            }
            let steps = (distance as f64 / exact as f64).ln() / span * (per_side - exact) as f64;
            // Powers of the ratio land on whole steps; the nudge keeps them there.
            (exact + (steps + 1e-9) as usize).min(per_side - 1)
        };
        (0..=self.relative_attention_max_distance).map(|d| bucket(d) as i64).collect()
    }
}

fn unsupported(class: T5, what: &str, reason: &str) -> ExportError {
    ExportError::Unsupported { what: format!("{}: {what}", class.class_name()), reason: reason.into() }
}

/// Exports the component `text_encoder` with the graphs `encode` (`input_ids`) and `encode_masked` (also
/// `attention_mask`): `[B, S]` int64 to `last_hidden_state` `[B, S, d_model]`.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub fn export(class: T5, config: &Config, checkpoint: &Checkpoint) -> Result<Component, ExportError> {
    config.validate(class)?;
    checkpoint.acknowledge(TOKENIZER);
    let component = Component {
        name: "text_encoder".into(),
        graphs: vec![
            ("encode".into(), graph(class, config, checkpoint, false)?),
            ("encode_masked".into(), graph(class, config, checkpoint, true)?),
        ],
        precision: checkpoint.precision()?,
        slots: config.linear_layers(class),
        attributes: json!({ "class": class.class_name() }),
    };
    acknowledge_tied_embedding(config, checkpoint)?;
    checkpoint.finish(class.class_name())?;
    component.seal()
}

/// The tensor of ComfyUI's single files that holds the tokenizer: the bytes of a SentencePiece model.
pub(crate) const TOKENIZER: &str = "spiece_model";

const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// Checkpoints hold the token embedding under one of two names, or the same values under both.
fn acknowledge_tied_embedding(config: &Config, checkpoint: &Checkpoint) -> Result<(), ExportError> {
    if !EMBEDDINGS.iter().all(|name| checkpoint.contains(name)) {
        return Ok(());
    }
    let shape = [config.vocab_size, config.d_model];
    let both = EMBEDDINGS
        .map(|name| checkpoint.tensor(name, &shape)?.data.to_bytes().map_err(ExportError::io(checkpoint.label())));
    let [shared, tokens] = both;
    if shared? == tokens? {
        return Ok(());
    }
    Err(ExportError::Unsupported {
        what: format!("{}: different values in `{}` and `{}`", checkpoint.label(), EMBEDDINGS[0], EMBEDDINGS[1]),
        reason: "an encoder has one embedding; remove the one that is not its own".into(),
    })
}

fn graph(class: T5, config: &Config, checkpoint: &Checkpoint, masked: bool) -> Result<Model, ExportError> {
    let name = if masked { "encode_masked" } else { "encode" };
    let mut builder = Builder::new(name);
    let b = &mut builder;
    let vars = Vars::root(checkpoint);
    let d = config.d_model;
    let ids = b.input("input_ids", DataType::Int64, ["batch", "text_length"]);
    let (batch, length) = (b.extent(&ids, 0), b.extent(&ids, 1));
    let embedding = EMBEDDINGS.iter().find(|name| checkpoint.contains(name)).unwrap_or(&EMBEDDINGS[0]);
    let table = vars.get(b, embedding, &[config.vocab_size, d])?;
    let flat = b.reshape(&ids, &[(-1i64).into()]);
    let mut x = b.scope("embed_tokens", |b| b.gather(&table, &flat, 0));

    let buckets = b.scope("relative_attention_bias", |b| position_buckets(b, config, &length));
    let first = b.scope("relative_attention_bias", |b| position_bias(b, &vars, config, 0, &buckets))?;
    let penalty = masked.then(|| {
        let mask = b.input("attention_mask", DataType::Int64, ["batch", "text_length"]);
        b.scope("attention_mask", |b| {
            let mask = b.cast(&mask, DataType::Float);
            let mask = b.unsqueeze(&mask, &[1, 2]);
            let one = b.float(1.0);
            let hidden = b.op("Sub", &[&one, &mask]);
            // Far below any logit, and still finite in float16 and bfloat16.
            let low = b.float(-6e4);
            b.op("Mul", &[&hidden, &low])
        })
    });
    let hide = |b: &mut Builder, bias: &Value| {
        let add = |b: &mut Builder, penalty| b.op("Add", &[bias, penalty]);
        penalty.as_ref().map_or_else(|| bias.clone(), |penalty| b.scope("attention_mask", |b| add(b, penalty)))
    };
    let mut bias = hide(b, &first);
    for i in 0..config.num_layers {
        if class == T5::Own && i > 0 {
            let own = b.scope("relative_attention_bias", |b| position_bias(b, &vars, config, i, &buckets))?;
            bias = hide(b, &own);
        }
        let name = format!("encoder.block.{i}");
        let block = vars.child(&name).child("layer");
        x = b.scope(name, |b| {
            let attended = b.scope("SelfAttention", |b| attention(b, &block.child("0"), config, &x, &batch, &bias))?;
            let x = b.op("Add", &[&x, &attended]);
            let fed = b.scope("DenseReluDense", |b| feed_forward(b, &block.child("1"), (class, config), &x))?;
            Ok::<_, ExportError>(b.op("Add", &[&x, &fed]))
        })?;
    }
    let scale = vars.child("encoder.final_layer_norm").get(b, "weight", &[d])?;
    let x = b.scope("final_layer_norm", |b| {
        let x = b.in_fp32(|b| blocks::rms_norm(b, &x, &scale, config.layer_norm_epsilon));
        b.reshape(&x, &[Extent::from(&batch), Extent::from(&length), d.into()])
    });
    b.output(
        "last_hidden_state",
        &x,
        DataType::Float,
        ["batch".into(), "text_length".into(), v2l_graphs::Dim::Fixed(d)],
    );
    component::finish(name, builder)
}

/// Bucket of the distance of each query and key `[S, S]`.
fn position_buckets(b: &mut Builder, config: &Config, length: &Value) -> Value {
    let table = config.distance_buckets();
    let farthest = b.int(table.len() as i64 - 1);
    let table = b.ints(&table);
    let positions = b.range(length);
    let (key, query) = (b.unsqueeze(&positions, &[0]), b.unsqueeze(&positions, &[1]));
    let relative = b.op("Sub", &[&key, &query]);
    let distance = b.op("Abs", &[&relative]);
    let distance = b.op("Min", &[&distance, &farthest]);
    let bucket = b.gather(&table, &distance, 0);
    // Keys after the query use the second half of the buckets.
    let zero = b.int(0);
    let after = b.op("Greater", &[&relative, &zero]);
    let after = b.cast(&after, DataType::Int64);
    let per_side = b.int(config.relative_attention_num_buckets as i64 / 2);
    let offset = b.op("Mul", &[&after, &per_side]);
    b.op("Add", &[&bucket, &offset])
}

/// Attention bias `[1, heads, S, S]` of block `block`, by bucketed distance.
fn position_bias(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    block: usize,
    buckets: &Value,
) -> Result<Value, ExportError> {
    let vars = vars.child(format!("encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias"));
    let weight = vars.get(b, "weight", &[config.relative_attention_num_buckets, config.num_heads])?;
    let bias = b.gather(&weight, buckets, 0);
    let bias = b.transpose(&bias, &[2, 0, 1]);
    Ok(b.unsqueeze(&bias, &[0]))
}

fn attention(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    x: &Value,
    batch: &Value,
    bias: &Value,
) -> Result<Value, ExportError> {
    let (d, heads, dim) = (config.d_model, config.num_heads, config.d_kv);
    let scale = vars.child("layer_norm").get(b, "weight", &[d])?;
    let normal = b.in_fp32(|b| blocks::rms_norm(b, x, &scale, config.layer_norm_epsilon));
    let vars = vars.child("SelfAttention");
    let mut project = |name: &str| {
        let x = layers::linear(b, &vars.child(name), &normal, [heads * dim, d], false)?;
        let x = blocks::split_heads(b, &x, batch, heads, dim);
        Ok::<_, ExportError>(b.transpose(&x, &[0, 2, 1, 3]))
    };
    let (q, k, v) = (project("q")?, project("k")?, project("v")?);
    let mixed = blocks::scaled_dot_product_attention(b, &q, &k, &v, None, Some(bias));
    let rows = blocks::merge_heads(b, &mixed, heads, dim);
    layers::linear(b, &vars.child("o"), &rows, [d, heads * dim], false)
}

fn feed_forward(
    b: &mut Builder,
    vars: &Vars<'_>,
    (class, config): (T5, &Config),
    x: &Value,
) -> Result<Value, ExportError> {
    let (d, d_ff) = (config.d_model, config.d_ff);
    let scale = vars.child("layer_norm").get(b, "weight", &[d])?;
    let normal = b.in_fp32(|b| blocks::rms_norm(b, x, &scale, config.layer_norm_epsilon));
    let vars = vars.child("DenseReluDense");
    let mut up = |name: &str| layers::linear(b, &vars.child(name), &normal, [d_ff, d], false);
    let hidden = match config.feed_forward(class)? {
        FeedForward::Relu => {
            let hidden = up("wi")?;
            b.op("Relu", &[&hidden])
        }
        FeedForward::GatedGelu => {
            let (gate, value) = (up("wi_0")?, up("wi_1")?);
            let gate = blocks::gelu_tanh(b, &gate);
            b.op("Mul", &[&gate, &value])
        }
    };
    layers::linear(b, &vars.child("wo"), &hidden, [d, d_ff], false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_take_the_defaults_of_the_class() {
        let layers = |class: T5| {
            let config = class.config(json!({})).unwrap();
            config.validate(class).unwrap();
            (config.linear_layers(class).len(), config.vocab_size)
        };
        assert_eq!(layers(T5::Shared), (6 * 6, 32_128));
        assert_eq!(layers(T5::Own), (8 * 7, 250_112));
    }

    #[test]
    fn distance_buckets_of_t5_start_where_transformers_starts_them() {
        let buckets = Config::default().distance_buckets();
        let starts: Vec<usize> = (1..buckets.len()).filter(|&d| d >= 8 && buckets[d] != buckets[d - 1]).collect();
        assert_eq!(starts, [8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!((buckets[7], buckets[8], buckets[128]), (7, 8, 15));
    }
}
