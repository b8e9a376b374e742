//! Reference, image and prompt to a video.

use ndarray::Array2;
use serde_json::json;
use v2l_cli::{Failure, Output, shown};
use v2l_runtime::adapter::{Adapter, AdapterFormat, write_adapter_with, write_light, write_light_full};
use v2l_runtime::engine::manifest::SIDE_SUFFIX;
use v2l_runtime::engine_directory::{EngineDirectory, HYPERNETWORK, TRANSFORMER};
use v2l_runtime::memory::available_memory;
use v2l_runtime::pipeline::{
    Estimate, Event, Expected, Observer, Pipeline, Reference, Request, Stage, StepGraph, TEXT_ENCODER,
};
use v2l_runtime::prediction_cache::{Determined, Key, PredictionCache};
use v2l_runtime::predictor::{Predictor, auxiliary_factors};
use v2l_runtime::tensor::{NamedTensors, Tensor};
use v2l_runtime::vae::{DECODER, ENCODER};
use v2l_runtime::video::{Frames, frames_to_pixels, pixels_to_frames, write_contact_sheet};
use v2l_runtime::weights::write_tensors;

use crate::adapters;
use crate::args::Args;
use crate::decisions::Decisions;
use crate::modes::{self, Way};
use crate::predictor;
use crate::vae::{is_tensors, open, read_frames, read_single, write_frames, write_pixels};

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
            Event::StageStarted { stage, total } => self.output.start(stage_name(*stage), *total as u64, false),
            Event::Step { stage, done, total } => {
                self.output.event("step", json!({ "stage": stage, "done": done, "total": total }));
                self.output.progress(*done as u64);
            }
            Event::StageFinished { .. } => self.output.finish(),
            Event::Warning { message } => self.output.warning(message),
        }
    }

    fn cancelled(&self) -> bool {
        v2l_cli::interrupted()
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::EncodeText => "encode text",
        Stage::EncodeReference => "encode reference",
        Stage::EncodeCondition => "encode image",
        Stage::Denoise => "denoise",
        Stage::Decode => "decode",
        Stage::EncodeVideo => "encode video",
    }
}

/// `--reference REF --save-lora FILE`: the prediction alone.
pub(crate) fn adapter(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let (mut directory, pipeline) = open(args)?;
    let image = args.image.as_ref().map(|path| read_frames(args, path)).transpose()?;
    let mut predictor = open_predictor(args, &mut directory)?;
    predict(args, &mut directory, &pipeline, &mut predictor, image.as_ref(), output)?;
    Ok(())
}

