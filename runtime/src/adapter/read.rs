//! Reading an adapter's file against the slots of a component.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use ndarray::{Array2, ArrayD};
use serde_json::{Map, Value};

use super::keys::{self, Key, Part};
use super::light;
use super::scale::ScaleConfig;
use super::{Adapter, AdapterError, AdapterFormat, Coverage, KeyOutcome, LowRank, Outcome};
use crate::engine::manifest::Slot;
use crate::weights::{WeightError, WeightFile};

/// PEFT's configuration file, beside the weights.
const CONFIG_FILE: &str = "adapter_config.json";

/// How to read an adapter.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Applies the rest of a file some keys of which match no slot.
    pub allow_partial: bool,
}

/// An adapter, and what became of every key of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The adapter; named after the file.
    pub adapter: Adapter,
    /// What became of every key.
    pub coverage: Coverage,
}

/// Reads an adapter in PEFT, diffusers, kohya or ComfyUI form: a file, or a folder with `adapter_config.json`.
///
/// # Errors
/// [`AdapterError`]; [`AdapterError::Unmatched`] carries the coverage if keys match no slot and `allow_partial` is off.
pub fn read_adapter(path: &Path, slots: &[Slot], options: &ReadOptions) -> Result<Loaded, AdapterError> {
    let path = locate(path)?;
    let file = WeightFile::open(&path)?;
    if light::is_light(&file) {
        return Err(AdapterError::NeedsPredictor { path });
    }
    let (config, scale) = scale_config(&path, &file)?;
    let mut reader =
        Reader { file: &file, slots: SlotNames::new(slots), layers: IndexMap::new(), keys: Vec::new(), format: None };
    for key in file.names() {
        reader.key(key)?;
    }
    let covered = reader.layers.len();
    let coverage = Coverage {
        file: path.clone(),
        format: reader.format.unwrap_or(AdapterFormat::Bare),
        scale,
        keys: reader.keys.clone(),
        slots_covered: covered,
        slots_total: slots.len(),
    };
    if (coverage.counts().2 > 0 && !options.allow_partial) || covered == 0 {
        return Err(AdapterError::Unmatched { coverage: Box::new(coverage) });
    }
    let mut coverage = coverage;
    for key in &mut coverage.keys {
        if let Outcome::Error { reason } = &key.outcome {
            key.outcome = Outcome::Ignored { reason: format!("{reason}; a partial adapter was allowed") };
        }
    }
    let adapter = Adapter { name: name_of(&path), layers: reader.finish(config.as_ref())? };
    Ok(Loaded { adapter, coverage })
}

/// How a file spells its keys, by the first key that says.
///
/// # Errors
/// As [`WeightFile::open`]; [`AdapterError::Unsupported`] or [`AdapterError::Config`] if no key is an adapter's.
pub fn detect(path: &Path) -> Result<AdapterFormat, AdapterError> {
    let path = locate(path)?;
    let file = WeightFile::open(&path)?;
    if light::is_light(&file) {
        return Ok(AdapterFormat::Light);
    }
    let form = |key: &String| match keys::parse(key) {
        Key::LoRa { format, .. } => Some(format),
        _ => None,
    };
    let names = file.names();
    let other = |key: &String| match keys::parse(key) {
        Key::Other(kind) => Some(AdapterError::Unsupported { path: path.clone(), key: key.clone(), kind }),
        _ => None,
    };
    names.iter().find_map(form).ok_or_else(|| {
        names.iter().find_map(other).unwrap_or_else(|| AdapterError::Config {
            path: path.clone(),
            reason: "no key is an adapter's, such as `….lora_A.weight`; is this the checkpoint of a whole model?"
                .into(),
        })
    })
}

/// The file to read: `path`, or the one that a folder holds.
pub(super) fn locate(path: &Path) -> Result<PathBuf, AdapterError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
        .into_iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| AdapterError::EmptyFolder { path: path.to_owned() })
}

/// A file's own name, or its folder's if the file is called as every other.
fn name_of(path: &Path) -> String {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    match stem(path) {
        Some(name) if name != "adapter_model" && name != "pytorch_lora_weights" => name,
        other => path.parent().and_then(stem).or(other).unwrap_or_default(),
    }
}

