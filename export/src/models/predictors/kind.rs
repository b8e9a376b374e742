//! What a kind of predictor is.

use std::path::PathBuf;

use v2l_runtime::engine::manifest::Slot;

use crate::{Checkpoint, Component, ExportError};

/// The files of a predictor.
#[derive(Clone, Debug)]
pub(crate) struct PredictorFiles {
    /// The hypernetwork's checkpoint.
    pub(crate) hypernetwork: PathBuf,
    /// The auxiliary matrices of its adapters.
    pub(crate) auxiliary: PathBuf,
    /// Refinement iterations; `None`: as many as the official code runs.
    pub(crate) iterations: Option<usize>,
}

/// One kind of predictor.
pub(crate) trait PredictorKind: Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// True if the checkpoint's keys are those of this kind.
    fn recognises(&self, hypernetwork: &Checkpoint) -> bool;

    /// Exports the predictor of adapters for a backbone with these slots.
    ///
    /// # Errors
    /// [`ExportError::Predictor`] if the files do not fit each other or the backbone, and those of [`Checkpoint`].
    fn export(
        &self,
        hypernetwork: &Checkpoint,
        files: &PredictorFiles,
        backbone: &[Slot],
    ) -> Result<Component, ExportError>;
}
