//! Files of several networks, as ComfyUI saves a whole model: each network's tensors lie under a prefix.

use std::collections::BTreeMap;

use super::entry::Entry;
use super::files::Files;
use crate::ExportError;

/// One network of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    Transformer,
    Vae,
    TextEncoder,
}

/// What stands before the tensors of each; the second of two is ComfyUI's for older models.
const PREFIXES: [(Section, &str); 5] = [
    (Section::Transformer, "model.diffusion_model."),
    (Section::Vae, "vae."),
    (Section::Vae, "first_stage_model."),
    (Section::TextEncoder, "text_encoders."),
    (Section::TextEncoder, "cond_stage_model."),
];
/// What ComfyUI puts between a text encoder's own name and those of its tensors.
const TRANSFORMER: &str = "transformer.";
/// A number that every text encoder of ComfyUI has, and that only encoders of CLIP's kind use.
const UNUSED: &str = "logit_scale";

/// The section of a tensor, and its name there.
fn section(name: &str) -> Option<(Section, &str)> {
    PREFIXES.iter().find_map(|&(section, prefix)| Some((section, name.strip_prefix(prefix)?)))
}

/// The networks that the files hold; none if they hold one network that has no prefix, or a transformer alone.
///
/// # Errors
/// [`ExportError::NotAModel`] if some tensors lie in sections and others do not.
pub(super) fn found(files: &Files) -> Result<Vec<Section>, ExportError> {
    let mut found: Vec<Section> = files.tensors.keys().filter_map(|name| Some(section(name)?.0)).collect();
    found.sort();
    found.dedup();
    if found.iter().all(|section| *section == Section::Transformer) {
        return Ok(Vec::new());
    }
    match files.tensors.keys().find(|name| section(name).is_none()) {
        None => Ok(found),
        Some(stranger) => {
            let prefixes: Vec<&str> = PREFIXES.iter().map(|(_, prefix)| *prefix).collect();
            Err(refusal(
                files,
                format!(
                    "it holds several networks, and tensor `{stranger}` belongs to none of them; expected names under {}",
                    prefixes.join(", ")
                ),
            ))
        }
    }
}

/// The tensors of one section, under the names of that network.
///
/// # Errors
/// As [`found`], and if the section has two text encoders, or two tensors of one name.
pub(super) fn of(files: Files, wanted: Section) -> Result<Files, ExportError> {
    found(&files)?;
    let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
    let mut encoder: Option<&str> = None;
    for (name, entry) in &files.tensors {
        let Some((_, mut own)) = section(name).filter(|(section, _)| *section == wanted) else { continue };
        if wanted == Section::TextEncoder {
            let (its, inner) = in_encoder(own);
            if let (Some(its), Some(other)) = (its, encoder)
                && its != other
            {
                let reason = format!("it holds two text encoders, `{other}` and `{its}`; v2l's models have one");
                return Err(refusal(&files, reason));
            }
            encoder = its.or(encoder);
            own = inner;
            if own == UNUSED {
                continue;
            }
        }
        if tensors.insert(own.to_owned(), entry.clone()).is_some() {
            return Err(refusal(&files, format!("`{name}` and another tensor are both `{own}` in their network")));
        }
    }
    let prefixes: Vec<&str> =
        PREFIXES.iter().filter(|(section, _)| *section == wanted).map(|(_, prefix)| *prefix).collect();
    let label = format!("{} ({})", files.label, prefixes.join(", "));
    Ok(Files { label, metadata: files.metadata, tensors })
}

/// The text encoder's own name, if the tensor is in one, and the tensor's name in it.
fn in_encoder(name: &str) -> (Option<&str>, &str) {
    if let Some(own) = name.strip_prefix(TRANSFORMER) {
        return (None, own);
    }
    match name.split_once('.') {
        Some((encoder, rest)) if rest == UNUSED => (Some(encoder), rest),
        Some((encoder, rest)) => match rest.strip_prefix(TRANSFORMER) {
            Some(own) => (Some(encoder), own),
            None => (None, name),
        },
        None => (None, name),
    }
}

fn refusal(files: &Files, reason: String) -> ExportError {
    ExportError::NotAModel { path: files.label.clone().into(), reason }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use v2l_graphs::DataType;

    use super::super::entry::Form;
    use super::*;

    fn files(names: &[&str]) -> Files {
        let entry =
            || Entry { shape: vec![0], foldable: false, data: Bytes::new(), form: Form::Floats(DataType::Float) };
        let tensors = names.iter().map(|name| ((*name).to_owned(), entry())).collect();
        Files { label: "x".to_owned(), metadata: BTreeMap::new(), tensors }
    }

    fn names(found: &[&str], section: Section) -> Result<Vec<String>, String> {
        let section = of(files(found), section).map_err(|error| error.to_string())?;
        Ok(section.tensors.into_keys().collect())
    }

    const WHOLE: [&str; 6] = [
        "model.diffusion_model.blocks.0.q.weight",
        "vae.conv1.weight",
        "text_encoders.umt5xxl.transformer.shared.weight",
        "text_encoders.umt5xxl.transformer.scaled_fp8",
        "text_encoders.umt5xxl.logit_scale",
        "text_encoders.spiece_model",
    ];

    #[test]
    fn networks_of_one_file_are_told_apart_and_get_their_own_names() {
        assert_eq!(found(&files(&WHOLE)).unwrap(), [Section::Transformer, Section::Vae, Section::TextEncoder]);
        assert_eq!(names(&WHOLE, Section::Transformer).unwrap(), ["blocks.0.q.weight"]);
        assert_eq!(names(&WHOLE, Section::Vae).unwrap(), ["conv1.weight"]);
        assert_eq!(names(&WHOLE, Section::TextEncoder).unwrap(), ["scaled_fp8", "shared.weight", "spiece_model"]);
        let older = ["first_stage_model.conv1.weight", "cond_stage_model.transformer.shared.weight"];
        assert_eq!(found(&files(&older)).unwrap(), [Section::Vae, Section::TextEncoder]);
        assert_eq!(names(&older, Section::TextEncoder).unwrap(), ["shared.weight"]);
        for one in [&["model.diffusion_model.a"][..], &["encoder.a", "decoder.b"], &[]] {
            assert_eq!(found(&files(one)).unwrap(), []);
        }
    }

    #[test]
    fn strangers_and_second_encoders_are_refused_by_name() {
        let with = |more: &[&'static str]| [&WHOLE[..], more].concat();
        for (more, section, expected) in [
            (&["model_ema.decay"][..], Section::Vae, "tensor `model_ema.decay` belongs to none of them"),
            (
                &["text_encoders.clip_l.transformer.a"],
                Section::TextEncoder,
                "two text encoders, `clip_l` and `umt5xxl`",
            ),
            (&["first_stage_model.conv1.weight"], Section::Vae, "both `conv1.weight`"),
        ] {
            let message = names(&with(more), section).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
