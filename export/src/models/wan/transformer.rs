//! `WanTransformer3DModel`: text to video, image to video with and without image embeddings, first and last frame, and
//! a timestep for the first frame.
//!
//! Where diffusers gives each token a timestep (`expand_timesteps`), there are two graphs. Its pipelines give all tokens of
//! a frame the same, and there are two of them: the first frame's, which is 0 if an image stands there, and that of all
//! others. The graph `step` takes these two, and embeds no token's. The graph `step_tokens` takes one for each token.
//!
//! Follows diffusers' `transformer_wan.py`. Positions are computed in the graph from tables of the cosines and sines of
//! each axis, which are rounded from float64 as the reference does it.

mod config;

use serde_json::json;
use v2l_graphs::blocks::{self, RotaryTables};
use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value};
use v2l_runtime::components::STEP_CONTROL;

pub use self::config::{CLASS, Config};
use crate::component::{self, Component};
use crate::models::control::{ControlTokens, Controls};
use crate::models::layers;
use crate::{Checkpoint, ExportError, Vars};

/// Wavelength base of the positions, fixed in `WanRotaryPosEmbed`.
const THETA: f64 = 10_000.0;

/// Epsilon of the layer norms around the image embeddings, fixed in `WanImageEmbedding`.
const IMAGE_NORM_EPS: f32 = 1e-5;

/// What a pipeline makes of a transformer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form<'a> {
    /// Name of the component: `transformer`, or `transformer_2` for the one of a model's last steps.
    pub component: &'a str,
    /// The first frame has a timestep of its own, as pipelines with `expand_timesteps` give it to all tokens of the frame.
    pub first_frame_timestep: bool,
    /// Control tokens, for a second graph `step_control`.
    pub controls: Option<&'a Controls>,
}

/// Where the timesteps of tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timesteps {
    /// `timestep` `[B]` is that of all tokens.
    One,
    /// `first_frame_timestep` `[B]` is that of the first frame, `timestep` `[B]` that of all others.
    FirstFrame,
    /// `timestep` `[B, tokens]`.
    EachToken,
}

/// Exports the transformer as a component with the graph `step`, and `step_tokens` where the first frame may have a timestep
/// of its own; with controls also `step_control`.
///
/// Inputs: `hidden_states` `[B, C, T, H, W]`, `timestep` `[B]` (of `step_tokens` `[B, tokens]`), `first_frame_timestep` `[B]`
/// where the form has it (`step` alone),
/// `encoder_hidden_states` `[B, L, text_dim]`, and `encoder_hidden_states_image` `[B, tokens, image_dim]` where the model
/// takes image embeddings (those of the first and the last frame one after the other on the batch axis where it takes
/// both), and `control` and `control_mask` `[B, K]` of `step_control`. All are float32. Output: `sample` `[B, out, T, H, W]`.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub(crate) fn export(config: &Config, checkpoint: &Checkpoint, form: Form<'_>) -> Result<Component, ExportError> {
    config.validate()?;
    // Some files have the norm of queries of the image attention, which diffusers does not use either.
    for i in 0..config.num_layers {
        checkpoint.acknowledge(&format!("blocks.{i}.attn2.norm_added_q.weight"));
    }
    let timesteps = if form.first_frame_timestep { Timesteps::FirstFrame } else { Timesteps::One };
    let mut graphs = vec![("step".to_owned(), step_graph(config, checkpoint, timesteps, None)?)];
    if form.first_frame_timestep {
        graphs.push(("step_tokens".to_owned(), step_graph(config, checkpoint, Timesteps::EachToken, None)?));
    }
    if let Some(controls) = form.controls {
        graphs.push((STEP_CONTROL.to_owned(), step_graph(config, checkpoint, timesteps, Some(controls))?));
    }
    checkpoint.finish(CLASS)?;
    Component {
        name: form.component.into(),
        graphs,
        precision: checkpoint.precision()?,
        slots: config.linear_layers(),
        attributes: json!({ "class": CLASS }),
    }
    .seal()
}

