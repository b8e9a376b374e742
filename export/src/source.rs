//! Where the parts of a model folder lie.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value as Json;
use v2l_graphs::DataType;

use crate::checkpoint::Section;
use crate::files::read_json;
use crate::models::encoders::t5;
use crate::models::{self, Architecture, CONFIG_FILE, Family, INDEX_FILE, Origin, Part, Place};
use crate::{Checkpoint, ExportError};

/// The file that says how a scheduler samples.
pub(crate) const SCHEDULER_FILE: &str = "scheduler_config.json";

/// The parts of a model.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// In the order in which they are exported.
    pub(crate) networks: Vec<Network>,
    /// The tokenizer.
    pub(crate) tokenizer: Option<TokenizerSource>,
    /// The scheduler's configuration, and where it stands.
    pub(crate) scheduler: Option<SchedulerSource>,
    /// What `model_index.json` says; null without one.
    pub(crate) index: Json,
    /// What a user should know: what was taken for granted, and what the files had lost before.
    pub(crate) notes: Vec<String>,
}

/// Where a tokenizer comes from.
#[derive(Debug)]
pub(crate) enum TokenizerSource {
    /// A folder.
    Folder(PathBuf),
    /// A tensor of the text encoder's file.
    Embedded(PathBuf, Bytes),
}

/// Where a scheduler's configuration comes from.
#[derive(Debug)]
pub(crate) enum SchedulerSource {
    /// A file.
    File(PathBuf),
    /// The family's own.
    Assumed(Json),
}

impl SchedulerSource {
    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Assumed(_) => None,
        }
    }
}

/// A network of a model.
#[derive(Debug)]
pub(crate) struct Network {
    /// What it is.
    pub(crate) architecture: &'static dyn Architecture,
    /// Its place in the pipeline.
    pub(crate) part: Part,
    /// Its configuration and its checkpoint.
    pub(crate) origin: Origin,
}

/// Parts of a model that are given one by one: each a folder as in diffusers' layout, or a single safetensors file. They stand beside
/// those that the model itself has, or in their place.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The transformer.
    pub transformer: Option<PathBuf>,
    /// The transformer of the last steps, of models with two.
    pub transformer_2: Option<PathBuf>,
    /// The autoencoder.
    pub vae: Option<PathBuf>,
    /// The text encoder.
    pub text_encoder: Option<PathBuf>,
    /// The image encoder.
    pub image_encoder: Option<PathBuf>,
    /// The folder of the tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// The scheduler's `scheduler_config.json`, or its folder.
    pub scheduler: Option<PathBuf>,
}

impl Parts {
    fn networks(&self) -> [(Part, &Option<PathBuf>); 5] {
        [
            (Part::Transformer, &self.transformer),
            (Part::Transformer2, &self.transformer_2),
            (Part::Vae, &self.vae),
            (Part::TextEncoder, &self.text_encoder),
            (Part::ImageEncoder, &self.image_encoder),
        ]
    }

    /// The first network that is given.
    pub fn first(&self) -> Option<&Path> {
        self.networks().into_iter().find_map(|(_, path)| path.as_deref())
    }
}

/// The folders of the two transformers in the layout of Wan's authors.
const EXPERTS: [(Part, &str); 2] = [(Part::Transformer, "high_noise_model"), (Part::Transformer2, "low_noise_model")];

