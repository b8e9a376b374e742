//! What a family of models, and a network, is.

use std::fmt;
use std::path::Path;

use serde_json::Value as Json;
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use crate::{Component, ExportError};

/// The file that names a pipeline's parts.
pub(crate) const INDEX_FILE: &str = "model_index.json";

/// The place of a network in a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Transformer,
    /// The transformer of a model's last steps, of models that have two.
    Transformer2,
    Vae,
    TextEncoder,
    ImageEncoder,
}

impl Part {
    /// In the order in which a pipeline is exported.
    pub(crate) const ALL: [Self; 5] =
        [Self::Transformer, Self::Transformer2, Self::Vae, Self::TextEncoder, Self::ImageEncoder];

    /// Its folder in diffusers' layout.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Transformer2 => "transformer_2",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::ImageEncoder => "image_encoder",
        }
    }
}

impl Part {
    /// True if a network for the place `other` can stand here.
    pub(crate) fn takes(self, other: Self) -> bool {
        self == other || (self == Self::Transformer2 && other == Self::Transformer)
    }
}

/// A network of a model folder.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "wan"), allow(dead_code, reason = "families use it, and this build may have none that does"))]
pub(crate) struct Place<'a> {
    /// Holds `config.json` and the checkpoint.
    pub(crate) folder: &'a Path,
    /// What it is in the pipeline.
    pub(crate) part: Part,
    /// What the pipeline's `model_index.json` says; null without one.
    pub(crate) index: &'a Json,
}

/// One class of network, as a `config.json` names it.
pub(crate) trait Architecture: Sync {
    /// diffusers' `_class_name`, or the first of transformers' `architectures`.
    fn class(&self) -> &'static str;

    /// Its place in a pipeline.
    fn part(&self) -> Part;

    /// Exports a network and describes it in `pipeline`, which holds the parts before it in [`Part::ALL`].
    ///
    /// # Errors
    /// Names what does not fit; see [`ExportError`].
    fn export(&self, place: &Place<'_>, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError>;
}

impl fmt::Debug for dyn Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
}

/// Networks that were made for each other.
pub(crate) trait Family: Sync {
    /// Its networks, encoders that others use, too, left out.
    fn architectures(&self) -> &'static [&'static dyn Architecture];

    /// What its transformers are trained to undo.
    fn sampling(&self) -> Kind;

    /// The sampler of the family's own inference code, where that is not the one that the scheduler's class names.
    fn sampler(&self, pipeline: &PipelineConfig) -> Option<&'static str>;

    /// Checks that the networks of the folder `model`, whose `model_index.json` is `index`, were made for each other, and
    /// describes what they need besides.
    ///
    /// # Errors
    /// Names what is missing or does not fit; see [`ExportError`].
    fn join(
        &self,
        _model: &Path,
        _index: &Json,
        _components: &[Component],
        _pipeline: &mut PipelineConfig,
    ) -> Result<(), ExportError> {
        Ok(())
    }
}
