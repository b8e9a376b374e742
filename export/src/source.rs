//! Where the parts of a model folder lie.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::ExportError;
use crate::files::read_json;
use crate::models::{self, Architecture, Family, INDEX_FILE, Part, Place};

/// The file that says how a scheduler samples.
pub(crate) const SCHEDULER_FILE: &str = "scheduler_config.json";

/// The parts of a model.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// In the order in which they are exported.
    pub(crate) networks: Vec<Network>,
    /// The tokenizer's folder.
    pub(crate) tokenizer: Option<PathBuf>,
    /// The scheduler's configuration.
    pub(crate) scheduler: Option<PathBuf>,
    /// What `model_index.json` says; null without one.
    pub(crate) index: Json,
}

/// A network of a model.
#[derive(Debug)]
pub(crate) struct Network {
    /// What it is.
    pub(crate) architecture: &'static dyn Architecture,
    /// Its place in the pipeline.
    pub(crate) part: Part,
    /// `config.json` and its checkpoint.
    pub(crate) folder: PathBuf,
}

impl Source {
    /// Finds the parts of a pipeline, or the network that `model` itself is.
    pub(crate) fn find(model: &Path) -> Result<Self, ExportError> {
        if !model.is_dir() {
            let reason = format!("expected a folder with {INDEX_FILE}, or with config.json and safetensors");
            return Err(ExportError::NotAModel { path: model.to_owned(), reason });
        }
        let mut source = Self::default();
        if model.join("config.json").is_file() {
            let architecture = architecture(model, None, None)?;
            let folder = model.to_owned();
            source.networks.push(Network { architecture, part: architecture.part(), folder });
            return Ok(source);
        }
        let index = model.join(INDEX_FILE);
        if index.is_file() {
            source.index = read_json(&index)?;
        }
        for part in Part::ALL {
            source.networks.extend(source.network(model, part)?);
        }
        let existing = |path: PathBuf| path.exists().then_some(path);
        source.tokenizer = existing(model.join("tokenizer"));
        source.scheduler = existing(model.join("scheduler").join(SCHEDULER_FILE));
        if source.networks.is_empty() {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason: "expected config.json, or the folders transformer, vae, text_encoder of a diffusers pipeline"
                    .into(),
            });
        }
        Ok(source)
    }

    /// The network of a part, if the pipeline has one.
    fn network(&self, model: &Path, part: Part) -> Result<Option<Network>, ExportError> {
        let folder = model.join(part.folder());
        let named = self.index[part.folder()].as_array();
        if named.is_some_and(|names| names.iter().all(Json::is_null)) {
            return Ok(None);
        }
        if folder.join("config.json").is_file() {
            let architecture = architecture(&folder, Some(part), self.index["_class_name"].as_str())?;
            return Ok(Some(Network { architecture, part, folder }));
        }
        if folder.is_dir() {
            return Err(ExportError::NotAModel { path: folder, reason: "there is no config.json".into() });
        }
        // Other parts may be left out to export the rest.
        match named.filter(|_| matches!(part, Part::Transformer | Part::Transformer2)) {
            Some(_) => Err(ExportError::NotAModel {
                path: folder,
                reason: format!(
                    "{INDEX_FILE} names this transformer, and it is not there; was the model downloaded completely?"
                ),
            }),
            None => Ok(None),
        }
    }

    /// Where a network of this model stands.
    pub(crate) fn place<'a>(&'a self, network: &'a Network) -> Place<'a> {
        Place { folder: &network.folder, part: network.part, index: &self.index }
    }

    /// The family of the first network that has one.
    pub(crate) fn family(&self) -> Option<&'static dyn Family> {
        self.networks.iter().find_map(|network| models::family_of(network.architecture))
    }
}

/// The architecture of a network's folder, by the class that its configuration names; `pipeline` is the class of the
/// whole.
fn architecture(
    folder: &Path,
    expected: Option<Part>,
    pipeline: Option<&str>,
) -> Result<&'static dyn Architecture, ExportError> {
    let path = folder.join("config.json");
    let config: Json = read_json(&path)?;
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap_or_default();
    let architecture = models::find(class, pipeline, &path)?;
    match expected.filter(|part| !part.takes(architecture.part())) {
        Some(part) => Err(ExportError::config(path, format!("class `{class}` is no {}", part.folder()))),
        None => Ok(architecture),
    }
}
