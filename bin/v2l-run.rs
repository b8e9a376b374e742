//! `v2l-run`: predict a LoRA from a reference, fuse it, generate a video; or run any engine on named tensors.

#[path = "run/adapters.rs"]
mod adapters;
#[path = "run/args.rs"]
mod args;
#[path = "run/effect.rs"]
mod effect;
#[path = "run/generate.rs"]
mod generate;
#[path = "run/predictor.rs"]
mod predictor;
#[path = "run/raw.rs"]
mod raw;
#[path = "run/recipe.rs"]
mod recipe;
#[path = "run/vae.rs"]
mod vae;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use v2l_cli::{AdapterArg, Failure, Files, Output, split_strength};

use args::Args;

pub(crate) fn main() -> ExitCode {
    v2l_cli::run(|args: &Args| args.output_options, dispatch)
}

/// Chooses the task from the flags given.
fn dispatch(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    check_files(args, output)?;
    args.check_backend()?;
    vae::check_output(args)?;
    let predicts_only = args.predictor.is_some()
        && args.save_lora.is_some()
        && args.output.is_none()
        && args.outputs.is_none()
        && args.inputs.is_none()
        && args.encode.is_none()
        && args.decode.is_none();
    if predicts_only && args.engine.is_none() {
        return predictor::adapter(args, output);
    }
    let engine = args.engine()?;
    if !engine.exists() {
        return Err(Failure::usage(format!(
            "{}: there is no such engine or engine directory; make one with v2l-compile",
            engine.display()
        )));
    }
    let directory = engine.is_dir();
    if args.record_inputs.is_some() && !directory {
        return Err(Failure::usage(
            "--record-inputs records what a pipeline's networks are given, and needs an engine directory; a single engine's \
             inputs are those that --inputs names",
        ));
    }
    match (&args.inputs, &args.encode, &args.decode) {
        (Some(inputs), None, None) => raw::run(args, inputs, output),
        (None, None, None) if predicts_only => predictor::adapter(args, output),
        _ if !directory => Err(Failure::usage(format!(
            "{}: not an engine directory; for a single engine give --inputs and --outputs",
            engine.display()
        ))),
        (None, Some(video), None) => vae::encode(args, video, output),
        (None, None, Some(latents)) => vae::decode(args, latents, output),
        (None, None, None) if args.output.is_some() || args.outputs.is_some() => generate::video(args, output),
        (None, None, None) if (args.reference.is_some() || args.has_effect()) && args.save_lora.is_some() => {
            generate::adapter(args, output)
        }
        (None, None, None) => Err(Failure::usage(
            "nothing to do: give -o VIDEO to generate, --reference, --effect or --predictor with --save-lora to predict an adapter, \
             --encode, --decode, or --inputs with --outputs",
        )),
        _ => Err(Failure::usage("--inputs, --encode and --decode exclude each other")),
    }
}

fn check_files(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let paths = |given: &[OsString]| -> anyhow::Result<Vec<PathBuf>> {
        given.iter().map(|text| Ok(split_strength(text)?.0.to_owned())).collect()
    };
    let adapter = |text: &OsString| anyhow::Ok(AdapterArg::new(text)?.path.to_owned());
    let adapters = args.lora.iter().map(adapter).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let embeddings = paths(&args.effect_embeds)?;
    Files::default()
        .read("--engine", &args.engine)
        .read("--lora", &adapters)
        .read("--reference", &args.reference)
        .read("--effect-embeds", &embeddings)
        .read("--image", &args.image)
        .read("--last-image", &args.last_image)
        .read("--prompt-embeds", &args.prompt_embeds)
        .read("--latents", &args.latents)
        .read("--predictor", &args.predictor)
        .read("--predictor-map", &args.predictor_map)
        .read("--predictor-inputs", &args.predictor_inputs)
        .read("--inputs", &args.inputs)
        .read("--encode", &args.encode)
        .read("--decode", &args.decode)
        .placed("-o", &args.output)
        .written("--outputs", &args.outputs)
        .placed("--save-lora", &args.save_lora)
        .written("--contact-sheet", &args.contact_sheet)
        .check(output)
}