fn step_graph(
    config: &Config,
    checkpoint: &Checkpoint,
    timesteps: Timesteps,
    controls: Option<&Controls>,
) -> Result<Model, ExportError> {
    let mut builder = Builder::new("step");
    let b = &mut builder;
    let vars = Vars::root(checkpoint);
    let video = |channels: usize| -> [Dim; 5] {
        ["batch".into(), channels.into(), "frames".into(), "height".into(), "width".into()]
    };
    let hidden = b.input("hidden_states", DataType::Float, video(config.in_channels));
    let timestep = match timesteps {
        Timesteps::EachToken => b.input("timestep", DataType::Float, ["batch", "tokens"]),
        Timesteps::One | Timesteps::FirstFrame => b.input("timestep", DataType::Float, ["batch"]),
    };
    let by_frame = timesteps == Timesteps::FirstFrame;
    let by_token = timesteps == Timesteps::EachToken;
    let first = by_frame.then(|| b.input("first_frame_timestep", DataType::Float, ["batch"]));
    let text: [Dim; 3] = ["batch".into(), "text_length".into(), config.text_dim.into()];
    let text = b.input("encoder_hidden_states", DataType::Float, text);
    let grid = Grid::new(b, config, &hidden, by_frame);
    let tables = b.scope("rope", |b| rotary_tables(b, config, &grid));
    let mut tokens = b.scope("patch_embedding", |b| patch_embedding(b, &vars, config, &hidden, &grid))?;
    let condition = vars.child("condition_embedder");
    let (temb, modulation) = b.scope("condition_embedder", |b| {
        let rest = time_embedding(b, &condition, config, (&timestep, by_token))?;
        match &first {
            Some(first) => {
                let first = time_embedding(b, &condition, config, (first, false))?;
                Ok(each_frame(b, config, &grid, &first, &rest))
            }
            None => Ok::<_, ExportError>(rest),
        }
    })?;
    let text = b.scope("condition_embedder.text_embedder", |b| {
        text_embedding(b, &condition.child("text_embedder"), config, &text)
    })?;
    let image = config.image_dim.map(|dim| {
        b.scope("condition_embedder.image_embedder", |b| {
            image_embedding(b, &condition.child("image_embedder"), config, dim)
        })
    });
    let image = image.transpose()?;

    let controls = ControlTokens::of(b, controls, config.width(), config.num_layers)?;

    for i in 0..config.num_layers {
        let name = format!("blocks.{i}");
        let block = Block {
            vars: vars.child(&name),
            config,
            batch: &grid.batch,
            groups: &grid.groups,
            tables: &tables,
            text: &text,
            image: image.as_ref(),
            controls: controls.as_ref().filter(|controls| controls.blocks.contains(&i)),
        };
        tokens = b.scope(name, |b| block.forward(b, &tokens, &modulation))?;
    }
    let sample = output(b, &vars, config, &tokens, &temb, &grid)?;
    b.output("sample", &sample, DataType::Float, video(config.out_channels));
    component::finish("transformer/step", builder)
}

/// The batch, and patches along each axis, as int64 values `[1]`.
struct Grid {
    batch: Value,
    /// How many groups of tokens have a timestep of their own: the batch, or its frames.
    groups: Value,
    /// Time, height, width.
    patches: [Value; 3],
}

impl Grid {
    fn new(b: &mut Builder, config: &Config, hidden: &Value, by_frame: bool) -> Self {
        let batch = b.extent(hidden, 0);
        let patches = [0, 1, 2].map(|axis| {
            let extent = b.extent(hidden, 2 + axis as i64);
            if config.patch_size[axis] == 1 {
                return extent;
            }
            let side = b.ints(&[config.patch_size[axis] as i64]);
            b.op("Div", &[&extent, &side])
        });
        let groups = if by_frame { b.op("Mul", &[&batch, &patches[0]]) } else { batch.clone() };
        Self { batch, groups, patches }
    }

    /// The extents `[B, T, H, W]` in patches.
    fn extents(&self) -> [Extent; 4] {
        let [time, height, width] = &self.patches;
        [Extent::from(&self.batch), Extent::from(time), Extent::from(height), Extent::from(width)]
    }
}

