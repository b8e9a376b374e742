//! The VAE alone.

use std::path::Path;

use anyhow::Context;
use ndarray::{Array5, Ix5};
use serde_json::json;
use v2l_cli::{Failure, Output, shown};
use v2l_runtime::adapter::check_destination;
use v2l_runtime::atomic::probe_file;
use v2l_runtime::engine_directory::EngineDirectory;
use v2l_runtime::library::find_ffmpeg;
use v2l_runtime::pipeline::{Pipeline, check_room};
use v2l_runtime::tensor::{NamedTensors, Tensor};
use v2l_runtime::vae;
use v2l_runtime::video::{self, Frames};
use v2l_runtime::weights::{WeightError, read_tensors, write_tensors};

use crate::args::Args;
use crate::decisions::Decisions;
use crate::generate::Listener;

/// Opens the directory, with the flags' changes to its settings.
pub(crate) fn open(args: &Args) -> anyhow::Result<(EngineDirectory, Pipeline)> {
    if let Some(folder) = &args.record_inputs {
        std::fs::create_dir_all(folder).map_err(|source| WeightError::Io { path: folder.clone(), source })?;
    }
    let mut directory = EngineDirectory::open(&args.engine, args.open_options())?;
    let mut config = directory.config().clone();
    args.adjust(&mut config)?;
    let tokenizer = directory.tokenizer()?;
    let pipeline = Pipeline::new(config, tokenizer.as_deref())?;
    if args.verify_hashes {
        let names: Vec<String> = pipeline.config().components.keys().cloned().collect();
        for name in names {
            directory.engine(&name)?.verify_hashes()?;
        }
    }
    Ok((directory, pipeline))
}

