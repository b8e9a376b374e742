//! `VideoHyperDream`, the hypernetwork of Video2LoRA, with the auxiliary matrices of its LightLoRA.
//!
//! Sizes come from the checkpoints: `a` (`down_dim`) from the rows of `*.down_aux`, `b` (`up_dim`) from the columns of
//! `*.up_aux`, `N` and `D` from `block_pos_emb` `[1, 2N, D]`, the rank from `D = (a + b) · rank`.

use std::collections::BTreeSet;

use serde_json::json;
use v2l_graphs::blocks;
use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::predict::video2lora::{KIND, PredictorConfig, TargetSlot};

use super::kind::{PredictorFiles, PredictorKind};
use crate::component::{self, Component};
use crate::models::layers;
use crate::{Checkpoint, ExportError, Vars};

/// Refinement iterations of the official code; not stored in a checkpoint.
pub const DEFAULT_ITERATIONS: usize = 4;

/// Channels of the CogVideoX latent that the hypernetwork reads.
const LATENT_CHANNELS: usize = 16;
const ROOT: &str = "img_weight_generator";
const LORA_PREFIX: &str = "lora_unet__";

pub(super) struct Video2Lora;

impl PredictorKind for Video2Lora {
    fn name(&self) -> &'static str {
        "VideoHyperDream"
    }

    fn recognises(&self, hypernetwork: &Checkpoint) -> bool {
        hypernetwork.names().any(|name| name.split_once('.').is_some_and(|(root, _)| root == ROOT))
    }

    fn export(
        &self,
        hypernetwork: &Checkpoint,
        files: &PredictorFiles,
        backbone: &[Slot],
    ) -> Result<Component, ExportError> {
        let iterations = files.iterations.unwrap_or(DEFAULT_ITERATIONS);
        export(hypernetwork, &Checkpoint::open_file(&files.auxiliary)?, backbone, iterations)
    }
}

/// A hypernetwork's structure, derived from its checkpoints.
#[derive(Clone, Debug)]
pub struct Layout {
    /// What the runtime has to know of it.
    pub config: PredictorConfig,
    /// Decoder blocks.
    pub blocks: usize,
}

/// Head count of a token width: doubled while the heads divide the width and stay wider than 64, then halved once.
fn heads(width: usize) -> usize {
    let mut heads = 1;
    while width.is_multiple_of(heads) && width / heads > 64 {
        heads *= 2;
    }
    heads / 2
}

impl Layout {
    /// Derives the sizes and the token order: the transformer's linear layers in traversal order, of which the LightLoRA
    /// file names a subset.
    ///
    /// # Errors
    /// [`ExportError::Predictor`], naming what does not fit.
    pub fn derive(
        hypernetwork: &Checkpoint,
        light_lora: &Checkpoint,
        backbone: &[Slot],
        iterations: usize,
    ) -> Result<Self, ExportError> {
        let fail = |reason: String| Err(ExportError::Predictor(reason));
        if iterations == 0 || iterations > 64 {
            return fail(format!("{iterations} iterations; expected 1 to 64 (the official code uses 4)"));
        }
        let slots = token_order(light_lora, backbone)?;
        let first = lora_name(&slots[0].name);
        let shape = |key: &str| light_lora.shape(&format!("{first}.{key}")).unwrap_or_default();
        let (&[down_dim, _], &[_, up_dim]) = (shape("down_aux"), shape("up_aux")) else {
            return fail(format!(
                "{}: `{first}` has auxiliary matrices {:?} and {:?}; expected [a, in] and [out, b]",
                light_lora.label(),
                shape("down_aux"),
                shape("up_aux")
            ));
        };
        let table = format!("{ROOT}.decoder_model.block_pos_emb");
        let &[1, rows, weight_dim] = hypernetwork.shape(&table).unwrap_or_default() else {
            return fail(format!(
                "{}: `{table}` has shape {:?}; expected [1, 2N, D]. Is this a VideoHyperDream checkpoint?",
                hypernetwork.label(),
                hypernetwork.shape(&table).unwrap_or_default()
            ));
        };
        let weight_num = rows / 2;
        if rows % 2 != 0 || weight_num != slots.len() {
            return fail(format!(
                "{} predicts {weight_num} tokens, but {} holds auxiliary matrices for {} linear layers; \
                 the two files must come from one training run",
                hypernetwork.label(),
                light_lora.label(),
                slots.len()
            ));
        }
        let rank = rank(weight_dim, down_dim, up_dim)?;
        let slots = slots
            .into_iter()
            .map(|s| TargetSlot { name: s.name, in_features: s.in_features, out_features: s.out_features })
            .collect();
        let config = PredictorConfig {
            kind: KIND.into(),
            down_dim,
            up_dim,
            rank,
            weight_dim,
            weight_num,
            heads: heads(weight_dim),
            iterations,
            slots,
        };
        Ok(Self { config, blocks: block_count(hypernetwork)? })
    }
}

