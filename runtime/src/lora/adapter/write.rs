//! Writing an adapter so that other programs read it.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, ArrayD, Axis, IxDyn};
use serde_json::{Map, Value, json};

use super::parts::{CONFIG_FILE, WEIGHTS_FILE};
use super::read::WRITTEN_SLOTS;
use super::scale::pattern_of;
use super::{Adapter, AdapterError, AdapterFormat, LowRank, Update, experts, keys, wan};
use crate::io::atomic::{AtomicFolder, is_special, probe_file};
use crate::io::weights::{WeightError, write_tensors};
use crate::tensor::{NamedTensors, Tensor};

/// Writes an adapter, whole or not at all. Equal adapters give equal bytes.
///
/// One safetensors file; PEFT form as PEFT's folder of two files if `path` does not end in `.safetensors`. In PEFT and
/// diffusers forms `alpha` is in the configuration (the folder's `adapter_config.json`, the header's
/// `lora_adapter_metadata`), in the others in keys. ComfyUI's, kohya's and VideoX-Fun's forms have Wan's own layer names for
/// a Wan transformer, as these programs do. Where a key does not spell its slot's own name, the header's `v2l.slots` does.
///
/// # Errors
/// [`AdapterError::Unwritable`] for a form of LightLoRA, which only a predictor writes, for an adapter without layers or with NaN
/// or infinity, for keys that would be equal, or if something else is where PEFT's folder should be; [`AdapterError::Weights`].
pub fn write_adapter(path: &Path, adapter: &Adapter, format: AdapterFormat) -> Result<(), AdapterError> {
    write_adapter_with(path, adapter, format, &IndexMap::new())
}