impl Source {
    /// Finds the parts of a pipeline, or the network that `model` itself is, and those that are given one by one. `model` may be
    /// the first of these.
    pub(crate) fn find(model: &Path, parts: &Parts) -> Result<Self, ExportError> {
        let given = parts.networks();
        if !model.exists() {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason:
                    "there is no such file or folder; expected a folder with model_index.json, or with config.json and safetensors, or a \
                         safetensors or GGUF file"
                        .into(),
            });
        }
        let mut source = match parts.first() == Some(model) {
            true => Self::default(),
            false if model.is_dir() => {
                Self::folder(model, &|part| given.iter().any(|(of, path)| *of == part && path.is_some()))?
            }
            false => Self { networks: Network::all(model)?, ..Self::default() },
        };
        for (part, path) in given {
            let Some(path) = path else { continue };
            source.networks.retain(|network| network.part != part);
            source.networks.push(Network::open(path, Some(part))?);
        }
        source.networks.sort_by_key(|network| Part::ALL.iter().position(|part| *part == network.part));
        if let Some(folder) = &parts.tokenizer {
            source.tokenizer = Some(TokenizerSource::Folder(folder.clone()));
        }
        if let Some(path) = &parts.scheduler {
            let file = if path.is_dir() { path.join(SCHEDULER_FILE) } else { path.clone() };
            source.scheduler = Some(SchedulerSource::File(file));
        }
        source.complete()?;
        Ok(source)
    }

    /// The parts of a folder, but those that are `replaced`: their weights may be elsewhere.
    fn folder(model: &Path, replaced: &dyn Fn(Part) -> bool) -> Result<Self, ExportError> {
        let mut source = Self::default();
        if model.join(CONFIG_FILE).is_file() {
            source.networks.push(Network::open(model, None)?);
            return Ok(source);
        }
        let index = model.join(INDEX_FILE);
        if index.is_file() {
            source.index = read_json(&index)?;
        }
        for part in Part::ALL.into_iter().filter(|part| !replaced(*part)) {
            source.networks.extend(source.network(model, part)?);
        }
        for (part, folder) in EXPERTS {
            let folder = model.join(folder);
            if !replaced(part) && source.networks.iter().all(|network| network.part != part) && folder.is_dir() {
                source.networks.push(Network::open(&folder, Some(part))?);
            }
        }
        let existing = |path: PathBuf| path.exists().then_some(path);
        source.tokenizer = existing(model.join("tokenizer")).map(TokenizerSource::Folder);
        source.scheduler = existing(model.join("scheduler").join(SCHEDULER_FILE)).map(SchedulerSource::File);
        let mut folders = Part::ALL.map(|part| (part, part.folder())).into_iter().chain(EXPERTS);
        let left_out = folders.any(|(part, folder)| replaced(part) && model.join(folder).is_dir());
        if source.networks.is_empty() && !left_out {
            return Err(ExportError::NotAModel {
                path: model.to_owned(),
                reason:
                    "expected config.json, or the folders transformer, vae, text_encoder of a diffusers pipeline, or a \
                         single safetensors file"
                        .into(),
            });
        }
        Ok(source)
    }

    /// Adds what a model in single files does not say: where its tokenizer lies, how its steps are divided, how it samples.
    fn complete(&mut self) -> Result<(), ExportError> {
        for network in &self.networks {
            self.notes.extend(network.lost()?);
        }
        let of = |part: Part| self.networks.iter().find(|network| network.part == part);
        if let (None, Some(Network { origin: origin @ Origin::Tensors { path, .. }, .. })) =
            (&self.tokenizer, of(Part::TextEncoder))
            && let Some(model) = origin.checkpoint()?.bytes(t5::TOKENIZER)
        {
            self.tokenizer = Some(TokenizerSource::Embedded(path.clone(), model));
        }
        let Some((transformer, family)) =
            of(Part::Transformer).and_then(|network| Some((network, models::family_of(network.architecture)?)))
        else {
            return Ok(());
        };
        let config: Json = transformer.origin.config()?;
        let (two, whole) = (of(Part::Transformer2).is_some(), of(Part::Vae).is_some());
        if self.index.is_null() && two {
            self.index = family.index(&config, two);
            if let Some(boundary) = self.index["boundary_ratio"].as_f64() {
                self.notes.push(format!(
                    "the files do not say where the second transformer takes over: the first makes the steps above \
                     {boundary} of all noise, as published; `v2l-run --boundary-ratio` sets another value"
                ));
            }
        }
        if self.scheduler.is_none()
            && whole
            && matches!(transformer.origin, Origin::Tensors { .. })
            && let Some(scheduler) = family.scheduler(&config)
        {
            self.notes.push(format!(
                "the files do not say how to sample: {} with shift {} is taken, as published; --scheduler names another",
                scheduler["_class_name"].as_str().unwrap_or_default(),
                scheduler["flow_shift"]
            ));
            self.scheduler = Some(SchedulerSource::Assumed(scheduler));
        }
        Ok(())
    }

    /// The network of a part, if the pipeline has one.
    fn network(&self, model: &Path, part: Part) -> Result<Option<Network>, ExportError> {
        let folder = model.join(part.folder());
        let named = self.index[part.folder()].as_array();
        if named.is_some_and(|names| names.iter().all(Json::is_null)) {
            return Ok(None);
        }
        if folder.join(CONFIG_FILE).is_file() {
            let architecture = architecture(&folder, Some(part), self.index["_class_name"].as_str())?;
            return Ok(Some(Network { architecture, part, origin: Origin::folder(&folder, architecture)? }));
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

    /// Where a network of this model stands, its matrices to be stored in `precision`.
    pub(crate) fn place<'a>(&'a self, network: &'a Network, precision: Option<DataType>) -> Place<'a> {
        Place { origin: &network.origin, part: network.part, controls: None, index: &self.index, precision }
    }

    /// The family of the first network that has one.
    pub(crate) fn family(&self) -> Option<&'static dyn Family> {
        self.networks.iter().find_map(|network| models::family_of(network.architecture))
    }
}

