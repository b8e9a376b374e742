//! What a family of models, and a network, is.

use std::fmt;
use std::path::Path;

use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use crate::{Component, ExportError};

/// The place of a network in a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Transformer,
    Vae,
    TextEncoder,
    ImageEncoder,
}

impl Part {
    /// In the order in which a pipeline is exported.
    pub(crate) const ALL: [Self; 4] = [Self::Transformer, Self::Vae, Self::TextEncoder, Self::ImageEncoder];

    /// Its folder in diffusers' layout.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::ImageEncoder => "image_encoder",
        }
    }
}

/// One class of network, as a `config.json` names it.
pub(crate) trait Architecture: Sync {
    /// diffusers' `_class_name`, or the first of transformers' `architectures`.
    fn class(&self) -> &'static str;

    /// Its place in a pipeline.
    fn part(&self) -> Part;

    /// Exports the folder of a network, `config.json` and safetensors, and describes it in `pipeline`, which holds the
    /// parts before it in [`Part::ALL`].
    ///
    /// # Errors
    /// Names what does not fit; see [`ExportError`].
    fn export(&self, folder: &Path, pipeline: &mut PipelineConfig) -> Result<Vec<Component>, ExportError>;
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
}