/// The rank of factors that a token of this width holds for matrices `[a, in]` and `[out, b]`.
fn rank(weight_dim: usize, down_dim: usize, up_dim: usize) -> Result<usize, ExportError> {
    if weight_dim <= 64 {
        return Err(ExportError::Predictor(format!(
            "token width D = {weight_dim}; the official head rule needs more than 64, so no such model exists"
        )));
    }
    let per_rank = down_dim + up_dim;
    if !weight_dim.is_multiple_of(per_rank) {
        return Err(ExportError::Predictor(format!(
            "token width D = {weight_dim} is no multiple of a + b = {down_dim} + {up_dim}; \
             the two files must come from one training run"
        )));
    }
    Ok(weight_dim / per_rank)
}

/// Name of a layer in a LightLoRA file: dots become underscores behind a doubled one.
fn lora_name(module: &str) -> String {
    format!("{LORA_PREFIX}{}", module.replace('.', "_"))
}

/// The backbone's linear layers that the LightLoRA file names, in the backbone's traversal order; the file's own order is
/// alphabetic and means nothing.
fn token_order(light_lora: &Checkpoint, backbone: &[Slot]) -> Result<Vec<Slot>, ExportError> {
    let fail = |reason: String| Err(ExportError::Predictor(format!("{}: {reason}", light_lora.label())));
    let mut names = BTreeSet::new();
    for key in light_lora.names() {
        match key.strip_suffix(".down_aux").or_else(|| key.strip_suffix(".up_aux")) {
            Some(name) => names.insert(name.to_owned()),
            None => return fail(format!("`{key}` is neither a down_aux nor an up_aux matrix of LightLoRA")),
        };
    }
    let mut slots = Vec::new();
    for slot in backbone {
        if names.remove(&lora_name(&slot.name)) {
            slots.push(slot.clone());
        }
    }
    if let Some(name) = names.first() {
        return fail(format!(
            "`{name}` is not a linear layer of the transformer ({} such names); \
             the hypernetwork was trained for another backbone",
            names.len()
        ));
    }
    if slots.is_empty() {
        return fail("it names no linear layer of the transformer".into());
    }
    Ok(slots)
}

fn block_count(hypernetwork: &Checkpoint) -> Result<usize, ExportError> {
    let prefix = format!("{ROOT}.decoder_model.decoder_model.");
    let indices: BTreeSet<usize> =
        hypernetwork.names().filter_map(|n| n.strip_prefix(&prefix)?.split('.').next()?.parse().ok()).collect();
    let count = indices.len();
    if count == 0 || indices.last() != Some(&(count - 1)) {
        return Err(ExportError::Predictor(format!(
            "{}: decoder blocks {indices:?}; expected 0, 1, … without gaps",
            hypernetwork.label()
        )));
    }
    Ok(count)
}

