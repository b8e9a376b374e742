//! Adapters, predicted: by the predictor that the engine directory has.

use indexmap::IndexMap;

use super::{Generator, GeneratorError, PredictOptions};
use crate::components::{HYPERNETWORK, TRANSFORMER};
use crate::engine::Engine;
use crate::engine::manifest::Slot;
use crate::error::Error;
use crate::events::Observer;
use crate::lora::adapter::{Adapter, LightLora};
use crate::lora::algebra::merge;
use crate::media::clip::Clip;
use crate::predict::{self, Input, Inputs, Place, Prediction, Predictor, PredictorError, Source};

/// The metadata's key of a prediction's prompt.
const PROMPT: &str = "v2l.prompt";

impl Generator {
    /// True if there is a predictor.
    pub fn has_predictor(&self) -> bool {
        self.directory.has(HYPERNETWORK)
    }

    /// Opens the predictor, and checks that it is for this model. It is otherwise opened when it is needed.
    ///
    /// # Errors
    /// [`GeneratorError::NoPredictor`], [`UnknownPredictor`](predict::UnknownPredictor) if its kind is not of this build, or
    /// [`PredictorError`].
    pub fn open_predictor(&mut self) -> Result<(), Error> {
        self.predictor().map(drop)
    }

    fn predictor(&mut self) -> Result<&mut dyn Predictor, Error> {
        if self.predictor.is_none() {
            if !self.has_predictor() {
                return Err(GeneratorError::NoPredictor { folder: self.directory.folder().to_owned() }.into());
            }
            let predictor = predict::open(self.directory.engine(HYPERNETWORK)?, &self.options.engines)?;
            if self.directory.has(TRANSFORMER) {
                predictor.check_backbone(&self.directory.engine(TRANSFORMER)?.manifest().slots)?;
            }
            self.predictor = Some(predictor);
        }
        match &mut self.predictor {
            Some(predictor) => Ok(&mut **predictor),
            None => unreachable!("opened above"),
        }
    }

    /// Predicts an adapter from a reference, for a video of the pipeline's default size.
    ///
    /// ```no_run
    /// use v2l_runtime::{AdapterFormat, Clip, Generator, Options};
    ///
    /// # fn main() -> Result<(), v2l_runtime::Error> {
    /// let mut generator = Generator::open("engines", &Options::default())?;
    /// let effect = generator.predict(&Clip::read("effect.mp4".as_ref(), None)?)?;
    /// effect.save("effect.safetensors", AdapterFormat::Kohya)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::predict_with`].
    pub fn predict(&mut self, reference: &Clip) -> Result<Prediction, Error> {
        self.predict_with(reference, &PredictOptions::default(), &mut ())
    }

