//! What is known of networks: from configuration and checkpoint to ONNX graphs.
//!
//! A family of models is a folder here and a line in `FAMILIES`; its counterpart in the runtime has the same name.
//! Encoders of text and images that several families share, and predictors, have registries of their own.

use std::path::Path;

use serde_json::Value as Json;

use crate::{Checkpoint, ExportError};

mod autoencoder;
pub mod cogvideox;
pub(crate) mod control;
pub mod encoders;
mod family;
mod layers;
pub mod predictors;
mod recognised;
pub mod wan;

pub(crate) use family::{Architecture, CONFIG_FILE, Family, INDEX_FILE, Origin, Part, Place};
pub(crate) use recognised::Recognised;

/// The families of models. A line each.
static FAMILIES: &[&dyn Family] = &[&cogvideox::CogVideoX, &wan::Wan];

/// Every class that can be exported, families first.
fn architectures() -> impl Iterator<Item = &'static dyn Architecture> {
    FAMILIES.iter().flat_map(|family| family.architectures()).chain(encoders::ENCODERS).copied()
}

/// The architecture of a class.
///
/// # Errors
/// [`ExportError::Unsupported`] if no architecture has this name; `place` says where the name stands, and `pipeline`
/// what `model_index.json` calls the whole.
pub(crate) fn find(
    class: &str,
    pipeline: Option<&str>,
    place: &Path,
) -> Result<&'static dyn Architecture, ExportError> {
    architectures().find(|architecture| architecture.class() == class).ok_or_else(|| {
        let pipeline = pipeline.map_or_else(String::new, |pipeline| format!(" of a {pipeline}"));
        ExportError::Unsupported {
            what: format!("{}: class `{class}`{pipeline}", place.display()),
            reason: supported(&architectures().map(|architecture| architecture.class()).collect::<Vec<_>>()),
        }
    })
}

/// What a checkpoint without a configuration of its own is, `beside` a `config.json` of whatever kind.
///
/// # Errors
/// [`ExportError::NotAModel`] if nobody knows it, and what those say who do.
pub(crate) fn recognise(
    checkpoint: &Checkpoint,
    beside: &Json,
) -> Result<(&'static dyn Architecture, Recognised), ExportError> {
    for architecture in architectures() {
        if let Some(found) = architecture.recognise(checkpoint, beside)? {
            return Ok((architecture, found));
        }
    }
    let known: Vec<&str> = architectures().map(|architecture| architecture.class()).collect();
    let first = checkpoint.names().next().unwrap_or("none");
    Err(ExportError::NotAModel {
        path: checkpoint.label().into(),
        reason: format!(
            "its tensors (the first is `{first}`) are of no model that v2l knows by its file alone; give a folder with config.json \
             and safetensors, of one of these classes: {}",
            known.join(", ")
        ),
    })
}

/// The family of an architecture; `None` of an encoder that families share.
pub(crate) fn family_of(architecture: &dyn Architecture) -> Option<&'static dyn Family> {
    let has = |family: &&dyn Family| family.architectures().iter().any(|own| own.class() == architecture.class());
    FAMILIES.iter().copied().find(has)
}

/// What is supported, in words.
fn supported(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("expected {} or {last}", rest.join(", ")),
        _ => format!("expected {}", names.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_refuses_an_unknown_class_by_name_and_lists_the_known() {
        let error =
            find("HunyuanVideoTransformer3DModel", Some("HunyuanVideoPipeline"), Path::new("model/config.json"))
                .unwrap_err();
        assert!(error.is_unsupported());
        let message = error.to_string();
        assert!(
            message.starts_with(
                "model/config.json: class `HunyuanVideoTransformer3DModel` of a HunyuanVideoPipeline is not"
            ),
            "{message}"
        );
        assert!(message.contains("T5EncoderModel"), "{message}");
    }

    #[test]
    fn classes_of_the_registries_are_found_and_have_one_owner() {
        for architecture in architectures() {
            assert_eq!(find(architecture.class(), None, Path::new("")).unwrap().class(), architecture.class());
            let owners = architectures().filter(|other| other.class() == architecture.class()).count();
            assert_eq!(owners, 1, "{}", architecture.class());
        }
    }

    #[test]
    fn shared_encoders_belong_to_no_family() {
        assert!(encoders::ENCODERS.iter().all(|encoder| family_of(*encoder).is_none()));
    }
}
