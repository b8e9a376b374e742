//! `v2l run`: predict a LoRA from a reference, fuse it, generate a video; or run any engine on named tensors.

mod adapters;
mod args;
mod effect;
mod generate;
mod predictor;
mod raw;
mod recipe;
mod request;
mod vae;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use v2l_cli::{AdapterArg, Call, Failure, Files, Output, split_strength};

pub(crate) use args::Args;
use request::RequestSources;
pub(crate) use request::flags_of_videos;

/// Run compiled engines.
///
/// With an engine directory: generate a video (-o), predict an adapter from a reference or a prompt (--reference or --effect,
/// --save-lora), or use the VAE alone (--encode, --decode). With any engine: run it on named tensors (--inputs, --outputs), or save what
/// a predictor of any kind gives for it (--predictor, --save-lora).
#[derive(Parser)]
#[command(name = "v2l-run", version)]
struct RunArgs {
    /// Engine directory, or a single .engine file. Not needed for --predictor with --save-lora.
    #[arg(long, visible_alias = "loadEngine", value_name = "PATH", required_unless_present = "predictor")]
    engine: Option<PathBuf>,
    #[command(flatten)]
    args: Args,
}

pub(crate) fn command() -> clap::Command {
    RunArgs::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(
        call,
        command(),
        |run: &RunArgs| run.args.output_options,
        |RunArgs { engine, args }, output| dispatch(&Args { engine, ..args }, output),
    )
}

/// Chooses the task from the flags given.
pub(crate) fn dispatch(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let sources = args.request.sources(args.reference.as_ref())?;
    let other = args.predictor.is_some() || args.has_effect();
    if sources.reference.is_some() && args.reference.is_none() && other {
        return Err(Failure::usage(
            "the --request file has a `reference`, which excludes --predictor, --effect and --effect-embeds; leave one of them out",
        ));
    }
    check_files(args, &sources, output)?;
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
        (None, None, Some(latents)) => vae::decode((args, sources.request.fps), latents, output),
        (None, None, None) if args.output.is_some() || args.outputs.is_some() => {
            generate::video(args, &sources, output)
        }
        (None, None, None) if (sources.reference.is_some() || args.has_effect()) && args.save_lora.is_some() => {
            generate::adapter(args, &sources, output)
        }
        (None, None, None) => Err(Failure::usage(
            "nothing to do: give -o VIDEO to generate, --reference, --effect or --predictor with --save-lora to predict an adapter, \
             --encode, --decode, or --inputs with --outputs",
        )),
        _ => Err(Failure::usage("--inputs, --encode and --decode exclude each other")),
    }
}

fn check_files(args: &Args, sources: &RequestSources, output: &mut Output) -> anyhow::Result<()> {
    let paths = |given: &[OsString]| -> anyhow::Result<Vec<PathBuf>> {
        given.iter().map(|text| Ok(split_strength(text)?.0.to_owned())).collect()
    };
    let adapter = |text: &OsString| anyhow::Ok(AdapterArg::new(text)?.path.to_owned());
    let adapters = args.lora.iter().map(adapter).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let embeddings = paths(&args.effect_embeds)?;
    Files::default()
        .read("--engine", &args.engine)
        .read("--lora", &adapters)
        .read("--request", &sources.file)
        .read("--reference", &sources.reference)
        .read("--effect-embeds", &embeddings)
        .read("--image", &sources.image)
        .read("--last-image", &sources.last_image)
        .read("--prompt-embeds", &sources.prompt_embeds)
        .read("--latents", &sources.latents)
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
