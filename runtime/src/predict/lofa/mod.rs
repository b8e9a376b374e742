//! LoFA: two networks that read patches of the base's weights and a prompt. The first says where a layer responds to the prompt; the
//! second reads that and gives a layer's factors and their scale.
//!
//! Each layer is a sample of its own, and samples never see each other. The engine's graphs (`v2l-export` makes them), for the stages
//! 1 and 2:
//!
//! | graph | inputs → outputs |
//! |---|---|
//! | `text_<s>` | `text_hidden` `[t, text_dim]` → per block `key.<b>`, `value.<b>` `[1, h, t, d/h]` |
//! | `start_<s>` | `weight` `[b, w, w]`, `depth`, `kind` `[b]` → `start` `[b, n, d]`, all that does not depend on the prompt |
//! | `stage_1` | `start`, `key.<b>`, `value.<b>` → `response` `[b, n, d]` |
//! | `stage_2` | `start`, `response`, `key.<b>`, `value.<b>` → `a` `[b, r, w]`, `b` `[b, w, r]`, `alpha` `[b, 1]` |
//!
//! The update of a layer is `alpha · b · a`; `alpha` goes into `b`. What `start_<s>` give is kept on disk. Weights are read some layers
//! at a time, so that nothing of the size of the base is in memory of its own.

use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use ndarray::{Array1, Array3, ArrayD, Axis, s};

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::intermediates::{Intermediates, Keeping};
use super::key::{Key, KeyParts};
use super::kind::{Entry, Predicted, Predictor};
use super::network::{self, Target, check_targets};
use super::outputs::{cube, matrix};
use super::pristine::Pristine;
use super::text::Text;
use crate::backends::OpenEngine;
use crate::engine::Engine;
use crate::engine::manifest::Slot;
use crate::engine::session::Session;
use crate::error::Error;
use crate::events::{Phase, PhaseProgress};
use crate::io::raw;
use crate::lora::adapter::{Adapter, LowRank};
use crate::options::OpenOptions;
use crate::tensor::{Dtype, NamedTensors, Tensor};

mod config;

pub use config::{KIND, NetworkConfig, Sample};

pub(super) const ENTRY: Entry = Entry {
    kind: KIND,
    reads: &[Input::Prompt, Input::Tensors],
    open: |engine, options| Ok(Box::new(Lofa::open(engine, options)?)),
};

/// Elements of the widest tensor that a graph makes of a batch, about.
const BATCH_ELEMENTS: usize = 1 << 23;
/// A layer's tokens are kept for both stages.
const STAGES: usize = 2;

/// A network, ready to run.
pub struct Lofa {
    config: NetworkConfig,
    engine: Arc<Engine>,
    open: OpenEngine,
}

impl Lofa {
    /// Opens an engine on its backend; no graph before it is needed.
    ///
    /// # Errors
    /// [`PredictorError::Config`], [`PredictorError::Open`].
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, PredictorError> {
        let config = NetworkConfig::read(&engine.path().display().to_string(), engine.manifest())?;
        for graph in ["text_1", "text_2", "start_1", "start_2", "stage_1", "stage_2"] {
            engine.graph(graph)?;
        }
        let open = OpenEngine::open(Arc::clone(&engine), options)?;
        Ok(Self { config, engine, open })
    }

    /// What the engine says of itself.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    fn targets<'s>(&'s self) -> impl Iterator<Item = Target<'s>> {
        let width = self.config.width;
        let target = move |sample: &'s Sample| Target { slot: &sample.slot, out_features: width, in_features: width };
        self.config.samples.iter().map(target)
    }

    fn weights(&self, base: &Engine) -> Result<Vec<Pristine>, PredictorError> {
        network::weights(base, self.targets())
    }

    /// Layers that one run takes.
    fn batch(&self) -> usize {
        let NetworkConfig { tokens, hidden_dim, n_heads, width, .. } = self.config;
        let widest = (tokens * 4 * hidden_dim).max(n_heads * tokens * tokens).max(width * width);
        (BATCH_ELEMENTS / widest).clamp(1, self.config.samples.len())
    }

    /// What determines the tokens that are kept.
    fn kept_key(&self, weights: &[Pristine], options: &OpenOptions) -> Key {
        let mut parts = KeyParts::new("lofa start 1");
        parts.add_engines(&[&self.engine], options);
        weights.iter().flat_map(Pristine::hashes).for_each(|hash| parts.add(hash.as_bytes()));
        parts.key()
    }

    /// The keys and values of every block of a stage.
    fn context(&mut self, stage: usize, text: &Tensor, progress: &PhaseProgress<'_>) -> Result<NamedTensors, Error> {
        let session = &mut *self.open.session(&format!("text_{stage}"))?;
        run(session, &[("text_hidden", text)], progress)
    }
}