/// Exports the component `hypernetwork` with the graphs `predict` (`latents` `[B, 16, T, h, w]` → `pred_weights`
/// `[B, N, D]`) and `expand` (`pred_weights` `[N, D]` → per slot `<slot>.lora_down` `[rank, in]` and `<slot>.lora_up`
/// `[out, rank]`, with ΔW = strength · up · down).
///
/// # Errors
/// [`ExportError::Predictor`] if the files do not fit each other or the backbone, and those of [`Checkpoint`].
pub fn export(
    hypernetwork: &Checkpoint,
    light_lora: &Checkpoint,
    backbone: &[Slot],
    iterations: usize,
) -> Result<Component, ExportError> {
    let layout = Layout::derive(hypernetwork, light_lora, backbone, iterations)?;
    let predict = predict_graph(&layout, hypernetwork, true)?;
    let expand = expand_graph(&layout, light_lora)?;
    // A second copy of the position table is registered in the official code and never read.
    let unused = format!("{ROOT}.block_pos_emb");
    if hypernetwork.contains(&unused) {
        hypernetwork.tensor(&unused, &[1, 2 * layout.config.weight_num, layout.config.weight_dim])?;
    }
    hypernetwork.finish("VideoHyperDream")?;
    light_lora.finish("LightLoRA")?;
    let precision = match (hypernetwork.precision()?, light_lora.precision()?) {
        (a, b) if a == b => a,
        _ => DataType::Float,
    };
    Component {
        name: "hypernetwork".into(),
        graphs: vec![("predict".into(), predict), ("expand".into(), expand)],
        precision,
        slots: Vec::new(),
        attributes: json!(layout.config),
    }
    .seal()
}

/// Exports the hypernetwork with its cross-attention as it is written in the official code, for comparison only.
///
/// # Errors
/// As [`export`].
pub fn plain_predict_graph(layout: &Layout, hypernetwork: &Checkpoint) -> Result<Model, ExportError> {
    predict_graph(layout, hypernetwork, false)
}

fn predict_graph(layout: &Layout, hypernetwork: &Checkpoint, absorbed: bool) -> Result<Model, ExportError> {
    let mut builder = Builder::new("predict");
    let b = &mut builder;
    let root = Vars::root(hypernetwork).child(ROOT);
    let (width, tokens) = (layout.config.weight_dim, layout.config.weight_num);
    let latents = b.input(
        "latents",
        DataType::Float,
        [
            "batch".into(),
            Dim::Fixed(LATENT_CHANNELS),
            "latent_frames".into(),
            "latent_height".into(),
            "latent_width".into(),
        ],
    );
    let batch = b.extent(&latents, 0);
    let feature_proj = root.child("feature_proj").get(b, "weight", &[width, LATENT_CHANNELS])?;
    // The context is the unordered set of latent cells, `[B, 16, L]`.
    let context = b.reshape(&latents, &[0i64.into(), LATENT_CHANNELS.into(), (-1i64).into()]);
    let context = if absorbed {
        Context::Absorbed { cells: context, feature_proj }
    } else {
        let cells = b.transpose(&context, &[0, 2, 1]);
        let cells = b.reshape(&cells, &[(-1i64).into(), LATENT_CHANNELS.into()]);
        Context::Plain { features: blocks::linear(b, &cells, &feature_proj, None) }
    };
    let decoder = root.child("decoder_model");
    let positions = b.scope("pos_emb_proj", |b| {
        let table = decoder.get(b, "block_pos_emb", &[1, 2 * tokens, width])?;
        let used = b.slice(&table, 1, 0i64.into(), tokens.into());
        let rows = b.reshape(&used, &[tokens.into(), width.into()]);
        layers::linear(b, &decoder.child("pos_emb_proj"), &rows, [width, width], false)
    })?;
    let shape = b.shape(&[Extent::from(&batch), tokens.into(), width.into()]);
    let zero = b.float(0.0);
    let mut weights = b.op("Expand", &[&zero, &shape]);
    for iteration in 0..layout.config.iterations {
        weights = b.scope(format!("iteration.{iteration}"), |b| {
            let mut h = b.op("Add", &[&weights, &positions]);
            for block in 0..layout.blocks {
                let vars = decoder.child(format!("decoder_model.{block}"));
                h = b.scope(format!("decoder_model.{block}"), |b| {
                    decoder_block(b, &vars, layout, &h, &context, &batch)
                })?;
            }
            let delta = b.scope("delta_proj", |b| {
                let h = norm(b, &decoder.child("delta_proj.0"), &h, width)?;
                let rows = b.reshape(&h, &[(-1i64).into(), width.into()]);
                let rows = layers::linear(b, &decoder.child("delta_proj.1"), &rows, [width, width], false)?;
                Ok::<_, ExportError>(b.reshape(&rows, &[Extent::from(&batch), tokens.into(), width.into()]))
            })?;
            Ok::<_, ExportError>(b.op("Add", &[&weights, &delta]))
        })?;
    }
    b.output("pred_weights", &weights, DataType::Float, ["batch".into(), Dim::Fixed(tokens), Dim::Fixed(width)]);
    component::finish("hypernetwork/predict", builder)
}

