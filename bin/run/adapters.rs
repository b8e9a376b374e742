//! `--lora PATH[@EXPERT][=STRENGTH]`: what is said of adapters.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use v2l_cli::{AdapterArg, Failure, Output, shown};
use v2l_runtime::components::{TRANSFORMER, TRANSFORMER_2};
use v2l_runtime::generator::{Applied, Generator};
use v2l_runtime::lora::adapter::{
    self, Adapter, AdapterError, AdapterFormat, AdapterStore, Coverage, Experts, Layers, LoadedAdapter, Outcome,
    Placed, ReadOptions,
};
use v2l_runtime::lora::algebra;
use v2l_runtime::lora::fuse::FuseReport;
use v2l_runtime::lora::{AdapterSet, Branch, Strength, Weighted, borrowed};
use v2l_runtime::predict::Prediction;

use super::args::Compose;

/// True if some `--lora` holds predicted tokens, which take a predictor to expand.
pub(crate) fn any_light(loras: &[OsString]) -> anyhow::Result<bool> {
    for text in loras {
        if adapter::detect(AdapterArg::new(text)?.path)? == AdapterFormat::Light {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Loads every `--lora` for a generator's transformer.
pub(crate) fn load(
    loras: &[OsString],
    allow_partial: bool,
    generator: &mut Generator,
    output: &mut Output,
) -> anyhow::Result<Vec<Weighted>> {
    load_with(loras, output, |given| {
        Ok(generator.load_adapter(given.path, &ReadOptions { allow_partial, experts: given.experts })?)
    })
}

/// Loads every `--lora` for these layers; `expand` expands tokens.
pub(crate) fn load_for(
    loras: &[OsString],
    layers: Layers<'_>,
    allow_partial: bool,
    mut expand: Option<&mut Generator>,
    output: &mut Output,
) -> anyhow::Result<Vec<Weighted>> {
    let mut store = AdapterStore::default();
    load_with(loras, output, |given| {
        let options = ReadOptions { allow_partial, experts: given.experts };
        store.load(given.path, layers, &options, |light, slots| match expand.as_deref_mut() {
            Some(generator) if generator.has_predictor() => Ok(generator.expand(light, slots)?.adapter),
            _ => Err(AdapterError::NeedsPredictor { path: given.path.to_owned() }.into()),
        })
    })
}

/// Loads every `--lora` for a generator's transformers, and gives what is for one of them.
pub(crate) fn load_part(
    loras: &[OsString],
    component: &str,
    allow_partial: bool,
    generator: &mut Generator,
    output: &mut Output,
) -> anyhow::Result<Vec<Weighted>> {
    let adapters = load(loras, allow_partial, generator, output)?;
    let set: AdapterSet = adapters.iter().cloned().collect();
    let parts = set.of(component, Branch::All);
    if parts.is_empty() && !adapters.is_empty() {
        return Err(Failure::usage(format!(
            "no --lora is for `{component}`; write FILE@high for transformer, FILE@low for transformer_2, or FILE@both"
        )));
    }
    Ok(parts.to_vec())
}

fn load_with(
    loras: &[OsString],
    output: &mut Output,
    mut load: impl FnMut(&AdapterArg<'_>) -> anyhow::Result<LoadedAdapter>,
) -> anyhow::Result<Vec<Weighted>> {
    let mut adapters = Vec::new();
    let mut placed: Vec<(PathBuf, Experts)> = Vec::new();
    for text in loras {
        let given = AdapterArg::new(text)?;
        let LoadedAdapter { adapter, coverage } = load(&given)?;
        if let Some(coverage) = coverage {
            say_coverage(given.path, &coverage, output);
            if let Some(Placed { experts, .. }) = coverage.placed {
                let file = std::fs::canonicalize(given.path).unwrap_or_else(|_| given.path.to_owned());
                let both = |before: &Experts| {
                    [TRANSFORMER, TRANSFORMER_2].iter().any(|name| before.include(name) && experts.include(name))
                };
                if placed.iter().any(|(other, before)| *other == file && both(before)) {
                    return Err(Failure::usage(format!(
                        "--lora {} is given twice for {}; give it once, with the sum of the strengths",
                        given.path.display(),
                        experts.describe()
                    )));
                }
                placed.push((file, experts));
            }
        }
        adapters.push((adapter, given.strength));
    }
    Ok(adapters)
}

/// Prepares adapters for their sum, and says what is left of each.
pub(crate) fn compose(adapters: Vec<Weighted>, how: Compose, output: &mut Output) -> anyhow::Result<Vec<Weighted>> {
    if how == Compose::Add {
        return Ok(adapters);
    }
    let composed = algebra::compose(&borrowed(&adapters), how.into())?;
    let strengths = adapters.iter().map(|(_, strength)| *strength);
    let mut found = Vec::with_capacity(composed.len());
    for (composed, strength) in composed.into_iter().zip(strengths) {
        let name = &composed.adapter.name;
        output.event("composed", json!({ "adapter": name, "kept": composed.kept }));
        output.note(&format!("{name}: {:.1} % of the square of its norm goes into the sum", 100.0 * composed.kept));
        found.push((Arc::new(composed.adapter), strength));
    }
    Ok(found)
}

/// [`compose`] for adapters of which none but with `--compose add` may have two strengths.
pub(crate) fn compose_guided(
    adapters: Vec<(Arc<Adapter>, Strength)>,
    how: Compose,
    output: &mut Output,
) -> anyhow::Result<Vec<(Arc<Adapter>, Strength)>> {
    if how == Compose::Add {
        return Ok(adapters);
    }
    if let Some((adapter, strength)) = adapters.iter().find(|(_, strength)| !strength.is_even()) {
        return Err(Failure::usage(format!(
            "adapter `{}` has strength {} for the prompt and {} for the negative prompt, and only --compose add takes two; use that, \
             or give both the same strength",
            adapter.name, strength.cond, strength.uncond
        )));
    }
    let even = adapters.into_iter().map(|(adapter, strength)| (adapter, strength.cond)).collect();
    Ok(compose(even, how, output)?.into_iter().map(|(adapter, strength)| (adapter, strength.into())).collect())
}

/// Says what became of a file's keys.
fn say_coverage(path: &Path, coverage: &Coverage, output: &mut Output) {
    let (applied, ignored, _) = coverage.counts();
    let example = coverage.keys.iter().find_map(|key| match &key.outcome {
        Outcome::Ignored { reason } => Some(format!("{}: {reason}", key.key)),
        _ => None,
    });
    if let Some(example) = example {
        output.warning(&format!("{}: {ignored} of its keys change nothing, such as {example}", path.display()));
    }
    output.note(&format!("{}: {applied} keys applied, {ignored} ignored", path.display()));
    for note in &coverage.notes {
        output.warning(&format!("{}: {note}", path.display()));
    }
    if let Some(Placed { experts, reason }) = &coverage.placed {
        output.event("experts", json!({ "path": shown(path), "experts": experts, "reason": reason }));
        output.note(&format!("{}: for {}: {reason}", path.display(), experts.describe()));
    }
}

/// Sets a generator's adapters, and says how they are applied.
pub(crate) fn apply(
    generator: &mut Generator,
    adapters: &[(Arc<Adapter>, Strength)],
    output: &mut Output,
) -> anyhow::Result<()> {
    let set = adapters.iter().cloned().collect();
    let applied = generator.set_adapters(&set, Some(&v2l_cli::interrupted))?;
    if let Some((_, strength)) = adapters.iter().find(|(_, strength)| !strength.is_even()) {
        let Strength { cond, uncond } = strength;
        output.event("guided", json!({ "cond": cond, "uncond": uncond }));
        output.note(&format!("the prompt sees an adapter at strength {cond}, the negative prompt at {uncond}"));
    }
    let Applied { way, reason, fused, fell_back, warning, .. } = &applied;
    if !adapters.is_empty() || fused.is_none() {
        output.event("fuse_mode", json!({ "mode": way, "reason": reason }));
    }
    if let Some(fused) = fused {
        report(fused, output);
    }
    if *fell_back {
        output.note(&format!("adapters are applied in low-rank branches: {reason}"));
    }
    if let Some(warning) = warning {
        output.warning(warning);
    }
    Ok(())
}

/// Says what a fuse did.
pub(crate) fn report(fused: &FuseReport, output: &mut Output) {
    if fused.slots.is_empty() {
        return;
    }
    let overall = fused.overall();
    let rounding = overall.rounding;
    output.event(
        "fused",
        json!({ "count": fused.slots.len(), "overall": overall, "slots": fused.slots, "kept": fused.kept }),
    );
    if rounding.norm > 0.0 {
        output.note(&format!(
            "fused {} slots: {:.1} % of the update survives rounding (error {:.1} %, {:.1} % of the weights unchanged)",
            fused.slots.len(),
            100.0 * rounding.survived(),
            100.0 * rounding.relative_error(),
            100.0 * overall.unchanged()
        ));
    } else {
        output.note(&format!("fused {} slots: the update is zero, and no weight changes", fused.slots.len()));
    }
    if fused.kept == Some(true) {
        output.note("the fused weights come from the cache: nothing is fused");
    }
    if let Some(reason) = &fused.passed_over {
        output.warning(&format!("an entry of the cache of fused weights is not used, but made again: {reason}"));
    }
    if let Some(reason) = &fused.not_kept {
        output.warning(&format!("the fused weights are not kept: {reason}"));
    }
    if let Some(warning) = fused.warning() {
        output.warning(&warning);
    }
}

/// Says whether a prediction was kept; `what` is of whom, and what does not run.
pub(crate) fn cached(prediction: &Prediction, what: &str, output: &mut Output) {
    if let Some(cached) = prediction.cached {
        output.event("prediction", json!({ "cached": cached }));
        if cached {
            output.note(&format!("the prediction for {what} not run"));
        }
    }
}

/// Says where a prediction was saved.
pub(crate) fn saved(path: &Path, format: AdapterFormat, adapter: &Adapter, output: &mut Output) {
    let layers = adapter.layers.len();
    output.result("adapter", json!({ "path": shown(path), "format": format, "layers": layers }), || {
        format!("{}: {layers} layers, {}", path.display(), format.name())
    });
}