/// `-o VIDEO`: the whole pipeline.
pub(crate) fn video(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let (mut directory, pipeline) = open(args)?;
    let image = args.image.as_ref().map(|path| read_frames(args, path)).transpose()?;
    let initial_noise = args.latents.as_ref().map(|path| read_single(path, "[1, T, 16, h, w]")).transpose()?;
    let mut request = Request {
        prompt: args.prompt.clone().unwrap_or_default(),
        negative_prompt: args.negative_prompt.clone(),
        image,
        width: args.width,
        height: args.height,
        num_frames: args.num_frames,
        num_inference_steps: args.steps,
        guidance_scale: args.guidance,
        fps: args.fps,
        seed: args.seed,
        noise_aug_strength: args.noise_aug_strength,
        initial_noise,
        ..Request::default()
    };
    // Nothing is loaded or predicted for a request that cannot be carried out.
    let settings = pipeline.settings(&request, &mut ())?;
    let (way, _) = modes::decide(args.fuse_mode, directory.engine(TRANSFORMER)?.manifest(), &request.step.graph)?;
    if way == Way::Side {
        request.step.graph = format!("{}{SIDE_SUFFIX}", request.step.graph);
    }
    let adapters = !args.lora.is_empty() || args.reference.is_some() || args.predictor.is_some();
    let expected = Expected { adapters, reference_frames: args.reference.as_ref().map(|_| settings.num_frames) };
    say_memory(&pipeline.estimate(&mut directory, &request, expected)?, output);
    pipeline.check_memory(&mut directory, &request, expected)?;
    request.step = StepGraph::default();

    let mut predictor = if args.reference.is_some() || adapters::any_light(&args.lora)? {
        Some(open_predictor(args, &mut directory)?)
    } else {
        None
    };
    let engine = directory.engine(TRANSFORMER)?;
    let slots = &engine.manifest().slots;
    let mut adapters =
        adapters::load(&args.lora, engine.manifest().into(), args.allow_partial, predictor.as_mut(), output)?;
    if let Some(predicted) = predictor::predict(args, slots, output)? {
        adapters.push((predicted, args.strength));
    }
    let mut compared = Vec::new();
    if let (Some(_), Some(predictor)) = (&args.reference, &mut predictor) {
        let predicted = predict(args, &mut directory, &pipeline, predictor, request.image.as_ref(), output)?;
        adapters.push((predicted.adapter, args.strength));
        compared.push(predicted.reference);
    }
    drop(predictor);
    if args.contact_sheet.is_some() && !adapters.is_empty() {
        output.event("video_of", json!({ "what": "base" }));
        request.step = adapters::apply(args, &mut directory, &[], output)?;
        let base = pipeline.generate(&mut directory, &request, &mut Listener::new(output))?;
        compared.push(pipeline.decode(&mut directory, &base, &mut Listener::new(output))?);
        output.finish();
        output.event("video_of", json!({ "what": "result" }));
    }
    request.step = adapters::apply(args, &mut directory, &adapters, output)?;
    let mut decisions = Decisions::of(&mut directory, &[TEXT_ENCODER, ENCODER, TRANSFORMER, DECODER], output)?;
    decisions.fuse_mode(&request.step, adapters.len());

    let generated = pipeline.generate(&mut directory, &request, &mut Listener::new(output))?;
    output.finish();
    if let Some(path) = &args.outputs {
        let latents = Tensor::from(generated.latents.clone().into_dyn());
        let tensors: NamedTensors = [("latents".to_owned(), latents)].into_iter().collect();
        write_tensors(path, &tensors, decisions.metadata())?;
        let shape = tensors["latents"].shape();
        output.result("latents", json!({ "path": shown(path), "shape": shape }), || {
            format!("{}: latents {shape:?}", path.display())
        });
    }
    if let Some(path) = &args.output {
        let frames = pipeline.decode(&mut directory, &generated, &mut Listener::new(output))?;
        output.finish();
        if is_tensors(path) {
            write_pixels(path, frames_to_pixels(&frames, true), &decisions)?;
        } else {
            write_frames(args, path, &frames, settings.fps, &decisions)?;
        }
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

/// Says what a request will take.
fn say_memory(estimate: &Estimate, output: &mut Output) {
    let Estimate { phases, complete } = estimate;
    let fields =
        json!({ "bytes": estimate.peak(), "free": available_memory(), "phases": phases, "complete": complete });
    output.event("memory", fields);
}

fn no_predictor(args: &Args) -> anyhow::Error {
    Failure::usage(format!(
        "{}: there is no hypernetwork to predict from a reference with; export with --hypernetwork FILE --lilora FILE",
        args.engine.display()
    ))
}

/// The predictor, checked against the transformer's slots.
fn open_predictor(args: &Args, directory: &mut EngineDirectory) -> anyhow::Result<Predictor> {
    if !directory.has(HYPERNETWORK) {
        return Err(no_predictor(args));
    }
    let predictor = Predictor::open(directory.engine(HYPERNETWORK)?, &args.open_options())?;
    if directory.has(TRANSFORMER) {
        predictor.check_backbone(&directory.engine(TRANSFORMER)?.manifest().slots)?;
    }
    Ok(predictor)
}

/// What came of `--reference`.
struct Predicted {
    adapter: Adapter,
    reference: Frames,
}

/// Predicts the adapter of `--reference` and saves it where `--save-lora` says.
fn predict(
    args: &Args,
    directory: &mut EngineDirectory,
    pipeline: &Pipeline,
    predictor: &mut Predictor,
    image: Option<&Frames>,
    output: &mut Output,
) -> anyhow::Result<Predicted> {
    let path = args.reference.as_ref().ok_or_else(|| Failure::usage("--reference is missing"))?;
    let seed = args.seed.unwrap_or(pipeline.config().defaults.seed);
    let size = target_size(args, pipeline, image)?;
    let pixels = is_tensors(path).then(|| read_single(path, "[1, 3, F, H, W] in [-1, 1]")).transpose()?;
    let frames = match &pixels {
        Some(pixels) => pixels_to_frames(pixels, None)?,
        None => read_frames(args, path)?,
    };
    let reference = pixels.as_ref().map_or(Reference::Frames(&frames), Reference::Pixels);
    let cache = args.prediction_cache.as_ref();
    let cache = cache.map(|folder| PredictionCache::open(folder, args.prediction_cache_size)).transpose()?;
    let key = match &cache {
        Some(_) => Some(Key::new(&Determined {
            reference,
            size,
            config: pipeline.config(),
            seed,
            encoder: &*directory.engine(ENCODER)?,
            hypernetwork: &*directory.engine(HYPERNETWORK)?,
            options: &args.open_options(),
        })),
        None => None,
    };
    let kept = cache.as_ref().zip(key.as_ref()).and_then(|(cache, key)| {
        cache.get(key).unwrap_or_else(|error| {
            output.warning(&format!("a prediction that was kept is not used: {error}"));
            None
        })
    });
    let tokens = match kept {
        Some(tokens) => {
            output.event("prediction", json!({ "cached": true }));
            output.note("the prediction for this reference was kept: autoencoder and hypernetwork do not run");
            tokens
        }
        None => {
            let mut listener = Listener::new(output);
            let latents = pipeline.reference_latents(directory, reference, size, None, seed, &mut listener)?;
            output.finish();
            let tokens = predictor.predict(&Tensor::from(latents.into_dyn()))?;
            if let (Some(cache), Some(key)) = (&cache, &key) {
                output.event("prediction", json!({ "cached": false }));
                if let Err(error) = cache.put(key, &tokens) {
                    output.warning(&format!("the prediction is not kept: {error}"));
                }
            }
            tokens
        }
    };
    let adapter = predictor.expand(&tokens)?;
    save(args, directory, predictor, tokens, &adapter, output)?;
    Ok(Predicted { adapter, reference: frames })
}

fn save(
    args: &Args,
    directory: &mut EngineDirectory,
    predictor: &Predictor,
    tokens: Array2<f32>,
    adapter: &Adapter,
    output: &mut Output,
) -> anyhow::Result<()> {
    let Some(path) = &args.save_lora else { return Ok(()) };
    let format = AdapterFormat::from(args.lora_format);
    let decisions = Decisions::of(directory, &[ENCODER, HYPERNETWORK], output)?;
    match format {
        AdapterFormat::Light => write_light(path, &predictor.light(tokens), decisions.metadata())?,
        AdapterFormat::LightFull => {
            let factors = auxiliary_factors(&*directory.engine(HYPERNETWORK)?)?;
            write_light_full(path, &predictor.light(tokens), &factors, decisions.metadata())?;
        }
        _ => write_adapter_with(path, adapter, format, decisions.metadata())?,
    }
    adapters::saved(path, format, adapter, output);
    Ok(())
}

/// Width and height that reference frames are brought to: those of the video to generate.
fn target_size(args: &Args, pipeline: &Pipeline, image: Option<&Frames>) -> anyhow::Result<(usize, usize)> {
    let config = pipeline.config();
    let sample = |get: fn(&v2l_runtime::pipeline::config::VaeConfig) -> usize| config.vae.as_ref().map(get);
    let width = args.width.or(config.defaults.width).or(image.map(Frames::width)).or(sample(|v| v.sample_width));
    let height = args.height.or(config.defaults.height).or(image.map(Frames::height)).or(sample(|v| v.sample_height));
    width
        .zip(height)
        .ok_or_else(|| Failure::usage("give --width and --height: the pipeline has no VAE to take them from"))
}