/// What cross-attention reads.
enum Context {
    /// Latent cells `[B, 16, L]`; keys and values never exist. With no bias between latent and key,
    /// `q · (Wk Wf f) = ((Wk Wf)ᵀ q) · f`, and `Σ p (Wv Wf f) = Wv Wf Σ p f`: about 7 times fewer operations.
    Absorbed { cells: Value, feature_proj: Value },
    /// Projected features `[B·L, D]`.
    Plain { features: Value },
}

fn norm(b: &mut Builder, vars: &Vars<'_>, x: &Value, width: usize) -> Result<Value, ExportError> {
    layers::layer_norm(b, vars, x, width, 1e-5)
}

fn decoder_block(
    b: &mut Builder,
    vars: &Vars<'_>,
    layout: &Layout,
    x: &Value,
    context: &Context,
    batch: &Value,
) -> Result<Value, ExportError> {
    let (width, tokens) = (layout.config.weight_dim, layout.config.weight_num);
    let back = |b: &mut Builder, rows: &Value| b.reshape(rows, &[Extent::from(batch), tokens.into(), width.into()]);
    let flat = |b: &mut Builder, x: &Value| b.reshape(x, &[(-1i64).into(), width.into()]);

    let h = norm(b, &vars.child("norm1"), x, width)?;
    let rows = flat(b, &h);
    let attended = b.scope("attn1", |b| self_attention(b, &vars.child("attn1"), layout, &rows, batch))?;
    let attended = back(b, &attended);
    let x = b.op("Add", &[&attended, x]);

    let h = norm(b, &vars.child("norm2"), &x, width)?;
    let rows = flat(b, &h);
    let attended = b.scope("attn2", |b| cross_attention(b, &vars.child("attn2"), layout, &rows, context, batch))?;
    let attended = back(b, &attended);
    let x = b.op("Add", &[&attended, &x]);

    let h = norm(b, &vars.child("norm3"), &x, width)?;
    let rows = flat(b, &h);
    let fed = b.scope("ff", |b| {
        let hidden = layers::linear(b, &vars.child("ff.net.0.0"), &rows, [4 * width, width], true)?;
        let hidden = blocks::gelu(b, &hidden);
        layers::linear(b, &vars.child("ff.net.1"), &hidden, [width, 4 * width], true)
    })?;
    let fed = back(b, &fed);
    Ok(b.op("Add", &[&fed, &x]))
}

/// `[rows, D]` projected by `name` and split into heads, `[B, h, S, D/h]`.
fn heads_of(
    b: &mut Builder,
    vars: &Vars<'_>,
    layout: &Layout,
    name: &str,
    rows: &Value,
    batch: &Value,
) -> Result<Value, ExportError> {
    let width = layout.config.weight_dim;
    let x = layers::linear(b, &vars.child(name), rows, [width, width], false)?;
    let x = blocks::split_heads(b, &x, batch, layout.config.heads, width / layout.config.heads);
    Ok(b.transpose(&x, &[0, 2, 1, 3]))
}

fn project_out(b: &mut Builder, vars: &Vars<'_>, layout: &Layout, mixed: &Value) -> Result<Value, ExportError> {
    let width = layout.config.weight_dim;
    let rows = blocks::merge_heads(b, mixed, layout.config.heads, width / layout.config.heads);
    layers::linear(b, &vars.child("out"), &rows, [width, width], true)
}

fn scale(layout: &Layout) -> f32 {
    1.0 / ((layout.config.weight_dim / layout.config.heads) as f32).sqrt()
}

fn self_attention(
    b: &mut Builder,
    vars: &Vars<'_>,
    layout: &Layout,
    rows: &Value,
    batch: &Value,
) -> Result<Value, ExportError> {
    let q = heads_of(b, vars, layout, "q", rows, batch)?;
    let k = heads_of(b, vars, layout, "k", rows, batch)?;
    let v = heads_of(b, vars, layout, "v", rows, batch)?;
    let mixed = blocks::scaled_dot_product_attention(b, &q, &k, &v, Some(scale(layout)), None);
    project_out(b, vars, layout, &mixed)
}