    /// Predicts an adapter from a reference. With a prediction cache, a reference that comes again takes neither the autoencoder
    /// nor the hypernetwork.
    ///
    /// # Errors
    /// As [`Self::predict_from`].
    pub fn predict_with(
        &mut self,
        reference: &Clip,
        asked: &PredictOptions<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Prediction, Error> {
        self.predict_from(&Source::reference(reference), asked, observer)
    }

    /// Predicts an adapter from what the directory's predictor reads. With a prediction cache, what comes again is not computed
    /// again.
    ///
    /// # Errors
    /// If there is no predictor, `source` lacks what it reads or has something else, an input does not fit, or `observer` asks to
    /// stop.
    pub fn predict_from(
        &mut self,
        source: &Source<'_>,
        asked: &PredictOptions<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Prediction, Error> {
        self.open_predictor()?;
        let Some(predictor) = &mut self.predictor else { unreachable!("opened above") };
        source.check(predictor.kind(), predictor.reads())?;
        let place = Place {
            pipeline: &self.pipeline,
            directory: &mut self.directory,
            size: self.pipeline.frame_size((asked.width, asked.height), asked.image),
            knobs: asked.reference.applied(self.pipeline.config().reference),
            seed: asked.seed.unwrap_or(self.pipeline.config().defaults.seed),
            intermediates: self.options.intermediates(),
        };
        let mut inputs = Inputs::new(*source, &self.options.engines, Some(place), observer);
        let (predicted, cached) = predict::predict(&mut **predictor, &mut inputs, self.cache.as_ref())?;
        let (kind, reads) = (predictor.kind(), predictor.reads());
        let read = reads.iter().copied().filter_map(Input::component);
        let decisions = self.decisions(&read.chain([HYPERNETWORK]).collect::<Vec<_>>())?;
        let engine = self.directory.engine(HYPERNETWORK)?;
        let origin = if reads.contains(&Input::Prompt) { self.origin(&engine, source)? } else { IndexMap::new() };
        Ok(Prediction { adapter: predicted.adapter, tokens: predicted.tokens, cached, decisions, origin, kind, engine })
    }

    /// What a prediction from a prompt came from.
    fn origin(&mut self, predictor: &Engine, source: &Source<'_>) -> Result<IndexMap<String, String>, Error> {
        let mut origin = IndexMap::from([("v2l.predictor".to_owned(), predictor.fingerprint().to_string())]);
        if self.directory.has(TRANSFORMER) {
            let base = self.directory.engine(TRANSFORMER)?;
            origin.insert("v2l.base".to_owned(), base.fingerprint().to_string());
        }
        origin.extend(source.prompt.map(|prompt| (PROMPT.to_owned(), prompt.to_owned())));
        Ok(origin)
    }

    /// Predicts from several sources, and adds what they give, each with its weight, as one adapter: see
    /// [`merge`]. It counts as kept if all were. One source of weight 1 gives its prediction as it is.
    ///
    /// # Errors
    /// As [`Self::predict_from`]; also if there is no source, or a weight is not finite.
    pub fn predict_blend(
        &mut self,
        sources: &[(Source<'_>, f32)],
        asked: &PredictOptions<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Prediction, Error> {
        let mut found = Vec::with_capacity(sources.len());
        for (source, weight) in sources {
            found.push((self.predict_from(source, asked, observer)?, *weight));
        }
        let all: Vec<(&Adapter, f32)> = found.iter().map(|(found, weight)| (&found.adapter, *weight)).collect();
        let merged = match all[..] {
            [(_, 1.0)] => None,
            _ => Some(merge("predicted", &all)?),
        };
        let cached = found.iter().map(|(found, _)| found.cached).collect::<Option<Vec<bool>>>();
        let cached = cached.map(|cached| cached.into_iter().all(|cached| cached));
        let texts = found.iter().map(|(found, weight)| Some(format!("{}={weight}", found.origin.get(PROMPT)?)));
        let texts: Vec<String> = texts.flatten().collect();
        let Some((first, _)) = found.into_iter().next() else {
            return Err(PredictorError::NotGiven { what: Input::Prompt.name() }.into());
        };
        match merged {
            Some(adapter) => {
                let mut origin = first.origin.clone();
                origin.insert(PROMPT.to_owned(), texts.join(" + "));
                Ok(Prediction { adapter, tokens: None, cached, origin, ..first })
            }
            None => Ok(first),
        }
    }

    /// Expands a predictor's tokens from a file, for a model with these slots.
    ///
    /// # Errors
    /// [`PredictorError`] if another predictor made them, it is for another model, or it has no tokens.
    pub fn expand(&mut self, tokens: &LightLora, slots: &[Slot]) -> Result<Prediction, Error> {
        let predictor = self.predictor()?;
        predictor.check_backbone(slots)?;
        let kind = predictor.kind();
        let adapter = predictor.tokens().ok_or(PredictorError::NoTokens { kind })?.expand(tokens)?;
        let engine = self.directory.engine(HYPERNETWORK)?;
        let (decisions, origin) = (self.decisions(&[HYPERNETWORK])?, IndexMap::new());
        Ok(Prediction { adapter, tokens: Some(tokens.clone()), cached: None, decisions, origin, kind, engine })
    }
}
