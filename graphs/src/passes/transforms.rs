//! The model's record of what was done to its weights.

use indexmap::IndexMap;

use super::error::PassError;
use crate::{DataType, Model};

/// `metadata_props` key of a JSON object from initializer name to what was done to the checkpoint's tensor, in order
/// and joined by `+`: `transposed` (stored `[in, out]` where the checkpoint has `[out, in]`), `cast:float16`.
pub const TRANSFORMS_KEY: &str = "v2l.transforms";

/// `metadata_props` key of a JSON object from the name of a second form of a weight to the weight's own name.
pub const ALIASES_KEY: &str = "v2l.aliases";

/// One step from a checkpoint's tensor to an initializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    Transposed,
    Cast(DataType),
}

impl Transform {
    fn text(self) -> String {
        match self {
            Self::Transposed => "transposed".to_owned(),
            Self::Cast(to) => format!("cast:{to}"),
        }
    }

    /// What a derived weight's name ends in.
    pub(super) fn suffix(self) -> String {
        match self {
            Self::Transposed => "transposed".to_owned(),
            Self::Cast(to) => to.to_string(),
        }
    }
}

/// [`TRANSFORMS_KEY`] and [`ALIASES_KEY`], parsed.
#[derive(Default)]
pub(super) struct Record {
    transforms: IndexMap<String, String>,
    aliases: IndexMap<String, String>,
}

impl Record {
    pub(super) fn read(model: &Model) -> Result<Self, PassError> {
        let read = |key: &'static str| match model.metadata.get(key) {
            None => Ok(IndexMap::new()),
            Some(text) => serde_json::from_str(text).map_err(|e| PassError::BadMetadata { key, reason: e.to_string() }),
        };
        Ok(Self { transforms: read(TRANSFORMS_KEY)?, aliases: read(ALIASES_KEY)? })
    }

    /// Notes that `target` is now `source`, which it may be itself, after one more step.
    pub(super) fn note(&mut self, source: &str, target: &str, step: Transform) {
        let before = self.transforms.get(source).map_or("", String::as_str);
        let mut steps: Vec<String> = before.split('+').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let text = step.text();
        // Rounding and transposing commute, so two transposes cancel wherever they stand.
        match steps.iter().position(|s| *s == text) {
            Some(at) if step == Transform::Transposed => drop(steps.remove(at)),
            _ => steps.push(text),
        }
        if steps.is_empty() {
            self.transforms.shift_remove(target);
        } else {
            self.transforms.insert(target.to_owned(), steps.join("+"));
        }
        if source != target {
            let root = self.aliases.get(source).cloned().unwrap_or_else(|| source.to_owned());
            self.aliases.insert(target.to_owned(), root);
        }
    }

    /// Writes the record back; an empty one leaves no entry.
    pub(super) fn write(&self, model: &mut Model) {
        for (key, map) in [(TRANSFORMS_KEY, &self.transforms), (ALIASES_KEY, &self.aliases)] {
            if map.is_empty() {
                model.metadata.shift_remove(key);
                continue;
            }
            let object: serde_json::Map<String, serde_json::Value> =
                map.iter().map(|(name, text)| (name.clone(), text.as_str().into())).collect();
            model.metadata.insert(key.to_owned(), serde_json::Value::Object(object).to_string());
        }
    }
}
