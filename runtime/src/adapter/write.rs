//! Writing an adapter so that other programs read it.

use std::path::Path;

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use serde_json::{Map, Value, json};

use super::{Adapter, AdapterError, AdapterFormat, LowRank};
use crate::tensor::{NamedTensors, Tensor};
use crate::weights::write_tensors;

/// Writes an adapter as one safetensors file, whole or not at all. Equal adapters give equal bytes.
///
/// PEFT and diffusers forms carry `alpha` in the header (`lora_adapter_metadata`), kohya and ComfyUI forms in keys.
///
/// # Errors
/// [`AdapterError::Unwritable`] for [`AdapterFormat::Light`], which only a predictor writes; [`AdapterError::Weights`].
pub fn write_adapter(path: &Path, adapter: &Adapter, format: AdapterFormat) -> Result<(), AdapterError> {
    let mut tensors = NamedTensors::new();
    for (slot, update) in &adapter.layers {
        let (module, down, up, alpha) = match format {
            AdapterFormat::Peft => (format!("base_model.model.{slot}"), "lora_A", "lora_B", false),
            AdapterFormat::Diffusers => (format!("transformer.{slot}"), "lora_A", "lora_B", false),
            AdapterFormat::Bare => (slot.clone(), "lora_A", "lora_B", true),
            AdapterFormat::Comfy => (format!("diffusion_model.{slot}"), "lora_A", "lora_B", true),
            AdapterFormat::Kohya => (format!("lora_unet_{}", slot.replace('.', "_")), "lora_down", "lora_up", true),
            AdapterFormat::Light => {
                let reason =
                    "only a predictor's tokens can be written as LightLoRA; use peft, kohya or comfy".to_owned();
                return Err(AdapterError::Unwritable { path: path.to_owned(), reason });
            }
        };
        let mut put = |part: &str, values: ArrayD<f32>| {
            let key = format!("{module}.{part}");
            match tensors.insert(key.clone(), Tensor::F32(values)) {
                None => Ok(()),
                Some(_) => Err(AdapterError::Unwritable {
                    path: path.to_owned(),
                    reason: format!("two layers would share the key `{key}`; use peft or comfy"),
                }),
            }
        };
        put(&format!("{down}.weight"), update.down.clone().into_dyn())?;
        put(&format!("{up}.weight"), update.up.clone().into_dyn())?;
        if alpha {
            put("alpha", ArrayD::from_elem(IxDyn(&[]), update.alpha))?;
        }
    }
    let mut metadata = IndexMap::from([("format".to_owned(), "pt".to_owned())]);
    let prefix = match format {
        AdapterFormat::Peft => Some(""),
        AdapterFormat::Diffusers => Some("transformer."),
        _ => None,
    };
    if let Some(prefix) = prefix {
        let config: Map<String, Value> =
            peft_config(adapter).into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect();
        metadata.insert("lora_adapter_metadata".to_owned(), Value::Object(config).to_string());
    }
    Ok(write_tensors(path, &tensors, &metadata)?)
}

/// PEFT's `LoraConfig`: the most frequent rank and alpha, and patterns for the layers that differ.
fn peft_config(adapter: &Adapter) -> Map<String, Value> {
    let rank = most_frequent(adapter.layers.values().map(LowRank::rank)).unwrap_or(0);
    let alpha = most_frequent(adapter.layers.values().map(|l| l.alpha.to_bits())).map_or(0.0, f32::from_bits);
    let others = |differs: &dyn Fn(&LowRank) -> Option<Value>| -> Map<String, Value> {
        adapter.layers.iter().filter_map(|(slot, update)| Some((slot.clone(), differs(update)?))).collect()
    };
    let ranks = others(&|update| (update.rank() != rank).then(|| json!(update.rank())));
    let alphas = others(&|update| (update.alpha.to_bits() != alpha.to_bits()).then(|| json!(update.alpha)));
    let entries = [
        ("peft_type", json!("LORA")),
        ("r", json!(rank)),
        ("lora_alpha", json!(alpha)),
        ("rank_pattern", Value::Object(ranks)),
        ("alpha_pattern", Value::Object(alphas)),
        ("target_modules", json!(adapter.layers.keys().collect::<Vec<_>>())),
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