/// True for a `.safetensors` path.
pub(crate) fn is_tensors(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

/// Frames of a video, image folder or image; ffmpeg is only looked for when it is needed.
pub(crate) fn read_frames(args: &Args, path: &Path) -> anyhow::Result<Frames> {
    match video::read_frames(path, None) {
        Err(video::VideoError::NoFfmpeg { .. }) => {
            let ffmpeg = find_ffmpeg(args.ffmpeg.as_deref())?;
            Ok(video::read_frames(path, Some(&ffmpeg.path))?)
        }
        other => Ok(other?),
    }
}

/// Refuses a video, picture or adapter that could not be written in the end, before any work is done.
pub(crate) fn check_output(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.contact_sheet {
        video::check_png(path)?;
    }
    if let Some(path) = &args.save_lora {
        check_destination(path, args.lora_format.into())?;
    }
    match &args.output {
        Some(path) if is_tensors(path) => probe_file(path).with_context(|| path.display().to_string()),
        Some(path) => {
            let ffmpeg = video::needs_ffmpeg(path)?.then(|| find_ffmpeg(args.ffmpeg.as_deref())).transpose()?;
            Ok(video::probe_video(path, ffmpeg.as_ref().map(|found| &*found.path))?)
        }
        None => Ok(()),
    }
}

/// Writes frames as a video, or as a folder of PNGs.
pub(crate) fn write_frames(
    args: &Args,
    path: &Path,
    frames: &Frames,
    fps: f64,
    decisions: &Decisions,
) -> anyhow::Result<()> {
    let comment = decisions.comment();
    match video::write_commented(path, frames, fps, &comment, None) {
        Err(video::VideoError::NoFfmpeg { .. }) => {
            let ffmpeg = find_ffmpeg(args.ffmpeg.as_deref())?;
            Ok(video::write_commented(path, frames, fps, &comment, Some(&ffmpeg.path))?)
        }
        other => Ok(other?),
    }
}

/// Refuses what there is no memory for, before it is asked for.
fn room_for(what: &'static str, bytes: u64) -> anyhow::Result<()> {
    Ok(check_room(what, bytes, 0, |_| vec!["a smaller one".to_owned()])?)
}

/// The one tensor of a safetensors file, as f32 with five axes.
pub(crate) fn read_single(path: &Path, axes: &str) -> anyhow::Result<Array5<f32>> {
    // Once as it is stored, once in f32.
    room_for("reading this file", std::fs::metadata(path).map_or(0, |file| file.len()).saturating_mul(3))?;
    let tensors = read_tensors(path)?;
    let [(name, tensor)] = &tensors.iter().collect::<Vec<_>>()[..] else {
        let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
        return Err(Failure::usage(format!(
            "{}: expected one tensor {axes}, found {}: {}",
            path.display(),
            names.len(),
            names.join(", ")
        )));
    };
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let array = tensor.to_f32().and_then(|a| a.into_dimensionality::<Ix5>().ok());
    array.ok_or_else(|| {
        Failure::usage(format!("{}: tensor `{name}` is {found}, expected floats {axes}", path.display()))
    })
}

/// `--encode VIDEO --outputs FILE`.
pub(crate) fn encode(args: &Args, source: &Path, output: &mut Output) -> anyhow::Result<()> {
    let target = args.outputs.as_ref().ok_or_else(|| Failure::usage("--encode needs --outputs FILE"))?;
    let (mut directory, pipeline) = open(args)?;
    let pixels = if is_tensors(source) {
        read_single(source, "[B, 3, F, H, W] in [-1, 1]")?
    } else {
        let frames = read_frames(args, source)?;
        room_for("turning these frames into pixels", 4 * frames.data().len() as u64)?;
        video::frames_to_pixels(&frames, true)
    };
    let moments = pipeline.encode_video(&mut directory, &pixels, &mut Listener::new(output))?;
    output.finish();
    let parameters = moments.parameters()?;
    let tensors: NamedTensors = [
        ("mean".to_owned(), Tensor::from(moments.mean.into_dyn())),
        ("moments".to_owned(), Tensor::from(parameters.into_dyn())),
    ]
    .into_iter()
    .collect();
    let decisions = Decisions::of(&mut directory, &[vae::ENCODER], output)?;
    write_tensors(target, &tensors, decisions.metadata())?;
    let shape = tensors["mean"].shape();
    output.result("encoded", json!({ "path": shown(target), "shape": shape }), || {
        format!("{}: mean {shape:?}", target.display())
    });
    Ok(())
}

/// `--decode FILE -o VIDEO`.
pub(crate) fn decode(args: &Args, source: &Path, output: &mut Output) -> anyhow::Result<()> {
    let target = args.output.as_ref().ok_or_else(|| Failure::usage("--decode needs -o VIDEO"))?;
    let (mut directory, pipeline) = open(args)?;
    let latents = read_single(source, "[B, 16, T, h, w], not multiplied by the scaling factor")?;
    let fps = args.fps.unwrap_or(pipeline.config().defaults.fps);
    let pixels = pipeline.decode_video(&mut directory, &latents, &mut Listener::new(output))?;
    output.finish();
    let shape = pixels.shape().to_vec();
    let decisions = Decisions::of(&mut directory, &[vae::DECODER], output)?;
    if is_tensors(target) {
        write_pixels(target, pixels, &decisions)?;
    } else {
        write_frames(args, target, &video::pixels_to_frames(&pixels, Some(fps))?, fps, &decisions)?;
    }
    output.result("decoded", json!({ "path": shown(target), "shape": shape }), || {
        format!("{}: pixels {shape:?}", target.display())
    });
    Ok(())
}

/// Writes `pixels` `[B, 3, F, H, W]`.
pub(crate) fn write_pixels(path: &Path, pixels: Array5<f32>, decisions: &Decisions) -> anyhow::Result<()> {
    let tensors: NamedTensors = [("pixels".to_owned(), Tensor::from(pixels.into_dyn()))].into_iter().collect();
    Ok(write_tensors(path, &tensors, decisions.metadata())?)
}
