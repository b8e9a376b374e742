//! `--lora PATH[=STRENGTH]`.

use std::path::Path;

use serde_json::json;
use v2l_cli::{Failure, Output, split_strength};
use v2l_runtime::adapter::{self, Adapter, AdapterFormat, Outcome, ReadOptions};
use v2l_runtime::engine::manifest::{SIDE_SUFFIX, Slot};
use v2l_runtime::engine_directory::{EngineDirectory, TRANSFORMER};
use v2l_runtime::fuse::FuseReport;
use v2l_runtime::pipeline::StepGraph;
use v2l_runtime::predictor::Predictor;

use crate::args::{Args, FuseMode};

/// True if some `--lora` holds predicted tokens, which take a predictor to expand.
pub(crate) fn any_light(loras: &[String]) -> anyhow::Result<bool> {
    for text in loras {
        if adapter::detect(split_strength(text)?.0)? == AdapterFormat::Light {
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
        let (path, strength) = split_strength(text)?;
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

/// Applies adapters to the transformer, fused or as inputs of its step; gives the step to run.
pub(crate) fn apply(
    args: &Args,
    directory: &mut EngineDirectory,
    adapters: &[(Adapter, f32)],
    output: &mut Output,
) -> anyhow::Result<StepGraph> {
    let manifest = directory.engine(TRANSFORMER)?;
    let (fused, side) = (StepGraph::default().graph, format!("{}{SIDE_SUFFIX}", StepGraph::default().graph));
    let has = |graph: &str| manifest.manifest().graph(graph).is_some();
    let borrowed: Vec<(&Adapter, f32)> = adapters.iter().map(|(adapter, strength)| (adapter, *strength)).collect();
    let say = |mode: &str, reason: &str, output: &mut Output| {
        output.event("fuse_mode", json!({ "mode": mode, "reason": reason }));
    };
    match args.fuse_mode {
        FuseMode::Side if !has(&side) => return Err(no_branches()),
        FuseMode::Side => {
            let step = directory.side_step(&borrowed)?;
            say("side", "asked for", output);
            return Ok(step);
        }
        FuseMode::Auto if !has(&fused) && has(&side) => {
            let step = directory.side_step(&borrowed)?;
            say("side", "the engine has no other", output);
            return Ok(step);
        }
        _ if adapters.is_empty() => return Ok(StepGraph::default()),
        _ => {}
    }
    let fused = directory.set_adapters(adapters.to_vec(), None)?.fused.clone();
    if args.fuse_mode == FuseMode::Auto && fused.warning().is_some() && has(&side) {
        match directory.side_step(&borrowed) {
            Ok(step) => {
                directory.set_adapters(Vec::new(), None)?;
                let lost = 100.0 * (1.0 - fused.overall().survey.survived());
                let reason = format!("fused in the storage type, {lost:.1} % of the update would be lost in rounding");
                output.note(&format!("adapters are applied in low-rank branches: {reason}"));
                say("side", &reason, output);
                return Ok(step);
            }
            Err(error) => output.note(&format!("no low-rank branches: {error}")),
        }
    }
    say("fuse", if args.fuse_mode == FuseMode::Fuse { "asked for" } else { "nothing speaks against it" }, output);
    report(&fused, output);
    Ok(StepGraph::default())
}

/// The engine was compiled without low-rank branches.
pub(crate) fn no_branches() -> anyhow::Error {
    Failure::usage("the engine has no low-rank branches for --fuse-mode side; compile with --lora-rank MAX")
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
    output.result("adapter", json!({ "path": path, "format": format, "layers": layers }), || {
        format!("{}: {layers} layers, {}", path.display(), format.name())
    });
}
