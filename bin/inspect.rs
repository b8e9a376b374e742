//! `v2l inspect`: what a model, engine, adapter, bundle or checkpoint holds.

mod adapter;
mod canonical;
mod checkpoint;
mod engine;
mod machine;
mod memory;
mod model;
mod overlap;
mod picture;
mod pipeline;
mod survival;

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, ValueEnum};
use v2l_cli::{AdapterArg, Call, Failure, Files, LoraFormat, Output, OutputOptions, Weights};
use v2l_runtime::engine::manifest::FORMAT;
use v2l_runtime::io::weights::WeightFile;
use v2l_runtime::lora::adapter::{AdapterError, Experts, detect};
use v2l_runtime::pipeline::config::FILE_NAME;

/// Show what a file or folder holds: an ONNX model, an engine, a bundle or engine directory, an adapter, or any other
/// safetensors file.
///
/// Everything that can be checked without reading the weights is checked.
#[derive(Parser)]
#[command(name = "v2l-inspect", version)]
struct Args {
    /// What to look at. Two adapters, with --engine: will they disturb each other? Where a question is about strengths
    /// (two adapters, --survival, --canonical), an adapter may have one: ADAPTER=STRENGTH.
    #[arg(value_name = "FILE_OR_DIR", required_unless_present = "machine")]
    paths: Vec<PathBuf>,
    /// What this machine can run engines on, what `v2l-run --backend auto` would take, and why. It may time a small graph, once for the
    /// machine.
    #[arg(long, conflicts_with = "paths")]
    machine: bool,
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
    /// Picture to write (a PNG): a column for each block, a row for each module, the brighter the more survives, or the
    /// more alike two adapters are.
    #[arg(long, value_name = "PNG", requires = "engine")]
    heat_map: Option<PathBuf>,
    /// The singular values of every layer of the sum of the adapters, which do not depend on how their factors were chosen.
    #[arg(long, requires = "engine", conflicts_with_all = ["survival", "heat_map"])]
    canonical: bool,
    /// The rank to bring the sum to; the output says how much of the sum it keeps.
    #[arg(long, value_name = "R", requires = "canonical")]
    rank: Option<NonZeroUsize>,
    /// Where to save the sum, of strength 1, in canonical form.
    #[arg(long, value_name = "FILE", requires = "canonical")]
    save_lora: Option<PathBuf>,
    /// Format of --save-lora.
    #[arg(long, value_enum, default_value_t, requires = "save_lora")]
    lora_format: LoraFormat,
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

pub(crate) fn command() -> clap::Command {
    Args::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(call, command(), |args: &Args| args.output_options, |args, output| inspect(&args, output))
}

/// A file to look at, and for an adapter, the transformers that it is for and how strongly it acts.
struct Given {
    path: PathBuf,
    experts: Option<Experts>,
    strength: f32,
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
    if args.machine {
        machine::show(output);
        return Ok(());
    }
    let with_strengths = args.survival || args.canonical || args.paths.len() > 1;
    let split = |path: &'_ PathBuf| {
        if !with_strengths && args.engine.is_none() {
            return Ok(Given { path: path.clone(), experts: None, strength: 1.0 });
        }
        let AdapterArg { path, experts, strength } = AdapterArg::new(path.as_os_str())?;
        anyhow::Ok(Given { path: path.to_owned(), experts, strength })
    };
    let paths: Vec<Given> = args.paths.iter().map(split).collect::<anyhow::Result<_>>()?;
    Files::default()
        .read("the adapter", paths.iter().map(|given| &given.path))
        .read("--engine", &args.engine)
        .written("--heat-map", &args.heat_map)
        .placed("--save-lora", &args.save_lora)
        .check(output)?;
    let kinds = paths.iter().map(|given| checked_kind(&given.path, args)).collect::<anyhow::Result<Vec<_>>>()?;
    match (&paths[..], &args.engine) {
        (_, Some(engine)) if args.canonical => canonical::show(&paths, engine, args, output),
        ([_], Some(engine)) if args.survival => survival::show(&paths[0], engine, args, output),
        ([_], _) if args.heat_map.is_some() => {
            Err(Failure::usage("--heat-map draws --survival, or two adapters; give one of these"))
        }
        ([given], engine) => show(given, kinds[0], engine.as_deref(), args, output),
        ([a, b], Some(engine)) if !args.survival => overlap::show([a, b], engine, args, output),
        (_, Some(_)) if args.survival => Err(Failure::usage("--survival takes one adapter; give one at a time")),
        (_, Some(_)) => {
            Err(Failure::usage("adapters are compared two at a time; give two, or --canonical for their sum"))
        }
        _ => Err(Failure::usage(
            "several files are looked at only to compare adapters over the layers of a model; give two adapters and \
             --engine, or one file",
        )),
    }
}

/// What a path holds, if the flags are for such a thing.
fn checked_kind(path: &Path, args: &Args) -> anyhow::Result<Kind> {
    let kind = kind(path)?;
    if args.engine.is_some() && kind != Kind::Adapter {
        // An update of another kind than LoRA is refused by its name.
        if let (Kind::Checkpoint, Err(error @ AdapterError::Unsupported { .. })) = (kind, detect(path)) {
            return Err(error.into());
        }
        return Err(Failure::usage(format!(
            "{}: --engine is for adapters, and this is no adapter; leave it out",
            path.display()
        )));
    }
    if args.verify_hashes && !matches!(kind, Kind::Engine | Kind::Pipeline) {
        return Err(Failure::usage(format!(
            "{}: --verify-hashes is for engines, and this is no engine; leave it out",
            path.display()
        )));
    }
    if args.memory && kind != Kind::Pipeline {
        return Err(Failure::usage(format!(
            "{}: --memory is for engine directories, and this is no such folder; leave it out",
            path.display()
        )));
    }
    Ok(kind)
}

fn show(given: &Given, kind: Kind, engine: Option<&Path>, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let Given { path, experts, .. } = given;
    match kind {
        Kind::Pipeline if args.memory => memory::show(path, args, output),
        Kind::Pipeline => pipeline::show(path, args.verify_hashes, args.nodes, output),
        Kind::Engine => engine::show(path, args.verify_hashes, output),
        Kind::Adapter => adapter::show(path, (engine, *experts), args.allow_partial, output),
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
