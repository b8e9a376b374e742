//! LightLoRA files: a predictor's tokens, a few kilobytes that this predictor's auxiliary factors turn into an adapter; and
//! the same with the auxiliary factors, which needs no predictor.

use std::collections::HashSet;
use std::path::Path;

use indexmap::IndexMap;
use ndarray::{Array2, Ix2, s};

use super::coverage::ReadOptions;
use super::keys::KeyPart;
use super::names::{Layers, SlotNames, Target};
use super::parts::{CoveredAdapter, LayerDescription, matrix, name_of};
use super::{Adapter, AdapterError, AdapterFormat, Coverage, KeyOutcome, LowRank, Outcome};
use crate::engine::manifest::Hash;
use crate::io::raw::tensor_bytes;
use crate::io::weights::{WeightFile, write_tensors};
use crate::tensor::{NamedTensors, Tensor};

const FORMAT: &str = "v2l-lightlora";
const TENSOR: &str = "pred_weights";
/// The header's entry for the layers, in token order; there only with auxiliary factors.
const SLOTS: &str = "slots";

/// Tokens, and what they were made with.
#[derive(Clone, Debug, PartialEq)]
pub struct LightLora {
    /// `[weight_num, weight_dim]`, one token per slot.
    pub tokens: Array2<f32>,
    /// Rows of the auxiliary down factors.
    pub down_dim: usize,
    /// Columns of the auxiliary up factors.
    pub up_dim: usize,
    /// Rank of the updates.
    pub rank: usize,
    /// BLAKE3 of the auxiliary factors: which predictor the tokens belong to.
    pub auxiliary: String,
}

/// The auxiliary factors of one layer: `down = D · down_aux`, `up = up_aux · U`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuxiliaryFactors {
    /// The layer.
    pub slot: String,
    /// `[down_dim, in]`, floating-point.
    pub down: Tensor,
    /// `[out, up_dim]`, floating-point.
    pub up: Tensor,
}

/// [`AdapterFormat::Light`] or [`AdapterFormat::LightFull`]; `None` for other files.
pub(super) fn kind(file: &WeightFile) -> Option<AdapterFormat> {
    let light = file.metadata("format") == Some(FORMAT) || (file.contains(TENSOR) && file.names().len() == 1);
    let format = if file.metadata(SLOTS).is_some() { AdapterFormat::LightFull } else { AdapterFormat::Light };
    light.then_some(format)
}