/// The text in as many rows as the network reads: what is no text is zeros.
fn padded(text: Text, rows: usize) -> ArrayD<f32> {
    let Text { hidden, mask } = text;
    let seen = |row: usize| mask.as_ref().is_none_or(|mask| mask[row]);
    let (given, width) = hidden.dim();
    ndarray::Array2::from_shape_fn((rows.max(given), width), |(row, column)| {
        if row < given && seen(row) { hidden[[row, column]] } else { 0.0 }
    })
    .into_dyn()
}

/// Some layers that go together.
struct Batch<'a> {
    weights: &'a [Pristine],
    samples: &'a [Sample],
}

impl Batch<'_> {
    /// `[b, w, w]`.
    fn weight(&self, width: usize) -> Tensor {
        let mut all = Array3::zeros((self.weights.len(), width, width));
        for (weight, mut panel) in self.weights.iter().zip(all.outer_iter_mut()) {
            panel.assign(&weight.row_panel(0, width));
        }
        Tensor::F32(all.into_dyn())
    }

    fn ids(&self, of: impl Fn(&Sample) -> usize) -> Tensor {
        Tensor::I64(self.samples.iter().map(|sample| of(sample) as i64).collect::<Array1<_>>().into_dyn())
    }
}

/// Makes the tokens of a batch, or finds them among those that are kept: for each layer those of the first stage, then those of the second.
struct Starts {
    sessions: [Box<dyn Session>; STAGES],
    kept: Option<Bytes>,
    keeping: Option<Keeping>,
    /// `[n, d]`.
    shape: [usize; 2],
    width: usize,
}

impl Starts {
    /// Both stages' tokens `[b, n, d]` of the batch that begins with layer `first`.
    fn of(
        &mut self,
        batch: &Batch<'_>,
        first: usize,
        progress: &mut PhaseProgress<'_>,
    ) -> Result<[Tensor; STAGES], Error> {
        let [n, d] = self.shape;
        let count = batch.samples.len();
        let each = STAGES * n * d;
        let both = match &self.kept {
            Some(kept) => {
                let bytes = kept.slice(4 * first * each..4 * (first + count) * each);
                let all = raw::tensor_from_bytes(Dtype::F32, &[count, STAGES, n, d], &bytes).and_then(Tensor::into_f32);
                all.ok_or_else(|| PredictorError::NotFinite { what: "what is kept".to_owned() })?
            }
            None => {
                let (weight, depth, kind) =
                    (batch.weight(self.width), batch.ids(|sample| sample.depth), batch.ids(|sample| sample.kind));
                let mut all = ArrayD::zeros(vec![count, STAGES, n, d]);
                for (stage, session) in self.sessions.iter_mut().enumerate() {
                    let inputs = [("weight", &weight), ("depth", &depth), ("kind", &kind)];
                    let mut outputs = run(&mut **session, &inputs, progress)?;
                    all.slice_mut(s![.., stage, .., ..]).assign(&cube(&mut outputs, "start", [count, n, d])?);
                }
                self.keep(&all, progress);
                all
            }
        };
        Ok([0, 1].map(|stage| Tensor::F32(both.index_axis(Axis(1), stage).to_owned())))
    }