/// As [`write_adapter`], with further entries in the header's metadata; those of the form itself come before them.
///
/// # Errors
/// As [`write_adapter`].
pub fn write_adapter_with(
    path: &Path,
    adapter: &Adapter,
    format: AdapterFormat,
    entries: &IndexMap<String, String>,
) -> Result<(), AdapterError> {
    check_destination(path, format)?;
    let unwritable = |reason: String| AdapterError::Unwritable { path: path.to_owned(), reason };
    if format != AdapterFormat::Diffusers && adapter.layers.keys().any(|slot| experts::is_second(slot)) {
        let reason = "it changes `transformer_2`, which only the form diffusers names; or write what is for each transformer into a file of its own";
        return Err(unwritable(reason.to_owned()));
    }
    let wan = adapter.layers.keys().any(|name| wan::is_own(experts::slot_of(name)));
    let mut tensors = NamedTensors::new();
    let mut spelled: Map<String, Value> = Map::new();
    for (slot, update) in &adapter.layers {
        if let Some(parameter) = Parameter::of(experts::slot_of(slot), wan) {
            let reason = || match experts::is_second(slot) || adapter.layers.keys().any(|slot| experts::is_second(slot))
            {
                true => format!(
                    "`{slot}` is not a linear layer: {} has no form for what changes it, and no other form names two transformers; write \
                     what is for each into a file of its own, in comfy",
                    format.name()
                ),
                false => format!(
                    "`{slot}` is not a linear layer, and {} has no form for what changes it; use comfy or kohya",
                    format.name()
                ),
            };
            let prefix = match format {
                AdapterFormat::Comfy => "diffusion_model.",
                AdapterFormat::Kohya => "lora_unet_",
                AdapterFormat::VideoxFun => "lora_unet__",
                _ => return Err(unwritable(reason())),
            };
            let module = if format.underscores() { underscored(&parameter.module) } else { parameter.module.clone() };
            for (part, values) in parameter.parts(update) {
                let key = format!("{prefix}{module}.{part}");
                if !values.iter().all(|value| value.is_finite()) {
                    return Err(unwritable(format!("{part} of `{slot}` holds NaN or infinity")));
                }
                if tensors.insert(key.clone(), Tensor::F32(values)).is_some() {
                    return Err(unwritable(format!("two parameters would share the key `{key}`; use comfy")));
                }
            }
            continue;
        }
        let native = || wan.then(|| wan::native(slot)).flatten().unwrap_or_else(|| slot.clone());
        let (module, down, up, alpha) = match format {
            AdapterFormat::Peft => (format!("base_model.model.{slot}"), "lora_A", "lora_B", false),
            AdapterFormat::Diffusers if experts::is_second(slot) => (slot.clone(), "lora_A", "lora_B", false),
            AdapterFormat::Diffusers => (format!("transformer.{slot}"), "lora_A", "lora_B", false),
            AdapterFormat::Bare => (slot.clone(), "lora_A", "lora_B", true),
            AdapterFormat::Comfy => (format!("diffusion_model.{}", native()), "lora_A", "lora_B", true),
            AdapterFormat::Kohya => (format!("lora_unet_{}", underscored(&native())), "lora_down", "lora_up", true),
            AdapterFormat::VideoxFun => {
                (format!("lora_unet__{}", underscored(&native())), "lora_down", "lora_up", true)
            }
            AdapterFormat::Light | AdapterFormat::LightFull => {
                let reason = "only a predictor's tokens can be written as LightLoRA; use peft, kohya or comfy";
                return Err(unwritable(reason.to_owned()));
            }
        };
        if let Some(key) = damaged(update) {
            return Err(unwritable(format!("{key} of `{slot}` holds NaN or infinity")));
        }
        // Another layer may have dots where this one has underscores.
        if format.underscores()
            || !experts::is_second(slot) && keys::processorless(keys::unprefixed(&module).0, false) != **slot
        {
            spelled.insert(module.clone(), json!(slot));
        }
        let mut put = |part: &str, values: ArrayD<f32>| {
            let key = format!("{module}.{part}");
            match tensors.insert(key.clone(), Tensor::F32(values)) {
                None => Ok(()),
                Some(_) => Err(unwritable(format!("two layers would share the key `{key}`; use peft or diffusers"))),
            }
        };
        // Full differences of linear layers have no key in most forms.
        let factors = update.to_low_rank();
        put(&format!("{down}.weight"), factors.down.clone().into_dyn())?;
        put(&format!("{up}.weight"), factors.up.clone().into_dyn())?;
        if alpha {
            put("alpha", ArrayD::from_elem(IxDyn(&[]), factors.alpha))?;
        }
    }
    if tensors.is_empty() {
        return Err(unwritable("the adapter changes no layer".to_owned()));
    }
    let mut metadata = entries.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    if !spelled.is_empty() {
        metadata.insert(WRITTEN_SLOTS.to_owned(), Value::Object(spelled).to_string());
    }
    if is_folder(path, format) {
        return write_folder(path, &tensors, &metadata, &peft_config(adapter.layers.iter()));
    }
    let prefixes: &[&str] = match format {
        AdapterFormat::Peft => &[""],
        AdapterFormat::Diffusers => &["transformer.", "transformer_2."],
        _ => &[],
    };
    if !prefixes.is_empty() {
        let mut config: Map<String, Value> = Map::new();
        for prefix in prefixes {
            let own = |slot: &str| prefix.is_empty() || experts::is_second(slot) == experts::is_second(prefix);
            let layers = || adapter.layers.iter().filter(|(slot, _)| own(slot));
            if layers().next().is_some() {
                config.extend(peft_config(layers()).into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
            }
        }
        metadata.insert("lora_adapter_metadata".to_owned(), Value::Object(config).to_string());
    }
    Ok(write_tensors(path, &tensors, &metadata)?)
}

/// A parameter that is no linear layer, as files name it.
struct Parameter {
    /// What stands before the part.
    module: String,
    /// `diff`, `diff_b`, or none where factors are written, since the extents of a convolution are not known.
    part: Option<&'static str>,
    /// Extents of 1 before those of the matrix, or a vector's one extent.
    table: bool,
}

impl Parameter {
    /// What adapters call so: a bias, a norm's weight, or a parameter of Wan's transformers. `None` of a linear layer.
    fn of(name: &str, wan: bool) -> Option<Self> {
        let native = wan.then(|| wan::native_parameter(name)).flatten();
        let own = native.clone().unwrap_or_else(|| name.to_owned());
        if let Some(module) = own.strip_suffix(".bias") {
            return Some(Self { module: module.to_owned(), part: Some("diff_b"), table: false });
        }
        match own.strip_suffix(".weight") {
            Some(module) if module == "patch_embedding" => {
                native.map(|_| Self { module: module.to_owned(), part: None, table: false })
            }
            Some(module) => {
                let is_norm = native.is_some() || module.rsplit('.').next().is_some_and(|last| last.contains("norm"));
                is_norm.then(|| Self { module: module.to_owned(), part: Some("diff"), table: false })
            }
            None if name.ends_with("scale_shift_table") || native.is_some() => {
                Some(Self { module: own, part: Some("diff"), table: true })
            }
            None => None,
        }
    }

    /// The keys' parts and their values.
    fn parts(&self, update: &Update) -> Vec<(&'static str, ArrayD<f32>)> {
        let Some(part) = self.part else {
            let LowRank { down, up, alpha } = update.to_low_rank().into_owned();
            let alpha = ArrayD::from_elem(IxDyn(&[]), alpha);
            return vec![("lora_down.weight", down.into_dyn()), ("lora_up.weight", up.into_dyn()), ("alpha", alpha)];
        };
        let product = match update {
            Update::LowRank(factors) => (&factors.up * factors.scale()).dot(&factors.down),
            Update::Full(difference) => difference.clone(),
        };
        let values = match (self.table, product.nrows()) {
            (true, _) => product.insert_axis(Axis(0)).into_dyn(),
            (false, 1) => product.index_axis_move(Axis(0), 0).into_dyn(),
            (false, _) => product.into_dyn(),
        };
        vec![(part, values)]
    }
}

/// What of an update no reader takes.
fn damaged(update: &Update) -> Option<&'static str> {
    let finite = |matrix: &Array2<f32>| matrix.iter().all(|v| v.is_finite());
    match update {
        Update::LowRank(LowRank { down, .. }) if !finite(down) => Some("the down factor"),
        Update::LowRank(LowRank { up, .. }) if !finite(up) => Some("the up factor"),
        Update::LowRank(LowRank { alpha, .. }) => (!alpha.is_finite()).then_some("alpha"),
        Update::Full(difference) => (!finite(difference)).then_some("the difference"),
    }
}