/// BLAKE3 over the hashes of the auxiliary factors, down before up, in token order.
pub(crate) fn auxiliary_hash(hashes: impl IntoIterator<Item = Hash>) -> String {
    let mut hasher = blake3::Hasher::new();
    for hash in hashes {
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// What the header says, in words; the file need not be one that [`read_light`] accepts.
pub(super) fn facts(file: &WeightFile) -> String {
    let entry = |key| file.metadata(key).unwrap_or("?");
    format!(
        "tokens {:?}, a {}, b {}, rank {}, auxiliary factors {}",
        file.shape(TENSOR).unwrap_or_default(),
        entry("down_dim"),
        entry("up_dim"),
        entry("rank"),
        entry("auxiliary"),
    )
}

/// The layers that the header lists, sizes as the auxiliary factors have them; none without auxiliary factors.
pub(super) fn layers(file: &WeightFile) -> Result<Vec<LayerDescription>, AdapterError> {
    let rank = file.metadata("rank").and_then(|rank| rank.parse().ok());
    let layer = |module: String| {
        let [down, up] = auxiliary_keys(&module);
        let extent = |key: &str, axis: usize| file.shape(key).and_then(|shape| shape.get(axis).copied());
        let (in_features, out_features) = (extent(&down, 1), extent(&up, 0));
        LayerDescription {
            module,
            rank,
            in_features,
            out_features,
            scale: rank.and(Some(1.0)),
            ..LayerDescription::default()
        }
    };
    Ok(listed(file)?.into_iter().map(layer).collect())
}

/// The layers that the header lists, in token order; none without such an entry.
fn listed(file: &WeightFile) -> Result<Vec<String>, AdapterError> {
    let Some(text) = file.metadata(SLOTS) else { return Ok(Vec::new()) };
    serde_json::from_str(text)
        .map_err(|e| AdapterError::Config { path: file.path().to_owned(), reason: format!("`{SLOTS}`: {e}") })
}

/// Reads tokens.
///
/// # Errors
/// [`AdapterError::Config`] if the header does not say what they belong to, [`AdapterError::NotFinite`],
/// [`AdapterError::Mismatch`], [`AdapterError::Weights`].
pub fn read_light(path: &Path) -> Result<LightLora, AdapterError> {
    tokens(&WeightFile::open(path)?)
}

fn tokens(file: &WeightFile) -> Result<LightLora, AdapterError> {
    let path = file.path();
    let entry = |key: &str| {
        file.metadata(key).ok_or_else(|| AdapterError::Config {
            path: path.to_owned(),
            reason: format!("the header lacks `{key}`; expected a LightLoRA file written by v2l"),
        })
    };
    let number = |key: &str| -> Result<usize, AdapterError> {
        let text = entry(key)?;
        text.parse().map_err(|_| AdapterError::Config {
            path: path.to_owned(),
            reason: format!("`{key}`: expected a number, found `{text}`"),
        })
    };
    if entry("format")? != FORMAT {
        let reason = format!("expected format {FORMAT}, found {}", entry("format")?);
        return Err(AdapterError::Config { path: path.to_owned(), reason });
    }
    let (down_dim, up_dim, rank) = (number("down_dim")?, number("up_dim")?, number("rank")?);
    let auxiliary = entry("auxiliary")?.to_owned();
    let view = file.get(TENSOR)?;
    let width = down_dim.checked_add(up_dim).and_then(|n| n.checked_mul(rank));
    let values = view.to_tensor().and_then(Tensor::into_f32).and_then(|a| a.into_dimensionality::<Ix2>().ok());
    let tokens = values.filter(|a| Some(a.ncols()) == width).ok_or_else(|| AdapterError::Mismatch {
        path: path.to_owned(),
        key: TENSOR.to_owned(),
        expected: format!("floating-point [N, ({down_dim} + {up_dim}) · {rank}]"),
        found: format!("{} {:?}", view.dtype, view.shape),
    })?;
    if !tokens.iter().all(|v| v.is_finite()) {
        return Err(AdapterError::NotFinite { path: path.to_owned(), key: TENSOR.to_owned() });
    }
    Ok(LightLora { tokens, down_dim, up_dim, rank, auxiliary })
}

/// Writes tokens, whole or not at all, with further `entries` in the header's metadata: `weight_num · weight_dim` values in f32 and a header of less than 1 KiB.
///
/// # Errors
/// [`AdapterError::Weights`].
pub fn write_light(path: &Path, light: &LightLora, entries: &IndexMap<String, String>) -> Result<(), AdapterError> {
    let tensors = NamedTensors::from([(TENSOR.to_owned(), Tensor::F32(light.tokens.clone().into_dyn()))]);
    Ok(write_tensors(path, &tensors, &metadata(light, entries))?)
}

/// Writes tokens with the auxiliary factors of each and further `entries` in the header's metadata, whole or not at all; the factors keep their type and have the names of
/// Video2LoRA's own checkpoints.
///
/// # Errors
/// [`AdapterError::Unwritable`] if the factors are not one layer's per token, or not those that the tokens belong to;
/// [`AdapterError::Weights`].
pub fn write_light_full(
    path: &Path,
    light: &LightLora,
    factors: &[AuxiliaryFactors],
    entries: &IndexMap<String, String>,
) -> Result<(), AdapterError> {
    let fail = |reason: String| AdapterError::Unwritable { path: path.to_owned(), reason };
    if factors.len() != light.tokens.nrows() {
        return Err(fail(format!("expected factors of {} layers, found {}", light.tokens.nrows(), factors.len())));
    }
    let found = auxiliary_hash(factors.iter().flat_map(|f| [&f.down, &f.up]).map(|t| Hash::of(&tensor_bytes(t))));
    if found != light.auxiliary {
        return Err(fail(format!("the tokens belong to auxiliary factors {}, found {found}", light.auxiliary)));
    }
    let mut tensors = NamedTensors::from([(TENSOR.to_owned(), Tensor::F32(light.tokens.clone().into_dyn()))]);
    for AuxiliaryFactors { slot, down, up } in factors {
        let [down_key, up_key] = auxiliary_keys(slot);
        tensors.insert(down_key, down.clone());
        if tensors.insert(up_key, up.clone()).is_some() {
            return Err(fail(format!("two layers would share the keys of `{slot}`")));
        }
    }
    let slots: Vec<&str> = factors.iter().map(|factors| &factors.slot[..]).collect();
    let mut metadata = metadata(light, entries);
    metadata.insert(SLOTS.to_owned(), serde_json::json!(slots).to_string());
    Ok(write_tensors(path, &tensors, &metadata)?)
}

/// The form's own entries come before others of the same name.
fn metadata(light: &LightLora, entries: &IndexMap<String, String>) -> IndexMap<String, String> {
    let own = [
        ("format".to_owned(), FORMAT.to_owned()),
        ("down_dim".to_owned(), light.down_dim.to_string()),
        ("up_dim".to_owned(), light.up_dim.to_string()),
        ("rank".to_owned(), light.rank.to_string()),
        ("auxiliary".to_owned(), light.auxiliary.clone()),
    ];
    let mut metadata = entries.clone();
    metadata.extend(own);
    metadata
}

/// The keys of a layer's auxiliary factors, down and up.
fn auxiliary_keys(slot: &str) -> [String; 2] {
    ["down_aux", "up_aux"].map(|part| format!("lora_unet__{}.{part}", slot.replace('.', "_")))
}

/// Reads tokens with their auxiliary factors, and expands them. Widens the factors of one layer at a time.
pub(super) fn read_full(
    file: &WeightFile,
    layers: Layers<'_>,
    options: &ReadOptions,
) -> Result<CoveredAdapter, AdapterError> {
    let path = file.path();
    let config = |reason: String| AdapterError::Config { path: path.to_owned(), reason };
    let light = tokens(file)?;
    let listed = listed(file)?;
    if listed.len() != light.tokens.nrows() {
        let tokens = light.tokens.nrows();
        return Err(config(format!("`{SLOTS}`: expected {tokens} layers, one per token, found {}", listed.len())));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = listed.iter().find(|module| !seen.insert(&module[..])) {
        return Err(config(format!("`{SLOTS}` names `{twice}` twice")));
    }
    let (names, slots) = (SlotNames::new(layers), layers.slots);
    let mut hashes = Vec::new();
    let mut layers = IndexMap::new();
    let mut outcomes: IndexMap<String, Outcome> =
        file.names().into_iter().map(|key| (key, Outcome::Error { reason: "no layer's factor".to_owned() })).collect();
    for (token, module) in light.tokens.outer_iter().zip(&listed) {
        let keys = auxiliary_keys(module);
        for key in &keys {
            hashes.push(Hash::of(&file.raw(key)?.data));
        }
        let target = names.find(AdapterFormat::Bare, module, KeyPart::Up).and_then(|target| match target {
            Target::Whole(slot) => Ok(slot),
            other => Err(format!("`{module}` is not a slot of its own here, but {}", other.describe())),
        });
        let outcome = match &target {
            Ok(slot) => names.outcome(&Target::Whole(slot)),
            Err(reason) => Outcome::Error { reason: reason.clone() },
        };
        outcomes.extend(keys.clone().map(|key| (key, outcome.clone())));
        let (Ok(slot), Outcome::Applied { .. }) = (target, outcome) else { continue };
        let most = slot.in_features.min(slot.out_features);
        if light.rank > most || light.down_dim == 0 || light.up_dim == 0 {
            let LightLora { down_dim, up_dim, rank, .. } = light;
            return Err(config(format!(
                "expected auxiliary factors of some width and a rank up to {most}, found {down_dim}, {up_dim} and {rank}"
            )));
        }
        let [down_key, up_key] = &keys;
        let (down_aux, up_aux) = (matrix(file, down_key)?, matrix(file, up_key)?);
        for (key, found, expected) in [
            (down_key, down_aux.dim(), (light.down_dim, slot.in_features)),
            (up_key, up_aux.dim(), (slot.out_features, light.up_dim)),
        ] {
            if found != expected {
                let (path, key) = (path.to_owned(), key.clone());
                let [expected, found] = [expected, found].map(|(rows, columns)| format!("[{rows}, {columns}]"));
                return Err(AdapterError::Mismatch { path, key, expected, found });
            }
        }
        // A token is D [rank, down_dim], then U [up_dim, rank], both row-major.
        let (rank, split) = (light.rank, light.down_dim * light.rank);
        let shape = |values: ndarray::ArrayView1<'_, f32>, shape| values.to_owned().into_shape_with_order(shape);
        let d = shape(token.slice(s![..split]), (rank, light.down_dim));
        let u = shape(token.slice(s![split..]), (light.up_dim, rank));
        let (Ok(d), Ok(u)) = (d, u) else { return Err(config("a token is too short".to_owned())) };
        let update = LowRank { down: d.dot(&down_aux), up: up_aux.dot(&u), alpha: rank as f32 }.into();
        if layers.insert(slot.name.clone(), update).is_some() {
            return Err(config(format!("`{SLOTS}` names `{}` twice", slot.name)));
        }
    }
    let found = auxiliary_hash(hashes);
    if found != light.auxiliary {
        let expected = &light.auxiliary;
        return Err(config(format!("expected auxiliary factors {expected}, found {found}; the file is damaged")));
    }
    outcomes.insert(TENSOR.to_owned(), Outcome::Applied { slot: format!("{} layers", layers.len()) });
    let coverage = Coverage {
        file: path.to_owned(),
        format: AdapterFormat::LightFull,
        scale: facts(file),
        keys: outcomes.into_iter().map(|(key, outcome)| KeyOutcome { key, outcome }).collect(),
        slots_covered: layers.len(),
        slots_total: slots.len(),
        parameters_covered: 0,
        notes: Vec::new(),
        placed: None,
        hint: None,
    };
    let coverage = coverage.accept(options)?;
    Ok(CoveredAdapter { adapter: Adapter { name: name_of(path), layers }, coverage })
}
