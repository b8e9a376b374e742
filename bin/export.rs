//! `v2l export`: trained checkpoints to ONNX, without PyTorch.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::json;
use v2l_cli::{Call, Failure, Files, Output, OutputOptions, shown};
use v2l_export::{DataType, ExportOptions, Parts, PredictorPackage};

/// Export a trained checkpoint to a bundle of ONNX graphs, without PyTorch.
///
/// MODEL is a pipeline in diffusers' layout: model_index.json, transformer/, vae/, text_encoder/, tokenizer/, scheduler/. Or it is the
/// folder of a single component: config.json and safetensors, sharded or not. Or it is the folder of Wan's authors:
/// high_noise_model/, low_noise_model/. Or it is one safetensors or GGUF file, such as ComfyUI's, which is recognised by its tensors.
/// Parts can be given one by one, beside MODEL or without it.
#[derive(Parser)]
#[command(name = "v2l-export", version)]
struct Args {
    /// Model folder or file.
    #[arg(value_name = "MODEL", required_unless_present = "part")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartArgs,
    /// Type in which matrices are stored [default: the one in which they lose nothing, fp32 for those of 8 bits].
    #[arg(long, value_name = "TYPE", value_enum)]
    precision: Option<Precision>,
    /// Bundle folder to write.
    #[arg(short, long, value_name = "BUNDLE")]
    output: PathBuf,
    /// Hypernetwork checkpoint (hypernetwork.safetensors).
    #[arg(long, value_name = "FILE", requires = "light_lora")]
    hypernetwork: Option<PathBuf>,
    /// LightLoRA checkpoint with the auxiliary matrices.
    #[arg(long, value_name = "FILE", requires = "hypernetwork")]
    light_lora: Option<PathBuf>,
    /// Refinement iterations of the hypernetwork; checkpoints do not store them [default: 4].
    #[arg(long, value_name = "K", requires = "hypernetwork")]
    iterations: Option<usize>,
    /// Predictor of adapters from prompts: a folder with config.json and safetensors, or a .safetensors file with its .json
    /// beside it.
    #[arg(long, value_name = "FILE_OR_FOLDER", conflicts_with = "hypernetwork")]
    predictor: Option<PathBuf>,
    /// Folder of the text encoder of --predictor, with its tokenizer [default: what lies beside it, or the model's own].
    #[arg(long, value_name = "FOLDER", requires = "predictor")]
    predictor_text_encoder: Option<PathBuf>,
    /// Control tokens of the transformer: a safetensors file.
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    #[command(flatten)]
    output_options: OutputOptions,
}

/// Parts of a model: each a folder with config.json and safetensors, or a single safetensors or GGUF file.
#[derive(clap::Args)]
#[group(id = "part", multiple = true)]
struct PartArgs {
    /// Transformer; of a model with two, the one for the noisier steps.
    #[arg(long, value_name = "PATH")]
    transformer: Option<PathBuf>,
    /// The second transformer, for the last steps, of a model with two.
    #[arg(long, value_name = "PATH")]
    transformer_2: Option<PathBuf>,
    /// Autoencoder.
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// Text encoder; ComfyUI's files hold the tokenizer, too.
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<PathBuf>,
    /// Image encoder.
    #[arg(long, value_name = "PATH")]
    image_encoder: Option<PathBuf>,
    /// Tokenizer folder.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// scheduler_config.json, or its folder.
    #[arg(long, value_name = "PATH")]
    scheduler: Option<PathBuf>,
}

impl PartArgs {
    fn parts(&self) -> Parts {
        Parts {
            transformer: self.transformer.clone(),
            transformer_2: self.transformer_2.clone(),
            vae: self.vae.clone(),
            text_encoder: self.text_encoder.clone(),
            image_encoder: self.image_encoder.clone(),
            tokenizer: self.tokenizer.clone(),
            scheduler: self.scheduler.clone(),
        }
    }
}

/// What matrices are stored in.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Precision {
    Fp32,
    Fp16,
    Bf16,
}

pub(crate) fn command() -> clap::Command {
    Args::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(call, command(), |args: &Args| args.output_options, |args, output| export(&args, output))
}

/// Exports `model` to `bundle` as a step of another command, with flags of `v2l export`.
pub(crate) fn step(model: &Path, bundle: &Path, flags: &[OsString], output: &mut Output) -> anyhow::Result<()> {
    let words: [OsString; 3] = [model.into(), "-o".into(), bundle.into()];
    export(&v2l_cli::parse("v2l export", &[&words[..], flags].concat())?, output)
}

fn export(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    if args.iterations == Some(0) {
        return Err(Failure::usage("--iterations 0: expected 1 or more"));
    }
    Files::default()
        .read("the model", &args.model)
        .read("--transformer", &args.parts.transformer)
        .read("--transformer-2", &args.parts.transformer_2)
        .read("--vae", &args.parts.vae)
        .read("--text-encoder", &args.parts.text_encoder)
        .read("--image-encoder", &args.parts.image_encoder)
        .read("--tokenizer", &args.parts.tokenizer)
        .read("--scheduler", &args.parts.scheduler)
        .read("--hypernetwork", &args.hypernetwork)
        .read("--light-lora", &args.light_lora)
        .read("--predictor", &args.predictor)
        .read("--predictor-text-encoder", &args.predictor_text_encoder)
        .read("--control", &args.control)
        .made("-o", [&args.output])
        .check(output)?;
    let parts = args.parts.parts();
    let Some(model) = args.model.as_deref().or(parts.first()).map(Path::to_owned) else {
        return Err(Failure::usage("nothing to export: expected MODEL, or a network such as --transformer PATH"));
    };
    let package = args.predictor.clone();
    let options = ExportOptions {
        predictor: args.hypernetwork.clone().zip(args.light_lora.clone()),
        parts,
        precision: args.precision.map(|precision| match precision {
            Precision::Fp32 => DataType::Float,
            Precision::Fp16 => DataType::Float16,
            Precision::Bf16 => DataType::Bfloat16,
        }),
        iterations: args.iterations,
        package: package.map(|path| PredictorPackage { path, text_encoder: args.predictor_text_encoder.clone() }),
        controls: args.control.clone(),
    };
    let report = v2l_export::export(&model, &args.output, &options, &mut |progress| output.follow(&progress))?;
    output.finish();
    report.notes.iter().for_each(|note| output.warning(note));
    for c in &report.components {
        let fields = json!({ "component": c.name, "graphs": c.graphs, "slots": c.slots, "weight_bytes": c.bytes });
        output.result("component", fields, || {
            format!("{:<14} {:>14} bytes  {:>4} slots  {}", c.name, c.bytes, c.slots, c.graphs.join(", "))
        });
    }
    output.result("bundle", json!({ "path": shown(&args.output) }), || format!("bundle {}", args.output.display()));
    Ok(())
}
