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

use bytes::Bytes;
use indexmap::IndexMap;
use ndarray::{Array3, ArrayD, Axis, s};

use super::error::PredictorError;
use super::intermediates::{Filling, OfBase};
use super::kind::Entry;
use super::network::{Network, Target, WeightReader, entry, ids, parts, run};
use super::outputs::{cube, matrix};
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

pub use config::{KIND, NetworkConfig, Sample};

pub(super) const ENTRY: Entry = entry::<NetworkConfig>();

/// Elements of the widest tensor that a graph makes of a batch, about.
const BATCH_ELEMENTS: usize = 1 << 23;
/// A layer's tokens are kept for both stages.
const STAGES: usize = 2;

impl Network<NetworkConfig> {
    /// Layers that one run takes.
    fn batch(&self) -> usize {
        let NetworkConfig { tokens, hidden_dim, n_heads, width, .. } = self.config;
        let widest = (tokens * 4 * hidden_dim).max(n_heads * tokens * tokens).max(width * width);
        (BATCH_ELEMENTS / widest).clamp(1, self.config.samples.len())
    }

    /// The keys and values of every block of a stage.
    fn context(&mut self, stage: usize, text: &Tensor, progress: &PhaseProgress<'_>) -> Result<NamedTensors, Error> {
        let session = &mut *self.open.session(&format!("text_{stage}"))?;
        run(session, &[("text_hidden", text)], progress)
    }
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
}

/// Makes the tokens of a batch, or finds them among those that are kept: for each layer those of the first stage, then those of the second.
struct Starts {
    sessions: [Box<dyn Session>; STAGES],
    kept: Option<Bytes>,
    keeping: Filling,
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
                let weight = batch.weight(self.width);
                let depth = ids(batch.samples.iter().map(|sample| sample.depth));
                let kind = ids(batch.samples.iter().map(|sample| sample.kind));
                let mut all = ArrayD::zeros(vec![count, STAGES, n, d]);
                for (stage, session) in self.sessions.iter_mut().enumerate() {
                    let inputs = [("weight", &weight), ("depth", &depth), ("kind", &kind)];
                    let mut outputs = run(&mut **session, &inputs, progress)?;
                    all.slice_mut(s![.., stage, .., ..]).assign(&cube(&mut outputs, "start", [count, n, d])?);
                }
                self.keeping.add(all.as_slice(), progress);
                all
            }
        };
        Ok([0, 1].map(|stage| Tensor::F32(both.index_axis(Axis(1), stage).to_owned())))
    }
}

impl WeightReader for NetworkConfig {
    const KIND: &'static str = KIND;
    const GRAPHS: &'static [&'static str] = &["text_1", "text_2", "start_1", "start_2", "stage_1", "stage_2"];
    const KEY: &'static str = "lofa 1";
    const KEPT: &'static str = "lofa start 1";

    fn read(path: &str, manifest: &Manifest) -> Result<Self, PredictorError> {
        Self::read(path, manifest)
    }

    fn text(&self) -> TextWish {
        self.text()
    }

    fn targets(&self) -> impl Iterator<Item = Target<'_>> {
        let width = self.width;
        self.samples.iter().map(move |sample| Target { slot: &sample.slot, out_features: width, in_features: width })
    }

    fn predict(
        network: &mut Network<Self>,
        weights: &[Pristine],
        text: Text,
        kept: &OfBase,
        observer: &mut dyn Observer,
    ) -> Result<IndexMap<String, LowRank>, Error> {
        let Self { width, tokens, hidden_dim, rank, text_len, .. } = network.config;
        let samples = network.config.samples.clone();
        let count = samples.len();
        let text = Tensor::F32(text.padded(text_len).into_dyn());
        let (found, warning) = kept.get(count * STAGES * tokens * hidden_dim);
        let mut progress = PhaseProgress::start(observer, Phase::Predict, count);
        warning.into_iter().for_each(|warning| progress.warn(warning));
        let contexts = [network.context(1, &text, &progress)?, network.context(2, &text, &progress)?];
        let keeping = if found.is_some() { Filling::none() } else { kept.put(&mut progress) };
        let mut starts = Starts {
            sessions: [network.open.session("start_1")?, network.open.session("start_2")?],
            kept: found,
            keeping,
            shape: [tokens, hidden_dim],
            width,
        };
        let (mut first, mut second) = (network.open.session("stage_1")?, network.open.session("stage_2")?);
        let mut layers = IndexMap::with_capacity(count);
        for part in parts(count, network.batch()) {
            progress.check()?;
            let batch = Batch { weights: &weights[part.clone()], samples: &samples[part.clone()] };
            let [one, two] = starts.of(&batch, part.start, &mut progress)?;
            let mut given = vec![("start", &one)];
            given.extend(contexts[0].iter().map(|(name, tensor)| (&name[..], tensor)));
            let mut outputs = run(&mut *first, &given, &progress)?;
            let response = Tensor::F32(cube(&mut outputs, "response", [part.len(), tokens, hidden_dim])?.into_dyn());
            let mut given = vec![("start", &two), ("response", &response)];
            given.extend(contexts[1].iter().map(|(name, tensor)| (&name[..], tensor)));
            let mut outputs = run(&mut *second, &given, &progress)?;
            let down = cube(&mut outputs, "a", [part.len(), rank, width])?;
            let up = cube(&mut outputs, "b", [part.len(), width, rank])?;
            let alpha = matrix(&mut outputs, "alpha", [part.len(), 1])?;
            for (at, sample) in batch.samples.iter().enumerate() {
                let scale = alpha[[at, 0]];
                let (down, up) =
                    (down.index_axis(Axis(0), at).to_owned(), up.index_axis(Axis(0), at).mapv(|x| x * scale));
                layers.insert(sample.slot.clone(), LowRank { down, up, alpha: rank as f32 });
                progress.step();
            }
        }
        starts.keeping.finish(&mut progress);
        progress.finish();
        Ok(layers)
    }
}