pub(super) fn scale_config(path: &Path, file: &WeightFile) -> Result<(Option<ScaleConfig>, String), AdapterError> {
    let parse = |path: &Path, text: &str| {
        serde_json::from_str::<Map<String, Value>>(text)
            .map_err(|e| AdapterError::Config { path: path.to_owned(), reason: e.to_string() })
    };
    if let Some(text) = file.metadata("lora_adapter_metadata") {
        let mut config = parse(path, text)?;
        // diffusers puts the component before each key.
        for (key, value) in config.clone() {
            if let Some(key) = key.strip_prefix("transformer.") {
                config.insert(key.to_owned(), value);
            }
        }
        return Ok((Some(ScaleConfig::new(path, &config)?), "lora_adapter_metadata in the header".to_owned()));
    }
    let beside = path.with_file_name(CONFIG_FILE);
    if path.file_name().is_some_and(|name| name == "adapter_model.safetensors") && beside.is_file() {
        let text = fs::read_to_string(&beside)
            .map_err(|source| WeightError::Io { path: beside.clone(), source })
            .map_err(AdapterError::Weights)?;
        return Ok((Some(ScaleConfig::new(&beside, &parse(&beside, &text)?)?), CONFIG_FILE.to_owned()));
    }
    Ok((None, "alpha keys; 1 where there is none".to_owned()))
}

/// Slots by the names that files use.
struct SlotNames<'a> {
    dotted: HashMap<&'a str, &'a Slot>,
    /// With underscores for dots; `None` where two slots share a name.
    underscored: HashMap<String, Option<&'a Slot>>,
}

impl<'a> SlotNames<'a> {
    fn new(slots: &'a [Slot]) -> Self {
        let (mut dotted, mut underscored) = (HashMap::new(), HashMap::new());
        for slot in slots {
            for name in std::iter::once(&slot.name).chain(&slot.aliases) {
                dotted.insert(&name[..], slot);
                underscored
                    .entry(name.replace('.', "_"))
                    .and_modify(|other: &mut Option<&Slot>| *other = other.filter(|o| o.name == slot.name))
                    .or_insert(Some(slot));
            }
        }
        Self { dotted, underscored }
    }

    fn find(&self, format: AdapterFormat, module: &str) -> Result<&'a Slot, String> {
        if format != AdapterFormat::Kohya {
            return self.dotted.get(module).copied().ok_or_else(|| format!("no slot `{module}`"));
        }
        match self.underscored.get(module) {
            Some(Some(slot)) => Ok(slot),
            Some(None) => Err(format!("`{module}` may be one of several slots")),
            None => Err(format!("no slot `{module}`")),
        }
    }
}

/// What a file holds for one slot.
#[derive(Default)]
struct Parts {
    module: String,
    down: Option<(String, Array2<f32>)>,
    up: Option<(String, Array2<f32>)>,
    alpha: Option<f32>,
}

struct Reader<'a> {
    file: &'a WeightFile,
    slots: SlotNames<'a>,
    layers: IndexMap<String, (&'a Slot, Parts)>,
    keys: Vec<KeyOutcome>,
    format: Option<AdapterFormat>,
}

