//! `CogVideoXTransformer3DModel`: rotary, sincos and learned positions; text, image and inpaint conditioning; 1.0 and
//! 1.5.
//!
//! Follows diffusers' `cogvideox_transformer_3d.py` and, for the inpaint form, VideoX-Fun's, which takes
//! `inpaint_latents` beside the noisy latent and concatenates them on the channel axis.

use serde::Deserialize;
use serde_json::json;
use v2l_graphs::blocks::{self, RotaryTables};
use v2l_graphs::{Builder, DataType, Dim, Extent, Model, Value};
use v2l_runtime::components::STEP_CONTROL;
use v2l_runtime::engine::manifest::Slot;

use crate::component::{self, Component};
use crate::models::control::{ControlTokens, Controls};
use crate::models::layers;
use crate::{Checkpoint, ExportError, Vars};

/// The class that `config.json` names.
pub const CLASS: &str = "CogVideoXTransformer3DModel";

/// Epsilon of the layer norms on queries and keys, fixed in `CogVideoXBlock`.
const QK_NORM_EPS: f32 = 1e-6;

/// `config.json` of a CogVideoX transformer; absent keys take diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields have the names of `config.json`")]
pub struct Config {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    pub time_embed_dim: usize,
    pub ofs_embed_dim: Option<usize>,
    pub text_embed_dim: usize,
    pub num_layers: usize,
    pub attention_bias: bool,
    pub sample_width: usize,
    pub sample_height: usize,
    pub sample_frames: usize,
    pub patch_size: usize,
    pub patch_size_t: Option<usize>,
    pub temporal_compression_ratio: usize,
    pub max_text_seq_length: usize,
    pub activation_fn: String,
    pub timestep_activation_fn: String,
    pub norm_elementwise_affine: bool,
    pub norm_eps: f32,
    pub spatial_interpolation_scale: f32,
    pub temporal_interpolation_scale: f32,
    pub use_rotary_positional_embeddings: bool,
    pub use_learned_positional_embeddings: bool,
    pub patch_bias: bool,
    /// VideoX-Fun: noise is added to the condition image.
    pub add_noise_in_inpaint_model: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_attention_heads: 30,
            attention_head_dim: 64,
            in_channels: 16,
            out_channels: 16,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embed_dim: 512,
            ofs_embed_dim: None,
            text_embed_dim: 4096,
            num_layers: 30,
            attention_bias: true,
            sample_width: 90,
            sample_height: 60,
            sample_frames: 49,
            patch_size: 2,
            patch_size_t: None,
            temporal_compression_ratio: 4,
            max_text_seq_length: 226,
            activation_fn: "gelu-approximate".into(),
            timestep_activation_fn: "silu".into(),
            norm_elementwise_affine: true,
            norm_eps: 1e-5,
            spatial_interpolation_scale: 1.875,
            temporal_interpolation_scale: 1.0,
            use_rotary_positional_embeddings: false,
            use_learned_positional_embeddings: false,
            patch_bias: true,
            add_noise_in_inpaint_model: false,
        }
    }
}

/// What a transformer takes beside text and noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditioning {
    /// Nothing: `in_channels = out_channels`.
    Text,
    /// Image latents on the channel axis of `hidden_states`: `in_channels = 2 · out_channels`.
    Image,
    /// Mask and masked-video latents as `inpaint_latents`: `in_channels = 2 · out_channels + 1`.
    Inpaint,
}

impl Config {
    /// Width of the token stream: heads × head dimension.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// How the model is conditioned, from its channel counts.
    ///
    /// # Errors
    /// [`ExportError::Unsupported`] for any other channel count.
    pub fn conditioning(&self) -> Result<Conditioning, ExportError> {
        let (input, output) = (self.in_channels, self.out_channels);
        match input {
            _ if input == output => Ok(Conditioning::Text),
            _ if input == 2 * output => Ok(Conditioning::Image),
            _ if input == 2 * output + 1 => Ok(Conditioning::Inpaint),
            _ => Err(unsupported(
                &format!("in_channels {input}"),
                format!(
                    "with {output} output channels expected {output} (text to video), {} (image to video) or {} \
                     (CogVideoX-Fun InP)",
                    2 * output,
                    2 * output + 1
                ),
            )),
        }
    }

