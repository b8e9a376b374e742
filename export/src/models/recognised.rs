//! Checkpoints that come without a configuration that v2l reads: what they are, by the names and shapes of their tensors.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::{Checkpoint, ExportError};

/// What a checkpoint turned out to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recognised {
    /// What `config.json` would say.
    pub(crate) config: Json,
    /// The file's names, where they differ from the architecture's, and the architecture's.
    pub(crate) names: BTreeMap<String, String>,
}

impl Recognised {
    /// Renames the tensors of a checkpoint by `rename`, which is given names without `prefix`, and keeps the new names; other tensors
    /// keep theirs.
    pub(crate) fn names_by(
        checkpoint: &Checkpoint,
        prefix: &str,
        rename: impl Fn(&str) -> Option<String>,
    ) -> BTreeMap<String, String> {
        let new = |name: &str| Some((name.to_owned(), rename(name.strip_prefix(prefix)?)?));
        checkpoint.names().filter_map(new).filter(|(old, new)| old != new).collect()
    }
}

/// The shapes of a checkpoint under the names of an architecture.
pub(crate) struct Shapes<'a> {
    checkpoint: &'a Checkpoint,
    /// The architecture's names, and the file's.
    names: BTreeMap<&'a str, &'a str>,
}

impl<'a> Shapes<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, names: &'a BTreeMap<String, String>) -> Self {
        Self { checkpoint, names: names.iter().map(|(old, new)| (&new[..], &old[..])).collect() }
    }

    /// True if there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.contains(self.names.get(name).unwrap_or(&name))
    }

    /// Extent `axis` of a tensor.
    ///
    /// # Errors
    /// [`ExportError::NotAModel`] if the tensor is missing or has fewer axes.
    pub(crate) fn extent(&self, name: &str, axis: usize) -> Result<usize, ExportError> {
        let shape = self.shape(name)?;
        shape.get(axis).copied().ok_or_else(|| ExportError::NotAModel {
            path: self.checkpoint.label().into(),
            reason: format!("tensor `{name}` has shape {shape:?}; expected {} axes or more", axis + 1),
        })
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`ExportError::NotAModel`] if the tensor is missing.
    pub(crate) fn shape(&self, name: &str) -> Result<&'a [usize], ExportError> {
        self.checkpoint.shape(self.names.get(name).unwrap_or(&name)).ok_or_else(|| ExportError::NotAModel {
            path: self.checkpoint.label().into(),
            reason: format!("tensor `{name}` is missing, from which sizes of the model are read"),
        })
    }

    /// How many modules of a list there are: one more than the largest number behind `prefix`.
    pub(crate) fn count(&self, prefix: &str) -> usize {
        let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        let renamed = self.names.keys().filter_map(|name| number(name));
        let own = self.checkpoint.names().filter_map(number);
        renamed.chain(own).max().map_or(0, |last| last.saturating_add(1))
    }
}
