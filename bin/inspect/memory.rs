//! How much memory a video takes.

use std::path::Path;

use serde_json::json;
use v2l_cli::Output;
use v2l_runtime::components::StepGraph;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::media::video::Frames;
use v2l_runtime::memory::{available_memory, readable};
use v2l_runtime::models::family::ImageInput;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::pipeline::Expected;
use v2l_runtime::pipeline::{PhaseMemory, Pipeline};
use v2l_runtime::request::Request;

use super::{Args, Switch};

/// The estimate that `v2l-run` holds against the memory that there is. Reads manifests, no weights.
pub(crate) fn show(folder: &Path, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let weights = args.ort_weights.unwrap_or_default().into();
    let mut directory = EngineDirectory::open(folder, OpenOptions { weights, ..OpenOptions::default() })?;
    let mut config = directory.config().clone();
    if let (Some(tiling), Some(family)) = (args.vae_tiling, &mut config.family) {
        *family = family.tiled(tiling == Switch::On)?;
    }
    let animated =
        config.family.as_ref().filter(|family| family.limits().is_ok_and(|l| l.image != ImageInput::Refused));
    // Its content does not matter; without --width and --height it has the size that the model was trained at.
    let image = animated.and_then(|family| family.vae()).map(|vae| {
        let (width, height) = vae.sample_size();
        Frames::new(width, height, vec![0; width * height * 3], None)
    });
    let request = Request {
        width: args.width,
        height: args.height,
        num_frames: args.num_frames,
        image: image.transpose()?,
        ..Request::default()
    };
    let tokenizer = directory.tokenizer()?;
    let pipeline = Pipeline::new(config, tokenizer.as_deref())?;
    let prepared = pipeline.prepare(request)?;
    let settings = prepared.resolved();
    let expected = Expected { adapters: args.with_adapters, reference_frames: None };
    let estimate = pipeline.estimate(&mut directory, (&prepared, &StepGraph::default()), expected)?;
    let fields = json!({
        "bytes": estimate.peak(), "free": available_memory(), "phases": estimate.phases, "complete": estimate.complete,
        "settings": settings,
    });
    output.result("memory", fields, || {
        let about = if estimate.complete { "about" } else { "at least" };
        let (width, height, frames) = (settings.width, settings.height, settings.num_frames);
        let mut lines = vec![format!("{frames} frames of {width}x{height}: {about} {}", readable(estimate.peak()))];
        lines.extend(estimate.phases.iter().map(|phase| {
            let PhaseMemory { name, weights, activations, data } = phase;
            let [weights, activations, data] = [weights, activations, data].map(|bytes| readable(*bytes));
            let all = readable(phase.total());
            format!("  {name}: {all} (weights {weights}, activations {activations}, data {data})")
        }));
        lines.join("\n")
    });
    Ok(())
}