    /// A disk that is full costs the cache alone.
    fn keep(&mut self, all: &ArrayD<f32>, progress: &mut PhaseProgress<'_>) {
        let Some(mut keeping) = self.keeping.take() else { return };
        match all.as_slice().map(|numbers| keeping.add(numbers)) {
            Some(Ok(())) => self.keeping = Some(keeping),
            Some(Err(error)) => not_kept(progress, &error),
            None => {}
        }
    }
}

fn not_kept(progress: &mut PhaseProgress<'_>, error: &std::io::Error) {
    progress.warn(format!("what the predictor reads of the base is not kept: {error}"));
}

impl Predictor for Lofa {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reads(&self) -> &'static [Input] {
        ENTRY.reads
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        Ok(check_targets(slots, self.targets())?)
    }

    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        network::key("lofa 1", inputs, self.targets())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let base = inputs.base()?;
        self.check_backbone(&base.manifest().slots)?;
        let weights = self.weights(&base)?;
        let text = Tensor::F32(padded(inputs.text(&self.config.text())?, self.config.text_len));
        let kept = Intermediates::new(inputs.intermediates());
        let key = self.kept_key(&weights, inputs.options());
        let NetworkConfig { width, tokens, hidden_dim, rank, .. } = self.config;
        let count = self.config.samples.len();
        let mut progress = PhaseProgress::start(inputs.observer(), Phase::Predict, count);
        let contexts = [self.context(1, &text, &progress)?, self.context(2, &text, &progress)?];
        let found = kept.get(&key, count * STAGES * tokens * hidden_dim).unwrap_or_else(|error| {
            progress.warn(format!("what is kept of the base is not used, but made again: {error}"));
            None
        });
        let keeping = match &found {
            Some(_) => None,
            None => kept.put(&key).unwrap_or_else(|error| {
                not_kept(&mut progress, &error);
                None
            }),
        };
        let mut starts = Starts {
            sessions: [self.open.session("start_1")?, self.open.session("start_2")?],
            kept: found,
            keeping,
            shape: [tokens, hidden_dim],
            width,
        };
        let (mut first, mut second) = (self.open.session("stage_1")?, self.open.session("stage_2")?);
        let mut layers = IndexMap::with_capacity(count);
        for begin in (0..count).step_by(self.batch()) {
            progress.check()?;
            let end = (begin + self.batch()).min(count);
            let batch = Batch { weights: &weights[begin..end], samples: &self.config.samples[begin..end] };
            let [one, two] = starts.of(&batch, begin, &mut progress)?;
            let mut given = vec![("start", &one)];
            given.extend(contexts[0].iter().map(|(name, tensor)| (&name[..], tensor)));
            let mut outputs = run(&mut *first, &given, &progress)?;
            let response = Tensor::F32(cube(&mut outputs, "response", [end - begin, tokens, hidden_dim])?.into_dyn());
            let mut given = vec![("start", &two), ("response", &response)];
            given.extend(contexts[1].iter().map(|(name, tensor)| (&name[..], tensor)));
            let mut outputs = run(&mut *second, &given, &progress)?;
            let down = cube(&mut outputs, "a", [end - begin, rank, width])?;
            let up = cube(&mut outputs, "b", [end - begin, width, rank])?;
            let alpha = matrix(&mut outputs, "alpha", [end - begin, 1])?;
            for (at, sample) in batch.samples.iter().enumerate() {
                let scale = alpha[[at, 0]];
                let (down, up) =
                    (down.index_axis(Axis(0), at).to_owned(), up.index_axis(Axis(0), at).mapv(|x| x * scale));
                layers.insert(sample.slot.clone(), LowRank { down, up, alpha: rank as f32 });
                progress.step();
            }
        }
        if let Some(Err(error)) = starts.keeping.map(Keeping::finish) {
            not_kept(&mut progress, &error);
        }
        progress.finish();
        Ok(Predicted { adapter: Adapter { name: "predicted".to_owned(), layers }, tokens: None })
    }
}

/// Runs a graph, ended early if the observer asks to stop.
fn run(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    progress: &PhaseProgress<'_>,
) -> Result<NamedTensors, Error> {
    Ok(session.run_unless(inputs, &|| progress.is_cancelled())?)
}
