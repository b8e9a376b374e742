//! Prompt2Effect: a network that reads the base's weights and a prompt, and gives factors for every layer.
//!
//! Rows and columns of a weight become tokens, which attention compresses to a few latents. These attend to each other and to
//! the text, and the weight's tokens read their factors from them. The engine's graphs (`v2l-export` makes them):
//!
//! | graph | inputs → outputs |
//! |---|---|
//! | `condition` | `layer`, `module` `[L]` → `condition` `[L, d]` |
//! | `text` | `text_hidden` `[t, text_dim]` → per block `key.<b>`, `value.<b>` `[h, t, d/h]` |
//! | `encode_rows_<g>`, `encode_columns_<g>` | a panel `weight` `[p, k]`, `code` `[p, d]`, `condition` `[1, d]` → `maximum`, `total` `[h, n, 1]`, `mixed` `[h, n, d/h]` |
//! | `compress` | `mixed` `[b, n, d]`, `condition` `[b, 1, d]` → `compressed` `[b, n, d]`, all that does not depend on the prompt |
//! | `backbone` | `compressed` `[b, m, d]`, `key.<b>`, `value.<b>`, `penalty` `[t]` → `refined` `[b, m, d]` |
//! | `decode_rows_<g>`, `decode_columns_<g>` | a panel as above, `refined` `[n, d]` → `factors` `[p, rank]` |
//!
//! Weights are read in panels: the softmax over all tokens of a weight is put together from those over its panels. So
//! nothing of the size of the base is ever in memory of its own. What the graphs before `backbone` give is kept on disk.

use std::ops::Range;

use indexmap::IndexMap;
use ndarray::{Array2, Array3, ArrayD, Axis, s};

use super::error::PredictorError;
use super::intermediates::OfBase;
use super::kind::Entry;
use super::network::{Network, Target, WeightReader, entry, ids, parts, run};
use super::outputs::{cube, matrix, shape_defect};
use super::pristine::Pristine;
use super::text::{Text, TextWish};
use crate::engine::manifest::Manifest;
use crate::engine::session::Session;
use crate::error::Error;
use crate::events::{Observer, Phase, PhaseProgress};
use crate::io::raw;
use crate::lora::adapter::LowRank;
use crate::tensor::{Dtype, NamedTensors, Tensor};

mod config;
mod softmax;

pub use config::{AttentionScope, Group, Injection, KIND, NetworkConfig, TargetLayer};
use softmax::Softmax;

pub(super) const ENTRY: Entry = entry::<NetworkConfig>();

/// Elements of the largest tensor that a graph makes of a panel, about: it sets the panels' size.
const PANEL_ELEMENTS: usize = 1 << 23;
/// Elements of latents that one run of the backbone takes, about, where layers are apart.
const BATCH_ELEMENTS: usize = 1 << 22;

impl Network<NetworkConfig> {
    /// The embeddings of every layer with its type, `[L, d]`.
    fn conditions(&mut self) -> Result<Array2<f32>, PredictorError> {
        let layer = ids(self.config.layers.iter().map(|layer| layer.layer));
        let module = ids(self.config.layers.iter().map(|layer| layer.module));
        let mut outputs = self.open.session("condition")?.run(&[("layer", &layer), ("module", &module)])?;
        matrix(&mut outputs, "condition", [self.config.layers.len(), self.config.hidden_dim])
    }

