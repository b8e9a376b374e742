//! `pipeline.json`: what a bundle or an engine directory says of itself.
//!
//! Written by `v2l-export`, copied by `v2l-compile` with the components' paths replaced, read by the runtime.

use std::collections::BTreeMap;
use std::path::{Component as PathPart, Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::components::{IMAGE_ENCODER, TRANSFORMER};
use crate::error::Unusable;
use crate::error::{Classified, ErrorClass};
use crate::io::map::read_member;
use crate::models;
use crate::models::family::{Family, Sections, UnknownFamily};
use crate::request::Defaults;
use crate::schedulers::{self, Scheduler, SchedulerError};
use crate::values::{WrongValue, between, real};

/// The value of `format`.
pub const FORMAT: &str = "v2l-pipeline";
/// The `version` that this build reads and writes.
pub const VERSION: u32 = 1;
/// Name of the file in its directory.
pub const FILE_NAME: &str = "pipeline.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Why a `pipeline.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// It is no JSON, or a key is missing or of the wrong type.
    #[error("pipeline.json: {0}")]
    Json(#[from] serde_json::Error),
    /// It is another kind of file.
    #[error("pipeline.json: `format` is {found:?}, expected {FORMAT:?}; is this a v2l bundle or engine directory?")]
    Format {
        /// Value found.
        found: String,
    },
    /// It is of another version.
    #[error(
        "pipeline.json: `version` is {found}, expected {VERSION}; export the model again (v2l-export MODEL -o BUNDLE), then compile it (v2l-compile)"
    )]
    Version {
        /// Value found, as JSON; `null` if there is none.
        found: serde_json::Value,
    },
    /// It describes a model, and does not name its family.
    #[error(
        "pipeline.json: `family` is missing; export the model again (v2l-export MODEL -o BUNDLE), then compile it (v2l-compile)"
    )]
    NoFamily,
    /// A value makes no sense.
    #[error(transparent)]
    Value(#[from] WrongValue),
    /// It is of a family that this build does not have.
    #[error(transparent)]
    Family(#[from] UnknownFamily),
    /// A path leads out of the directory.
    #[error("pipeline.json: `{key}` is {found:?}, expected a relative path without `..`, inside the directory")]
    Path {
        /// Dotted key.
        key: String,
        /// Value found.
        found: String,
    },
    /// The scheduler cannot be used.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}

impl Classified for ConfigError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::Version { .. } | Self::NoFamily => ErrorClass::Version,
            Self::Scheduler(error) => error.class(),
            Self::Family(error) => error.class(),
            _ => ErrorClass::BadModel,
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineConfig {
    /// The networks: `transformer`, `transformer_2`, `vae_encoder`, `vae_decoder`, `text_encoder`, `image_encoder`,
    /// `hypernetwork`. Any may be absent.
    pub components: IndexMap<String, ComponentFiles>,
    /// The model, as the sections `transformer`, `vae` and `image_encoder` describe it to its family; `None` if there
    /// are none.
    pub family: Option<Arc<dyn Family>>,
    /// The sampler.
    pub scheduler: Option<SchedulerSection>,
    /// Prompt to ids.
    pub tokenizer: Option<TokenizerConfig>,
    /// Prompt to ids of the predictor's own text encoder, if it has one.
    pub predictor_tokenizer: Option<TokenizerConfig>,
    /// Names of the controls that the transformers' graph `step_control` takes, in their order.
    pub controls: Vec<String>,
    /// How a reference video becomes a latent.
    pub reference: ReferenceConfig,
    /// What a request takes if it does not say otherwise.
    pub defaults: Defaults,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    /// Absent only where there are no sections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    components: IndexMap<String, ComponentFiles>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transformer: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vae: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_encoder: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheduler: Option<SchedulerSection>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokenizer: Option<TokenizerConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predictor_tokenizer: Option<TokenizerConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    controls: Vec<String>,
    #[serde(default)]
    reference: ReferenceConfig,
    #[serde(default)]
    defaults: Defaults,
}

impl Serialize for PipelineConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sections = self.family.as_ref().map(|family| family.sections()).transpose().map_err(S::Error::custom)?;
        let Sections { transformer, vae, image_encoder } = sections.unwrap_or_default();
        let config = self.clone();
        let file = File {
            format: FORMAT.to_owned(),
            version: VERSION,
            family: self.family.as_ref().map(|family| family.name().to_owned()),
            components: config.components,
            transformer,
            vae,
            image_encoder,
            scheduler: config.scheduler,
            tokenizer: config.tokenizer,
            predictor_tokenizer: config.predictor_tokenizer,
            controls: config.controls,
            reference: config.reference,
            defaults: config.defaults,
        };
        file.serialize(serializer)
    }
}

