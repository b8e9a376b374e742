//! The VAE alone.

use std::path::Path;

use ndarray::{Array5, Ix5};
use serde_json::json;
use v2l_cli::{Failure, Output, shown};
use v2l_runtime::components::{VAE_DECODER, VAE_ENCODER};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::check_destination;
use v2l_runtime::media::clip::{self, is_tensors, read_frames};
use v2l_runtime::media::video;
use v2l_runtime::memory::check_room;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::args::Args;
use super::generate::{Listener, open, say_decisions};

/// Refuses a video, picture or adapter that could not be written in the end, before any work is done.
pub(crate) fn check_output(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.contact_sheet {
        video::check_png(path)?;
    }
    if let Some(path) = &args.save_lora {
        check_destination(path, args.adapter_format())?;
    }
    match &args.output {
        Some(path) => Ok(clip::check_destination(path, args.ffmpeg.as_deref())?),
        None => Ok(()),
    }
}

/// Refuses what there is no memory for, before it is asked for.
fn room_for(what: &'static str, bytes: u64) -> anyhow::Result<()> {
    Ok(check_room(what, bytes, 0, |_| vec!["a smaller one".to_owned()])?)
}

/// The tensors of a safetensors file, if there is room for them.
pub(crate) fn read_checked(path: &Path) -> anyhow::Result<NamedTensors> {
    // Once as it is stored, once in f32.
    room_for("reading this file", std::fs::metadata(path).map_or(0, |file| file.len()).saturating_mul(3))?;
    Ok(read_tensors(path)?)
}

/// The one tensor of a safetensors file, or that of this name, as f32 with five axes.
pub(crate) fn read_single(path: &Path, wanted: &str, axes: &str) -> anyhow::Result<Array5<f32>> {
    let tensors = read_checked(path)?;
    let named = tensors.get_key_value(wanted);
    let (name, tensor) = match (&tensors.iter().collect::<Vec<_>>()[..], named) {
        ([only], _) => *only,
        (_, Some(named)) => named,
        _ => {
            let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
            return Err(Failure::usage(format!(
                "{}: expected one tensor {axes}, or one called `{wanted}`; found {}: {}",
                path.display(),
                names.len(),
                names.join(", ")
            )));
        }
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
    let mut generator = open(args)?;
    let pixels = if is_tensors(source) {
        read_single(source, "pixels", "[B, 3, F, H, W] in [-1, 1]")?
    } else {
        let frames = read_frames(source, args.ffmpeg.as_deref())?;
        room_for("turning these frames into pixels", 4 * frames.data().len() as u64)?;
        video::frames_to_pixels(&frames, true)
    };
    let moments = generator.encode_video(&pixels, &mut Listener::new(output))?;
    output.finish();
    let parameters = moments.parameters()?;
    let tensors: NamedTensors = [
        ("mean".to_owned(), Tensor::from(moments.mean.into_dyn())),
        ("moments".to_owned(), Tensor::from(parameters.into_dyn())),
    ]
    .into_iter()
    .collect();
    let decisions = generator.decisions(&[VAE_ENCODER])?;
    say_decisions(&decisions, output);
    write_tensors(target, &tensors, &decisions.metadata())?;
    let shape = tensors["mean"].shape();
    output.result("encoded", json!({ "path": shown(target), "shape": shape }), || {
        format!("{}: mean {shape:?}", target.display())
    });
    Ok(())
}

/// `--decode FILE -o VIDEO`.
pub(crate) fn decode((args, fps): (&Args, Option<f64>), source: &Path, output: &mut Output) -> anyhow::Result<()> {
    let target = args.output.as_ref().ok_or_else(|| Failure::usage("--decode needs -o VIDEO"))?;
    let mut generator = open(args)?;
    let latents = read_single(source, "latents", "[B, C, T, h, w], as the encoder gives them")?;
    let fps = fps.unwrap_or(generator.config().defaults.fps);
    let shape = if is_tensors(target) {
        let pixels = generator.decode_video(&latents, &mut Listener::new(output))?;
        output.finish();
        let (shape, decisions) = (pixels.shape().to_vec(), generator.decisions(&[VAE_DECODER])?);
        say_decisions(&decisions, output);
        clip::write_pixels(target, pixels, &decisions.metadata())?;
        shape
    } else {
        let frames = generator.decode_frames(&latents, fps, &mut Listener::new(output))?;
        output.finish();
        let decisions = generator.decisions(&[VAE_DECODER])?;
        say_decisions(&decisions, output);
        clip::write_frames(target, &frames, fps, &decisions.metadata(), args.ffmpeg.as_deref())?;
        vec![1, 3, frames.count(), frames.height(), frames.width()]
    };
    output.result("decoded", json!({ "path": shown(target), "shape": shape }), || {
        format!("{}: pixels {shape:?}", target.display())
    });
    Ok(())
}
