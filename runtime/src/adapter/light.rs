//! LightLoRA files: a predictor's tokens, a few kilobytes that only this predictor's auxiliary factors turn into an adapter.

use std::path::Path;

use indexmap::IndexMap;
use ndarray::{Array2, Ix2};

use super::AdapterError;
use crate::tensor::{NamedTensors, Tensor};
use crate::weights::{WeightFile, write_tensors};

const FORMAT: &str = "v2l-lightlora";
const TENSOR: &str = "pred_weights";

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

pub(super) fn is_light(file: &WeightFile) -> bool {
    file.metadata("format") == Some(FORMAT) || (file.contains(TENSOR) && file.names().len() == 1)
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

/// Reads tokens.
///
/// # Errors
/// [`AdapterError::Config`] if the header does not say what they belong to, [`AdapterError::NotFinite`],
/// [`AdapterError::Mismatch`], [`AdapterError::Weights`].
pub fn read_light(path: &Path) -> Result<LightLora, AdapterError> {
    let file = WeightFile::open(path)?;
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

/// Writes tokens, whole or not at all.
///
/// # Errors
/// [`AdapterError::Weights`].
pub fn write_light(path: &Path, light: &LightLora) -> Result<(), AdapterError> {
    let metadata = IndexMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("down_dim".to_owned(), light.down_dim.to_string()),
        ("up_dim".to_owned(), light.up_dim.to_string()),
        ("rank".to_owned(), light.rank.to_string()),
        ("auxiliary".to_owned(), light.auxiliary.clone()),
    ]);
    let tensors = NamedTensors::from([(TENSOR.to_owned(), Tensor::F32(light.tokens.clone().into_dyn()))]);
    Ok(write_tensors(path, &tensors, &metadata)?)
}
