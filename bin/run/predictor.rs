//! `--predictor`: any graph whose outputs are low-rank factors.

use std::sync::Arc;

use serde_json::json;
use v2l_cli::{Failure, Output, open_transformer, shown};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::generator::Mapped;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat};
use v2l_runtime::predict::Source;

use crate::adapters::{cached, saved};
use crate::args::Args;
use crate::generate::Listener;

/// `--predictor … --save-lora FILE`: the prediction alone.
pub(crate) fn adapter(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let engine = open_transformer(&args.engine)?;
    if args.verify_hashes {
        engine.verify_hashes()?;
    }
    predict(args, &engine.manifest().slots, output)?;
    Ok(())
}

/// The adapter of `--predictor`, if there is one, for a model with these slots; saved where `--save-lora` says.
pub(crate) fn predict(args: &Args, slots: &[Slot], output: &mut Output) -> anyhow::Result<Option<Adapter>> {
    let Some(path) = &args.predictor else { return Ok(None) };
    let missing = || Failure::usage("--predictor needs --predictor-map FILE and --predictor-inputs FILE");
    let (map, inputs) = args.predictor_map.as_ref().zip(args.predictor_inputs.as_ref()).ok_or_else(missing)?;
    let format = AdapterFormat::from(args.lora_format);
    if matches!(format, AdapterFormat::Light | AdapterFormat::LightFull) {
        return Err(Failure::usage(format!(
            "--lora-format {} is for Video2LoRA's tokens, and --predictor gives factors; use peft, diffusers, kohya, \
             videox-fun or comfy",
            format.name()
        )));
    }
    let (inputs, engine) = (read_tensors(inputs)?, Arc::new(Engine::open(path)?));
    if args.verify_hashes {
        engine.verify_hashes()?;
    }
    let mut predictor = Mapped::open(engine, map, slots, &args.options())?;
    if !predictor.unused().is_empty() {
        output.event("unused_outputs", json!({ "path": shown(path), "outputs": predictor.unused() }));
        output.note(&format!("{}: no slot uses the outputs {}", path.display(), predictor.unused().join(", ")));
    }
    let prediction = predictor.predict(&Source::tensors(&inputs), &mut Listener::new(output))?;
    cached(&prediction, "these inputs was kept: the predictor does", output);
    if let Some(path) = &args.save_lora {
        prediction.save(path, format)?;
        saved(path, format, &prediction.adapter, output);
    }
    Ok(Some(prediction.adapter))
}