    /// What does not depend on the prompt: the latents `[L, n, d]` of every layer's weight.
    fn latents(
        &mut self,
        weights: &[Pristine],
        conditions: &Array2<f32>,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<Array3<f32>, Error> {
        let NetworkConfig { hidden_dim, n_heads, num_latents, .. } = self.config;
        let mut mixed = Array3::<f32>::zeros((weights.len(), num_latents, hidden_dim));
        for (group, members) in self.by_group() {
            let mut rows = self.open.session(&format!("encode_rows_{group}"))?;
            let mut columns = self.open.session(&format!("encode_columns_{group}"))?;
            for layer in members {
                progress.check()?;
                let mut softmax = Softmax::new(n_heads, num_latents, hidden_dim / n_heads);
                let condition = conditions.slice(s![layer..=layer, ..]).to_owned();
                let reader = self.reader(&weights[layer], condition);
                for (session, stream) in [(&mut rows, Stream::Rows), (&mut columns, Stream::Columns)] {
                    for panel in reader.panels(stream) {
                        let mut outputs = panel.run(&mut **session, &[], progress)?;
                        softmax.add(&mut outputs)?;
                    }
                }
                mixed.index_axis_mut(Axis(0), layer).assign(&softmax.finish());
                progress.step();
            }
        }
        self.compress(&mixed, conditions)
    }

    /// The latents of layers from what their tokens were mixed to.
    fn compress(&mut self, mixed: &Array3<f32>, conditions: &Array2<f32>) -> Result<Array3<f32>, Error> {
        let mut session = self.open.session("compress")?;
        let mut latents = Array3::zeros(mixed.raw_dim());
        let (count, n, d) = mixed.dim();
        for layers in parts(count, self.batch()) {
            let part = Tensor::F32(mixed.slice(s![layers.clone(), .., ..]).to_owned().into_dyn());
            let own = conditions.slice(s![layers.clone(), ..]).to_owned().insert_axis(Axis(1));
            let own = Tensor::F32(own.into_dyn());
            let mut inputs = vec![("mixed", &part)];
            inputs.extend(self.config.cond_inject.latents().then_some(("condition", &own)));
            let mut outputs = session.run(&inputs)?;
            let made = cube(&mut outputs, "compressed", [layers.len(), n, d])?;
            latents.slice_mut(s![layers, .., ..]).assign(&made);
        }
        Ok(latents)
    }

    /// Layers that one run takes where layers are apart.
    fn batch(&self) -> usize {
        (BATCH_ELEMENTS / (self.config.num_latents * self.config.hidden_dim)).max(1)
    }

    /// The latents after the text.
    fn backbone(
        &mut self,
        latents: &mut Array3<f32>,
        (text, penalty): (&NamedTensors, &Tensor),
        progress: &mut PhaseProgress<'_>,
    ) -> Result<(), Error> {
        let mut session = self.open.session("backbone")?;
        let (n, d) = (self.config.num_latents, self.config.hidden_dim);
        // Layers apart go together as a batch; layers that attend to each other as one sequence.
        let mut runs: Vec<(Vec<usize>, bool)> = Vec::new();
        for scope in self.config.scopes() {
            let apart = self.config.attn_scope == AttentionScope::Layer;
            match runs.last_mut().filter(|(layers, _)| apart && layers.len() < self.batch()) {
                Some((layers, _)) => layers.extend(scope),
                None => runs.push((scope, apart)),
            }
        }
        for (layers, apart) in runs {
            let shape = if apart { (layers.len(), n, d) } else { (1, layers.len() * n, d) };
            let given = latents.select(Axis(0), &layers).into_shape_with_order(shape);
            let given = Tensor::F32(given.map_err(|error| shape_defect(&error))?.into_dyn());
            let mut inputs = vec![("compressed", &given), ("penalty", penalty)];
            inputs.extend(text.iter().map(|(name, tensor)| (&name[..], tensor)));
            let mut outputs = run(&mut *session, &inputs, progress)?;
            let found = cube(&mut outputs, "refined", [shape.0, shape.1, shape.2])?;
            let found = found.into_shape_with_order((layers.len(), n, d)).map_err(|error| shape_defect(&error))?;
            for (at, layer) in layers.into_iter().enumerate() {
                latents.index_axis_mut(Axis(0), layer).assign(&found.index_axis(Axis(0), at));
            }
        }
        Ok(())
    }

    /// Every layer's factors.
    fn decode(
        &mut self,
        weights: &[Pristine],
        conditions: &Array2<f32>,
        latents: &Array3<f32>,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<IndexMap<String, LowRank>, Error> {
        let rank = self.config.rank;
        let mut found: Vec<Option<LowRank>> = vec![None; weights.len()];
        for (group, members) in self.by_group() {
            let mut rows = self.open.session(&format!("decode_rows_{group}"))?;
            let mut columns = self.open.session(&format!("decode_columns_{group}"))?;
            for layer in members {
                progress.check()?;
                let own = Tensor::F32(latents.index_axis(Axis(0), layer).to_owned().into_dyn());
                let condition = conditions.slice(s![layer..=layer, ..]).to_owned();
                let reader = self.reader(&weights[layer], condition);
                let factors = |session: &mut dyn Session, stream: Stream| -> Result<Array2<f32>, Error> {
                    let mut all = Array2::zeros((reader.length(stream), rank));
                    for panel in reader.panels(stream) {
                        let mut outputs = panel.run(session, &[("refined", &own)], progress)?;
                        let part = matrix(&mut outputs, "factors", [panel.tokens.len(), rank])?;
                        all.slice_mut(s![panel.tokens, ..]).assign(&part);
                    }
                    Ok(all)
                };
                let up = factors(&mut *rows, Stream::Rows)?;
                let down = factors(&mut *columns, Stream::Columns)?.reversed_axes();
                let down = down.as_standard_layout().into_owned();
                found[layer] = Some(LowRank { down, up, alpha: rank as f32 });
                progress.step();
            }
        }
        let names = self.config.layers.iter().map(|layer| layer.slot.clone());
        Ok(names.zip(found).filter_map(|(name, layer)| Some((name, layer?))).collect())
    }

    /// Layers by the tables that they share, so that each table is touched in one go.
    fn by_group(&self) -> Vec<(usize, Vec<usize>)> {
        let of = |group| (0..self.config.layers.len()).filter(|&l| self.config.layers[l].group == group).collect();
        (0..self.config.groups.len())
            .map(|group| (group, of(group)))
            .filter(|(_, of): &(_, Vec<_>)| !of.is_empty())
            .collect()
    }

    fn reader<'a>(&self, weight: &'a Pristine, condition: Array2<f32>) -> Reader<'a> {
        let scale = self.config.weight_rms.then(|| 1.0 / root_mean_square(weight));
        let condition = self.config.cond_inject.tokens().then(|| Tensor::F32(condition.into_dyn()));
        let width = self.config.hidden_dim;
        let widest = (4 * width).max(self.config.n_heads * self.config.num_latents);
        Reader { weight, condition, scale, code: self.config.position_code.then_some(width), widest }
    }
}

