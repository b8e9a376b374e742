//! Predictors that come as a package: a checkpoint and the JSON file that describes it, and perhaps a text encoder.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value as Json, json};
use v2l_runtime::components::{PREDICTOR_TEXT_ENCODER, TEXT_ENCODER};
use v2l_runtime::engine::manifest::{HELD_WEIGHTS, STORED, Slot};
use v2l_runtime::pipeline::config::PipelineConfig;

use crate::files::read_json;
use crate::models::family::{Origin, Part, Place};
use crate::models::{self, supported};
use crate::tokenizer::{self, ConvertedTokenizer};
use crate::{Checkpoint, Component, ExportError};

/// What turns PyTorch's pickles into packages.
const CONVERTER: &str = "export/convert/predictor.py";

/// A predictor's files.
pub(crate) struct Package {
    /// The tensors.
    pub(crate) checkpoint: Checkpoint,
    /// What describes them.
    pub(crate) config: Json,
    /// Where that lies.
    pub(crate) config_path: PathBuf,
}

impl Package {
    /// What does not fit, of the file that says so.
    pub(crate) fn misfit(&self, reason: impl Into<String>) -> ExportError {
        ExportError::Predictor(format!("{}: {}", self.config_path.display(), reason.into()))
    }
}

/// The attributes of a network that reads the base's weights. It runs for each layer on many rows, so that widening its own weights
/// costs little beside the products.
pub(super) fn attributes(network: &impl Serialize) -> Json {
    let mut attributes = json!(network);
    attributes[HELD_WEIGHTS] = STORED.into();
    attributes
}

/// What a package predicts for.
pub(crate) struct Base<'a> {
    /// The transformer's slots.
    pub(crate) slots: &'a [Slot],
    /// Class of the pipeline's own text encoder and width of its embeddings, if it has one.
    pub(crate) encoder: Option<(String, usize)>,
}

impl Base<'_> {
    /// True if the pipeline's own text encoder is the one that a predictor calls by this name; a predictor that names none
    /// takes it.
    pub(crate) fn encodes_for(&self, name: Option<&str>) -> bool {
        let (Some(name), Some((class, _))) = (name, &self.encoder) else { return name.is_none() };
        let name = name.to_lowercase();
        match class.as_str() {
            "UMT5EncoderModel" => name.contains("umt5"),
            "T5EncoderModel" => {
                !name.contains("umt5") && ["t5-v1_1-xxl", "t5_v1_1_xxl", "t5xxl"].iter().any(|t5| name.contains(t5))
            }
            _ => false,
        }
    }
}

/// A predictor's network, and how it reads a prompt.
pub(crate) struct Exported {
    /// The component `hypernetwork`.
    pub(crate) component: Component,
    /// Where its text comes from.
    pub(crate) text: Text,
}

/// How a predictor reads prompts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text {
    /// Width of the embeddings that it takes.
    pub(crate) width: usize,
    /// Tokens of a prompt at most, the end marker included.
    pub(crate) length: usize,
    /// What its configuration calls the encoder, if it does.
    pub(crate) encoder: Option<String>,
    /// True if the pipeline's own text encoder serves where the package has none.
    pub(crate) of_base: bool,
}

/// One kind of predictor that comes as a package.
pub(crate) trait PackageKind: Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// True if the configuration is of this kind.
    fn recognises(&self, config: &Json) -> bool;

    /// Exports the predictor of adapters for a base.
    ///
    /// # Errors
    /// [`ExportError::Predictor`] if it is for another base or contradicts itself, and those of [`Checkpoint`].
    fn export(&self, package: &Package, base: &Base<'_>) -> Result<Exported, ExportError>;
}

/// A package's components and the tokenizer of its own text encoder.
pub(crate) struct Exports {
    pub(crate) components: Vec<Component>,
    pub(crate) tokenizer: Option<(ConvertedTokenizer, usize)>,
}

/// Exports the package at `path`; `encoder` names the folder of its text encoder, if the user does.
///
/// # Errors
/// [`ExportError::NotAModel`] if there is no package, [`ExportError::Unsupported`] if no kind knows it, and as
/// [`PackageKind::export`].
pub(super) fn export(
    kinds: &[&'static dyn PackageKind],
    path: &Path,
    encoder: Option<&Path>,
    base: &Base<'_>,
) -> Result<Exports, ExportError> {
    let package = open(path)?;
    let kind = kinds.iter().find(|kind| kind.recognises(&package.config)).ok_or_else(|| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let named = package.config["model_type"].as_str().or(package.config["format"].as_str()).unwrap_or("none");
        ExportError::Unsupported {
            what: format!("{}: a predictor whose type is `{named}`", package.config_path.display()),
            reason: supported(&names),
        }
    })?;
    let Exported { component, text } = kind.export(&package, base)?;
    let mut exports = Exports { components: vec![component], tokenizer: None };
    let own = match encoder {
        Some(folder) => Some(folder.to_owned()),
        None => encoder_beside(&package.config_path, text.encoder.as_deref()),
    };
    match own {
        Some(folder) => {
            let (component, tokenizer) = text_encoder(&folder, &text)?;
            exports.components.push(component);
            exports.tokenizer = Some((tokenizer, text.length));
        }
        None if text.of_base && base.encoder.as_ref().is_some_and(|(_, width)| *width != text.width) => {
            return Err(ExportError::Predictor(format!(
                "{}: the predictor reads embeddings of width {}, and the pipeline's text encoder gives {}; it is for another \
                 model, or name its own encoder with --predictor-text-encoder",
                package.config_path.display(),
                text.width,
                base.encoder.as_ref().map_or(0, |(_, width)| *width)
            )));
        }
        None => {}
    }
    Ok(exports)
}

