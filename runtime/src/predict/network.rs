//! Networks that read the base's weights and a prompt: a file for each says what it reads ([`WeightReader`]), and how it predicts.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::Array1;
use serde::de::DeserializeOwned;

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::intermediates::{Intermediates, OfBase};
use super::key::{Key, KeyParts};
use super::kind::{Entry, Predicted, Predictor};
use super::pristine::Pristine;
use super::text::{Text, TextWish};
use crate::backends::OpenEngine;
use crate::components::HYPERNETWORK;
use crate::engine::Engine;
use crate::engine::manifest::{HELD_WEIGHTS, Manifest, Slot, slots_by_name};
use crate::engine::session::Session;
use crate::error::Error;
use crate::events::{Observer, PhaseProgress};
use crate::lora::adapter::{Adapter, LowRank};
use crate::options::OpenOptions;
use crate::tensor::{NamedTensors, Tensor};

const READS: &[Input] = &[Input::Prompt, Input::Tensors];

/// A kind of network that reads the base's weights and a prompt: its description, as the engine's manifest has it.
pub(super) trait WeightReader: Send + Sized + 'static {
    /// The attribute `kind` of its engines.
    const KIND: &'static str;
    /// Graphs that every such engine has.
    const GRAPHS: &'static [&'static str];
    /// What the keys of predictions begin with.
    const KEY: &'static str;
    /// What the keys of what is kept of the base begin with.
    const KEPT: &'static str;

    /// What an engine's manifest says, checked; `path` serves messages.
    fn read(path: &str, manifest: &Manifest) -> Result<Self, PredictorError>;

    /// How it reads a prompt.
    fn text(&self) -> TextWish;

    /// The layers that it reads and predicts for.
    fn targets(&self) -> impl Iterator<Item = Target<'_>>;

    /// The factors of every layer, from the layers' weights and the text. `kept` has what an earlier prompt left.
    fn predict(
        network: &mut Network<Self>,
        weights: &[Pristine],
        text: Text,
        kept: &OfBase,
        observer: &mut dyn Observer,
    ) -> Result<IndexMap<String, LowRank>, Error>;
}

/// A network, ready to run.
pub(super) struct Network<C> {
    pub(super) config: C,
    engine: Arc<Engine>,
    pub(super) open: OpenEngine,
}

/// The registry's line of a kind.
pub(super) const fn entry<C: WeightReader>() -> Entry {
    Entry { kind: C::KIND, reads: READS, open: |engine, options| Ok(Box::new(Network::<C>::open(engine, options)?)) }
}

impl<C: WeightReader> Network<C> {
    /// Opens an engine on its backend; no graph before it is needed.
    fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, PredictorError> {
        let config = C::read(&engine.path().display().to_string(), engine.manifest())?;
        for graph in C::GRAPHS {
            engine.graph(graph)?;
        }
        let open = OpenEngine::open(Arc::clone(&engine), options)?;
        Ok(Self { config, engine, open })
    }

    /// What determines what is kept: the base's weights, this network, and how it is computed.
    fn kept_key(&self, weights: &[Pristine], options: &OpenOptions) -> Key {
        let mut parts = KeyParts::new(C::KEPT);
        parts.add_engines(&[&self.engine], options);
        weights.iter().flat_map(Pristine::hashes).for_each(|hash| parts.add(hash.as_bytes()));
        parts.key()
    }
}

impl<C: WeightReader> Predictor for Network<C> {
    fn kind(&self) -> &'static str {
        C::KIND
    }

    fn reads(&self) -> &'static [Input] {
        READS
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        Ok(check_targets(slots, self.config.targets())?)
    }

    /// How the base is compiled besides changes nothing.
    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        let mut parts = KeyParts::new(C::KEY);
        let (own, base) = (inputs.engine(HYPERNETWORK)?, inputs.base()?);
        parts.add_engines(&[&own], inputs.options());
        for weight in weights(&base, self.config.targets())? {
            weight.hashes().iter().for_each(|hash| parts.add(hash.as_bytes()));
        }
        inputs.text_key(&mut parts)?;
        Ok(parts.key())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let base = inputs.base()?;
        self.check_backbone(&base.manifest().slots)?;
        let weights = weights(&base, self.config.targets())?;
        let text = inputs.text(&self.config.text())?;
        let key = self.kept_key(&weights, inputs.options());
        let kept = OfBase::new(Intermediates::new(inputs.intermediates()), key);
        let layers = C::predict(self, &weights, text, &kept, inputs.observer())?;
        let layers = layers.into_iter().map(|(slot, factors)| (slot, factors.into())).collect();
        Ok(Predicted { adapter: Adapter { name: "predicted".to_owned(), layers }, tokens: None })
    }
}

