//! What the readers of adapters share.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayD};
use serde::Serialize;
use serde_json::{Map, Value};

use super::coverage::Coverage;
use super::scale::ScaleConfig;
use super::{Adapter, AdapterError};
use crate::engine::parameters;
use crate::io::float8::Float8;
use crate::io::json;
use crate::io::weights::{WeightError, WeightFile};

/// PEFT's configuration file, beside the weights.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// PEFT's weights, in a folder.
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 24;

/// An adapter, and what became of every key of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct CoveredAdapter {
    /// The adapter; named after the file.
    pub adapter: Adapter,
    /// What became of every key.
    pub coverage: Coverage,
}

/// One layer of a [`Description`](super::Description).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerDescription {
    /// Module as the file spells it, without prefix.
    pub module: String,
    /// Rows of `down`; absent without it.
    pub rank: Option<usize>,
    /// Columns of `down`.
    pub in_features: Option<usize>,
    /// Rows of `up`.
    pub out_features: Option<usize>,
    /// From the layer's own key or the configuration; absent: equal to the rank.
    pub alpha: Option<f32>,
    /// What `up · down` is multiplied by at strength 1: `alpha / rank`. Absent without a rank.
    pub scale: Option<f32>,
    /// Extents of a full difference of a weight, a bias or a table, which has no factors and no alpha.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Vec<usize>>,
}

/// A matrix, also if extents of 1 follow (a 1×1 convolution's factor).
pub(super) fn matrix(file: &WeightFile, key: &str) -> Result<Array2<f32>, AdapterError> {
    let values = values(file, key)?;
    let shape = values.shape().to_vec();
    let no_matrix = || mismatch(file, key, "a matrix", format!("{shape:?}"));
    match shape.split_first_chunk::<2>() {
        Some((&[rows, columns], rest)) if rest.iter().all(|&extent| extent == 1) => {
            values.into_shape_with_order((rows, columns)).map_err(|_| no_matrix())
        }
        _ => Err(no_matrix()),
    }
}

/// A matrix whose rows are what lies behind the first extent.
pub(super) fn flattened(file: &WeightFile, key: &str) -> Result<Array2<f32>, AdapterError> {
    let values = values(file, key)?;
    let (shape, rows) = (values.shape().to_vec(), values.shape().first().copied().unwrap_or(1));
    let columns = values.len().checked_div(rows).unwrap_or(0);
    values.into_shape_with_order((rows, columns)).map_err(|_| mismatch(file, key, "a matrix", format!("{shape:?}")))
}

/// A full difference as the matrix that its parameter is taken as: a vector is one row.
pub(super) fn as_matrix(file: &WeightFile, key: &str) -> Result<Array2<f32>, AdapterError> {
    let values = values(file, key)?;
    let shape = values.shape().to_vec();
    let extents = parameters::matrix(&shape);
    extents
        .and_then(|extents| values.into_shape_with_order(extents).ok())
        .ok_or_else(|| mismatch(file, key, "at least one value", format!("{shape:?}")))
}

/// A file's own name, or its folder's if the file is called as every other.
pub(super) fn name_of(path: &Path) -> String {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    match stem(path) {
        Some(name) if name != "adapter_model" && name != "pytorch_lora_weights" => name,
        other => path.parent().and_then(stem).or(other).unwrap_or_default(),
    }
}

/// A single finite number; trainers also store it as an integer or in f64.
pub(super) fn alpha(file: &WeightFile, key: &str) -> Result<f32, AdapterError> {
    let view = file.raw(key)?;
    let number = match view.dtype {
        safetensors::Dtype::F64 => view.data[..].try_into().ok().map(|bytes| f64::from_le_bytes(bytes) as f32),
        safetensors::Dtype::I64 => view.data[..].try_into().ok().map(|bytes| i64::from_le_bytes(bytes) as f32),
        safetensors::Dtype::I32 => view.data[..].try_into().ok().map(|bytes| i32::from_le_bytes(bytes) as f32),
        _ => values(file, key)?.iter().copied().next().filter(|_| view.shape.iter().all(|&extent| extent == 1)),
    };
    let number = number.ok_or_else(|| mismatch(file, key, "one number", format!("{:?}", view.shape)))?;
    finite(file, key, std::iter::once(number))?;
    Ok(number)
}

