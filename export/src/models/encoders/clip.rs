//! `CLIPVisionModel` and `CLIPVisionModelWithProjection`: the image encoder of Wan 2.1.
//!
//! Transformers take the hidden states before the last layer (`hidden_states[-2]`). So the last layer, the norm behind it
//! and the projection are not exported; their parameters may be there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value as Json, json};
use v2l_graphs::blocks;
use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::pipeline::config::PipelineConfig;

use crate::component::{self, Component};
use crate::models::family::{Architecture, Part, Place};
use crate::models::layers;
use crate::models::recognised::{Recognised, Shapes};
use crate::{Checkpoint, ExportError, Vars};

/// Where the parameters stand in a checkpoint of either class.
const PREFIX: &str = "vision_model";

/// Channels of a pixel.
const COLOURS: usize = 3;

/// A class of encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clip {
    /// `CLIPVisionModel`.
    Plain,
    /// `CLIPVisionModelWithProjection`.
    Projected,
}

impl Architecture for Clip {
    fn class(&self) -> &'static str {
        match self {
            Self::Plain => "CLIPVisionModel",
            Self::Projected => "CLIPVisionModelWithProjection",
        }
    }

    fn part(&self) -> Part {
        Part::ImageEncoder
    }

    fn export(&self, place: &Place<'_>, _: &mut PipelineConfig) -> Result<Vec<Component>, ExportError> {
        let config: Config = place.origin.config()?;
        Ok(vec![export(*self, &config, &place.checkpoint()?)?])
    }

    fn recognise(&self, checkpoint: &Checkpoint, beside: &Json) -> Result<Option<Recognised>, ExportError> {
        let has = |name: &str| checkpoint.contains(name);
        if !has(EMBEDDING) || has(PROJECTION) != (*self == Self::Projected) {
            return Ok(None);
        }
        let names = BTreeMap::new();
        let config = match beside["architectures"][0] == self.class() {
            true => beside.clone(),
            false => config_of(&Shapes::new(checkpoint, &names), checkpoint.label())?,
        };
        Ok(Some(Recognised { config, names }))
    }
}

/// A tensor that every encoder has, and one that those with a projection have.
const EMBEDDING: &str = "vision_model.embeddings.patch_embedding.weight";
const PROJECTION: &str = "visual_projection.weight";

/// What `config.json` would say of the model that Wan uses, by the shapes: ViT-H/14 of OpenCLIP. Others have other heads and activations,
/// which no tensor says.
fn config_of(shapes: &Shapes<'_>, label: &str) -> Result<Json, ExportError> {
    const WIDTH: usize = 1280;
    let (width, patch) = (shapes.extent(EMBEDDING, 0)?, shapes.extent(EMBEDDING, 2)?);
    if width != WIDTH {
        return Err(ExportError::NotAModel {
            path: label.into(),
            reason: format!(
                "an image encoder of width {width}; the one of Wan has {WIDTH}, and others do not say their heads: put the model's \
                 config.json beside the file"
            ),
        });
    }
    let places = shapes.extent("vision_model.embeddings.position_embedding.weight", 0)?;
    Ok(json!({
        "hidden_size": width,
        "intermediate_size": shapes.extent("vision_model.encoder.layers.0.mlp.fc1.weight", 0)?,
        "num_hidden_layers": shapes.count("vision_model.encoder.layers."),
        "num_attention_heads": 16,
        "image_size": places.saturating_sub(1).isqrt() * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
    }))
}

/// `config.json` of the encoder; absent keys take transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: COLOURS,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

/// The activations of published models.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activation {
    Gelu,
    QuickGelu,
}

impl Config {
    fn activation(&self) -> Option<Activation> {
        match self.hidden_act.as_str() {
            "gelu" => Some(Activation::Gelu),
            "quick_gelu" => Some(Activation::QuickGelu),
            _ => None,
        }
    }

    /// Patches, and one token for the whole image.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    /// Layers that are exported.
    fn layers(&self) -> usize {
        self.num_hidden_layers - 1
    }

    fn validate(&self, class: Clip) -> Result<Activation, ExportError> {
        let unsupported = |what: String, reason: String| ExportError::Unsupported {
            what: format!("{}: {what}", class.class()),
            reason,
        };
        for (name, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("image_size", self.image_size, 1 << 13),
            ("patch_size", self.patch_size, self.image_size),
        ] {
            if !(1..=most).contains(&value) {
                return Err(unsupported(format!("{name} {value}"), format!("expected 1 to {most}")));
            }
        }
        if self.num_channels != COLOURS {
            return Err(unsupported(format!("num_channels {}", self.num_channels), format!("expected {COLOURS}")));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let what = format!("{} num_attention_heads", self.num_attention_heads);
            return Err(unsupported(what, format!("they must divide hidden_size {}", self.hidden_size)));
        }
        self.activation().ok_or_else(|| {
            unsupported(format!("hidden_act `{}`", self.hidden_act), "expected `gelu` or `quick_gelu`".into())
        })
    }