    /// Every linear layer, in the order of PyTorch's `named_modules`.
    pub fn linear_layers(&self) -> Vec<Slot> {
        let (d, te) = (self.width(), self.time_embed_dim);
        let mut slots = Vec::with_capacity(8 * self.num_layers + 8);
        if self.patch_size_t.is_some() {
            slots.push(Slot::linear("patch_embed.proj", d, self.in_channels * self.patch_volume()));
        }
        slots.push(Slot::linear("patch_embed.text_proj", d, self.text_embed_dim));
        slots.push(Slot::linear("time_embedding.linear_1", te, d));
        slots.push(Slot::linear("time_embedding.linear_2", te, te));
        if let Some(ofs) = self.ofs_embed_dim {
            slots.push(Slot::linear("ofs_embedding.linear_1", ofs, ofs));
            slots.push(Slot::linear("ofs_embedding.linear_2", ofs, ofs));
        }
        for i in 0..self.num_layers {
            let block = |name: &str, out, input| Slot::linear(format!("transformer_blocks.{i}.{name}"), out, input);
            slots.extend([
                block("norm1.linear", 6 * d, te),
                block("attn1.to_q", d, d),
                block("attn1.to_k", d, d),
                block("attn1.to_v", d, d),
                block("attn1.to_out.0", d, d),
                block("norm2.linear", 6 * d, te),
                block("ff.net.0.proj", 4 * d, d),
                block("ff.net.2", d, 4 * d),
            ]);
        }
        slots.push(Slot::linear("norm_out.linear", 2 * d, te));
        slots.push(Slot::linear("proj_out", self.out_channels * self.patch_volume(), d));
        slots
    }

    /// Pixels (and frames, for 1.5) of one patch.
    fn patch_volume(&self) -> usize {
        self.patch_size * self.patch_size * self.patch_size_t.unwrap_or(1)
    }

    fn has_position_table(&self) -> bool {
        !self.use_rotary_positional_embeddings || self.use_learned_positional_embeddings
    }

    fn validate(&self) -> Result<(), ExportError> {
        let positive = [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("out_channels", self.out_channels),
            ("time_embed_dim", self.time_embed_dim),
            ("text_embed_dim", self.text_embed_dim),
            ("num_layers", self.num_layers),
            ("patch_size", self.patch_size),
            ("patch_size_t", self.patch_size_t.unwrap_or(1)),
            ("temporal_compression_ratio", self.temporal_compression_ratio),
            ("max_text_seq_length", self.max_text_seq_length),
            ("sample_width", self.sample_width),
            ("sample_height", self.sample_height),
            ("sample_frames", self.sample_frames),
        ];
        for (name, value) in positive {
            if value == 0 || value > 1 << 20 {
                return Err(unsupported(&format!("{name} {value}"), "expected 1 to 1048576"));
            }
        }
        if !self.attention_head_dim.is_multiple_of(2) || !self.width().is_multiple_of(2) {
            return Err(unsupported(
                &format!("attention_head_dim {}", self.attention_head_dim),
                "rotary and sinusoidal positions need an even number",
            ));
        }
        if !matches!(self.activation_fn.as_str(), "gelu-approximate" | "gelu") {
            return Err(unsupported(
                &format!("activation_fn `{}`", self.activation_fn),
                "expected `gelu-approximate` or `gelu`",
            ));
        }
        if !matches!(self.timestep_activation_fn.as_str(), "silu" | "swish") {
            return Err(unsupported(
                &format!("timestep_activation_fn `{}`", self.timestep_activation_fn),
                "expected `silu`",
            ));
        }
        if self.use_learned_positional_embeddings && !self.use_rotary_positional_embeddings {
            return Err(unsupported(
                "use_learned_positional_embeddings without use_rotary_positional_embeddings",
                "diffusers has no such model either",
            ));
        }
        match self.ofs_embed_dim {
            Some(ofs) if ofs != self.time_embed_dim => Err(unsupported(
                &format!("ofs_embed_dim {ofs}"),
                format!("it is added to the time embedding and must equal time_embed_dim {}", self.time_embed_dim),
            )),
            _ => self.conditioning().map(drop),
        }
    }
}