/// The files of a component, relative to the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ComponentFiles {
    /// In an engine directory.
    Engine(EngineFiles),
    /// In a bundle.
    Graphs(GraphFiles),
}

/// A compiled component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFiles {
    /// The `.engine` file.
    pub engine: String,
}

/// An exported component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFiles {
    /// ONNX files by graph name, e.g. `step`.
    pub graphs: BTreeMap<String, String>,
    /// The weights that the graphs share.
    pub weights: String,
}

/// The sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// diffusers' `scheduler_config.json` as it is.
    pub config: serde_json::Value,
    /// Which sampler to use; absent: what the config's class says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
}

/// Prompt to ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// `tokenizer.json`, relative to the directory.
    pub file: String,
    /// Ids per prompt.
    pub max_length: usize,
    /// Id that fills up; absent: the tokenizer's own, or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_id: Option<u32>,
}

/// How a reference video becomes a latent. Checkpoints differ: they were trained by scripts that differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceConfig {
    /// Range of the pixels.
    pub range: PixelRange,
    /// Which frames.
    pub frames: ReferenceFrames,
    /// How frames get the target size.
    pub resize: ReferenceResize,
    /// Which latent of the distribution.
    pub latent: LatentChoice,
}

impl Default for ReferenceConfig {
    /// As Video2LoRA's `predict_i2v.py`, except that the latent is the mean where it draws a sample.
    fn default() -> Self {
        Self {
            range: PixelRange::Unit,
            frames: ReferenceFrames::All,
            resize: ReferenceResize::Stretch,
            latent: LatentChoice::Mean,
        }
    }
}

/// Range of reference pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelRange {
    /// [0, 1].
    Unit,
    /// [-1, 1].
    Signed,
}

/// Which frames of a reference video count.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceFrames {
    /// All of them.
    All,
    /// The first n, or fewer if there are fewer.
    FirstN(usize),
    /// Up to `count` frames at `fps`: for each time k / fps the nearest frame. A source that does not know its own rate is
    /// taken to have `fps`.
    Resample {
        /// Frames at most.
        count: usize,
        /// Frames per second.
        fps: f64,
    },
}

/// How reference frames get the target size. Bicubic as in Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceResize {
    /// Width and height independently.
    Stretch,
    /// Keeping the aspect ratio until the target is covered; then the centre is cut out.
    CoverCrop,
    /// Not at all.
    None,
}

/// Which latent of the encoder's distribution is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentChoice {
    /// Its mean (diffusers' `mode()`).
    Mean,
    /// A sample, drawn from the run's seed.
    Sample,
}

impl PipelineConfig {
    /// A pipeline without components.
    pub fn empty() -> Self {
        Self {
            components: IndexMap::new(),
            family: None,
            scheduler: None,
            tokenizer: None,
            predictor_tokenizer: None,
            controls: Vec::new(),
            reference: ReferenceConfig::default(),
            defaults: Defaults { negative_prompt: String::new(), ..Defaults::default() },
        }
    }