/// Cosines and sines of every token `[tokens, head_dim / 2, 1]`: pairs for time, then row, then column.
fn rotary_tables(b: &mut Builder, config: &Config, grid: &Grid) -> RotaryTables {
    let head = config.attention_head_dim;
    let side = 2 * (head / 6);
    let dims = [head - 2 * side, side, side];
    let mut table = |function: fn(f64) -> f64| {
        let [_, time, height, width] = grid.extents();
        let shape = [time, height, width];
        let parts: Vec<Value> = (0..3)
            .filter(|&axis| dims[axis] > 0)
            .map(|axis| {
                let half = dims[axis] / 2;
                let angle = |position: usize, i: usize| {
                    position as f64 * (1.0 / THETA.powf(2.0 * i as f64 / dims[axis] as f64))
                };
                let values: Vec<f32> = (0..config.rope_max_seq_len)
                    .flat_map(|position| (0..half).map(move |i| function(angle(position, i)) as f32))
                    .collect();
                let rows = b.floats(&[config.rope_max_seq_len, half], &values);
                let rows = b.slice(&rows, 0, 0i64.into(), Extent::from(&grid.patches[axis]));
                let others: Vec<i64> = (0..3).filter(|&other| other != axis).map(|other| other as i64).collect();
                let rows = b.unsqueeze(&rows, &others);
                let shape = b.shape(&[shape[0].clone(), shape[1].clone(), shape[2].clone(), half.into()]);
                b.op("Expand", &[&rows, &shape])
            })
            .collect();
        let joined = b.concat(&parts.iter().collect::<Vec<_>>(), 3);
        b.reshape(&joined, &[(-1i64).into(), (head / 2).into(), 1i64.into()])
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    RotaryTables::of_pairs(cos, sin)
}

/// Tokens `[groups, tokens, width]`, ordered frame, row, column.
fn patch_embedding(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    hidden: &Value,
    grid: &Grid,
) -> Result<Value, ExportError> {
    let (d, channels, [depth, height, width]) = (config.width(), config.in_channels, config.patch_size);
    let [batch, time, rows, columns] = grid.extents();
    let split = [batch.clone(), channels.into(), time, depth.into(), rows, height.into(), columns, width.into()];
    let split = b.reshape(hidden, &split);
    // The columns of the kernel run over channel, frame, row, column.
    let patches = b.transpose(&split, &[0, 2, 4, 6, 1, 3, 5, 7]);
    let patches = b.reshape(&patches, &[(-1i64).into(), (channels * config.patch_volume()).into()]);
    let vars = vars.child("patch_embedding");
    let weight = vars.matrix(b, "weight", &[d, channels, depth, height, width])?;
    let bias = vars.get(b, "bias", &[d])?;
    let tokens = blocks::linear(b, &patches, &weight, Some(&bias));
    Ok(b.reshape(&tokens, &[Extent::from(&grid.groups), (-1i64).into(), d.into()]))
}

/// The embedding `[B, 1, width]` and the modulation of blocks `[B, 1, 6, width]`; with a timestep for each token, tokens in
/// place of 1.
fn time_embedding(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    (timestep, by_token): (&Value, bool),
) -> Result<(Value, Value), ExportError> {
    let d = config.width();
    let batch = b.extent(timestep, 0);
    // OpenVINO gives an input the name of what a reshape makes of it that changes nothing.
    let flat = if by_token { b.reshape(timestep, &[(-1i64).into()]) } else { timestep.clone() };
    let wave = blocks::timestep_sinusoid(b, &flat, config.freq_dim, true, 0.0);
    let embedder = vars.child("time_embedder");
    let hidden = layers::linear(b, &embedder.child("linear_1"), &wave, [d, config.freq_dim], true)?;
    let hidden = blocks::silu(b, &hidden);
    let temb = layers::linear(b, &embedder.child("linear_2"), &hidden, [d, d], true)?;
    let hidden = blocks::silu(b, &temb);
    let modulation = layers::linear(b, &vars.child("time_proj"), &hidden, [6 * d, d], true)?;
    let temb = b.reshape(&temb, &[Extent::from(&batch), (-1i64).into(), d.into()]);
    let modulation = b.reshape(&modulation, &[Extent::from(&batch), (-1i64).into(), 6i64.into(), d.into()]);
    Ok((temb, modulation))
}

/// Embedding and modulation of each frame, `[B·T, 1, width]` and `[B·T, 1, 6, width]`, of those of the first and of all
/// others.
fn each_frame(
    b: &mut Builder,
    config: &Config,
    grid: &Grid,
    first: &(Value, Value),
    rest: &(Value, Value),
) -> (Value, Value) {
    let frames = b.range(&grid.patches[0]);
    let zero = b.int(0);
    let is_first = b.op("Equal", &[&frames, &zero]);
    let groups = Extent::from(&grid.groups);
    let d = config.width();
    let is_first_row = b.unsqueeze(&is_first, &[0, 2]);
    let temb = b.op("Where", &[&is_first_row, &first.0, &rest.0]);
    let temb = b.reshape(&temb, &[groups.clone(), 1i64.into(), d.into()]);
    let is_first_row = b.unsqueeze(&is_first, &[0, 2, 3]);
    let modulation = b.op("Where", &[&is_first_row, &first.1, &rest.1]);
    (temb, b.reshape(&modulation, &[groups, 1i64.into(), 6i64.into(), d.into()]))
}

/// Text tokens `[B·L, width]`. Padding is not masked.
fn text_embedding(b: &mut Builder, vars: &Vars<'_>, config: &Config, text: &Value) -> Result<Value, ExportError> {
    let d = config.width();
    let rows = b.reshape(text, &[(-1i64).into(), config.text_dim.into()]);
    let hidden = layers::linear(b, &vars.child("linear_1"), &rows, [d, config.text_dim], true)?;
    let hidden = blocks::gelu_tanh(b, &hidden);
    layers::linear(b, &vars.child("linear_2"), &hidden, [d, d], true)
}

/// Image tokens `[B·tokens, width]`.
fn image_embedding(b: &mut Builder, vars: &Vars<'_>, config: &Config, dim: usize) -> Result<Value, ExportError> {
    let d = config.width();
    let input = |b: &mut Builder, batch: &str, tokens: Dim| {
        b.input("encoder_hidden_states_image", DataType::Float, [batch.into(), tokens, dim.into()])
    };
    let image = match config.pos_embed_seq_len {
        None => input(b, "batch", "image_tokens".into()),
        Some(length) => {
            // First and last frame, which the reference takes for one sequence.
            let tokens = if length % 2 == 0 { (length / 2).into() } else { "image_tokens".into() };
            let image = input(b, "images", tokens);
            let image = b.reshape(&image, &[(-1i64).into(), length.into(), dim.into()]);
            let positions = vars.get(b, "pos_embed", &[1, length, dim])?;
            b.op("Add", &[&image, &positions])
        }
    };
    let rows = b.reshape(&image, &[(-1i64).into(), dim.into()]);
    let x = layers::layer_norm(b, &vars.child("norm1"), &rows, dim, IMAGE_NORM_EPS)?;
    let x = layers::linear(b, &vars.child("ff.net.0.proj"), &x, [dim, dim], true)?;
    let x = blocks::gelu(b, &x);
    let x = layers::linear(b, &vars.child("ff.net.2"), &x, [d, dim], true)?;
    layers::layer_norm(b, &vars.child("norm2"), &x, d, IMAGE_NORM_EPS)
}

/// One transformer block.
struct Block<'a> {
    vars: Vars<'a>,
    config: &'a Config,
    batch: &'a Value,
    groups: &'a Value,
    tables: &'a RotaryTables,
    text: &'a Value,
    image: Option<&'a Value>,
    controls: Option<&'a ControlTokens>,
}

