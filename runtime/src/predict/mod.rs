//! Predictors: from a reference, a prompt, or named tensors, to an adapter.
//!
//! A kind of predictor is a file here and a line in `KINDS`. It implements [`Predictor`]; the facade knows it by that trait
//! alone. [`mapped`] is for graphs that v2l does not know by name.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::decisions::Decisions;
use crate::engine::Engine;
use crate::error::Error;
use crate::events::{Cancelled, Event};
use crate::lora::adapter::{Adapter, AdapterFormat, LightLora, write_adapter_with, write_light, write_light_full};
use crate::memory::readable;
use crate::options::OpenOptions;

pub mod cache;
mod entry;
mod error;
mod inputs;
mod intermediates;
mod key;
mod kind;
mod lazy;
pub mod lofa;
pub mod mapped;
mod network;
mod outputs;
mod pristine;
pub mod prompt2effect;
mod text;
#[cfg(test)]
mod toy;
pub mod video2lora;

use cache::{Kept, PredictionCache};
pub use error::PredictorError;
pub(crate) use inputs::Place;
pub use inputs::{Input, Inputs, Source};
use kind::Entry;
pub use kind::{Predicted, Predictor, Tokens, UnknownPredictor};
pub use mapped::{MappedPredictor, PredictorMap};
pub use pristine::Pristine;
pub use text::{TEXT_HIDDEN, TEXT_MASK, Text, TextPadding, TextWish};
use video2lora::auxiliary_factors;

/// The kinds of predictors that engines name. A line each.
static KINDS: &[Entry] = &[
    video2lora::ENTRY,
    prompt2effect::ENTRY,
    lofa::ENTRY,
    #[cfg(test)]
    toy::ENTRY,
];

/// Opens a predictor of the kind that its engine names.
///
/// # Errors
/// [`UnknownPredictor`] if this build has no such kind, [`PredictorError::Config`] if the engine names none; else as the kind
/// says.
pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn Predictor>, Error> {
    let path = || engine.path().display().to_string();
    let Some(found) = engine.manifest().attributes.get("kind").and_then(Value::as_str) else {
        let reason = "its attributes name no `kind` of predictor".to_owned();
        return Err(PredictorError::Config { path: path(), reason }.into());
    };
    let Some(entry) = KINDS.iter().find(|entry| entry.kind == found) else {
        let known = KINDS.iter().map(|entry| entry.kind).collect::<Vec<_>>().join(", ");
        return Err(UnknownPredictor { path: path(), found: found.to_owned(), known }.into());
    };
    (entry.open)(engine, options)
}

/// What the predictor of this engine reads; `None` if this build does not have its kind. Opens nothing.
pub fn reads(engine: &Engine) -> Option<&'static [Input]> {
    let kind = engine.manifest().attributes.get("kind").and_then(Value::as_str);
    KINDS.iter().find(|entry| Some(entry.kind) == kind).map(|entry| entry.reads)
}

/// What a predictor made.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The adapter.
    pub adapter: Adapter,
    /// The tokens that it was expanded from, a few kilobytes, if its predictor's kind has any.
    pub tokens: Option<LightLora>,
    /// True if it was kept from an earlier request, false if it is kept now; `None` without a prediction cache.
    pub cached: Option<bool>,
    /// What was decided where `auto` was asked for.
    pub decisions: Decisions,
    /// Where it came from, for the metadata of its file: hashes of predictor and base, and the prompt.
    pub(crate) origin: IndexMap<String, String>,
    /// The predictor's kind.
    pub(crate) kind: &'static str,
    /// The predictor's engine, mapped.
    pub(crate) engine: Arc<Engine>,
}

impl Prediction {
    /// Writes the adapter, whole or not at all; what is there is replaced. The two light forms hold tokens, which take this
    /// predictor to expand, or what expands them.
    ///
    /// # Errors
    /// [`AdapterError`](crate::lora::adapter::AdapterError), [`WeightError`](crate::io::weights::WeightError);
    /// [`PredictorError::NoTokens`] for a light form if there are none.
    pub fn save(&self, path: impl AsRef<Path>, format: AdapterFormat) -> Result<(), Error> {
        let (path, mut notes) = (path.as_ref(), self.decisions.metadata());
        notes.extend(self.origin.clone());
        let notes = &notes;
        let tokens = || self.tokens.as_ref().ok_or(PredictorError::NoTokens { kind: self.kind });
        match format {
            AdapterFormat::Light => write_light(path, tokens()?, notes)?,
            AdapterFormat::LightFull => write_light_full(path, tokens()?, &auxiliary_factors(&self.engine)?, notes)?,
            _ => write_adapter_with(path, &self.adapter, format, notes)?,
        }
        Ok(())
    }
}

/// Predicts, or takes what the cache has kept; says also which, if there is a cache. What the cache cannot do is a warning.
pub(crate) fn predict(
    predictor: &mut dyn Predictor,
    inputs: &mut Inputs<'_>,
    cache: Option<&PredictionCache>,
) -> Result<(Predicted, Option<bool>), Error> {
    if inputs.observer().cancelled() {
        return Err(Cancelled.into());
    }
    let Some(cache) = cache else { return Ok((predictor.predict(inputs)?, None)) };
    let key = predictor.key(inputs)?;
    let kept = cache.get(&key).unwrap_or_else(|error| {
        let message = format!("a prediction that was kept is not used: {error}");
        inputs.observer().event(&Event::Warning { message });
        None
    });
    match (kept, predictor.tokens()) {
        (Some(Kept::Adapter(adapter)), None) => Ok((Predicted { adapter, tokens: None }, Some(true))),
        (Some(Kept::Tokens(tokens)), Some(expands)) => {
            let light = expands.light(tokens);
            Ok((Predicted { adapter: expands.expand(&light)?, tokens: Some(light) }, Some(true)))
        }
        _ => {
            let predicted = predictor.predict(inputs)?;
            let lost = match predicted.size() {
                bytes if cache.keeps(bytes) => cache.put(&key, &Kept::from(&predicted)).err().map(|e| e.to_string()),
                bytes => Some(format!("it takes {}, more than the cache may", readable(bytes))),
            };
            if let Some(lost) = lost {
                let message = format!("the prediction is not kept: {lost}");
                inputs.observer().event(&Event::Warning { message });
            }
            Ok((predicted, Some(false)))
        }
    }
}
