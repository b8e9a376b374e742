//! `--predictor`: any graph whose outputs are low-rank factors.

use std::sync::Arc;

use serde_json::json;
use v2l_cli::{Failure, Output, open_transformer, shown};
use v2l_runtime::engine::Engine;
use v2l_runtime::generator::Mapped;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::Strength;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat};
use v2l_runtime::predict::{PredictorError, Source};

use super::adapters::{cached, saved};
use super::args::Args;
use super::generate::Listener;

/// `--predictor … --save-lora FILE`: the prediction alone.
pub(crate) fn adapter(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let engine = args.engine.as_deref().map(open_transformer).transpose()?;
    if let (true, Some(engine)) = (args.verify_hashes, &engine) {
        engine.verify_hashes()?;
    }
    let found = predict(args, engine.as_ref(), output)?;
    even(found)?;
    Ok(())
}

/// The adapter alone, where it has one strength for both prompts.
pub(crate) fn even(found: Option<(Adapter, Strength)>) -> anyhow::Result<Option<Adapter>> {
    match found {
        Some((_, strength)) if !strength.is_even() => Err(PredictorError::Uneven { strength }.into()),
        found => Ok(found.map(|(adapter, _)| adapter)),
    }
}

/// The adapter of `--predictor`, if there is one, for a model (without any, as the map names its layers), and the strengths that it is
/// to be applied with; saved where `--save-lora` says.
pub(crate) fn predict(
    args: &Args,
    base: Option<&Arc<Engine>>,
    output: &mut Output,
) -> anyhow::Result<Option<(Adapter, Strength)>> {
    let Some(path) = &args.predictor else { return Ok(None) };
    let missing = || Failure::usage("--predictor needs --predictor-map FILE and --predictor-inputs FILE");
    let map = args.predictor_map.as_ref().filter(|_| !args.predictor_inputs.is_empty()).ok_or_else(missing)?;
    let format = args.adapter_format();
    if matches!(format, AdapterFormat::Light | AdapterFormat::LightFull) {
        return Err(Failure::usage(format!(
            "--lora-format {} is for Video2LoRA's tokens, and --predictor gives factors; use peft, diffusers, kohya, \
             videox-fun or comfy",
            format.name()
        )));
    }
    let inputs =
        args.predictor_inputs.iter().map(|path| Ok(read_tensors(path)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut predictor = Mapped::open(Arc::new(Engine::open(path)?), map, base, &args.options())?;
    if args.verify_hashes {
        predictor.verify_hashes()?;
    }
    if !predictor.unused().is_empty() {
        output.event("unused_outputs", json!({ "path": shown(path), "outputs": predictor.unused() }));
        output.note(&format!("{}: no slot uses the outputs {}", path.display(), predictor.unused().join(", ")));
    }
    let strength = predictor.strength();
    if args.save_lora.is_some() && !strength.is_even() {
        return Err(PredictorError::Uneven { strength }.into());
    }
    let sources: Vec<Source<'_>> = inputs.iter().map(Source::tensors).collect();
    let (prediction, strength) = predictor.predict_guided(&sources, &mut Listener::new(output))?;
    cached(&prediction, "these inputs was kept: the predictor does", output);
    if let Some(path) = &args.save_lora {
        prediction.save(path, format)?;
        saved(path, format, &prediction.adapter, output);
    }
    Ok(Some((prediction.adapter, strength)))
}