impl Block<'_> {
    /// `tokens` `[groups, tokens, width]` and `modulation` `[groups, 1, 6, width]`.
    fn forward(&self, b: &mut Builder, tokens: &Value, modulation: &Value) -> Result<Value, ExportError> {
        let d = self.config.width();
        let table = self.vars.get(b, "scale_shift_table", &[1, 6, d])?;
        let table = b.reshape(&table, &[1i64.into(), 1i64.into(), 6i64.into(), d.into()]);
        let modulation = b.op("Add", &[modulation, &table]);
        let parts = b.split(&modulation, 2, 6);
        let parts: Vec<Value> = parts.iter().map(|part| b.squeeze(part, &[2])).collect();
        let [shift, scale, gate, ffn_shift, ffn_scale, ffn_gate] = &parts[..] else { unreachable!("six parts") };

        let x = b.scope("norm1", |b| self.modulated(b, tokens, scale, shift));
        let attended = b.scope("attn1", |b| self.self_attention(b, &x))?;
        let tokens = self.add(b, tokens, &attended, Some(gate));
        let x = match self.config.cross_attn_norm {
            true => {
                b.scope("norm2", |b| layers::layer_norm(b, &self.vars.child("norm2"), &tokens, d, self.config.eps))?
            }
            false => tokens.clone(),
        };
        let x = self.rows(b, &x);
        let attended = b.scope("attn2", |b| self.cross_attention(b, &x))?;
        let tokens = self.add(b, &tokens, &attended, None);
        let x = b.scope("norm3", |b| self.modulated(b, &tokens, ffn_scale, ffn_shift));
        let fed = b.scope("ffn", |b| self.feed_forward(b, &x))?;
        Ok(self.add(b, &tokens, &fed, Some(ffn_gate)))
    }

    /// Normalised without parameters and modulated, as rows.
    fn modulated(&self, b: &mut Builder, x: &Value, scale: &Value, shift: &Value) -> Value {
        let x = plain_norm(b, self.config, x);
        let x = blocks::modulate(b, &x, scale, shift);
        self.rows(b, &x)
    }

    fn rows(&self, b: &mut Builder, x: &Value) -> Value {
        b.reshape(x, &[(-1i64).into(), self.config.width().into()])
    }

    /// `tokens` and rows `update`, times `gate` if there is one.
    fn add(&self, b: &mut Builder, tokens: &Value, update: &Value, gate: Option<&Value>) -> Value {
        let update = b.reshape(update, &[Extent::from(self.groups), (-1i64).into(), self.config.width().into()]);
        let update = gate.map_or(update.clone(), |gate| b.op("Mul", &[&update, gate]));
        b.op("Add", &[tokens, &update])
    }

    /// A projection of rows, normalised over all heads if `norm` names a norm, as `[B, heads, tokens, head_dim]`.
    fn project(
        &self,
        b: &mut Builder,
        (attention, layer, norm): (&str, &str, Option<&str>),
        rows: &Value,
        width: usize,
    ) -> Result<Value, ExportError> {
        let d = self.config.width();
        let vars = self.vars.child(attention);
        let mut x = b.scope(layer, |b| layers::linear(b, &vars.child(layer), rows, [d, width], true))?;
        if let Some(norm) = norm {
            let weight = vars.child(norm).get(b, "weight", &[d])?;
            x = b.scope(norm, |b| blocks::rms_norm(b, &x, &weight, self.config.eps));
        }
        let x = blocks::split_heads(b, &x, self.batch, self.config.num_attention_heads, self.config.attention_head_dim);
        Ok(b.transpose(&x, &[0, 2, 1, 3]))
    }

    fn attend(&self, b: &mut Builder, q: &Value, k: &Value, v: &Value) -> Value {
        let (heads, dim) = (self.config.num_attention_heads, self.config.attention_head_dim);
        let scale = 1.0 / (dim as f32).sqrt();
        let mixed = blocks::scaled_dot_product_attention(b, q, k, v, Some(scale), None);
        blocks::merge_heads(b, &mixed, heads, dim)
    }

    fn out(&self, b: &mut Builder, attention: &str, rows: &Value) -> Result<Value, ExportError> {
        let d = self.config.width();
        layers::linear(b, &self.vars.child(attention).child("to_out.0"), rows, [d, d], true)
    }

    fn self_attention(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let (d, dim) = (self.config.width(), self.config.attention_head_dim);
        let q = self.project(b, ("attn1", "to_q", Some("norm_q")), rows, d)?;
        let seen = self.controls.map_or(rows.clone(), |controls| controls.behind(b, rows, self.batch));
        let k = self.project(b, ("attn1", "to_k", Some("norm_k")), &seen, d)?;
        let v = self.project(b, ("attn1", "to_v", None), &seen, d)?;
        let q = blocks::rotate_interleaved(b, &q, self.tables, dim);
        let rotate = |b: &mut Builder, x: &Value| blocks::rotate_interleaved(b, x, self.tables, dim);
        let mixed = match self.controls {
            Some(controls) => {
                let tokens = b.extent(&q, 2);
                let k = controls.positioned(b, &k, &tokens, rotate);
                controls.attend(b, [&q, &k, &v], (self.batch, self.config.num_attention_heads, dim), None)
            }
            None => {
                let k = rotate(b, &k);
                self.attend(b, &q, &k, &v)
            }
        };
        self.out(b, "attn1", &mixed)
    }

    /// Attention to text and, by itself, to the image; the sum of both is projected.
    fn cross_attention(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let d = self.config.width();
        let q = self.project(b, ("attn2", "to_q", Some("norm_q")), rows, d)?;
        let k = self.project(b, ("attn2", "to_k", Some("norm_k")), self.text, d)?;
        let v = self.project(b, ("attn2", "to_v", None), self.text, d)?;
        let mut mixed = self.attend(b, &q, &k, &v);
        if let (Some(image), Some(added)) = (self.image, self.config.added_kv_proj_dim) {
            let k = self.project(b, ("attn2", "add_k_proj", Some("norm_added_k")), image, added)?;
            let v = self.project(b, ("attn2", "add_v_proj", None), image, added)?;
            let seen = self.attend(b, &q, &k, &v);
            mixed = b.op("Add", &[&mixed, &seen]);
        }
        self.out(b, "attn2", &mixed)
    }

    fn feed_forward(&self, b: &mut Builder, rows: &Value) -> Result<Value, ExportError> {
        let (d, inner) = (self.config.width(), self.config.ffn_dim);
        let vars = self.vars.child("ffn.net");
        let hidden = layers::linear(b, &vars.child("0.proj"), rows, [inner, d], true)?;
        let hidden = blocks::gelu_tanh(b, &hidden);
        layers::linear(b, &vars.child("2"), &hidden, [d, inner], true)
    }
}

