//! What a family of models, and a network, is.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use v2l_graphs::DataType;
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use super::control::Controls;
use super::recognised::Recognised;
use crate::files::read_json;
use crate::{Checkpoint, Component, ExportError};

/// The file that names a pipeline's parts.
pub(crate) const INDEX_FILE: &str = "model_index.json";
/// The file that describes a network.
pub(crate) const CONFIG_FILE: &str = "config.json";

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

/// Where a network's configuration and checkpoint are.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// A folder with `config.json`.
    Folder(PathBuf),
    /// A file, or a folder of one, that was recognised by its tensors.
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: Recognised,
    },
}

impl Origin {
    /// Where the configuration stands, for messages.
    pub(crate) fn config_path(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(CONFIG_FILE),
            Self::Tensors { path, .. } => path.clone(),
        }
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`ExportError::Config`] if it is not what it should be.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, ExportError> {
        match self {
            Self::Folder(folder) => read_json(&folder.join(CONFIG_FILE)),
            Self::Tensors { path, found } => {
                serde_json::from_value(found.config.clone()).map_err(|e| ExportError::config(path, e.to_string()))
            }
        }
    }
}

/// A network of a model.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "wan"), allow(dead_code, reason = "families use it, and this build may have none that does"))]
pub(crate) struct Place<'a> {
    /// Its configuration and checkpoint.
    pub(crate) origin: &'a Origin,
    /// The type to store matrices in; `None`: the one in which they lose nothing.
    pub(crate) precision: Option<DataType>,
    /// What it is in the pipeline.
    pub(crate) part: Part,
    /// Control tokens of its transformers.
    pub(crate) controls: Option<&'a Controls>,
    /// What the pipeline's `model_index.json` says; null without one.
    pub(crate) index: &'a Json,
}

impl Place<'_> {
    /// Opens the checkpoint, its tensors under the architecture's names.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, ExportError> {
        let checkpoint = match self.origin {
            Origin::Folder(folder) => Checkpoint::open_folder(folder)?,
            Origin::Tensors { path, found } => {
                Checkpoint::open(path)?.renamed(|name| found.names.get(name).cloned())?
            }
        };
        Ok(checkpoint.stored_as(self.precision))
    }
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

    /// What a checkpoint is that comes without a configuration of this class, by its tensors; `beside` is a `config.json` of
    /// whatever kind that lies there, or null. `None` if it is another class's.
    ///
    /// # Errors
    /// Names what only looks like this class, or what is missing.
    fn recognise(&self, _checkpoint: &Checkpoint, _beside: &Json) -> Result<Option<Recognised>, ExportError> {
        Ok(None)
    }
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

    /// What `model_index.json` would say of a model that comes without one, as parts; null if nothing. `transformer` is its
    /// configuration, and `two` says that there is a second one.
    fn index(&self, _transformer: &Json, _two: bool) -> Json {
        Json::Null
    }

    /// The scheduler of a model that comes without one, with this `model_index.json`.
    fn scheduler(&self, _transformer: &Json) -> Option<Json> {
        None
    }

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