fn unsupported(what: &str, reason: impl Into<String>) -> ExportError {
    ExportError::Unsupported { what: format!("{CLASS}: {what}"), reason: reason.into() }
}

/// Exports the transformer as the component `transformer` with the graph `step`, and with controls `step_control`, which has the
/// inputs `control` and `control_mask` `[B, K]`, too.
///
/// Inputs: `hidden_states` `[B, T, C, H, W]`, `inpaint_latents` `[B, T, 17, H, W]` (inpaint form),
/// `encoder_hidden_states` `[B, L, text]`, `timestep` `[B]` int64, `ofs` `[1]` (where the model has it),
/// `image_rotary_emb_cos` and `…_sin` `[tokens, head_dim]` (rotary models). Output: `sample` `[B, T, out, H, W]`.
///
/// # Errors
/// Names what does not fit; see [`ExportError`].
pub(crate) fn export(
    config: &Config,
    checkpoint: &Checkpoint,
    controls: Option<&Controls>,
) -> Result<Component, ExportError> {
    config.validate()?;
    let mut graphs = vec![("step".to_owned(), step_graph(config, checkpoint, None)?)];
    if controls.is_some() {
        graphs.push((STEP_CONTROL.to_owned(), step_graph(config, checkpoint, controls)?));
    }
    checkpoint.finish(CLASS)?;
    Component {
        name: "transformer".into(),
        graphs,
        precision: checkpoint.precision()?,
        slots: config.linear_layers(),
        attributes: json!({ "class": CLASS }),
    }
    .seal()
}

fn step_graph(config: &Config, checkpoint: &Checkpoint, controls: Option<&Controls>) -> Result<Model, ExportError> {
    let mut builder = Builder::new("step");
    let b = &mut builder;
    let vars = Vars::root(checkpoint);
    let d = config.width();
    let Inputs { hidden, pixels, text, timestep, sample } = inputs(b, config)?;
    let temb = time_embedding(b, &vars, config, &timestep)?;
    let axes = Axes {
        batch: b.extent(&hidden, 0),
        frames: b.extent(&hidden, 1),
        text_length: b.extent(&text, 1),
        head: config.attention_head_dim,
    };
    let (mut video_tokens, grid) = patch_embedding(b, &vars.child("patch_embed"), config, &pixels, &axes)?;
    let mut text_tokens = b.scope("patch_embed.text_proj", |b| {
        let rows = b.reshape(&text, &[(-1i64).into(), config.text_embed_dim.into()]);
        let projected =
            layers::linear(b, &vars.child("patch_embed.text_proj"), &rows, [d, config.text_embed_dim], true)?;
        Ok::<_, ExportError>(b.reshape(&projected, &[Extent::from(&axes.batch), (-1i64).into(), d.into()]))
    })?;
    if config.has_position_table() {
        (text_tokens, video_tokens) =
            b.scope("pos_embedding", |b| add_positions(b, &vars, config, &text_tokens, &video_tokens, &axes, &grid))?;
    }
    let video_length = b.extent(&video_tokens, 1);
    let lengths = b.concat(&[&axes.text_length, &video_length], 0);
    let rotary = config.use_rotary_positional_embeddings.then(|| {
        let mut table = |name| b.input(name, DataType::Float, ["tokens".into(), Dim::Fixed(axes.head)]);
        let (cos, sin) = (table("image_rotary_emb_cos"), table("image_rotary_emb_sin"));
        b.scope("rotary", |b| RotaryTables::new(b, &cos, &sin, &axes.text_length, axes.head))
    });

    let controls = ControlTokens::of(b, controls, d, config.num_layers)?;

    for i in 0..config.num_layers {
        let name = format!("transformer_blocks.{i}");
        let controls = controls.as_ref().filter(|controls| controls.blocks.contains(&i));
        let rotary = rotary.as_ref();
        let block = Block { vars: vars.child(&name), config, axes: &axes, lengths: &lengths, rotary, controls };
        (text_tokens, video_tokens) = b.scope(name, |b| block.forward(b, &text_tokens, &video_tokens, &temb))?;
    }
    let out = output(b, &vars, config, &video_tokens, &temb, &axes, &grid)?;
    b.output("sample", &out, DataType::Float, sample);
    component::finish("transformer/step", builder)
}