/// Runs a graph, ended early if the observer asks to stop.
pub(super) fn run(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    progress: &PhaseProgress<'_>,
) -> Result<NamedTensors, Error> {
    Ok(session.run_unless(inputs, &|| progress.is_cancelled())?)
}

/// Rows of tables, `[n]`.
pub(super) fn ids(rows: impl Iterator<Item = usize>) -> Tensor {
    Tensor::I64(rows.map(|row| row as i64).collect::<Array1<_>>().into_dyn())
}

/// `0..length` in parts of `step`, the last one shorter.
pub(super) fn parts(length: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(step).map(move |start| start..length.min(start + step))
}

/// A layer of the base, and the extents that the network was made for.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) slot: &'a str,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
}

impl Target<'_> {
    fn misfit(self, found: String) -> PredictorError {
        let Self { slot, out_features, in_features } = self;
        let expected = format!("a linear layer {in_features} → {out_features}");
        PredictorError::Backbone { slot: slot.to_owned(), expected, found }
    }
}

/// Checks that a base with these slots has every layer, of these extents.
///
/// # Errors
/// [`PredictorError::Backbone`].
pub(super) fn check_targets<'a>(
    slots: &[Slot],
    mut targets: impl Iterator<Item = Target<'a>>,
) -> Result<(), PredictorError> {
    let known = slots_by_name(slots);
    let misfit = targets.find_map(|target| match known.get(target.slot) {
        Some(slot) if (slot.out_features, slot.in_features) == (target.out_features, target.in_features) => None,
        Some(slot) => Some(target.misfit(format!("{} → {}", slot.in_features, slot.out_features))),
        None => Some(target.misfit("none".to_owned())),
    });
    misfit.map_or(Ok(()), Err)
}

/// The pristine weights of the layers, in their order.
///
/// # Errors
/// [`PredictorError`] if the base lacks one, or cannot be read.
fn weights<'a>(base: &Engine, targets: impl Iterator<Item = Target<'a>>) -> Result<Vec<Pristine>, PredictorError> {
    let known = slots_by_name(&base.manifest().slots);
    let open = |target: Target<'a>| match known.get(target.slot) {
        Some(slot) => Pristine::open(base, slot),
        None => Err(target.misfit("none".to_owned())),
    };
    targets.map(open).collect()
}

/// A network's description in its engine's manifest; `path` serves messages.
///
/// # Errors
/// [`PredictorError::Config`] if it is of another kind than `kind`, or fails its own `check`.
pub(super) fn described<T: DeserializeOwned>(
    (path, manifest): (&str, &Manifest),
    kind: &str,
    kind_of: fn(&T) -> &str,
    check: fn(&T) -> Result<(), String>,
) -> Result<T, PredictorError> {
    let fail = |reason: String| PredictorError::Config { path: path.to_owned(), reason };
    let mut attributes = manifest.attributes.clone();
    if let Some(attributes) = attributes.as_object_mut() {
        // Of any component: no part of the network's description.
        attributes.remove(HELD_WEIGHTS);
    }
    let config: T = serde_json::from_value(attributes).map_err(|e| fail(format!("attributes: {e}")))?;
    if kind_of(&config) != kind {
        return Err(fail(format!("expected kind {kind}, found {}", kind_of(&config))));
    }
    check(&config).map_err(fail)?;
    Ok(config)
}

/// Checks that each of these numbers is from 1 to the most that is believed, and that heads divide the width.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check_sizes(sizes: &[(&str, usize, usize)], hidden_dim: usize, n_heads: usize) -> Result<(), String> {
    match sizes.iter().find(|(_, found, most)| *found == 0 || found > most) {
        Some((name, found, most)) => Err(format!("{name}: expected 1 to {most}, found {found}")),
        None if !hidden_dim.is_multiple_of(n_heads) => {
            Err(format!("hidden_dim {hidden_dim}: expected a multiple of n_heads {n_heads}"))
        }
        None => Ok(()),
    }
}
