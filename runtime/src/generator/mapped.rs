//! A predictor that v2l does not know by name: graphs, and a file that says where which layer's factors come from.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::Options;
use crate::backends::held_weights;
use crate::decisions::{Decisions, HeldWeights};
use crate::engine::Engine;
use crate::error::Error;
use crate::events::Observer;
use crate::lora::Strength;
use crate::lora::adapter::Adapter;
use crate::lora::algebra::join;
use crate::options::OpenOptions;
use crate::predict::cache::PredictionCache;
use crate::predict::{self, Input, Inputs, MappedPredictor, Prediction, Predictor, PredictorMap, Source};

/// A predictor that v2l does not know by name, ready to predict adapters from named tensors.
pub struct Mapped {
    predictor: MappedPredictor,
    options: OpenOptions,
    cache: Option<PredictionCache>,
    decisions: Decisions,
}

impl Mapped {
    /// Opens a predictor's engine with the `map` from its outputs to the slots of a model, the `base`, whose pristine weights the map's
    /// graphs may read. Without a base the map's own names are taken, and the factors' own sizes. No network is loaded before it is
    /// needed.
    ///
    /// # Errors
    /// [`PredictorError`](predict::PredictorError) if the map cannot be read, or does not fit the engine or the base.
    pub fn open(engine: Arc<Engine>, map: &Path, base: Option<&Arc<Engine>>, options: &Options) -> Result<Self, Error> {
        let parsed = PredictorMap::read(map)?;
        let predictor = MappedPredictor::open(engine, map, parsed, base, &options.engines)?;
        let mut weights = Vec::with_capacity(predictor.engines().len());
        for engine in predictor.engines() {
            let (mode, reason) = held_weights(engine, &options.engines)?;
            let component = engine.manifest().component.clone();
            weights.push(HeldWeights { component, weights: mode.to_string(), reason });
        }
        let decisions = Decisions { weights, way: None };
        Ok(Self { predictor, options: options.engines.clone(), cache: options.open_cache()?, decisions })
    }

    /// Outputs that no slot and no later graph uses.
    pub fn unused(&self) -> &[String] {
        self.predictor.unused()
    }

    /// Reads the engines of all graphs, and compares every hash.
    ///
    /// # Errors
    /// As [`Engine::verify_hashes`].
    pub fn verify_hashes(&self) -> Result<(), Error> {
        self.predictor.engines().iter().try_for_each(|engine| Ok(engine.verify_hashes()?))
    }

    /// The strengths that the map gives its updates, if it gives the prompt another than the negative prompt; otherwise 1, since the updates
    /// have it already.
    pub const fn strength(&self) -> Strength {
        self.predictor.strength()
    }

    /// Refuses a map whose adapters have two strengths.
    fn check_even(&self) -> Result<(), predict::PredictorError> {
        let strength = self.strength();
        if strength.is_even() { Ok(()) } else { Err(predict::PredictorError::Uneven { strength }) }
    }

    /// Predicts an adapter from named tensors, which must be exactly those that the map's graphs read. With a prediction cache, inputs that
    /// come again do not run it.
    ///
    /// # Errors
    /// If `source` has no tensors or something else, the inputs do not fit, an output does not fit its slot or is not finite, or
    /// `observer` asks to stop; also if the map's [strength](Self::strength) is uneven.
    pub fn predict(&mut self, source: &Source<'_>, observer: &mut dyn Observer) -> Result<Prediction, Error> {
        self.check_even()?;
        self.predict_one(source, observer)
    }

    fn predict_one(&mut self, source: &Source<'_>, observer: &mut dyn Observer) -> Result<Prediction, Error> {
        source.check(self.predictor.kind(), self.predictor.reads())?;
        let mut given = Inputs::new(*source, &self.options, None, observer);
        let (predicted, cached) = predict::predict(&mut self.predictor, &mut given, self.cache.as_ref())?;
        let (kind, engine) = (self.predictor.kind(), Arc::clone(self.predictor.engine()));
        let decisions = self.decisions.clone();
        let origin = IndexMap::new();
        Ok(Prediction { adapter: predicted.adapter, tokens: predicted.tokens, cached, decisions, origin, kind, engine })
    }

    /// Predicts from each of several sources, and joins what they give to the mean of the updates: see
    /// [`join`](crate::lora::algebra::join). It counts as kept if all were.
    ///
    /// # Errors
    /// As [`Self::predict`]; also if there is no source.
    pub fn predict_joined(&mut self, sources: &[Source<'_>], observer: &mut dyn Observer) -> Result<Prediction, Error> {
        self.check_even()?;
        Ok(self.predict_guided(sources, observer)?.0)
    }

    /// [`Self::predict_joined`] with the strengths that the adapter is to be applied with, for
    /// [`set_adapters`](super::Generator::set_adapters).
    ///
    /// # Errors
    /// As there, but for uneven strengths.
    pub fn predict_guided(
        &mut self,
        sources: &[Source<'_>],
        observer: &mut dyn Observer,
    ) -> Result<(Prediction, Strength), Error> {
        let found = sources.iter().map(|source| self.predict_one(source, observer)).collect::<Result<Vec<_>, _>>()?;
        Ok((joined(found)?, self.strength()))
    }
}

/// Several predictions as one: the mean of their updates.
fn joined(found: Vec<Prediction>) -> Result<Prediction, Error> {
    let mut found = found.into_iter();
    let mut first = found.next().ok_or(predict::PredictorError::NotGiven { what: Input::Tensors.name() })?;
    let rest: Vec<Prediction> = found.collect();
    if rest.is_empty() {
        return Ok(first);
    }
    let all: Vec<&Adapter> = std::iter::once(&first).chain(&rest).map(|found| &found.adapter).collect();
    let adapter = join(&first.adapter.name, &all)?;
    let cached = std::iter::once(&first).chain(&rest).map(|found| found.cached).collect::<Option<Vec<bool>>>();
    first.cached = cached.map(|cached| cached.into_iter().all(|cached| cached));
    Ok(Prediction { adapter, tokens: None, ..first })
}