/// What the graph takes, rotary tables and `ofs` left out.
struct Inputs {
    /// The noisy latent.
    hidden: Value,
    /// That and what is concatenated to it.
    pixels: Value,
    text: Value,
    timestep: Value,
    /// The extents of what the graph gives.
    sample: [Dim; 5],
}

fn inputs(b: &mut Builder, config: &Config) -> Result<Inputs, ExportError> {
    let conditioning = config.conditioning()?;
    // A learned table exists for one height and width only; diffusers refuses every other.
    let side = |symbol: &str, sample: usize| {
        if config.use_learned_positional_embeddings { sample.into() } else { Dim::from(symbol) }
    };
    let (height, width) = (side("height", config.sample_height), side("width", config.sample_width));
    let video = |channels: usize| ["batch".into(), "frames".into(), channels.into(), height.clone(), width.clone()];
    let noisy_channels = if conditioning == Conditioning::Image { config.in_channels } else { config.out_channels };
    let hidden = b.input("hidden_states", DataType::Float, video(noisy_channels));
    let pixels = match conditioning {
        Conditioning::Inpaint => {
            let inpaint = b.input("inpaint_latents", DataType::Float, video(config.in_channels - config.out_channels));
            b.concat(&[&hidden, &inpaint], 2)
        }
        _ => hidden.clone(),
    };
    let text_length =
        if config.has_position_table() { config.max_text_seq_length.into() } else { Dim::from("text_length") };
    let text =
        b.input("encoder_hidden_states", DataType::Float, ["batch".into(), text_length, config.text_embed_dim.into()]);
    let timestep = b.input("timestep", DataType::Int64, ["batch"]);
    Ok(Inputs { hidden, pixels, text, timestep, sample: video(config.out_channels) })
}

/// Extents that the whole graph needs.
struct Axes {
    batch: Value,
    frames: Value,
    text_length: Value,
    head: usize,
}

/// Patches along each axis, as int64 values `[1]`.
struct Grid {
    time: Value,
    height: Value,
    width: Value,
}

/// Layer norm of width `dim`; without parameters if the configuration says so.
fn layer_norm(
    b: &mut Builder,
    vars: &Vars<'_>,
    x: &Value,
    dim: usize,
    affine: bool,
    epsilon: f32,
) -> Result<Value, ExportError> {
    if affine {
        layers::layer_norm(b, vars, x, dim, epsilon)
    } else {
        let ones = b.floats(&[dim], &vec![1.0; dim]);
        Ok(blocks::layer_norm(b, x, &ones, None, epsilon))
    }
}