/// Opens the package: a folder, or its checkpoint.
fn open(path: &Path) -> Result<Package, ExportError> {
    let missing = |reason: &str| ExportError::NotAModel { path: path.to_owned(), reason: reason.to_owned() };
    let (checkpoint, config_path) = if path.is_dir() {
        let config = path.join("config.json");
        if config.is_file() {
            refuse_pickles_in(path)?;
            (Checkpoint::open_folder(path)?, config)
        } else {
            let file = described(path)?;
            (Checkpoint::open_file(&file)?, file.with_extension("json"))
        }
    } else {
        refuse_pickle(path)?;
        let beside = [path.with_extension("json"), path.with_file_name("config.json")];
        let config = beside.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            missing("a predictor's checkpoint needs the JSON file that describes it, of the same name or config.json, beside it")
        })?;
        (Checkpoint::open_file(path)?, config)
    };
    Ok(Package { checkpoint, config: read_json(&config_path)?, config_path })
}

/// The only safetensors file of a folder with a JSON file of the same name.
fn described(folder: &Path) -> Result<PathBuf, ExportError> {
    let entries = std::fs::read_dir(folder).map_err(ExportError::io(folder))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = files
        .filter(|file| {
            file.extension().is_some_and(|end| end == "safetensors") && file.with_extension("json").is_file()
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (found, _) => {
            refuse_pickles_in(folder)?;
            let count = if found.is_some() { "several" } else { "none" };
            Err(ExportError::NotAModel {
                path: folder.to_owned(),
                reason: format!(
                    "expected a predictor: config.json with safetensors, or one .safetensors file with a .json file of the \
                     same name beside it; found {count} of these"
                ),
            })
        }
    }
}

/// Says what to do about a folder that holds a pickle in place of safetensors.
fn refuse_pickles_in(folder: &Path) -> Result<(), ExportError> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(ExportError::io(folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let ends = |path: &Path, ends: &[&str]| path.extension().is_some_and(|end| ends.iter().any(|e| end == *e));
    if entries.iter().any(|path| ends(path, &["safetensors"])) {
        return Ok(());
    }
    entries.iter().filter(|path| ends(path, &["pt", "pth", "bin", "ckpt"])).try_for_each(|path| refuse_pickle(path))
}

/// Refuses a pickle or a zip archive by its first bytes: they may run code, and are not read.
fn refuse_pickle(path: &Path) -> Result<(), ExportError> {
    let mut start = [0; 2];
    let mut file = File::open(path).map_err(ExportError::io(path))?;
    match file.read_exact(&mut start) {
        Ok(()) if &start == b"PK" || start == [0x80, 2] => Err(ExportError::Unsupported {
            what: format!("{}: a checkpoint of PyTorch, as a pickle or zip archive,", path.display()),
            reason: format!(
                "such files may run code; turn it into safetensors with `python {CONVERTER} FILE -o FOLDER`"
            ),
        }),
        _ => Ok(()),
    }
}

/// The folder of the text encoder that lies beside a configuration: the one that it names, or `text_encoder`, or the only
/// one whose name begins so.
fn encoder_beside(config: &Path, named: Option<&str>) -> Option<PathBuf> {
    let folder = config.parent()?;
    let is_encoder = |path: &PathBuf| path.join("config.json").is_file();
    let last = named.and_then(|name| name.rsplit('/').next()).filter(|name| !matches!(*name, "" | "." | ".."));
    if let Some(found) = last.into_iter().chain(["text_encoder"]).map(|name| folder.join(name)).find(is_encoder) {
        return Some(found);
    }
    let begins = |name: OsString| name.to_string_lossy().starts_with("text_encoder_").then_some(name);
    let entries = std::fs::read_dir(folder).ok()?;
    let mut found =
        entries.filter_map(|entry| begins(entry.ok()?.file_name())).map(|name| folder.join(name)).filter(is_encoder);
    found.next().filter(|_| found.next().is_none())
}

/// The text encoder of a folder, with its tokenizer there or in `tokenizer/`.
fn text_encoder(folder: &Path, text: &Text) -> Result<(Component, ConvertedTokenizer), ExportError> {
    let path = folder.join("config.json");
    let config: Json = read_json(&path)?;
    let class = config["architectures"][0].as_str().unwrap_or_default();
    let architecture = models::find(class, None, &path)?;
    if architecture.part() != Part::TextEncoder {
        return Err(ExportError::config(path, format!("class `{class}` is not a text encoder")));
    }
    let width = config["d_model"].as_u64().unwrap_or_default();
    if width != text.width as u64 {
        return Err(ExportError::Predictor(format!(
            "{}: the encoder gives embeddings of width {width}, the predictor reads {}; name the encoder that it was trained with",
            path.display(),
            text.width
        )));
    }
    // It describes itself to nobody: the pipeline has an encoder of its own.
    let origin = Origin::folder(folder, architecture)?;
    let place = Place { origin: &origin, part: Part::TextEncoder, controls: None, index: &Json::Null, precision: None };
    let components = architecture.export(&place, &mut PipelineConfig::empty())?;
    let Some(mut component) = components.into_iter().find(|component| component.name == TEXT_ENCODER) else {
        return Err(ExportError::config(path, format!("class `{class}` gives no text encoder")));
    };
    component.rename(PREDICTOR_TEXT_ENCODER);
    let inside = folder.join("tokenizer");
    let lies = if inside.is_dir() { inside } else { folder.to_owned() };
    let tokenizer = tokenizer::convert(&lies)?.ok_or_else(|| ExportError::NotAModel {
        path: lies.clone(),
        reason: "the text encoder has no tokenizer".to_owned(),
    })?;
    Ok((component, tokenizer))
}
