//! `v2l generate`: a model and a prompt to a video.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, CommandFactory, Parser};
use v2l_cli::{Call, Failure};

use super::model::{self, BuildArgs};
use super::run;

const EXAMPLES: &str = "\
Examples:
  v2l generate Wan2.1-T2V-1.3B-Diffusers --prompt \"a cat on a beach\" -o cat.mp4
  v2l generate MODEL --prompt \"it melts\" --image first.png --num-frames 49 --seed 7 -o melt.mp4
  v2l generate MODEL --prompt \"…\" --lora style.safetensors=0.8 --lora b.safetensors -o styled.mp4
  v2l generate MODEL --reference effect.mp4 --image first.png --prompt \"…\" -o steered.mp4
  v2l generate MODEL --prompt \"…\" --precision bf16 --compile-flag=--backend=openvino -o fast.mp4
";

/// Generate a video with a model.
///
/// MODEL is a folder in diffusers' layout, a checkpoint file, a bundle of v2l-export, or an engine directory of v2l-compile. A model is
/// exported and compiled at first use, and its engines are kept in a cache of bounded size, which `v2l cache` lists and clears.
#[derive(Parser)]
#[command(name = "v2l-generate", version, before_help = EXAMPLES)]
struct Args {
    /// Model folder or file, bundle, or engine directory.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    build: BuildArgs,
    #[command(flatten)]
    run: run::Args,
}

/// Flags that `-h` shows, and how it describes them where that is in fewer words.
const COMMON: &[(&str, Option<&str>)] = &[
    ("model", None),
    ("output", Some("Video to write, or a folder for PNG frames")),
    ("prompt", None),
    ("negative_prompt", None),
    ("image", None),
    ("num_frames", None),
    ("width", Some("Width in pixels")),
    ("height", Some("Height in pixels")),
    ("steps", None),
    ("guidance", Some("Guidance; 1 or less switches it off")),
    ("seed", None),
    ("reference", Some("Video, images or image to predict an adapter from")),
    ("effect", Some("Text to predict an adapter from, with its weight")),
    ("lora", Some("Adapter to apply, with its strength; repeatable")),
    ("precision", Some("Types to compile it in")),
    ("json", None),
    ("quiet", None),
];

/// Flags of `v2l run` for single networks.
const TENSORS: &[&str] = &["inputs", "component", "graph", "encode", "decode"];

pub(crate) fn command() -> clap::Command {
    without(Args::command(), TENSORS).mut_args(|arg| {
        match (COMMON.iter().find(|(id, _)| arg.get_id() == id), arg.get_help().cloned()) {
            (None, _) => arg.hide_short_help(true),
            (Some((_, Some(short))), Some(help)) => arg.help(*short).long_help(help),
            _ => arg,
        }
    })
}

/// A command that refuses these of its flags, and does not speak of them.
pub(crate) fn without(command: clap::Command, ids: &[&str]) -> clap::Command {
    let refused = |arg: &Arg| ids.iter().any(|id| arg.get_id() == id);
    command.mut_args(|arg| if refused(&arg) { arg.hide(true).conflicts_with("model") } else { arg })
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(
        call,
        command(),
        |args: &Args| args.run.output_options,
        |Args { model, build, run }, output| {
            if run.output.is_none() && run.outputs.is_none() {
                return Err(Failure::usage("nothing to do: give -o VIDEO; v2l predict makes an adapter alone"));
            }
            let engines = model::engines(&model, &build, output)?;
            run::dispatch(&run::Args { engine: Some(engines.path.clone()), ..run }, output)
        },
    )
}
