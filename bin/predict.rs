//! `v2l predict`: a reference or a text to an adapter.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use v2l_cli::Call;

use super::generate::without;
use super::model::{self, BuildArgs};
use super::run;

/// Predict an adapter from a reference or a text.
///
/// MODEL is what `v2l generate` takes, with a hypernetwork (--hypernetwork, --light-lora) or a predictor of prompts (--effect-predictor)
/// where it is not in the engines already. The adapter works with `--lora` of v2l, and with other programs by --lora-format.
#[derive(Parser)]
#[command(name = "v2l-predict", version)]
struct Args {
    /// Model folder or file, bundle, or engine directory. Not needed for --predictor.
    #[arg(value_name = "MODEL", required_unless_present = "predictor")]
    model: Option<PathBuf>,
    #[command(flatten)]
    build: BuildArgs,
    #[command(flatten)]
    run: run::Args,
}

/// Flags of `v2l run` that change no prediction, besides those that are about a video alone.
const NOT_PREDICTION: &[&str] = &[
    "output",
    "contact_sheet",
    "strength",
    "lora",
    "recipe",
    "compose",
    "fuse_mode",
    "allow_partial",
    "fused_cache",
    "fused_cache_size",
    "inputs",
    "outputs",
    "component",
    "graph",
    "encode",
    "decode",
];

pub(crate) fn command() -> clap::Command {
    let of_videos = run::flags_of_videos();
    let unused: Vec<&str> = NOT_PREDICTION.iter().copied().chain(of_videos.iter().map(String::as_str)).collect();
    without(Args::command(), &unused)
        .mut_arg("output", |arg| arg.short(None))
        .mut_arg("save_lora", |arg| arg.short('o').required(true))
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(
        call,
        command(),
        |args: &Args| args.run.output_options,
        |Args { model, build, run }, output| {
            let engines = model.map(|model| model::engines(&model, &build, output)).transpose()?;
            let engine = engines.as_ref().map(|engines| engines.path.clone());
            run::dispatch(&run::Args { engine, ..run }, output)
        },
    )
}