/// `SiLU(time embedding (+ offset embedding))` `[B, time_embed_dim]`: every use of the embedding starts with that SiLU.
fn time_embedding(b: &mut Builder, vars: &Vars<'_>, config: &Config, timestep: &Value) -> Result<Value, ExportError> {
    let te = config.time_embed_dim;
    let embed = |b: &mut Builder, module: &str, position: &Value, dim: usize| {
        b.scope(module, |b| {
            let vars = vars.child(module);
            let wave = blocks::timestep_sinusoid(b, position, dim, config.flip_sin_to_cos, config.freq_shift);
            let hidden = layers::linear(b, &vars.child("linear_1"), &wave, [te, dim], true)?;
            let hidden = blocks::silu(b, &hidden);
            layers::linear(b, &vars.child("linear_2"), &hidden, [te, te], true)
        })
    };
    let mut temb = embed(b, "time_embedding", timestep, config.width())?;
    if let Some(ofs_dim) = config.ofs_embed_dim {
        let ofs = b.input("ofs", DataType::Float, [1]);
        let offset = embed(b, "ofs_embedding", &ofs, ofs_dim)?;
        temb = b.op("Add", &[&temb, &offset]);
    }
    Ok(b.scope("time_embedding", |b| blocks::silu(b, &temb)))
}

/// Video tokens `[B, tokens, width]`, ordered frame, row, column.
fn patch_embedding(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    pixels: &Value,
    axes: &Axes,
) -> Result<(Value, Grid), ExportError> {
    b.scope("patch_embed.proj", |b| {
        let (d, p, channels) = (config.width(), config.patch_size, config.in_channels);
        let (height, width) = (b.extent(pixels, 3), b.extent(pixels, 4));
        let Some(p_t) = config.patch_size_t else {
            let weight = vars.get(b, "proj.weight", &[d, channels, p, p])?;
            let bias = if config.patch_bias { Some(vars.get(b, "proj.bias", &[d])?) } else { None };
            let frames =
                b.reshape(pixels, &[(-1i64).into(), channels.into(), Extent::from(&height), Extent::from(&width)]);
            let inputs: Vec<&Value> = [&frames, &weight].into_iter().chain(&bias).collect();
            let side = p as i64;
            let patches =
                b.node("Conv", &inputs).attr("kernel_shape", vec![side, side]).attr("strides", vec![side, side]).out();
            let grid = Grid { time: axes.frames.clone(), height: b.extent(&patches, 2), width: b.extent(&patches, 3) };
            let rows = b.reshape(&patches, &[0i64.into(), d.into(), (-1i64).into()]);
            let rows = b.transpose(&rows, &[0, 2, 1]);
            let tokens = b.reshape(&rows, &[Extent::from(&axes.batch), (-1i64).into(), d.into()]);
            return Ok((tokens, grid));
        };
        // 1.5: patches span `p_t` frames; the columns of the weight run over channel, frame, row, column.
        let side = b.ints(&[p as i64]);
        let depth = b.ints(&[p_t as i64]);
        let grid = Grid {
            time: b.op("Div", &[&axes.frames, &depth]),
            height: b.op("Div", &[&height, &side]),
            width: b.op("Div", &[&width, &side]),
        };
        let split = b.reshape(
            pixels,
            &[
                Extent::from(&axes.batch),
                Extent::from(&grid.time),
                p_t.into(),
                channels.into(),
                Extent::from(&grid.height),
                p.into(),
                Extent::from(&grid.width),
                p.into(),
            ],
        );
        let patches = b.transpose(&split, &[0, 1, 4, 6, 3, 2, 5, 7]);
        let columns = channels * config.patch_volume();
        let rows = b.reshape(&patches, &[(-1i64).into(), columns.into()]);
        let rows = layers::linear(b, &vars.child("proj"), &rows, [d, columns], true)?;
        let tokens = b.reshape(&rows, &[Extent::from(&axes.batch), (-1i64).into(), d.into()]);
        Ok((tokens, grid))
    })
}