impl WeightReader for NetworkConfig {
    const KIND: &'static str = KIND;
    const GRAPHS: &'static [&'static str] = &["condition", "text", "compress", "backbone"];
    const KEY: &'static str = "prompt2effect 1";
    const KEPT: &'static str = "prompt2effect latents 1";

    fn read(path: &str, manifest: &Manifest) -> Result<Self, PredictorError> {
        Self::read(path, manifest)
    }

    fn text(&self) -> TextWish {
        self.text()
    }

    fn targets(&self) -> impl Iterator<Item = Target<'_>> {
        self.layers.iter().map(|layer| {
            let Group { d_out, d_in, .. } = self.groups[layer.group];
            Target { slot: &layer.slot, out_features: d_out, in_features: d_in }
        })
    }

    fn predict(
        network: &mut Network<Self>,
        weights: &[Pristine],
        text: Text,
        kept: &OfBase,
        observer: &mut dyn Observer,
    ) -> Result<IndexMap<String, LowRank>, Error> {
        let conditions = network.conditions()?;
        let shape = [weights.len(), network.config.num_latents, network.config.hidden_dim];
        let (found, warning) = kept.get(shape.iter().product());
        let found = found.and_then(|bytes| {
            raw::tensor_from_bytes(Dtype::F32, &shape, &bytes)?.into_f32()?.into_dimensionality().ok()
        });
        let steps = weights.len() * if found.is_some() { 1 } else { 2 };
        let mut progress = PhaseProgress::start(observer, Phase::Predict, steps);
        warning.into_iter().for_each(|warning| progress.warn(warning));
        let mut latents = match found {
            Some(found) => found,
            None => {
                let made = network.latents(weights, &conditions, &mut progress)?;
                let mut keeping = kept.put(&mut progress);
                keeping.add(made.as_slice(), &mut progress);
                keeping.finish(&mut progress);
                made
            }
        };
        let rows = text.hidden.nrows();
        let penalty = text.mask.map_or_else(
            || ArrayD::zeros(vec![rows]),
            |mask| {
                mask.iter()
                    .map(|&seen| if seen { 0.0 } else { f32::NEG_INFINITY })
                    .collect::<ndarray::Array1<_>>()
                    .into_dyn()
            },
        );
        let hidden = Tensor::F32(text.hidden.into_dyn());
        let context = run(&mut *network.open.session("text")?, &[("text_hidden", &hidden)], &progress)?;
        network.backbone(&mut latents, (&context, &Tensor::F32(penalty)), &mut progress)?;
        let layers = network.decode(weights, &conditions, &latents, &mut progress)?;
        progress.finish();
        Ok(layers)
    }
}

