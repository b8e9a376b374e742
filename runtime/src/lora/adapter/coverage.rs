//! What became of each key of an adapter's file.

use std::path::PathBuf;

use serde::Serialize;

use super::{AdapterError, AdapterFormat, Experts, Placed};

/// How to read an adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Applies the rest of a file some keys of which match no slot.
    pub allow_partial: bool,
    /// The transformers that the file is for, of a model with two; what the file says, for `None`.
    pub experts: Option<Experts>,
}

/// What became of every key of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    /// The file.
    pub file: PathBuf,
    /// How it spells its keys.
    pub format: AdapterFormat,
    /// Where `alpha` comes from, in words.
    pub scale: String,
    /// Keys, in the file's order.
    pub keys: Vec<KeyOutcome>,
    /// Slots that the adapter changes.
    pub slots_covered: usize,
    /// Slots of the component.
    pub slots_total: usize,
    /// Parameters besides slots that the adapter changes: biases, norms, tables, convolutions.
    pub parameters_covered: usize,
    /// What the user should know of what is applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Which transformers it is for, of a model with two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placed: Option<Placed>,
    /// What may be the matter with keys in error, and the way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One key and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyOutcome {
    /// The key.
    pub key: String,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// It changes a slot.
    Applied {
        /// The slot; several if the key is of a fused layer, with the rows if it is of a part of one.
        slot: String,
    },
    /// It changes nothing, and need not.
    Ignored {
        /// Why.
        reason: String,
    },
    /// It should change something and cannot.
    Error {
        /// Why.
        reason: String,
    },
}

impl Coverage {
    /// Number of keys applied, ignored, and in error.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.keys.iter().fold((0, 0, 0), |(applied, ignored, errors), key| match key.outcome {
            Outcome::Applied { .. } => (applied + 1, ignored, errors),
            Outcome::Ignored { .. } => (applied, ignored + 1, errors),
            Outcome::Error { .. } => (applied, ignored, errors + 1),
        })
    }

    /// Slots and parameters that the adapter changes.
    pub fn covered(&self) -> usize {
        self.slots_covered + self.parameters_covered
    }

    /// Keys in error.
    pub fn unmatched(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().filter(|key| matches!(key.outcome, Outcome::Error { .. })).map(|key| &key.key[..])
    }

    /// What became of the same keys in two transformers.
    pub(super) fn and(mut self, other: Self) -> Self {
        for (key, also) in self.keys.iter_mut().zip(other.keys) {
            key.outcome =
                match (std::mem::replace(&mut key.outcome, Outcome::Applied { slot: String::new() }), also.outcome) {
                    (error @ Outcome::Error { .. }, _) | (_, error @ Outcome::Error { .. }) => error,
                    (Outcome::Applied { slot }, Outcome::Applied { slot: also }) => {
                        Outcome::Applied { slot: format!("{slot}, {also}") }
                    }
                    (applied @ Outcome::Applied { .. }, _) | (_, applied @ Outcome::Applied { .. }) => applied,
                    (ignored, _) => ignored,
                };
        }
        self.slots_covered += other.slots_covered;
        self.slots_total += other.slots_total;
        self.parameters_covered += other.parameters_covered;
        self.notes.extend(other.notes);
        self.hint = self.hint.or(other.hint);
        self
    }

    /// Keys in error become ignored if `options` allow that and some slot is covered; an error otherwise.
    pub(super) fn accept(mut self, options: &ReadOptions) -> Result<Self, AdapterError> {
        if (self.counts().2 > 0 && !options.allow_partial) || self.covered() == 0 {
            return Err(AdapterError::Unmatched { coverage: Box::new(self) });
        }
        for key in &mut self.keys {
            if let Outcome::Error { reason } = &key.outcome {
                key.outcome = Outcome::Ignored { reason: format!("{reason}; a partial adapter was allowed") };
            }
        }
        Ok(self)
    }
}
