//! Adapters: updates of layers, in memory and in the file formats of the field.
//!
//! Reading resolves every key of a file against the slots of a component: a key is applied, ignored for a stated reason, or an error.

mod coverage;
mod describe;
mod distilled;
mod experts;
mod keys;
mod light;
mod names;
mod parameters;
mod parts;
mod read;
mod recipe;
mod scale;
mod store;
mod update;
mod wan;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{Classified, ErrorClass};
use crate::io::weights::WeightError;
use crate::wording::ALLOW_PARTIAL;

pub use coverage::{Coverage, KeyOutcome, Outcome, ReadOptions};
pub use describe::{Description, describe};
pub use experts::{Experts, Placed, experts_by_name};
pub(crate) use experts::{by_expert, of_second};
pub(crate) use light::auxiliary_hash;
pub use light::{AuxiliaryFactors, LightLora, read_light, write_light, write_light_full};
pub use names::{Layers, Targets};
pub use parts::{CoveredAdapter, LayerDescription};
pub use read::{detect, read_adapter};
pub use recipe::{FoundRecipe, Recipe, RecipeSource, recipe_of};
pub use store::{AdapterStore, LoadedAdapter};
pub use update::{LowRank, Update};
pub use write::{check_destination, write_adapter, write_adapter_with};

/// Updates for some slots of a component.
///
/// ```
/// use ndarray::array;
/// use v2l_runtime::Adapter;
/// use v2l_runtime::lora::adapter::LowRank;
///
/// let layer = LowRank { down: array![[1.0, 0.0, 2.0]], up: array![[1.0], [3.0]], alpha: 0.5 };
/// assert_eq!((layer.rank(), layer.scale()), (1, 0.5));
/// let layers = [("blocks.0.attn1.to_q".to_owned(), layer.into())].into_iter().collect();
/// let adapter = Adapter { name: "mine".to_owned(), layers };
/// assert_eq!(adapter.layers.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// For messages and for the fixed order of fusion: a file name, say.
    pub name: String,
    /// Slot name → update. Copies of an adapter share the updates.
    pub layers: IndexMap<String, Arc<Update>>,
}

/// How an adapter's file spells its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterFormat {
    /// `base_model.model.<module>.lora_A.weight`, with `adapter_config.json` or the same in the header.
    Peft,
    /// `transformer.<module>.lora_A.weight`, with `lora_adapter_metadata` in the header.
    Diffusers,
    /// `lora_unet_<module with underscores>.lora_down.weight`, with `.alpha`.
    Kohya,
    /// `lora_unet__<module with underscores>.lora_down.weight`, with `.alpha`.
    VideoxFun,
    /// `diffusion_model.<module>.lora_A.weight`, with `.alpha`.
    Comfy,
    /// The slot's own names, without a prefix.
    Bare,
    /// Video2LoRA's predicted tokens; means something only to the predictor that made them.
    Light,
    /// Video2LoRA's predicted tokens with the auxiliary factors that expand them.
    LightFull,
}

impl AdapterFormat {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
            Self::VideoxFun => "videox-fun",
            Self::Comfy => "comfy",
            Self::Bare => "bare",
            Self::Light => "light",
            Self::LightFull => "light-full",
        }
    }

    /// True if modules have underscores for dots.
    const fn underscores(self) -> bool {
        matches!(self, Self::Kohya | Self::VideoxFun)
    }
}

/// Why an adapter could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The file is missing, damaged, or holds a type that v2l does not handle.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The folder holds no adapter.
    #[error(
        "{path} holds no adapter; expected `adapter_model.safetensors` or `pytorch_lora_weights.safetensors` in it"
    )]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The configuration beside the file, or in its header, cannot be used.
    #[error("{path}: adapter configuration: {reason}")]
    Config {
        /// The configuration's or adapter's file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file holds an update of another kind than LoRA.
    #[error("{path}: key `{key}` is {kind}, which v2l does not apply; merge it into a LoRA or into the model first")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// `DoRA`, `LoHa`, …
        kind: &'static str,
    },
    /// Keys match no slot.
    #[error("{}", unmatched(coverage))]
    Unmatched {
        /// What became of every key.
        coverage: Box<Coverage>,
    },
    /// A factor has no partner, or the two do not fit each other or the slot.
    #[error("{path}: key `{key}`: expected {expected}, found {found}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What fits.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A factor holds NaN or infinity.
    #[error("{path}: key `{key}` holds NaN or infinity; the adapter is damaged")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The file holds predicted tokens, not factors.
    #[error(
        "{path} holds LightLoRA tokens, which only the predictor that made them can expand; give the engine directory that holds it"
    )]
    NeedsPredictor {
        /// The file.
        path: PathBuf,
    },
    /// An adapter is asked for one of two transformers, and the model has one.
    #[error("{path} is meant for one of two transformers, but this model has one; leave out `@` and what follows it")]
    OneTransformer {
        /// The file.
        path: PathBuf,
    },
    /// The adapter cannot be written in this form.
    #[error("cannot write {path}: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Classified for AdapterError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Weights(WeightError::Io { source, .. }) => source.class(),
            _ => ErrorClass::BadAdapter,
        }
    }
}

fn unmatched(coverage: &Coverage) -> String {
    let file = coverage.file.display();
    let keys: Vec<&str> = coverage.unmatched().collect();
    if keys.is_empty() {
        let reason = coverage.keys.iter().find_map(|key| match &key.outcome {
            Outcome::Ignored { reason } => Some(format!("; `{}`: {reason}", key.key)),
            _ => None,
        });
        return format!("{file}: none of its keys changes the component{}", reason.unwrap_or_default());
    }
    let listed = keys.iter().take(3).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let rest =
        if coverage.covered() > 0 { format!(", or pass `{ALLOW_PARTIAL}` to apply the rest") } else { String::new() };
    let (unmatched, total) = (keys.len(), coverage.keys.len());
    let cause = coverage.hint.as_deref().unwrap_or("the adapter is for another model");
    format!("{file}: {unmatched} of {total} keys match no slot of the component, such as {listed}; {cause}{rest}")
}

#[cfg(test)]
mod tests;
