//! `--lora PATH[=STRENGTH]`.

use std::ffi::OsString;
use std::path::Path;

use serde_json::json;
use v2l_cli::{Output, shown, split_strength};
use v2l_runtime::adapter::{self, Adapter, AdapterFormat, Layers, Outcome, ReadOptions};
use v2l_runtime::engine_directory::{EngineDirectory, TRANSFORMER};
use v2l_runtime::fuse::FuseReport;
use v2l_runtime::pipeline::StepGraph;
use v2l_runtime::predictor::Predictor;

use crate::args::{Args, FuseMode};
use crate::modes::{self, Way};

/// True if some `--lora` holds predicted tokens, which take a predictor to expand.
pub(crate) fn any_light(loras: &[OsString]) -> anyhow::Result<bool> {
    for text in loras {
        if adapter::detect(split_strength(text)?.0)? == AdapterFormat::Light {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loads every `--lora` for these layers; `predictor` expands light adapters.
pub(crate) fn load(
    loras: &[OsString],
    layers: Layers<'_>,
    allow_partial: bool,
    mut predictor: Option<&mut Predictor>,
    output: &mut Output,
) -> anyhow::Result<Vec<(Adapter, f32)>> {
    let mut adapters = Vec::new();
    for text in loras {
        let (path, strength) = split_strength(text)?;
        let adapter = if adapter::detect(path)? == AdapterFormat::Light {
            let light = adapter::read_light(path)?;
            match predictor.as_deref_mut() {
                Some(predictor) => predictor.expand_light(&light)?,
                None => return Err(adapter::AdapterError::NeedsPredictor { path: path.to_owned() }.into()),
            }
        } else {
            let loaded = adapter::read_adapter(path, layers, &ReadOptions { allow_partial })?;
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

/// Applies adapters to the transformer, fused or as inputs of its step; gives the step to run.
pub(crate) fn apply(
    args: &Args,
    directory: &mut EngineDirectory,
    adapters: &[(Adapter, f32)],
    output: &mut Output,
) -> anyhow::Result<StepGraph> {
    let engine = directory.engine(TRANSFORMER)?;
    let step = StepGraph::default();
    let (way, reason) = modes::decide(args.fuse_mode, engine.manifest(), &step.graph)?;
    if way == Way::Fuse && adapters.is_empty() {
        return Ok(step);
    }
    let borrowed: Vec<(&Adapter, f32)> = adapters.iter().map(|(adapter, strength)| (adapter, *strength)).collect();
    let mut say = |mode: &str, reason: &str| output.event("fuse_mode", json!({ "mode": mode, "reason": reason }));
    if way == Way::Side {
        let step = directory.side_step(&borrowed)?;
        say("side", reason);
        return Ok(step);
    }
    let may_change = args.fuse_mode == FuseMode::Auto && modes::has_branches(engine.manifest(), &step.graph);
    let fused =
        directory.set_adapters(adapters.to_vec(), Some(&v2l_cli::interrupted)).map(|opened| opened.fused.clone());
    let instead = match &fused {
        Ok(fused) if fused.warning().is_none() || !may_change => {
            say("fuse", reason);
            report(fused, output);
            return Ok(step);
        }
        Ok(fused) => {
            let lost = 100.0 * (1.0 - fused.overall().survey.survived());
            format!("fused in the storage type, {lost:.1} % of the update would be lost in rounding")
        }
        Err(error) if may_change && modes::branches_may_help(error) => error.to_string(),
        Err(_) => return Ok(fused.map(|_| step)?),
    };
    let step = match (directory.side_step(&borrowed), fused) {
        (Ok(step), _) => step,
        // The branches do not serve these adapters, and what is fused does.
        (Err(why), Ok(fused)) => {
            say("fuse", &format!("{instead}, but the low-rank branches do not serve: {why}"));
            report(&fused, output);
            output.warning(&format!(
                "the adapters are fused all the same, because the low-rank branches do not serve: {why}"
            ));
            return Ok(step);
        }
        (Err(why), Err(error)) => {
            output.note(&format!("the low-rank branches do not serve either: {why}"));
            return Err(error.into());
        }
    };
    say("side", &instead);
    output.note(&format!("adapters are applied in low-rank branches: {instead}"));
    directory.set_adapters(Vec::new(), Some(&v2l_cli::interrupted))?;
    Ok(step)
}

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
    if let Some(warning) = fused.warning() {
        output.warning(warning);
    }
}

/// Says where a prediction was saved.
pub(crate) fn saved(path: &Path, format: AdapterFormat, adapter: &Adapter, output: &mut Output) {
    let layers = adapter.layers.len();
    output.result("adapter", json!({ "path": shown(path), "format": format, "layers": layers }), || {
        format!("{}: {layers} layers, {}", path.display(), format.name())
    });
}