    /// Reads and checks `directory/pipeline.json`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(FILE_NAME);
        let io = |source| ConfigError::Io { path: path.clone(), source };
        let bytes = read_member(&path, MAX_FILE).map_err(io)?;
        let not_text = |_| io(Unusable("expected text in UTF-8, found other bytes".to_owned()).into());
        Self::from_json(std::str::from_utf8(&bytes).map_err(not_text)?)
    }

    /// Parses and checks the text of a `pipeline.json`. Format and version are looked at before anything else.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            #[serde(default)]
            version: serde_json::Value,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != FORMAT {
            return Err(ConfigError::Format { found: head.format });
        }
        if head.version != VERSION {
            return Err(ConfigError::Version { found: head.version });
        }
        let file: File = serde_json::from_str(text)?;
        let sections = [&file.transformer, &file.vae, &file.image_encoder];
        let family = match &file.family {
            // From the text, so that errors have their place in it.
            Some(name) => Some((models::find(name)?.read)(text)?),
            None if sections.iter().any(|section| section.is_some()) => return Err(ConfigError::NoFamily),
            None => None,
        };
        let config = Self {
            components: file.components,
            family,
            scheduler: file.scheduler,
            tokenizer: file.tokenizer,
            predictor_tokenizer: file.predictor_tokenizer,
            controls: file.controls,
            reference: file.reference,
            defaults: file.defaults,
        };
        config.check()?;
        Ok(config)
    }

    /// The text of the file, with a final newline.
    ///
    /// # Errors
    /// [`ConfigError`] if the values would not be read again.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        self.check()?;
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The scheduler, if the pipeline has one.
    ///
    /// # Errors
    /// [`SchedulerError`] if its configuration is not supported.
    pub fn scheduler(&self) -> Result<Option<Box<dyn Scheduler>>, SchedulerError> {
        self.scheduler_for(None)
    }

    /// The scheduler for a request that may ask for another one by name, if the pipeline has one.
    ///
    /// # Errors
    /// [`SchedulerError::Unknown`] if no scheduler for this model has that name; else as [`Self::scheduler`].
    pub fn scheduler_for(&self, asked: Option<&str>) -> Result<Option<Box<dyn Scheduler>>, SchedulerError> {
        let Some(section) = &self.scheduler else { return Ok(None) };
        if let Some(family) = &self.family {
            schedulers::check_kind(&section.config, family.sampling())?;
        }
        schedulers::read_for(&section.config, section.sampler.as_deref(), asked).map(Some)
    }

    /// Where there is a transformer, there is all that steps and prompts of such a model take besides.
    fn check_components(&self, family: &dyn Family) -> Result<(), WrongValue> {
        if !self.components.contains_key(TRANSFORMER) {
            return Ok(());
        }
        let image_encoder = family.image_shape().map(|_| IMAGE_ENCODER);
        let mut needed = family.transformers().iter().copied().chain(image_encoder);
        let Some(missing) = needed.find(|name| !self.components.contains_key(*name)) else { return Ok(()) };
        let names: Vec<&str> = self.components.keys().map(String::as_str).collect();
        let expected = format!("`{missing}`, too, which this model cannot do without; export the whole model");
        Err(WrongValue::new("components", &names.join(", "), &expected))
    }

    /// Checks every value and path.
    ///
    /// # Errors
    /// [`ConfigError`], naming the first key that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, files) in &self.components {
            let key = |part: &str| format!("components.{name}.{part}");
            match files {
                ComponentFiles::Engine(files) => check_path(&key("engine"), &files.engine)?,
                ComponentFiles::Graphs(files) => {
                    check_path(&key("weights"), &files.weights)?;
                    for (graph, path) in &files.graphs {
                        check_path(&key(&format!("graphs.{graph}")), path)?;
                    }
                }
            }
        }
        if let Some(family) = &self.family {
            family.check()?;
            self.check_components(&**family)?;
        }
        let tokenizers = [("tokenizer", &self.tokenizer), ("predictor_tokenizer", &self.predictor_tokenizer)];
        for (section, tokenizer) in tokenizers {
            if let Some(tokenizer) = tokenizer {
                check_path(&format!("{section}.file"), &tokenizer.file)?;
                between(&format!("{section}.max_length"), tokenizer.max_length, 2, 65_536)?;
            }
        }
        self.scheduler()?;
        self.reference.check()?;
        Ok(self.defaults.check()?)
    }
}

/// A confined path joined to the directory.
///
/// # Errors
/// [`ConfigError::Path`] if `relative` is empty, absolute or contains `..`.
pub fn resolve(directory: &Path, key: &str, relative: &str) -> Result<PathBuf, ConfigError> {
    check_path(key, relative)?;
    Ok(directory.join(relative))
}

fn check_path(key: &str, found: &str) -> Result<(), ConfigError> {
    let confined = Path::new(found).components().all(|part| matches!(part, PathPart::Normal(_)));
    if found.is_empty() || !confined || found.contains(['\\', '\0']) {
        return Err(ConfigError::Path { key: key.to_owned(), found: found.to_owned() });
    }
    Ok(())
}

impl ReferenceConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`WrongValue`].
    pub fn check(&self) -> Result<(), WrongValue> {
        match self.frames {
            ReferenceFrames::All => Ok(()),
            ReferenceFrames::FirstN(n) => between("reference.frames.first_n", n, 1, 100_000),
            ReferenceFrames::Resample { count, fps } => {
                between("reference.frames.resample.count", count, 1, 100_000)?;
                real("reference.frames.resample.fps", fps, fps > 0.0, "more than 0")
            }
        }
    }
}

#[cfg(test)]
mod tests;