/// Adds the position table to text and video tokens.
///
/// The table is computed for the grid at hand, as diffusers does for any size but the stored one; a learned table is
/// used when the number of frames is the one that it was learned for.
fn add_positions(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    text: &Value,
    video: &Value,
    axes: &Axes,
    grid: &Grid,
) -> Result<(Value, Value), ExportError> {
    let sincos = sincos_table(b, config, grid);
    if !config.use_learned_positional_embeddings {
        return Ok((text.clone(), b.op("Add", &[video, &sincos])));
    }
    let d = config.width();
    let p = config.patch_size;
    let frames = (config.sample_frames - 1) / config.temporal_compression_ratio + 1;
    let patches = (config.sample_height / p) * (config.sample_width / p) * frames;
    let text_rows = config.max_text_seq_length;
    let table = vars.child("patch_embed").get(b, "pos_embedding", &[1, text_rows + patches, d])?;
    let learned_text = b.slice(&table, 1, 0i64.into(), text_rows.into());
    let learned_video = b.slice(&table, 1, text_rows.into(), i64::MAX.into());

    let sample_frames = b.ints(&[frames as i64]);
    let as_learned = b.op("Equal", &[&axes.frames, &sample_frames]);
    // Rows past the table are never selected: where the lengths differ, the computed table is taken.
    let count = b.extent(video, 1);
    let rows = b.range(&count);
    let last = b.int(patches as i64 - 1);
    let rows = b.op("Min", &[&rows, &last]);
    let learned_video = b.gather(&learned_video, &rows, 1);
    let video_table = b.op("Where", &[&as_learned, &learned_video, &sincos]);
    let zero = b.float(0.0);
    let text_table = b.op("Where", &[&as_learned, &learned_text, &zero]);
    Ok((b.op("Add", &[text, &text_table]), b.op("Add", &[video, &video_table])))
}

/// 3-D sine-cosine table `[1, T·h·w, width]`: a quarter of the columns for time, then column and row of the patch.
fn sincos_table(b: &mut Builder, config: &Config, grid: &Grid) -> Value {
    let d = config.width();
    let axis = |b: &mut Builder, extent: &Value, dim: usize, scale: f32| {
        let half = dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|j| 10000f64.powf(-(j as f64) / half as f64) as f32).collect();
        let frequencies = b.floats(&[1, half], &frequencies);
        let positions = b.range(extent);
        let positions = b.cast(&positions, DataType::Float);
        let scale = b.float(scale);
        let positions = b.op("Div", &[&positions, &scale]);
        let positions = b.unsqueeze(&positions, &[1]);
        let angles = b.op("Mul", &[&positions, &frequencies]);
        let (sin, cos) = (b.op("Sin", &[&angles]), b.op("Cos", &[&angles]));
        b.concat(&[&sin, &cos], 1)
    };
    b.in_fp32(|b| {
        let time = axis(b, &grid.time, d / 4, config.temporal_interpolation_scale);
        let column = axis(b, &grid.width, d / 8 * 3, config.spatial_interpolation_scale);
        let row = axis(b, &grid.height, d / 8 * 3, config.spatial_interpolation_scale);
        let parts = [(time, vec![1, 2], d / 4), (column, vec![0, 1], d / 8 * 3), (row, vec![0, 2], d / 8 * 3)].map(
            |(table, axes, dim)| {
                let table = b.unsqueeze(&table, &axes);
                let shape = b.shape(&[
                    Extent::from(&grid.time),
                    Extent::from(&grid.height),
                    Extent::from(&grid.width),
                    dim.into(),
                ]);
                b.op("Expand", &[&table, &shape])
            },
        );
        let table = b.concat(&[&parts[0], &parts[1], &parts[2]], 3);
        b.reshape(&table, &[1i64.into(), (-1i64).into(), d.into()])
    })
}

/// One transformer block.
struct Block<'a> {
    vars: Vars<'a>,
    config: &'a Config,
    axes: &'a Axes,
    /// Text and video token counts, int64 `[2]`.
    lengths: &'a Value,
    rotary: Option<&'a RotaryTables>,
    controls: Option<&'a ControlTokens>,
}

