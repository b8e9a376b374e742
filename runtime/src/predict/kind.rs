//! What a predictor is.

use std::sync::Arc;

use ndarray::Array2;

use super::inputs::{Input, Inputs};
use super::key::Key;
use crate::engine::Engine;
use crate::engine::manifest::Slot;
use crate::error::{Classified, Error, ErrorClass};
use crate::lora::adapter::{Adapter, LightLora};
use crate::options::OpenOptions;

/// A network that predicts adapters, ready to run.
pub trait Predictor: Send {
    /// What its kind is called, in engines and messages.
    fn kind(&self) -> &'static str;

    /// What it reads of what a caller may give; anything else is refused before it runs.
    fn reads(&self) -> &'static [Input];

    /// Checks that its adapters are for a model with these slots.
    ///
    /// # Errors
    /// If a slot is missing or of another size, naming the first.
    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error>;

    /// The hash of everything that determines the prediction from these inputs. Runs no network.
    ///
    /// # Errors
    /// If an input is missing, or an engine is not intact.
    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error>;

    /// Predicts. The same inputs give the same adapter.
    ///
    /// # Errors
    /// If an input is missing or does not fit, a network fails, or the observer asks to stop.
    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error>;

    /// For a predictor whose adapters are expanded from tokens: what expands them.
    fn tokens(&mut self) -> Option<&mut dyn Tokens> {
        None
    }
}

/// What expands tokens, a few kilobytes that stand for an adapter.
pub trait Tokens {
    /// Tokens with what is needed to expand them later.
    fn light(&self, tokens: Array2<f32>) -> LightLora;

    /// The adapter that tokens stand for.
    ///
    /// # Errors
    /// If another predictor made them, or the network fails.
    fn expand(&mut self, tokens: &LightLora) -> Result<Adapter, Error>;
}

/// What a predictor made.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// The adapter.
    pub adapter: Adapter,
    /// The tokens that it was expanded from, if its kind has any.
    pub tokens: Option<LightLora>,
}

impl Predicted {
    /// Bytes of the numbers that a cache would keep of it: tokens, or else factors.
    pub(super) fn size(&self) -> u64 {
        let count = match &self.tokens {
            Some(light) => light.tokens.len(),
            None => self.adapter.layers.values().flat_map(|update| update.matrices()).map(|matrix| matrix.len()).sum(),
        };
        count as u64 * size_of::<f32>() as u64
    }
}

/// A predictor, or why it cannot be opened.
type Opened = Result<Box<dyn Predictor>, Error>;

/// What the registry knows of a kind of predictor.
pub(crate) struct Entry {
    /// The `kind` in the attributes of its engine.
    pub(crate) kind: &'static str,
    /// See [`Predictor::reads`].
    pub(crate) reads: &'static [Input],
    /// Opens an engine of this kind.
    pub(crate) open: fn(Arc<Engine>, &OpenOptions) -> Opened,
}

/// An engine directory's predictor is of a kind that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: the predictor's kind is {found:?}, expected one of {known}; update v2l")]
pub struct UnknownPredictor {
    /// The engine.
    pub path: String,
    /// The kind found.
    pub found: String,
    /// The kinds known.
    pub known: String,
}

impl Classified for UnknownPredictor {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unsupported
    }
}
