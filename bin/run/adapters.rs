//! `--lora PATH[=STRENGTH]`.

use std::path::Path;

use serde_json::json;
use v2l_cli::{Failure, Output};
use v2l_runtime::adapter::{self, Adapter, AdapterFormat, Outcome, ReadOptions};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::fuse::FuseReport;
use v2l_runtime::predictor::Predictor;

/// Splits `PATH[=STRENGTH]`; a path that exists as it stands has strength 1.
pub(crate) fn split(text: &str) -> anyhow::Result<(&Path, f32)> {
    let path = Path::new(text);
    match text.rsplit_once('=') {
        Some((path, strength)) if !Path::new(text).exists() => match strength.parse::<f32>() {
            Ok(strength) if strength.is_finite() => Ok((Path::new(path), strength)),
            _ => Err(Failure::usage(format!("--lora {text}: strength `{strength}` is no finite number"))),
        },
        _ => Ok((path, 1.0)),
    }
}

/// True if some `--lora` holds predicted tokens, which take a predictor to expand.
pub(crate) fn any_light(loras: &[String]) -> anyhow::Result<bool> {
    for text in loras {
        if adapter::detect(split(text)?.0)? == AdapterFormat::Light {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loads every `--lora` for these slots; `predictor` expands light adapters.
pub(crate) fn load(
    loras: &[String],
    slots: &[Slot],
    allow_partial: bool,
    mut predictor: Option<&mut Predictor>,
    output: &mut Output,
) -> anyhow::Result<Vec<(Adapter, f32)>> {
    let mut adapters = Vec::new();
    for text in loras {
        let (path, strength) = split(text)?;
        let adapter = if adapter::detect(path)? == AdapterFormat::Light {
            let light = adapter::read_light(path)?;
            match predictor.as_deref_mut() {
                Some(predictor) => predictor.expand_light(&light)?,
                None => return Err(adapter::AdapterError::NeedsPredictor { path: path.to_owned() }.into()),
            }
        } else {
            let loaded = adapter::read_adapter(path, slots, &ReadOptions { allow_partial })?;
            let (applied, ignored, _) = loaded.coverage.counts();
            let example = loaded.coverage.keys.iter().find_map(|key| match &key.outcome {
                Outcome::Ignored { reason } => Some(format!("{}: {reason}", key.key)),
                _ => None,
            });
            if let Some(example) = example {
                output.warning(&format!("{}: {ignored} keys change nothing, for example {example}", path.display()));
            }
            output.note(&format!("{}: {applied} keys applied, {ignored} ignored", path.display()));
            loaded.adapter
        };
        adapters.push((adapter, strength));
    }
    Ok(adapters)
}

/// Below this gain a warning says that rounding loses a noticeable part of the adapter.
const LEAST_GAIN: f64 = 0.9;

/// Says what a fuse did.
pub(crate) fn report(fused: &FuseReport, output: &mut Output) {
    if fused.slots.is_empty() {
        return;
    }
    let overall = fused.overall();
    let survey = overall.survey;
    output.event("fused", json!({ "count": fused.slots.len(), "overall": overall, "slots": fused.slots }));
    output.note(&format!(
        "fused {} slots: {:.1} % of the update survives rounding (error {:.1} %, {:.1} % of the weights unchanged)",
        fused.slots.len(),
        100.0 * survey.survived(),
        100.0 * survey.relative_error(),
        100.0 * overall.unchanged()
    ));
    if survey.survived() < LEAST_GAIN {
        output.warning(
            "rounding to the storage type loses a noticeable part of the adapter; use --ort-weights widened, or compile \
             with --precision fp32",
        );
    }
}