    /// Every linear layer that is exported, in the order of PyTorch's `named_modules`.
    fn linear_layers(&self) -> Vec<Slot> {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        let layers = [
            ("self_attn.k_proj", d, d),
            ("self_attn.v_proj", d, d),
            ("self_attn.q_proj", d, d),
            ("self_attn.out_proj", d, d),
            ("mlp.fc1", inner, d),
            ("mlp.fc2", d, inner),
        ];
        let slot = |i, (name, out, input)| Slot::linear(format!("{PREFIX}.encoder.layers.{i}.{name}"), out, input);
        (0..self.layers()).flat_map(|i| layers.map(|layer| slot(i, layer))).collect()
    }
}

/// Exports the encoder as the component `image_encoder` with the graph `encode`: `pixel_values` `[B, 3, S, S]`, as its
/// processor makes them, to `hidden_states` `[B, tokens, hidden_size]`, those before the last layer.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub fn export(class: Clip, config: &Config, checkpoint: &Checkpoint) -> Result<Component, ExportError> {
    let activation = config.validate(class)?;
    acknowledge(class, config, checkpoint);
    let model = graph(config, activation, checkpoint)?;
    checkpoint.finish(class.class())?;
    Component {
        name: "image_encoder".into(),
        graphs: vec![("encode".into(), model)],
        precision: checkpoint.precision()?,
        slots: config.linear_layers(),
        attributes: json!({ "class": class.class() }),
    }
    .seal()
}

/// Marks what belongs to the model and is not needed.
fn acknowledge(class: Clip, config: &Config, checkpoint: &Checkpoint) {
    let last = format!("encoder.layers.{}", config.layers());
    let mut modules = vec!["post_layernorm".to_owned()];
    let parts = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"];
    let projections = ["k_proj", "v_proj", "q_proj", "out_proj"];
    modules.extend(parts.iter().map(|part| format!("{last}.{part}")));
    modules.extend(projections.iter().map(|part| format!("{last}.self_attn.{part}")));
    for module in modules {
        for parameter in ["weight", "bias"] {
            checkpoint.acknowledge(&format!("{PREFIX}.{module}.{parameter}"));
        }
    }
    // The numbers 0, 1, 2, …, which older files have.
    checkpoint.acknowledge(&format!("{PREFIX}.embeddings.position_ids"));
    if class == Clip::Projected {
        checkpoint.acknowledge(PROJECTION);
    }
}

fn graph(config: &Config, activation: Activation, checkpoint: &Checkpoint) -> Result<Model, ExportError> {
    let mut builder = Builder::new("encode");
    let b = &mut builder;
    let vars = Vars::root(checkpoint).child(PREFIX);
    let (d, side) = (config.hidden_size, config.image_size);
    let shape: [Dim; 4] = ["batch".into(), COLOURS.into(), side.into(), side.into()];
    let pixels = b.input("pixel_values", DataType::Float, shape);
    let batch = b.extent(&pixels, 0);
    let tokens = b.scope("embeddings", |b| embeddings(b, &vars.child("embeddings"), config, &pixels, &batch))?;
    let mut rows = b.reshape(&tokens, &[(-1i64).into(), d.into()]);
    rows = b.scope("pre_layrnorm", |b| {
        layers::layer_norm(b, &vars.child("pre_layrnorm"), &rows, d, config.layer_norm_eps)
    })?;
    for i in 0..config.layers() {
        let name = format!("encoder.layers.{i}");
        let layer = Layer { vars: vars.child(&name), config, activation, batch: &batch };
        rows = b.scope(name, |b| layer.forward(b, &rows))?;
    }
    let states = b.reshape(&rows, &[Extent::from(&batch), config.tokens().into(), d.into()]);
    let shape: [Dim; 3] = ["batch".into(), config.tokens().into(), d.into()];
    b.output("hidden_states", &states, DataType::Float, shape);
    component::finish("image_encoder/encode", builder)
}

