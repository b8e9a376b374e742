//! `v2l-run`: predict a LoRA from a reference, fuse it, generate a video; or run any engine on named tensors.

#[path = "run/adapters.rs"]
mod adapters;
#[path = "run/args.rs"]
mod args;
#[path = "run/generate.rs"]
mod generate;
#[path = "run/modes.rs"]
mod modes;
#[path = "run/predictor.rs"]
mod predictor;
#[path = "run/raw.rs"]
mod raw;
#[path = "run/vae.rs"]
mod vae;

use std::process::ExitCode;

use clap::Parser;
use v2l_cli::{Failure, Output};

use args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    v2l_cli::run(args.output_options, |output| dispatch(&args, output))
}

/// Chooses the task from the flags given.
fn dispatch(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    for path in [&args.output, &args.outputs, &args.save_lora, &args.contact_sheet].into_iter().flatten() {
        check_parent(path)?;
    }
    vae::check_output(args)?;
    if !args.engine.exists() {
        return Err(Failure::usage(format!(
            "{}: there is no such engine or engine directory; make one with v2l-compile",
            args.engine.display()
        )));
    }
    let directory = args.engine.is_dir();
    match (&args.inputs, &args.encode, &args.decode) {
        (Some(inputs), None, None) => raw::run(args, inputs, output),
        (None, None, None)
            if args.predictor.is_some()
                && args.save_lora.is_some()
                && args.output.is_none()
                && args.outputs.is_none() =>
        {
            predictor::adapter(args, output)
        }
        _ if !directory => Err(Failure::usage(format!(
            "{}: not an engine directory; for a single engine give --inputs and --outputs",
            args.engine.display()
        ))),
        (None, Some(video), None) => vae::encode(args, video, output),
        (None, None, Some(latents)) => vae::decode(args, latents, output),
        (None, None, None) if args.output.is_some() || args.outputs.is_some() => generate::video(args, output),
        (None, None, None) if args.reference.is_some() && args.save_lora.is_some() => generate::adapter(args, output),
        (None, None, None) => Err(Failure::usage(
            "nothing to do: give -o VIDEO to generate, --reference or --predictor with --save-lora to predict an adapter, \
             --encode, --decode, or --inputs with --outputs",
        )),
        _ => Err(Failure::usage("--inputs, --encode and --decode exclude each other")),
    }
}

/// Refuses an output whose folder is missing before any work is done.
fn check_parent(path: &std::path::Path) -> anyhow::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => Err(Failure::usage(format!(
            "{}: the folder {} does not exist; create it first",
            path.display(),
            parent.display()
        ))),
        _ => Ok(()),
    }
}
