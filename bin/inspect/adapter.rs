//! Adapters, alone and against an engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use v2l_cli::{Failure, Output, open_transformer, shown};
use v2l_runtime::components::{HYPERNETWORK, TRANSFORMER};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::lora::adapter::{
    Adapter, AdapterError, AdapterFormat, Coverage, Description, Outcome, ReadOptions, describe, detect, read_adapter,
    read_light,
};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::predict::{self, video2lora};

use super::count;

/// Format, layers, ranks and alphas; with an engine, what becomes of every key.
pub(crate) fn show(path: &Path, engine: Option<&Path>, allow_partial: bool, output: &mut Output) -> anyhow::Result<()> {
    let description = describe(path)?;
    layers(&description, output);
    let Some(engine) = engine else { return Ok(()) };
    if description.format == AdapterFormat::Light {
        return light(path, engine, output);
    }
    read(path, &*open_transformer(engine)?, allow_partial, output)?;
    Ok(())
}

/// Reads an adapter for an engine, and says what becomes of every key, also if that is refused.
pub(crate) fn read(path: &Path, engine: &Engine, allow_partial: bool, output: &mut Output) -> anyhow::Result<Adapter> {
    match read_adapter(path, engine.manifest(), &ReadOptions { allow_partial }) {
        Ok(loaded) => {
            coverage(&loaded.coverage, output);
            Ok(loaded.adapter)
        }
        Err(error) => {
            if let AdapterError::Unmatched { coverage: found } = &error {
                coverage(found, output);
            }
            Err(error.into())
        }
    }
}

/// The transformer, and an adapter for it; predicted tokens are expanded by the predictor in the same folder.
pub(crate) fn load(
    path: &Path,
    engine: &Path,
    allow_partial: bool,
    output: &mut Output,
) -> anyhow::Result<(Arc<Engine>, Adapter)> {
    if detect(path)? == AdapterFormat::Light {
        return expand(path, engine);
    }
    let engine = open_transformer(engine)?;
    let adapter = read(path, &engine, allow_partial, output)?;
    Ok((engine, adapter))
}

/// The transformer, and the adapter that LightLoRA tokens stand for.
fn expand(path: &Path, engine: &Path) -> anyhow::Result<(Arc<Engine>, Adapter)> {
    let light = read_light(path)?;
    let needs_predictor = || AdapterError::NeedsPredictor { path: path.to_owned() };
    if !engine.is_dir() {
        return Err(needs_predictor().into());
    }
    let options = OpenOptions::default();
    let mut directory = EngineDirectory::open(engine, options.clone())?;
    if !directory.has(HYPERNETWORK) {
        return Err(needs_predictor().into());
    }
    let mut predictor = predict::open(directory.engine(HYPERNETWORK)?, &options)?;
    let adapter = predictor.tokens().ok_or_else(needs_predictor)?.expand(&light)?;
    Ok((directory.engine(TRANSFORMER)?, adapter))
}

fn layers(description: &Description, output: &mut Output) {
    let layers = &description.layers;
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    for layer in layers {
        let rank = layer.rank.map_or("?".to_owned(), |r| r.to_string());
        *ranks.entry(rank).or_default() += 1;
    }
    let fields = json!({
        "path": shown(&description.file), "format": description.format, "keys": description.keys, "layers": layers.len(),
        "ranks": ranks, "scale": description.scale,
    });
    output.result("adapter", fields, || {
        let mut lines = vec![
            format!("adapter {}", description.file.display()),
            format!("  format {}, {}", description.format.name(), count(description.keys, "key")),
        ];
        if matches!(description.format, AdapterFormat::Light | AdapterFormat::LightFull) {
            lines.push(format!("  {}", description.scale));
        } else {
            lines.push(format!("  alpha from {}", description.scale));
        }
        if !layers.is_empty() {
            let ranks: Vec<String> = ranks.iter().map(|(r, n)| format!("{r} ({})", count(*n, "layer"))).collect();
            lines.push(format!("  rank {}", ranks.join(", ")));
        }
        lines.join("\n")
    });
    let width = layers.iter().map(|l| l.module.len()).max().unwrap_or(0);
    for layer in layers {
        output.result("layer", json!(layer), || {
            let extent = |n: Option<usize>| n.map_or("?".to_owned(), |n| n.to_string());
            let alpha = layer.alpha.map_or("= rank".to_owned(), |a| a.to_string());
            let scale = layer.scale.map_or("?".to_owned(), |s| s.to_string());
            format!(
                "    {:<width$}  {} -> {}  rank {}  alpha {alpha}  scale {scale}",
                layer.module,
                extent(layer.in_features),
                extent(layer.out_features),
                extent(layer.rank)
            )
        });
    }
    for (key, kind) in &description.others {
        output.result("other", json!({ "key": key, "kind": kind }), || {
            format!("    {key}  {}", kind.unwrap_or("no adapter's key"))
        });
    }
}

/// What becomes of every key: one event each; for people, keys that change nothing one by one.
fn coverage(found: &Coverage, output: &mut Output) {
    let (applied, ignored, errors) = found.counts();
    let fields = json!({
        "applied": applied, "ignored": ignored, "errors": errors, "slots_covered": found.slots_covered,
        "slots": found.slots_total,
    });
    output.result("coverage", fields, || {
        format!(
            "  coverage: {} applied to {} of {}, {ignored} ignored, {}",
            count(applied, "key"),
            found.slots_covered,
            count(found.slots_total, "slot"),
            count(errors, "error"),
        )
    });
    for key in &found.keys {
        let (what, reason) = match &key.outcome {
            Outcome::Applied { .. } => {
                output.event("key", json!(key));
                continue;
            }
            Outcome::Ignored { reason } => ("ignored", reason),
            Outcome::Error { reason } => ("error", reason),
        };
        output.result("key", json!(key), || format!("    {what} {}: {reason}", key.key));
    }
}

/// Tokens mean something only to the predictor with the same auxiliary factors.
fn light(path: &Path, engine: &Path, output: &mut Output) -> anyhow::Result<()> {
    let light = read_light(path)?;
    let hypernetwork = if engine.is_dir() {
        EngineDirectory::open(engine, OpenOptions::default())?.engine(HYPERNETWORK)?
    } else {
        Arc::new(Engine::open(engine)?)
    };
    if hypernetwork.manifest().component != HYPERNETWORK {
        return Err(Failure::usage(format!(
            "{}: LightLoRA tokens are held against a hypernetwork; give the engine directory, or its hypernetwork.engine",
            engine.display()
        )));
    }
    let slots = video2lora::check_light(&light, hypernetwork.path(), hypernetwork.manifest())?;
    output.result("coverage", json!({ "tokens": light.tokens.nrows(), "slots": slots }), || {
        format!("  coverage: {} for {}", count(light.tokens.nrows(), "token"), count(slots, "slot"))
    });
    Ok(())
}