/// Tokens `[B, tokens, hidden_size]`: the one for the whole image, then patches by rows.
fn embeddings(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    pixels: &Value,
    batch: &Value,
) -> Result<Value, ExportError> {
    let (d, patch) = (config.hidden_size, config.patch_size);
    let weight = vars.child("patch_embedding").get(b, "weight", &[d, COLOURS, patch, patch])?;
    let side = vec![patch as i64; 2];
    let grid = b.node("Conv", &[pixels, &weight]).attr("kernel_shape", side.clone()).attr("strides", side).out();
    let patches = b.reshape(&grid, &[Extent::from(batch), d.into(), (-1i64).into()]);
    let patches = b.transpose(&patches, &[0, 2, 1]);
    let whole = vars.get(b, "class_embedding", &[d])?;
    let shape = b.shape(&[Extent::from(batch), 1i64.into(), d.into()]);
    let whole = b.op("Expand", &[&whole, &shape]);
    let tokens = b.concat(&[&whole, &patches], 1);
    let positions = vars.child("position_embedding").get(b, "weight", &[config.tokens(), d])?;
    Ok(b.op("Add", &[&tokens, &positions]))
}

/// One layer of the encoder.
struct Layer<'a> {
    vars: Vars<'a>,
    config: &'a Config,
    activation: Activation,
    batch: &'a Value,
}

impl Layer<'_> {
    /// `rows` `[B·tokens, hidden_size]`.
    fn forward(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let x = self.norm(b, "layer_norm1", rows)?;
        let attended = b.scope("self_attn", |b| self.attention(b, &x))?;
        let rows = b.op("Add", &[rows, &attended]);
        let x = self.norm(b, "layer_norm2", &rows)?;
        let fed = b.scope("mlp", |b| self.feed_forward(b, &x))?;
        Ok(b.op("Add", &[&rows, &fed]))
    }

    fn norm(&self, b: &mut Builder, name: &str, rows: &Value) -> Result<Value, ExportError> {
        let vars = self.vars.child(name);
        b.scope(name, |b| layers::layer_norm(b, &vars, rows, self.config.hidden_size, self.config.layer_norm_eps))
    }

    fn attention(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let (d, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let vars = self.vars.child("self_attn");
        let mut project = |name: &str| {
            let x = b.scope(name, |b| layers::linear(b, &vars.child(name), rows, [d, d], true))?;
            let x = blocks::split_heads(b, &x, self.batch, heads, d / heads);
            Ok::<_, ExportError>(b.transpose(&x, &[0, 2, 1, 3]))
        };
        let (q, k, v) = (project("q_proj")?, project("k_proj")?, project("v_proj")?);
        let scale = 1.0 / ((d / heads) as f32).sqrt();
        let mixed = blocks::scaled_dot_product_attention(b, &q, &k, &v, Some(scale), None);
        let mixed = blocks::merge_heads(b, &mixed, heads, d / heads);
        b.scope("out_proj", |b| layers::linear(b, &vars.child("out_proj"), &mixed, [d, d], true))
    }

    fn feed_forward(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let (d, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let vars = self.vars.child("mlp");
        let hidden = b.scope("fc1", |b| layers::linear(b, &vars.child("fc1"), rows, [inner, d], true))?;
        let hidden = match self.activation {
            Activation::Gelu => blocks::gelu(b, &hidden),
            Activation::QuickGelu => blocks::quick_gelu(b, &hidden),
        };
        b.scope("fc2", |b| layers::linear(b, &vars.child("fc2"), &hidden, [d, inner], true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_encoder_has_its_tokens_and_the_layers_that_are_needed() {
        let config: Config = serde_json::from_str(
            r#"{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024}"#,
        )
        .unwrap();
        config.validate(Clip::Projected).unwrap();
        assert_eq!(config.tokens(), 257);
        assert_eq!(config.linear_layers().len(), 31 * 6);
    }

    #[test]
    fn configurations_that_no_graph_is_made_of_are_refused_by_key() {
        for (config, key) in [
            (r#"{"num_hidden_layers": 0}"#, "num_hidden_layers 0"),
            (r#"{"patch_size": 0}"#, "patch_size 0"),
            (r#"{"patch_size": 225}"#, "patch_size 225"),
            (r#"{"num_channels": 1}"#, "num_channels 1"),
            (r#"{"num_attention_heads": 7}"#, "7 num_attention_heads"),
            (r#"{"hidden_act": "relu"}"#, "hidden_act `relu`"),
        ] {
            let config: Config = serde_json::from_str(config).unwrap();
            let Err(error) = config.validate(Clip::Plain) else { panic!("{key}") };
            assert!(error.is_unsupported());
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
