//! Reference, image and prompt to a video.

use std::sync::Arc;

use serde_json::json;
use v2l_cli::{Output, shown};
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::decisions::Decisions;
use v2l_runtime::events::{Event, Observer, Phase};
use v2l_runtime::generator::{Generator, PredictOptions};
use v2l_runtime::io::weights::{WeightError, write_tensors};
use v2l_runtime::lora::Strength;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::media::clip::{Clip, read_image, write_frames};
use v2l_runtime::media::video::{Frames, write_contact_sheet};
use v2l_runtime::memory::available_memory;
use v2l_runtime::pipeline::Estimate;
use v2l_runtime::pipeline::Expected;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::adapters;
use super::args::Args;
use super::effect;
use super::predictor;
use super::recipe;
use super::request::RequestSources;

/// Passes what the pipeline tells on to the user.
pub(crate) struct Listener<'a> {
    output: &'a mut Output,
}

impl<'a> Listener<'a> {
    pub(crate) fn new(output: &'a mut Output) -> Self {
        Self { output }
    }
}

impl Observer for Listener<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, total } => self.output.start(phase_name(*phase), *total as u64, false),
            Event::Step { phase, done, total } => {
                self.output.event("step", json!({ "phase": phase, "done": done, "total": total }));
                self.output.progress(*done as u64);
            }
            Event::PhaseFinished { .. } => self.output.finish(),
            Event::Warning { message } => self.output.warning(message),
        }
    }

    fn cancelled(&self) -> bool {
        v2l_cli::interrupted()
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::EncodeText => "encode text",
        Phase::EncodeReference => "encode reference",
        Phase::EncodeCondition => "encode image",
        Phase::Denoise => "denoise",
        Phase::Decode => "decode",
        Phase::EncodeVideo => "encode video",
        Phase::Predict => "predict adapter",
    }
}

/// Opens the engine directory as the flags say.
pub(crate) fn open(args: &Args) -> anyhow::Result<Generator> {
    if let Some(folder) = &args.record_inputs {
        std::fs::create_dir_all(folder).map_err(|source| WeightError::Io { path: folder.clone(), source })?;
    }
    args.reference_options()?;
    let mut generator = Generator::open(args.engine()?, &args.options())?;
    if args.verify_hashes {
        generator.verify_hashes(None)?;
    }
    Ok(generator)
}

/// `--reference REF --save-lora FILE`: the prediction alone.
pub(crate) fn adapter(args: &Args, sources: &RequestSources, output: &mut Output) -> anyhow::Result<()> {
    let mut generator = open(args)?;
    let image = sources.image.as_ref().map(|path| read_image(path, args.ffmpeg.as_deref())).transpose()?;
    generator.open_predictor()?;
    predict((args, sources), &mut generator, image.as_ref(), output)?;
    effect::predict(args, &mut generator, output)?;
    Ok(())
}

/// `-o VIDEO`: the whole pipeline.
pub(crate) fn video(args: &Args, sources: &RequestSources, output: &mut Output) -> anyhow::Result<()> {
    let mut generator = open(args)?;
    let mut request = sources.read(args.ffmpeg.as_deref())?;
    recipe::follow(args, &mut request, &generator, output)?;
    // Nothing is loaded or predicted for a request that cannot be carried out.
    let mut job = generator.prepare(request)?;
    let image = job.request().image.clone();
    let settings = job.resolved().clone();
    let adapters =
        !args.lora.is_empty() || sources.reference.is_some() || args.predictor.is_some() || args.has_effect();
    let reference_frames = sources.reference.as_ref().map(|_| settings.num_frames);
    let expected = Expected { adapters, reference_frames };
    let estimate = job.estimate(expected)?;
    say_memory(&estimate, output);
    job.check_memory(&estimate, expected)?;
    let (adapters, reference) = adapters_of((args, sources), job.generator(), image.as_ref(), output)?;
    let adapters = adapters::compose_guided(adapters, args.compose, output)?;
    let mut compared: Vec<Frames> = reference.into_iter().collect();
    if args.contact_sheet.is_some() && !adapters.is_empty() {
        output.event("video_of", json!({ "what": "base" }));
        adapters::apply(job.generator(), &[], output)?;
        let base = job.sample(&mut Listener::new(output))?;
        compared.push(job.generator().decode(&base, &mut Listener::new(output))?);
        output.finish();
        output.event("video_of", json!({ "what": "result" }));
    }
    adapters::apply(job.generator(), &adapters, output)?;
    let decisions = job.generator().video_decisions()?;
    say_decisions(&decisions, output);

    let generated = job.sample(&mut Listener::new(output))?;
    output.finish();
    if let Some(path) = &args.outputs {
        let latents = Tensor::from(generated.latents.clone().into_dyn());
        let tensors: NamedTensors = [("latents".to_owned(), latents)].into_iter().collect();
        write_tensors(path, &tensors, &decisions.metadata())?;
        let shape = tensors["latents"].shape();
        output.result("latents", json!({ "path": shown(path), "shape": shape }), || {
            format!("{}: latents {shape:?}", path.display())
        });
    }
    if let Some(path) = &args.output {
        let frames = job.generator().decode(&generated, &mut Listener::new(output))?;
        output.finish();
        write_frames(path, &frames, settings.fps, &decisions.metadata(), args.ffmpeg.as_deref())?;
        output.result("video", json!({ "path": shown(path), "settings": settings }), || {
            format!(
                "{}: {} frames of {}x{} at {} fps",
                path.display(),
                settings.num_frames,
                settings.width,
                settings.height,
                settings.fps
            )
        });
        compared.push(frames);
    }
    if let Some(path) = &args.contact_sheet {
        write_contact_sheet(path, &compared.iter().collect::<Vec<_>>())?;
        let rows = compared.len();
        output.result("contact_sheet", json!({ "path": shown(path), "rows": rows }), || {
            format!("{}: {rows} rows, the result last", path.display())
        });
    }
    Ok(())
}