impl Network {
    /// What the checkpoint had lost before it came here, in words.
    fn lost(&self) -> Result<Option<String>, ExportError> {
        let checkpoint = self.origin.checkpoint()?;
        let forms: Vec<String> =
            checkpoint.quantised().into_iter().map(|(form, count)| format!("{count} in {form}")).collect();
        Ok((!forms.is_empty()).then(|| {
            format!(
                "{}: {} of {} tensors were quantised ({}); they are dequantised exactly, and what quantising lost stays lost",
                checkpoint.label(),
                checkpoint.quantised().values().sum::<usize>(),
                checkpoint.names().count(),
                forms.join(", ")
            )
        }))
    }

    /// A network by itself: a folder with a configuration of a class that is known, or tensors that say what they are.
    fn open(path: &Path, expected: Option<Part>) -> Result<Self, ExportError> {
        let config = path.join(CONFIG_FILE);
        let beside = if path.is_dir() { config.clone() } else { path.with_file_name(CONFIG_FILE) };
        if path.is_dir() && config.is_file() {
            let class: Json = read_json(&config)?;
            if class["_class_name"] != NATIVE_CLASS {
                let architecture = architecture(path, expected, None)?;
                let part = expected.unwrap_or_else(|| architecture.part());
                return Ok(Self { architecture, part, origin: Origin::folder(path, architecture)? });
            }
        }
        let beside = if beside.is_file() { read_json(&beside)? } else { Json::Null };
        let sections = Checkpoint::sections(path)?;
        let section = match expected.filter(|_| !sections.is_empty()) {
            None => None,
            Some(part) => {
                let found = sections.iter().copied().find(|section| part.takes(part_of(*section)));
                Some(found.ok_or_else(|| {
                    let folders: Vec<&str> = sections.iter().map(|section| part_of(*section).folder()).collect();
                    let reason = format!("it holds {}, and no {}", folders.join(", "), part.folder());
                    ExportError::NotAModel { path: path.to_owned(), reason }
                })?)
            }
        };
        Self::recognised(path, section, &beside, expected)
    }

    /// Every network of a file: the one that it is, or those that it holds.
    fn all(path: &Path) -> Result<Vec<Self>, ExportError> {
        match Checkpoint::sections(path)?.as_slice() {
            [] => Ok(vec![Self::open(path, None)?]),
            sections => sections.iter().map(|section| Self::open(path, Some(part_of(*section)))).collect(),
        }
    }

    /// The network that tensors say they are, `beside` a `config.json` of whatever kind.
    fn recognised(
        path: &Path,
        section: Option<Section>,
        beside: &Json,
        expected: Option<Part>,
    ) -> Result<Self, ExportError> {
        let (architecture, found) = models::recognise(&Checkpoint::open_section(path, section)?, beside)?;
        let origin = Origin::Tensors { path: path.to_owned(), section, found };
        let part = expected.unwrap_or_else(|| architecture.part());
        if !part.takes(architecture.part()) {
            let reason =
                format!("its tensors are those of `{}`, which is not a {}", architecture.class(), part.folder());
            return Err(ExportError::NotAModel { path: path.to_owned(), reason });
        }
        Ok(Self { architecture, part, origin })
    }
}

/// The place of a section's network in a pipeline.
fn part_of(section: Section) -> Part {
    match section {
        Section::Transformer => Part::Transformer,
        Section::Vae => Part::Vae,
        Section::TextEncoder => Part::TextEncoder,
    }
}

/// What Wan's authors call their transformers; their configuration says less than diffusers'.
const NATIVE_CLASS: &str = "WanModel";

/// The architecture of a network's folder, by the class that its configuration names; `pipeline` is the class of the
/// whole.
fn architecture(
    folder: &Path,
    expected: Option<Part>,
    pipeline: Option<&str>,
) -> Result<&'static dyn Architecture, ExportError> {
    let path = folder.join(CONFIG_FILE);
    let config: Json = read_json(&path)?;
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap_or_default();
    let architecture = models::find(class, pipeline, &path)?;
    match expected.filter(|part| !part.takes(architecture.part())) {
        Some(part) => Err(ExportError::config(path, format!("class `{class}` is no {}", part.folder()))),
        None => Ok(architecture),
    }
}
