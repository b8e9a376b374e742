//! `v2l-export`: trained checkpoints to ONNX, without PyTorch.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use v2l_cli::{Failure, Files, Output, OutputOptions, shown};
use v2l_export::{ExportOptions, PredictorPackage};

/// Export a trained checkpoint to a bundle of ONNX graphs, without PyTorch.
///
/// MODEL_DIR is a diffusers-layout pipeline (model_index.json, transformer/, vae/, text_encoder/, tokenizer/,
/// scheduler/) or a single component folder (config.json and safetensors, sharded or not).
#[derive(Parser)]
#[command(name = "v2l-export", version)]
struct Args {
    /// Model folder.
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Bundle folder to write.
    #[arg(short, long, value_name = "BUNDLE")]
    output: PathBuf,
    /// Hypernetwork checkpoint (hypernetwork.safetensors).
    #[arg(long, value_name = "FILE", requires = "lilora")]
    hypernetwork: Option<PathBuf>,
    /// LiLoRA checkpoint with the auxiliary matrices.
    #[arg(long, value_name = "FILE", requires = "hypernetwork")]
    lilora: Option<PathBuf>,
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
    #[command(flatten)]
    output_options: OutputOptions,
}

fn main() -> ExitCode {
    v2l_cli::run(|args: &Args| args.output_options, export)
}

fn export(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    if args.iterations == Some(0) {
        return Err(Failure::usage("--iterations 0: expected 1 or more"));
    }
    Files::default()
        .read("the model folder", [&args.model])
        .read("--hypernetwork", &args.hypernetwork)
        .read("--lilora", &args.lilora)
        .read("--predictor", &args.predictor)
        .read("--predictor-text-encoder", &args.predictor_text_encoder)
        .made("-o", [&args.output])
        .check(output)?;
    let package = args.predictor.clone();
    let options = ExportOptions {
        predictor: args.hypernetwork.clone().zip(args.lilora.clone()),
        iterations: args.iterations,
        package: package.map(|path| PredictorPackage { path, text_encoder: args.predictor_text_encoder.clone() }),
    };
    let report = v2l_export::export(&args.model, &args.output, &options, &mut |progress| output.follow(&progress))?;
    output.finish();
    for c in &report.components {
        let fields = json!({ "component": c.name, "graphs": c.graphs, "slots": c.slots, "weight_bytes": c.bytes });
        output.result("component", fields, || {
            format!("{:<14} {:>14} bytes  {:>4} slots  {}", c.name, c.bytes, c.slots, c.graphs.join(", "))
        });
    }
    output.result("bundle", json!({ "path": shown(&args.output) }), || format!("bundle {}", args.output.display()));
    Ok(())
}