impl Block<'_> {
    fn forward(
        &self,
        b: &mut Builder,
        text: &Value,
        video: &Value,
        temb: &Value,
    ) -> Result<(Value, Value), ExportError> {
        let (tokens, gates) = b.scope("norm1", |b| self.modulated(b, "norm1", text, video, temb))?;
        let attended = b.scope("attn1", |b| self.attention(b, &tokens))?;
        let (text, video) = self.gated_residual(b, text, video, &attended, &gates);
        let (tokens, gates) = b.scope("norm2", |b| self.modulated(b, "norm2", &text, &video, temb))?;
        let fed = b.scope("ff", |b| self.feed_forward(b, &tokens))?;
        Ok(self.gated_residual(b, &text, &video, &fed, &gates))
    }

    /// Both streams normalised and modulated, joined text first as `[B·S, width]`; and their gates (text, video).
    fn modulated(
        &self,
        b: &mut Builder,
        norm: &str,
        text: &Value,
        video: &Value,
        temb: &Value,
    ) -> Result<(Value, [Value; 2]), ExportError> {
        let (config, d) = (self.config, self.config.width());
        let vars = self.vars.child(norm);
        let modulation = layers::linear(b, &vars.child("linear"), temb, [6 * d, config.time_embed_dim], true)?;
        let modulation = b.unsqueeze(&modulation, &[1]);
        let parts = b.split(&modulation, -1, 6);
        let [shift, scale, gate, text_shift, text_scale, text_gate] = &parts[..] else { unreachable!("six parts") };
        let mut stream = |x: &Value, scale: &Value, shift: &Value| {
            let x = layer_norm(b, &vars.child("norm"), x, d, config.norm_elementwise_affine, config.norm_eps)?;
            Ok::<_, ExportError>(blocks::modulate(b, &x, scale, shift))
        };
        let (video, text) = (stream(video, scale, shift)?, stream(text, text_scale, text_shift)?);
        let joined = b.concat(&[&text, &video], 1);
        let rows = b.reshape(&joined, &[(-1i64).into(), d.into()]);
        Ok((rows, [text_gate.clone(), gate.clone()]))
    }

    fn attention(&self, b: &mut Builder, tokens: &Value) -> Result<Value, ExportError> {
        let (heads, dim, d) = (self.config.num_attention_heads, self.axes.head, self.config.width());
        let vars = self.vars.child("attn1");
        let bias = self.config.attention_bias;
        let project = |b: &mut Builder, name: &str, norm: Option<&str>, rows: &Value| {
            let x = layers::linear(b, &vars.child(name), rows, [d, d], bias)?;
            let mut x = blocks::split_heads(b, &x, &self.axes.batch, heads, dim);
            if let Some(norm) = norm {
                x = layer_norm(b, &vars.child(norm), &x, dim, true, QK_NORM_EPS)?;
            }
            Ok::<_, ExportError>(b.transpose(&x, &[0, 2, 1, 3]))
        };
        let rotate = |b: &mut Builder, x: &Value| match self.rotary {
            Some(tables) => blocks::rotate_interleaved(b, x, tables, dim),
            None => x.clone(),
        };
        let q = project(b, "to_q", Some("norm_q"), tokens)?;
        let q = rotate(b, &q);
        let seen = self.controls.map_or(tokens.clone(), |controls| controls.behind(b, tokens, &self.axes.batch));
        let k = project(b, "to_k", Some("norm_k"), &seen)?;
        let k = match self.controls {
            Some(controls) => {
                let tokens = b.extent(&q, 2);
                controls.positioned(b, &k, &tokens, rotate)
            }
            None => rotate(b, &k),
        };
        let v = project(b, "to_v", None, &seen)?;
        let rows = match self.controls {
            // The text does not see them.
            Some(controls) => {
                controls.attend(b, [&q, &k, &v], (&self.axes.batch, heads, dim), Some(&self.axes.text_length))
            }
            None => {
                let scale = 1.0 / (dim as f32).sqrt();
                let mixed = blocks::scaled_dot_product_attention(b, &q, &k, &v, Some(scale), None);
                blocks::merge_heads(b, &mixed, heads, dim)
            }
        };
        layers::linear(b, &vars.child("to_out.0"), &rows, [d, d], true)
    }

    fn feed_forward(&self, b: &mut Builder, tokens: &Value) -> Result<Value, ExportError> {
        let d = self.config.width();
        let vars = self.vars.child("ff.net");
        let hidden = layers::linear(b, &vars.child("0.proj"), tokens, [4 * d, d], true)?;
        let hidden = match self.config.activation_fn.as_str() {
            "gelu" => blocks::gelu(b, &hidden),
            _ => blocks::gelu_tanh(b, &hidden),
        };
        layers::linear(b, &vars.child("2"), &hidden, [d, 4 * d], true)
    }

    /// Splits `update` `[B·S, width]` into the streams and adds each, times its gate.
    fn gated_residual(
        &self,
        b: &mut Builder,
        text: &Value,
        video: &Value,
        update: &Value,
        gates: &[Value; 2],
    ) -> (Value, Value) {
        let d = self.config.width();
        let update = b.reshape(update, &[Extent::from(&self.axes.batch), (-1i64).into(), d.into()]);
        let parts = b.node("Split", &[&update, self.lengths]).attr("axis", 1).outs(2);
        let mut add = |x: &Value, update: &Value, gate: &Value| {
            let update = b.op("Mul", &[update, gate]);
            b.op("Add", &[x, &update])
        };
        (add(text, &parts[0], &gates[0]), add(video, &parts[1], &gates[1]))
    }
}