fn underscored(module: &str) -> String {
    module.replace('.', "_")
}

/// True if an adapter in this form becomes PEFT's folder of two files.
fn is_folder(path: &Path, format: AdapterFormat) -> bool {
    format == AdapterFormat::Peft
        && path.extension().is_none_or(|extension| extension != "safetensors")
        && !is_special(path)
}

/// Finds out whether [`write_adapter`] could begin an adapter at `path`, and changes nothing.
///
/// # Errors
/// [`AdapterError::Unwritable`] if something else is where PEFT's folder should be; [`AdapterError::Weights`].
pub fn check_destination(path: &Path, format: AdapterFormat) -> Result<(), AdapterError> {
    let io = |source| AdapterError::Weights(WeightError::Io { path: path.to_owned(), source });
    if !is_folder(path, format) {
        return probe_file(path).map_err(io);
    }
    if path.is_file() || path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let reason = "expected a new or empty folder, or a name that ends in `.safetensors` for a single file; found \
                      something there";
        return Err(AdapterError::Unwritable { path: path.to_owned(), reason: reason.to_owned() });
    }
    AtomicFolder::create(path).map(drop).map_err(io)
}

/// PEFT's folder: there may be nothing but an empty folder.
fn write_folder(
    path: &Path,
    tensors: &NamedTensors,
    metadata: &IndexMap<String, String>,
    config: &Map<String, Value>,
) -> Result<(), AdapterError> {
    let io = |source| AdapterError::Weights(WeightError::Io { path: path.to_owned(), source });
    let folder = AtomicFolder::create(path).map_err(io)?;
    write_tensors(folder.path().join(WEIGHTS_FILE), tensors, metadata)?;
    folder.write(CONFIG_FILE, format!("{:#}\n", Value::Object(config.clone())).as_bytes()).map_err(io)?;
    folder.commit().map_err(io)
}

/// PEFT's `LoraConfig`: the most frequent rank and alpha, and patterns for the layers that differ, each for one layer only.
fn peft_config<'a>(layers: impl Iterator<Item = (&'a String, &'a Arc<Update>)>) -> Map<String, Value> {
    // Full differences are written as products of scale 1.
    let layers: Vec<(&String, usize, f32)> = layers
        .map(|(slot, update)| {
            let rank = update.rank();
            (slot, rank, update.factors().map_or(rank as f32, |factors| factors.alpha))
        })
        .collect();
    let rank = most_frequent(layers.iter().map(|(_, rank, _)| *rank)).unwrap_or(0);
    let alpha = most_frequent(layers.iter().map(|(.., alpha)| alpha.to_bits())).map_or(0.0, f32::from_bits);
    let others = |differs: &dyn Fn(usize, f32) -> Option<Value>| -> Map<String, Value> {
        let of = |&(slot, rank, alpha): &(&String, usize, f32)| {
            Some((pattern_of(experts::slot_of(slot)), differs(rank, alpha)?))
        };
        layers.iter().filter_map(of).collect()
    };
    let ranks = others(&|own, _| (own != rank).then(|| json!(own)));
    let alphas = others(&|_, own| (own.to_bits() != alpha.to_bits()).then(|| json!(own)));
    let entries = [
        ("peft_type", json!("LORA")),
        ("r", json!(rank)),
        ("lora_alpha", json!(alpha)),
        ("rank_pattern", Value::Object(ranks)),
        ("alpha_pattern", Value::Object(alphas)),
        ("target_modules", json!(layers.iter().map(|(slot, ..)| experts::slot_of(slot)).collect::<Vec<_>>())),
        ("bias", json!("none")),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The first of the most frequent values.
fn most_frequent<T: Eq + std::hash::Hash>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: IndexMap<T, usize> = IndexMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts.into_iter().find(|&(_, count)| count == most).map(|(value, _)| value)
}