/// The file to read: `path`, or the one that a folder holds.
pub(super) fn locate(path: &Path) -> Result<PathBuf, AdapterError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    [WEIGHTS_FILE, "pytorch_lora_weights.safetensors"]
        .into_iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| AdapterError::EmptyFolder { path: path.to_owned() })
}

/// What the file's header, or the file beside it, says of ranks and alphas; and where they come from, in words.
pub(super) fn scale_config(
    path: &Path,
    file: &WeightFile,
    prefixes: &[&str],
) -> Result<(Option<ScaleConfig>, String), AdapterError> {
    let configured = |path: &Path, config: &Map<String, Value>, from: &str| {
        let config = ScaleConfig::new(path, config)?;
        let how = if config.rslora { ", rank-stabilised (alpha / √rank)" } else { "" };
        Ok((Some(config), format!("{from}{how}")))
    };
    let parse = |path: &Path, text: &str| {
        json::read::<Map<String, Value>>(text.as_bytes())
            .map_err(|e| AdapterError::Config { path: path.to_owned(), reason: e.to_string() })
    };
    if let Some(text) = file.metadata("lora_adapter_metadata") {
        let mut config = parse(path, text)?;
        // diffusers puts the component before each key.
        for (key, value) in config.clone() {
            if let Some(key) = prefixes.iter().find_map(|start| key.strip_prefix(start)) {
                config.insert(key.to_owned(), value);
            }
        }
        return configured(path, &config, "lora_adapter_metadata in the header");
    }
    let beside = path.with_file_name(CONFIG_FILE);
    if path.file_name().is_some_and(|name| name == WEIGHTS_FILE) && beside.is_file() {
        let io = |source| AdapterError::Weights(WeightError::Io { path: beside.clone(), source });
        let mut text = String::new();
        File::open(&beside).map_err(io)?.take(MAX_CONFIG + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_CONFIG {
            let reason = format!("expected at most {MAX_CONFIG} bytes, found more; is this PEFT's configuration?");
            return Err(AdapterError::Config { path: beside, reason });
        }
        return configured(&beside, &parse(&beside, &text)?, CONFIG_FILE);
    }
    Ok((None, "alpha keys; alpha = rank where there is none".to_owned()))
}

pub(super) fn mismatch(file: &WeightFile, key: &str, expected: &str, found: String) -> AdapterError {
    AdapterError::Mismatch { path: file.path().to_owned(), key: key.to_owned(), expected: expected.to_owned(), found }
}

/// The finite floating-point values of a key.
pub(super) fn values(file: &WeightFile, key: &str) -> Result<ArrayD<f32>, AdapterError> {
    let raw = file.raw(key)?;
    let values = match Float8::of(raw.dtype) {
        Some(form) => {
            let values = form.values();
            let values = raw.data.iter().map(|byte| values[usize::from(*byte)]).collect();
            ArrayD::from_shape_vec(raw.shape, values).ok()
        }
        None => file.get(key)?.to_tensor().and_then(crate::tensor::Tensor::into_f32),
    };
    let values =
        values.ok_or_else(|| mismatch(file, key, "f32, f16, bf16 or an 8-bit float", raw.dtype.to_string()))?;
    finite(file, key, values.iter().copied())?;
    Ok(values)
}

pub(super) fn finite(file: &WeightFile, key: &str, mut values: impl Iterator<Item = f32>) -> Result<(), AdapterError> {
    if values.all(f32::is_finite) {
        Ok(())
    } else {
        Err(AdapterError::NotFinite { path: file.path().to_owned(), key: key.to_owned() })
    }
}
