//! What a family of models, and a network, is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use v2l_graphs::DataType;
use v2l_runtime::io::json;
use v2l_runtime::pipeline::config::PipelineConfig;
use v2l_runtime::schedulers::Kind;

use super::control::Controls;
use super::recognised::Recognised;
use crate::checkpoint::Section;
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
    Folder {
        /// The folder.
        path: PathBuf,
        /// The checkpoint's names, where they differ from the architecture's, and the architecture's.
        names: BTreeMap<String, String>,
    },
    /// A file, or a folder of one, that was recognised by its tensors.
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// The network, of a file that holds several.
        section: Option<Section>,
        /// What it is.
        found: Recognised,
    },
}

impl Origin {
    /// A folder with the `config.json` of an architecture.
    ///
    /// # Errors
    /// As [`Checkpoint::open_folder`] and [`Architecture::names`].
    pub(crate) fn folder(path: &Path, architecture: &dyn Architecture) -> Result<Self, ExportError> {
        let names = architecture.names(&Checkpoint::open_folder(path)?)?;
        Ok(Self::Folder { path: path.to_owned(), names })
    }

    /// The checkpoint, its tensors under the names that they have there.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, ExportError> {
        match self {
            Self::Folder { path, .. } => Checkpoint::open_folder(path),
            Self::Tensors { path, section, .. } => Checkpoint::open_section(path, *section),
        }
    }

    /// Where the configuration stands, for messages.
    pub(crate) fn config_path(&self) -> PathBuf {
        match self {
            Self::Folder { path, .. } => path.join(CONFIG_FILE),
            Self::Tensors { path, .. } => path.clone(),
        }
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`ExportError::Config`] if it is not what it should be.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, ExportError> {
        match self {
            Self::Folder { path, .. } => {
                let path = path.join(CONFIG_FILE);
                let value: Json = read_json(&path)?;
                check_epsilons(&value).map_err(|reason| ExportError::config(&path, reason))?;
                // From the text, so that errors have their place in it.
                read_json(&path)
            }
            Self::Tensors { path, found, .. } => {
                check_epsilons(&found.config).map_err(|reason| ExportError::config(path, reason))?;
                json::typed(&found.config).map_err(|e| ExportError::config(path, e.to_string()))
            }
        }
    }
}

/// What the networks' classes call the number that a norm adds to a variance.
const EPSILONS: [&str; 4] = ["eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon"];

/// Refuses a norm that divides by the root of a negative number, or that flattens everything.
fn check_epsilons(config: &Json) -> Result<(), String> {
    let number = |key: &&str| config.get(*key).filter(|value| value.is_number());
    let wrong = |key: &&str| number(key).and_then(Json::as_f64).is_some_and(|value| !(value > 0.0 && value <= 1.0));
    match EPSILONS.iter().find(|key| wrong(key)) {
        Some(key) => Err(format!("`{key}` is {}, expected more than 0, at most 1", config[*key])),
        None => Ok(()),
    }
}

/// A network of a model.
#[derive(Clone, Copy, Debug)]
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
        let names = match self.origin {
            Origin::Folder { names, .. } => names,
            Origin::Tensors { found, .. } => &found.names,
        };
        let checkpoint = self.origin.checkpoint()?.renamed(|name| names.get(name).cloned())?;
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

    /// The names of a checkpoint of this class where they differ from the architecture's, and the architecture's: those of authors, or
    /// of other programs. None of a checkpoint that has the architecture's, or names that nobody knows.
    ///
    /// # Errors
    /// Names what only looks like this class.
    fn names(&self, _checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>, ExportError> {
        Ok(BTreeMap::new())
    }

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn epsilon_out_of_range_is_refused_by_name_in_every_class_of_network() {
        for key in EPSILONS {
            for wrong in [json!(-1), json!(0), json!(-1e-6), json!(1e30), json!(1.5)] {
                let error = check_epsilons(&json!({ key: wrong })).unwrap_err();
                assert!(error.contains(&format!("`{key}` is ")) && error.contains("more than 0, at most 1"), "{error}");
            }
            for right in [json!(1e-6), json!(1e-5), json!(1e-12), json!(1), json!(null)] {
                assert_eq!(check_epsilons(&json!({ key: right })), Ok(()), "{key} {right}");
            }
        }
        assert_eq!(check_epsilons(&json!({ "dim": 4 })), Ok(()));
    }
}