/// Which of a weight's vectors are tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Rows,
    Columns,
}

/// Reads a weight in panels.
struct Reader<'a> {
    weight: &'a Pristine,
    condition: Option<Tensor>,
    scale: Option<f32>,
    /// Width of the code of positions.
    code: Option<usize>,
    /// Widest tensor that a graph makes of a token.
    widest: usize,
}

impl<'a> Reader<'a> {
    /// Tokens of a stream.
    fn length(&self, stream: Stream) -> usize {
        if stream == Stream::Rows { self.weight.rows() } else { self.weight.columns() }
    }

    fn panels(&self, stream: Stream) -> impl Iterator<Item = Panel<'_, 'a>> {
        let length = self.length(stream);
        let across = self.weight.rows() + self.weight.columns() - length;
        let most = (PANEL_ELEMENTS / across.max(self.widest)).max(16);
        let step = length.div_ceil(length.div_ceil(most));
        parts(length, step).map(move |tokens| Panel { reader: self, stream, tokens })
    }
}

/// Some tokens of a weight.
struct Panel<'r, 'a> {
    reader: &'r Reader<'a>,
    stream: Stream,
    tokens: Range<usize>,
}

impl Panel<'_, '_> {
    fn run(
        &self,
        session: &mut dyn Session,
        more: &[(&str, &Tensor)],
        progress: &PhaseProgress<'_>,
    ) -> Result<NamedTensors, Error> {
        let Reader { weight, condition, scale, code, .. } = self.reader;
        let mut panel = match self.stream {
            Stream::Rows => weight.row_panel(self.tokens.start, self.tokens.len()),
            Stream::Columns => weight.column_panel(self.tokens.start, self.tokens.len()),
        };
        if let Some(scale) = scale {
            panel.mapv_inplace(|x| x * scale);
        }
        let panel = Tensor::F32(panel.into_dyn());
        let code = code.map(|width| Tensor::F32(position_code(&self.tokens, width).into_dyn()));
        let mut inputs = vec![("weight", &panel)];
        inputs.extend(condition.as_ref().map(|condition| ("condition", condition)));
        inputs.extend(code.as_ref().map(|code| ("code", code)));
        inputs.extend(more);
        run(session, &inputs, progress)
    }
}

/// The sinusoidal code of positions, rounded as PyTorch rounds it: sines on even channels, cosines on
/// odd ones.
fn position_code(positions: &Range<usize>, width: usize) -> Array2<f32> {
    let step = -(10000f64.ln() / width as f64) as f32;
    Array2::from_shape_fn((positions.len(), width), |(token, channel)| {
        let frequency = f64::from((channel / 2 * 2) as f32 * step).exp() as f32;
        let angle = f64::from((positions.start + token) as f32 * frequency);
        (if channel % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
    })
}

/// Of a weight's elements; 1 for one of zeros.
fn root_mean_square(weight: &Pristine) -> f32 {
    let step = (PANEL_ELEMENTS / weight.columns()).max(1);
    let sums = parts(weight.rows(), step).map(|rows| {
        let panel = weight.row_panel(rows.start, rows.len());
        panel.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    });
    let mean = sums.sum::<f64>() / (weight.rows() * weight.columns()) as f64;
    if mean > 0.0 { mean.sqrt() as f32 } else { 1.0 }
}