impl Reader<'_> {
    fn key(&mut self, key: String) -> Result<(), AdapterError> {
        let path = || self.file.path().to_owned();
        let (format, module, part) = match keys::parse(&key) {
            Key::LoRa { format, module, part } => (format, module, part),
            Key::Other(kind) => return Err(AdapterError::Unsupported { path: path(), key, kind }),
            Key::Unknown => {
                self.keys.push(KeyOutcome { key, outcome: Outcome::Error { reason: "no adapter's key".to_owned() } });
                return Ok(());
            }
        };
        self.format.get_or_insert(format);
        let slot = match self.slots.find(format, module) {
            Ok(slot) => slot,
            Err(reason) => {
                self.keys.push(KeyOutcome { key, outcome: Outcome::Error { reason } });
                return Ok(());
            }
        };
        let values = self.values(&key)?;
        let mismatch = |expected: &str, found: String| AdapterError::Mismatch {
            path: path(),
            key: key.clone(),
            expected: expected.to_owned(),
            found,
        };
        let (_, parts) = self.layers.entry(slot.name.clone()).or_insert_with(|| (slot, Parts::default()));
        let taken = match part {
            Part::Down => parts.down.is_some(),
            Part::Up => parts.up.is_some(),
            Part::Alpha => parts.alpha.is_some(),
        };
        if taken {
            return Err(mismatch("one key of this kind for the slot", format!("a second one for `{}`", slot.name)));
        }
        module.clone_into(&mut parts.module);
        let shape = format!("{:?}", values.shape());
        match part {
            Part::Alpha => match (values.len(), values.first()) {
                (1, Some(&alpha)) => parts.alpha = Some(alpha),
                _ => return Err(mismatch("one number", shape)),
            },
            Part::Down | Part::Up => {
                let matrix = matrix(values).ok_or_else(|| mismatch("a matrix", shape))?;
                let target = if part == Part::Down { &mut parts.down } else { &mut parts.up };
                *target = Some((key.clone(), matrix));
            }
        }
        self.keys.push(KeyOutcome { key, outcome: Outcome::Applied { slot: slot.name.clone() } });
        Ok(())
    }

    fn values(&self, key: &str) -> Result<ArrayD<f32>, AdapterError> {
        let path = || self.file.path().to_owned();
        let view = self.file.get(key)?;
        let values =
            view.to_tensor().and_then(crate::tensor::Tensor::into_f32).ok_or_else(|| AdapterError::Mismatch {
                path: path(),
                key: key.to_owned(),
                expected: "floating-point values".to_owned(),
                found: view.dtype.to_string(),
            })?;
        if values.iter().all(|v| v.is_finite()) {
            Ok(values)
        } else {
            Err(AdapterError::NotFinite { path: path(), key: key.to_owned() })
        }
    }

    fn finish(self, config: Option<&ScaleConfig>) -> Result<IndexMap<String, LowRank>, AdapterError> {
        let mismatch = |key: String, expected: String, found: String| AdapterError::Mismatch {
            path: self.file.path().to_owned(),
            key,
            expected,
            found,
        };
        let mut layers = IndexMap::new();
        for (name, (slot, parts)) in self.layers {
            let (down_key, down, up_key, up) = match (parts.down, parts.up) {
                (Some((down_key, down)), Some((up_key, up))) => (down_key, down, up_key, up),
                (Some((key, _)), None) => return Err(mismatch(key, "its up factor too".to_owned(), "none".to_owned())),
                (None, Some((key, _))) => {
                    return Err(mismatch(key, "its down factor too".to_owned(), "none".to_owned()));
                }
                (None, None) => {
                    return Err(mismatch(
                        format!("{}.alpha", parts.module),
                        "factors too".to_owned(),
                        "none".to_owned(),
                    ));
                }
            };
            if down.ncols() != slot.in_features {
                return Err(mismatch(down_key, format!("[rank, {}]", slot.in_features), format!("{:?}", down.shape())));
            }
            let rank = down.nrows();
            if up.dim() != (slot.out_features, rank) {
                return Err(mismatch(up_key, format!("[{}, {rank}]", slot.out_features), format!("{:?}", up.shape())));
            }
            let configured = || config.and_then(|config| config.alpha(&parts.module, rank));
            let alpha = parts.alpha.or_else(configured).unwrap_or(rank as f32);
            layers.insert(name, LowRank { down, up, alpha });
        }
        Ok(layers)
    }
}

/// A matrix, also if extents of 1 follow (a 1×1 convolution's factor).
fn matrix(values: ArrayD<f32>) -> Option<Array2<f32>> {
    let shape = values.shape();
    let (&[rows, columns], rest) = shape.split_first_chunk::<2>()?;
    if rest.iter().any(|&extent| extent != 1) {
        return None;
    }
    values.into_shape_with_order((rows, columns)).ok()
}