fn cross_attention(
    b: &mut Builder,
    vars: &Vars<'_>,
    layout: &Layout,
    rows: &Value,
    context: &Context,
    batch: &Value,
) -> Result<Value, ExportError> {
    let q = heads_of(b, vars, layout, "q", rows, batch)?;
    let mixed = match context {
        Context::Plain { features } => {
            let k = heads_of(b, vars, layout, "k", features, batch)?;
            let v = heads_of(b, vars, layout, "v", features, batch)?;
            blocks::scaled_dot_product_attention(b, &q, &k, &v, Some(scale(layout)), None)
        }
        Context::Absorbed { cells, feature_proj } => {
            let (width, head_dim) = (layout.config.weight_dim, layout.config.weight_dim / layout.config.heads);
            // Per head `W · Wf`, `[h, D/h, 16]`.
            let mut absorb = |name: &str| {
                let weight = vars.child(name).get(b, "weight", &[width, width])?;
                let product = b.op("MatMul", &[&weight, feature_proj]);
                Ok::<_, ExportError>(
                    b.reshape(&product, &[layout.config.heads.into(), head_dim.into(), LATENT_CHANNELS.into()]),
                )
            };
            let (key, value) = (absorb("k")?, absorb("v")?);
            let scale = b.float(scale(layout));
            let q = b.op("Mul", &[&q, &scale]);
            let q = b.op("MatMul", &[&q, &key]);
            let cells = b.unsqueeze(cells, &[1]);
            let logits = b.op("MatMul", &[&q, &cells]);
            let weights = b.node("Softmax", &[&logits]).attr("axis", -1).out();
            let cells = b.transpose(&cells, &[0, 1, 3, 2]);
            let mixed = b.op("MatMul", &[&weights, &cells]);
            let value = b.transpose(&value, &[0, 2, 1]);
            b.op("MatMul", &[&mixed, &value])
        }
    };
    project_out(b, vars, layout, &mixed)
}

/// LightLoRA's factors: `down = D_pred · down_aux`, `up = up_aux · U_pred` (specification: Video2LoRA §3.3).
fn expand_graph(layout: &Layout, light_lora: &Checkpoint) -> Result<Model, ExportError> {
    let mut builder = Builder::new("expand");
    let b = &mut builder;
    let vars = Vars::root(light_lora);
    let rank = layout.config.rank;
    let predicted = b.input(
        "pred_weights",
        DataType::Float,
        [Dim::Fixed(layout.config.weight_num), Dim::Fixed(layout.config.weight_dim)],
    );
    let down_values = layout.config.down_dim * rank;
    let downs = b.slice(&predicted, 1, 0i64.into(), down_values.into());
    let ups = b.slice(&predicted, 1, down_values.into(), i64::MAX.into());
    for (token, slot) in layout.config.slots.iter().enumerate() {
        b.scope(slot.name.clone(), |b| {
            let vars = vars.child(lora_name(&slot.name));
            let down_aux = vars.get(b, "down_aux", &[layout.config.down_dim, slot.in_features])?;
            let up_aux = vars.get(b, "up_aux", &[slot.out_features, layout.config.up_dim])?;
            let index = b.ints(&[token as i64]);
            let down = b.gather(&downs, &index, 0);
            let down = b.reshape(&down, &[rank.into(), layout.config.down_dim.into()]);
            let down = b.op("MatMul", &[&down, &down_aux]);
            let up = b.gather(&ups, &index, 0);
            let up = b.reshape(&up, &[layout.config.up_dim.into(), rank.into()]);
            let up = b.op("MatMul", &[&up_aux, &up]);
            b.output(&format!("{}.lora_down", slot.name), &down, DataType::Float, [rank, slot.in_features]);
            b.output(&format!("{}.lora_up", slot.name), &up, DataType::Float, [slot.out_features, rank]);
            Ok::<_, ExportError>(())
        })?;
    }
    component::finish("hypernetwork/expand", builder)
}

#[cfg(test)]
mod tests {
    use super::heads;

    #[test]
    fn heads_follow_the_official_rule() {
        let expected = [(150, 2), (300, 4), (600, 8), (240, 2), (90, 1), (180, 2), (66, 1)];
        for (width, count) in expected {
            assert_eq!(heads(width), count, "D = {width}");
        }
    }
}
