//! `v2l-inspect`: what a model, engine, adapter, bundle or checkpoint holds.

#[path = "inspect/adapter.rs"]
mod adapter;
#[path = "inspect/checkpoint.rs"]
mod checkpoint;
#[path = "inspect/engine.rs"]
mod engine;
#[path = "inspect/memory.rs"]
mod memory;
#[path = "inspect/model.rs"]
mod model;
#[path = "inspect/pipeline.rs"]
mod pipeline;
#[path = "inspect/survival.rs"]
mod survival;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use v2l_cli::{Failure, Files, Output, OutputOptions, Weights, split_strength};
use v2l_runtime::engine::manifest::FORMAT;
use v2l_runtime::io::weights::WeightFile;
use v2l_runtime::lora::adapter::{AdapterError, detect};
use v2l_runtime::pipeline::config::FILE_NAME;

/// Show what a file or folder holds: an ONNX model, an engine, a bundle or engine directory, an adapter, or any other
/// safetensors file.
///
/// Everything that can be checked without reading the weights is checked.
#[derive(Parser)]
#[command(name = "v2l-inspect", version)]
struct Args {
    /// What to look at; with --survival an adapter, with a strength if not 1: ADAPTER=STRENGTH.
    #[arg(value_name = "FILE_OR_DIR")]
    path: PathBuf,
    /// Engine, or engine directory, to hold an adapter against: which keys change a slot, and which do not.
    #[arg(long, visible_alias = "loadEngine", value_name = "ENGINE")]
    engine: Option<PathBuf>,
    /// Accept an adapter whose keys do not all match a slot of --engine.
    #[arg(long, requires = "engine")]
    allow_partial: bool,
    /// How much of the adapter survives, layer by layer, when it is fused into the type that --engine stores its weights in.
    /// Reads the weights, runs nothing.
    #[arg(long, requires = "engine")]
    survival: bool,
    /// Picture of it to write (a PNG): a column for each block, a row for each module, the brighter the more survives.
    #[arg(long, value_name = "PNG", requires = "survival")]
    heat_map: Option<PathBuf>,
    /// List every node of an ONNX model.
    #[arg(long)]
    nodes: bool,
    /// Check the content hash of every tensor of an engine; reads the whole file.
    #[arg(long)]
    verify_hashes: bool,
    /// For an engine directory: how much memory a video takes, phase by phase.
    #[arg(long)]
    memory: bool,
    /// Its width in pixels [default: the pipeline's].
    #[arg(long, value_name = "PX", requires = "memory")]
    width: Option<usize>,
    /// Its height in pixels [default: the pipeline's].
    #[arg(long, value_name = "PX", requires = "memory")]
    height: Option<usize>,
    /// Its frames [default: the pipeline's].
    #[arg(long, value_name = "N", requires = "memory")]
    num_frames: Option<usize>,
    /// With adapters fused into every layer.
    #[arg(long, requires = "memory")]
    with_adapters: bool,
    /// Cut large frames into tiles for the VAE [default: the pipeline's].
    #[arg(long, value_enum, requires = "memory")]
    vae_tiling: Option<Switch>,
    /// How ONNX Runtime gets weights that are stored in 16 bits.
    #[arg(long, value_enum, requires = "memory")]
    ort_weights: Option<Weights>,
    #[command(flatten)]
    output_options: OutputOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    v2l_cli::run(|args: &Args| args.output_options, inspect)
}

/// What a path holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipeline,
    Engine,
    Adapter,
    Checkpoint,
    Onnx,
}

fn inspect(args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let (path, strength) = match args.survival {
        true => split_strength(args.path.as_os_str())?,
        false => (args.path.as_path(), 1.0),
    };
    Files::default()
        .read("the adapter", [path])
        .read("--engine", &args.engine)
        .written("--heat-map", &args.heat_map)
        .check(output)?;
    let kind = kind(path)?;
    if args.engine.is_some() && kind != Kind::Adapter {
        // An update of another kind than LoRA is refused by its name.
        if let (Kind::Checkpoint, Err(error @ AdapterError::Unsupported { .. })) = (kind, detect(path)) {
            return Err(error.into());
        }
        return Err(Failure::usage(format!("{}: --engine is for adapters, and this is none", path.display())));
    }
    if args.verify_hashes && !matches!(kind, Kind::Engine | Kind::Pipeline) {
        return Err(Failure::usage(format!("{}: --verify-hashes is for engines, and this is none", path.display())));
    }
    if args.memory {
        if kind != Kind::Pipeline {
            return Err(Failure::usage(format!(
                "{}: --memory is for engine directories, and this is none",
                path.display()
            )));
        }
        return memory::show(path, args, output);
    }
    match kind {
        Kind::Pipeline => pipeline::show(path, args.verify_hashes, args.nodes, output),
        Kind::Engine => engine::show(path, args.verify_hashes, output),
        Kind::Adapter => match &args.engine {
            Some(engine) if args.survival => {
                let heat_map = args.heat_map.as_deref();
                survival::show((path, strength), engine, args.allow_partial, heat_map, output)
            }
            engine => adapter::show(path, engine.as_deref(), args.allow_partial, output),
        },
        Kind::Checkpoint => checkpoint::show(path, output),
        Kind::Onnx => model::show(path, args.nodes, output),
    }
}

fn kind(path: &Path) -> anyhow::Result<Kind> {
    let is_adapter = |path: &Path| match detect(path) {
        Ok(_) => Ok(true),
        // Sound, but no adapter.
        Err(AdapterError::Config { .. } | AdapterError::EmptyFolder { .. }) => Ok(false),
        Err(AdapterError::Unsupported { .. }) if path.is_file() => Ok(false),
        Err(error) => Err(error),
    };
    if path.is_dir() {
        if path.join(FILE_NAME).is_file() {
            return Ok(Kind::Pipeline);
        }
        if is_adapter(path)? {
            return Ok(Kind::Adapter);
        }
        return Err(Failure::usage(format!(
            "{}: expected a folder with {FILE_NAME} (a bundle or engine directory) or adapter_model.safetensors; \
             give a single file to look at other folders",
            path.display()
        )));
    }
    if !is_safetensors(path)? {
        return Ok(Kind::Onnx);
    }
    let file = WeightFile::open(path)?;
    if file.metadata("format") == Some(FORMAT) {
        return Ok(Kind::Engine);
    }
    Ok(if is_adapter(path)? { Kind::Adapter } else { Kind::Checkpoint })
}

/// By name, else by content: a header length, and the JSON that it counts.
fn is_safetensors(path: &Path) -> anyhow::Result<bool> {
    let named = |name: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(name));
    let io = |source| v2l_runtime::io::weights::WeightError::Io { path: path.to_owned(), source };
    let mut start = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(9).read_to_end(&mut start).map_err(io)?;
    Ok(!named("onnx") && (named("safetensors") || named("engine") || start.get(8) == Some(&b'{')))
}

/// `12 things`, `1 thing`.
fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}