/// Layer norm without parameters.
fn plain_norm(b: &mut Builder, config: &Config, x: &Value) -> Value {
    let d = config.width();
    let ones = b.floats(&[d], &vec![1.0; d]);
    blocks::layer_norm(b, x, &ones, None, config.eps)
}

/// Last norm, projection and unpatchify: `[B, out, T, H, W]`.
fn output(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    tokens: &Value,
    temb: &Value,
    grid: &Grid,
) -> Result<Value, ExportError> {
    let (d, out, [depth, height, width]) = (config.width(), config.out_channels, config.patch_size);
    let rows = b.scope("norm_out", |b| {
        let table = vars.get(b, "scale_shift_table", &[1, 2, d])?;
        let table = b.reshape(&table, &[1i64.into(), 1i64.into(), 2i64.into(), d.into()]);
        let temb = b.unsqueeze(temb, &[2]);
        let modulation = b.op("Add", &[&temb, &table]);
        let parts = b.split(&modulation, 2, 2);
        let parts: Vec<Value> = parts.iter().map(|part| b.squeeze(part, &[2])).collect();
        let x = plain_norm(b, config, tokens);
        let x = blocks::modulate(b, &x, &parts[1], &parts[0]);
        Ok::<_, ExportError>(b.reshape(&x, &[(-1i64).into(), d.into()]))
    })?;
    b.scope("proj_out", |b| {
        let patches = layers::linear(b, &vars.child("proj_out"), &rows, [out * config.patch_volume(), d], true)?;
        let [batch, time, down, across] = grid.extents();
        let split = [batch.clone(), time, down, across, depth.into(), height.into(), width.into(), out.into()];
        let split = b.reshape(&patches, &split);
        let pixels = b.transpose(&split, &[0, 7, 1, 4, 2, 5, 3, 6]);
        let mut full = |axis: usize| {
            let side = b.ints(&[config.patch_size[axis] as i64]);
            b.op("Mul", &[&grid.patches[axis], &side])
        };
        let [frames, rows, columns] = [full(0), full(1), full(2)];
        let shape = [batch, out.into(), Extent::from(&frames), Extent::from(&rows), Extent::from(&columns)];
        Ok(b.reshape(&pixels, &shape))
    })
}
