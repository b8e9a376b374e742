//! Adapters, alone and against an engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use v2l_cli::{Failure, Output, open_transformers, shown};
use v2l_runtime::components::{HYPERNETWORK, TRANSFORMER, TRANSFORMER_2};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::lora::adapter::{
    Adapter, AdapterError, AdapterFormat, Coverage, CoveredAdapter, Description, Experts, FoundRecipe, Outcome, Placed,
    ReadOptions, Targets, describe, detect, read_adapter, read_light, recipe_of,
};
use v2l_runtime::lora::{AdapterSet, Branch};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::predict::{self, video2lora};

use super::{Args, Given, count};

/// Format, layers, ranks and alphas; with an engine, what becomes of every key.
pub(crate) fn show(
    path: &Path,
    (engine, experts): (Option<&Path>, Option<Experts>),
    allow_partial: bool,
    output: &mut Output,
) -> anyhow::Result<()> {
    let description = describe(path)?;
    layers(&description, output);
    recipe(path, output)?;
    let Some(engine) = engine else { return Ok(()) };
    if description.format == AdapterFormat::Light {
        return light(path, engine, output);
    }
    read(path, &open_transformers(engine)?, &ReadOptions { allow_partial, experts }, output)?;
    Ok(())
}

/// What it was made to be sampled with, if that is known.
fn recipe(path: &Path, output: &mut Output) -> anyhow::Result<()> {
    if let Some(FoundRecipe { recipe, source }) = recipe_of(path)? {
        let fields = json!({ "recipe": recipe, "source": source.to_string() });
        output.result("recipe", fields, || format!("  made for {recipe}: {source}"));
    }
    Ok(())
}

/// A transformer, and the second of a model with two.
type Transformers = (Arc<Engine>, Option<Arc<Engine>>);

/// Reads an adapter for a model's transformers, and says what becomes of every key, also if that is refused.
fn read(
    path: &Path,
    (engine, second): &Transformers,
    options: &ReadOptions,
    output: &mut Output,
) -> anyhow::Result<CoveredAdapter> {
    match read_adapter(path, Targets::of(engine, second.as_deref()), options) {
        Ok(loaded) => {
            coverage(&loaded.coverage, output);
            Ok(loaded)
        }
        Err(error) => {
            if let AdapterError::Unmatched { coverage: found } = &error {
                coverage(found, output);
            }
            Err(error.into())
        }
    }
}

/// An adapter for a model, in all of its transformers; predicted tokens are expanded by the predictor in the same folder.
pub(crate) fn load_whole(given: &Given, engine: &Path, args: &Args, output: &mut Output) -> anyhow::Result<Adapter> {
    if detect(&given.path)? == AdapterFormat::Light {
        return Ok(expand(&given.path, engine)?.1);
    }
    Ok(read_given(given, &open_transformers(engine)?, args, output)?.adapter)
}

/// The transformer, and an adapter for it; predicted tokens are expanded by the predictor in the same folder. Of a model with two, it
/// is the first that the adapter changes.
pub(crate) fn load(
    given: &Given,
    engine: &Path,
    args: &Args,
    output: &mut Output,
) -> anyhow::Result<(Arc<Engine>, Adapter)> {
    if detect(&given.path)? == AdapterFormat::Light {
        return expand(&given.path, engine);
    }
    let transformers = open_transformers(engine)?;
    let CoveredAdapter { adapter, coverage } = read_given(given, &transformers, args, output)?;
    let (engine, second) = transformers;
    let (Some(second), Some(placed)) = (second, coverage.placed) else { return Ok((engine, adapter)) };
    let (component, engine) =
        if placed.experts == Experts::Low { (TRANSFORMER_2, second) } else { (TRANSFORMER, engine) };
    output.note(&format!("the following is about {component}"));
    let set = AdapterSet::from([(&adapter, 1.0)]);
    let part = set.of(component, Branch::All).first();
    Ok((engine, part.map_or_else(Adapter::default, |(part, _)| (**part).clone())))
}

fn read_given(
    given: &Given,
    transformers: &Transformers,
    args: &Args,
    output: &mut Output,
) -> anyhow::Result<CoveredAdapter> {
    let options = ReadOptions { allow_partial: args.allow_partial, experts: given.experts };
    read(&given.path, transformers, &options, output)
}

/// The transformer that two adapters change, and what they are.
pub(crate) fn load_two(
    [first, second]: [&Given; 2],
    engine: &Path,
    args: &Args,
    output: &mut Output,
) -> anyhow::Result<(Arc<Engine>, [Adapter; 2])> {
    let (changed, first_adapter) = load(first, engine, args, output)?;
    let (also, second_adapter) = load(second, engine, args, output)?;
    if changed.path() != also.path() {
        return Err(Failure::usage(format!(
            "{} and {} change different transformers of the model: there is nothing to compare",
            first.path.display(),
            second.path.display()
        )));
    }
    Ok((changed, [first_adapter, second_adapter]))
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
    let (mut ranks, mut differences): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
    for layer in layers {
        if layer.difference.is_some() {
            differences += 1;
            continue;
        }
        let rank = layer.rank.map_or("?".to_owned(), |r| r.to_string());
        *ranks.entry(rank).or_default() += 1;
    }
    let fields = json!({
        "path": shown(&description.file), "format": description.format, "keys": description.keys, "layers": layers.len(),
        "ranks": ranks, "differences": differences, "scale": description.scale,
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
        if !ranks.is_empty() {
            let ranks: Vec<String> = ranks.iter().map(|(r, n)| format!("{r} ({})", count(*n, "layer"))).collect();
            lines.push(format!("  rank {}", ranks.join(", ")));
        }
        if differences > 0 {
            lines.push(format!("  {} of weights, biases and tables", count(differences, "full difference")));
        }
        lines.join("\n")
    });
    let width = layers.iter().map(|l| l.module.len()).max().unwrap_or(0);
    for layer in layers {
        output.result("layer", json!(layer), || {
            if let Some(shape) = &layer.difference {
                return format!("    {:<width$}  full difference {shape:?}", layer.module);
            }
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
        "slots": found.slots_total, "parameters_covered": found.parameters_covered,
    });
    output.result("coverage", fields, || {
        let parameters = match found.parameters_covered {
            0 => String::new(),
            parameters => format!(" and to {}", count(parameters, "other parameter")),
        };
        format!(
            "  coverage: {} applied to {} of {}{parameters}, {ignored} ignored, {}",
            count(applied, "key"),
            found.slots_covered,
            count(found.slots_total, "slot"),
            count(errors, "error"),
        )
    });
    for note in &found.notes {
        output.note(note);
    }
    if let Some(Placed { experts, reason }) = &found.placed {
        output.result("experts", json!({ "experts": experts, "reason": reason }), || {
            format!("  for {}: {reason}", experts.describe())
        });
    }
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