/// Final norms, projection and unpatchify: `[B, T, out, H, W]`.
fn output(
    b: &mut Builder,
    vars: &Vars<'_>,
    config: &Config,
    video: &Value,
    temb: &Value,
    axes: &Axes,
    grid: &Grid,
) -> Result<Value, ExportError> {
    let (d, p, out) = (config.width(), config.patch_size, config.out_channels);
    let affine = config.norm_elementwise_affine;
    let rows = b.scope("norm_out", |b| {
        let x = layer_norm(b, &vars.child("norm_final"), video, d, affine, config.norm_eps)?;
        let vars = vars.child("norm_out");
        let modulation = layers::linear(b, &vars.child("linear"), temb, [2 * d, config.time_embed_dim], true)?;
        let modulation = b.unsqueeze(&modulation, &[1]);
        let parts = b.split(&modulation, -1, 2);
        let x = layer_norm(b, &vars.child("norm"), &x, d, affine, config.norm_eps)?;
        let x = blocks::modulate(b, &x, &parts[1], &parts[0]);
        Ok::<_, ExportError>(b.reshape(&x, &[(-1i64).into(), d.into()]))
    })?;
    b.scope("proj_out", |b| {
        let patches = layers::linear(b, &vars.child("proj_out"), &rows, [out * config.patch_volume(), d], true)?;
        let side = b.ints(&[p as i64]);
        let height = b.op("Mul", &[&grid.height, &side]);
        let width = b.op("Mul", &[&grid.width, &side]);
        let depth = config.patch_size_t.unwrap_or(1);
        let split = b.reshape(
            &patches,
            &[
                Extent::from(&axes.batch),
                Extent::from(&grid.time),
                Extent::from(&grid.height),
                Extent::from(&grid.width),
                out.into(),
                depth.into(),
                p.into(),
                p.into(),
            ],
        );
        let pixels = b.transpose(&split, &[0, 1, 5, 4, 2, 6, 3, 7]);
        Ok(b.reshape(
            &pixels,
            &[Extent::from(&axes.batch), (-1i64).into(), out.into(), Extent::from(&height), Extent::from(&width)],
        ))
    })
}