/// Adapters with their strengths.
type Adapters = Vec<(Arc<Adapter>, Strength)>;

/// Every adapter that the flags name, and the frames of the reference, if there is one.
fn adapters_of(
    (args, sources): (&Args, &RequestSources),
    generator: &mut Generator,
    image: Option<&Frames>,
    output: &mut Output,
) -> anyhow::Result<(Adapters, Option<Frames>)> {
    if sources.reference.is_some() || args.has_effect() || adapters::any_light(&args.lora)? {
        generator.open_predictor()?;
    }
    let engine = generator.directory().engine(TRANSFORMER)?;
    let loaded = adapters::load(&args.lora, args.allow_partial, generator, output)?;
    let mut adapters: Adapters =
        loaded.into_iter().map(|(adapter, strength)| (adapter, Strength::from(strength))).collect();
    if let Some((predicted, strength)) = predictor::predict(args, Some(&engine), output)? {
        adapters.push((Arc::new(predicted), strength.times(args.strength)));
    }
    if let Some(predicted) = effect::predict(args, generator, output)? {
        adapters.push((Arc::new(predicted), args.strength.into()));
    }
    let predicted = predict((args, sources), generator, image, output)?;
    let Some((predicted, reference)) = predicted else { return Ok((adapters, None)) };
    adapters.push((Arc::new(predicted), args.strength.into()));
    Ok((adapters, Some(reference)))
}

/// Says what a request will take.
fn say_memory(estimate: &Estimate, output: &mut Output) {
    let Estimate { phases, complete } = estimate;
    let fields =
        json!({ "bytes": estimate.peak(), "free": available_memory(), "phases": phases, "complete": complete });
    output.event("memory", fields);
}

/// Says what was decided where `auto` was asked for.
pub(crate) fn say_decisions(decisions: &Decisions, output: &mut Output) {
    for held in &decisions.weights {
        output.event("weights", json!(held));
    }
}

/// The adapter of `--reference`, if there is one, saved where `--save-lora` says, and the reference's frames.
fn predict(
    (args, sources): (&Args, &RequestSources),
    generator: &mut Generator,
    image: Option<&Frames>,
    output: &mut Output,
) -> anyhow::Result<Option<(Adapter, Frames)>> {
    let Some(path) = &sources.reference else { return Ok(None) };
    let asked = PredictOptions {
        width: sources.request.width,
        height: sources.request.height,
        image,
        seed: sources.request.seed,
        reference: args.reference_options()?,
    };
    let reference = Clip::read(path, args.ffmpeg.as_deref())?;
    let prediction = generator.predict_with(&reference, &asked, &mut Listener::new(output))?;
    output.finish();
    adapters::cached(&prediction, "this reference was kept: autoencoder and hypernetwork do", output);
    if let Some(path) = &args.save_lora {
        let format = args.adapter_format();
        say_decisions(&prediction.decisions, output);
        prediction.save(path, format)?;
        adapters::saved(path, format, &prediction.adapter, output);
    }
    Ok(Some((prediction.adapter, reference.into_frames()?)))
}
