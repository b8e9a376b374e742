//! Predictors: from a reference, or named tensors, to an adapter.

use std::path::Path;
use std::sync::Arc;

use crate::decisions::Decisions;
use crate::engine::Engine;
use crate::error::Error;
use crate::lora::adapter::{Adapter, AdapterFormat, LightLora, write_adapter_with, write_light, write_light_full};
use crate::predict::video2lora::auxiliary_factors;

pub mod cache;
pub mod mapped;
pub mod video2lora;

/// What a hypernetwork predicted.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The adapter.
    pub adapter: Adapter,
    /// The tokens that it was expanded from, a few kilobytes.
    pub tokens: LightLora,
    /// True if it was kept from an earlier request, false if it is kept now; `None` without a prediction cache.
    pub cached: Option<bool>,
    /// What was decided where `auto` was asked for.
    pub decisions: Decisions,
    /// The hypernetwork's engine, mapped.
    pub(crate) engine: Arc<Engine>,
}

impl Prediction {
    /// Writes the adapter, whole or not at all; what is there is replaced. The two light forms hold tokens, which take this
    /// hypernetwork to expand, or what expands them.
    ///
    /// # Errors
    /// [`AdapterError`](crate::lora::adapter::AdapterError), [`WeightError`](crate::io::weights::WeightError).
    pub fn save(&self, path: impl AsRef<Path>, format: AdapterFormat) -> Result<(), Error> {
        let (path, notes) = (path.as_ref(), &self.decisions.metadata());
        match format {
            AdapterFormat::Light => write_light(path, &self.tokens, notes)?,
            AdapterFormat::LightFull => write_light_full(path, &self.tokens, &auxiliary_factors(&self.engine)?, notes)?,
            _ => write_adapter_with(path, &self.adapter, format, notes)?,
        }
        Ok(())
    }
}
