//! Networks that predict adapters: a file and a line for each kind.

use std::path::Path;

use v2l_runtime::engine::manifest::Slot;

use crate::{Checkpoint, Component, ExportError};

mod kind;
pub mod lofa;
mod package;
pub mod prompt2effect;
pub mod video2lora;

pub(crate) use kind::{PredictorFiles, PredictorKind};
use package::PackageKind;
pub(crate) use package::{Base, Exports};

/// The kinds of predictors.
static KINDS: &[&dyn PredictorKind] = &[&video2lora::Video2Lora];

/// The kinds of predictors that come as a package.
static PACKAGES: &[&dyn PackageKind] = &[&prompt2effect::Prompt2Effect, &lofa::Lofa];

/// Exports the package at `path` for a base, of the kind that its configuration tells; `encoder` is the folder of its text
/// encoder, if that is not beside it.
///
/// # Errors
/// [`ExportError::NotAModel`], [`ExportError::Unsupported`], [`ExportError::Predictor`], and those of [`Checkpoint`].
pub(crate) fn export_package(path: &Path, encoder: Option<&Path>, base: &Base<'_>) -> Result<Exports, ExportError> {
    package::export(PACKAGES, path, encoder, base)
}

/// Exports a predictor of the kind that its checkpoint's keys tell.
///
/// # Errors
/// [`ExportError::Unsupported`] if no kind has such keys, and those of [`PredictorKind::export`].
pub(crate) fn export(files: &PredictorFiles, backbone: &[Slot]) -> Result<Component, ExportError> {
    let hypernetwork = Checkpoint::open_file(&files.hypernetwork)?;
    let kind = KINDS.iter().find(|kind| kind.recognises(&hypernetwork)).ok_or_else(|| {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        let first = hypernetwork.names().next().unwrap_or_default();
        ExportError::Unsupported {
            what: format!("{}: a predictor with tensors such as `{first}`", hypernetwork.label()),
            reason: super::supported(&names),
        }
    })?;
    kind.export(&hypernetwork, files, backbone).map_err(misfit)
}

/// Says of a predictor's tensors what does not fit: they have no config.json that could be wrong.
fn misfit(error: ExportError) -> ExportError {
    const WAY_OUT: &str = "the hypernetwork, its LightLoRA file and the transformer must belong together";
    ExportError::Predictor(match error {
        ExportError::MissingTensor { checkpoint, name, expected, hint } => {
            format!("{checkpoint}: tensor `{name}` is missing; expected shape {expected:?}{hint}; {WAY_OUT}")
        }
        ExportError::WrongShape { checkpoint, name, expected, found } => {
            format!("{checkpoint}: tensor `{name}` has shape {found:?}, expected {expected:?}; {WAY_OUT}")
        }
        ExportError::SurplusTensors { checkpoint, architecture, count, names } => {
            format!("{checkpoint}: {count} tensors are not used by {architecture}: {names}; {WAY_OUT}")
        }
        other => return other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_refuses_a_predictor_whose_tensors_no_kind_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        let data = [0u8; 4];
        let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data).unwrap();
        std::fs::write(&path, safetensors::serialize([("mapper.weight", tensor)], None).unwrap()).unwrap();
        let files = PredictorFiles { hypernetwork: path.clone(), auxiliary: path, iterations: None };
        let error = export(&files, &[]).unwrap_err();
        assert!(error.is_unsupported(), "{error}");
        assert!(
            error.to_string().contains("`mapper.weight`") && error.to_string().contains("VideoHyperDream"),
            "{error}"
        );
    }
}
