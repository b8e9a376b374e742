//! `v2l compile`: ONNX to engines.

mod check;
mod debug;
mod precision;
mod shapes;
mod tensorrt;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde_json::json;
use v2l_cli::{Call, Failure, Files, Output, OutputOptions, shown};
use v2l_export::targets::{Entry, TARGETS};
use v2l_export::{AmbiguousSlot, CompileOptions, EngineReport, GraphReport, Pass, Passes, SharedSlot, SlotReport};
use v2l_runtime::tensor::Dtype;

use check::CheckArgs;
use debug::DebugArgs;
use precision::PrecisionArgs;
use shapes::ShapeArgs;
use tensorrt::TensorRtArgs;

/// Compile ONNX to engines.
///
/// A bundle written by v2l-export becomes an engine directory, a single ONNX file an engine file.
#[derive(Parser)]
#[command(name = "v2l-compile", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Bundle folder or ONNX file.
    #[arg(value_name = "BUNDLE|MODEL.onnx", required = true)]
    input: Option<PathBuf>,
    /// Engine directory or engine file to write [default for an ONNX file: its name with .engine].
    #[arg(short, long, visible_alias = "saveEngine", value_name = "PATH")]
    output: Option<PathBuf>,
    /// In which types the model computes and its matrices are stored [default: stored as the model stores them,
    /// arithmetic fp32]. Below fp32, a precision plan decides node by node.
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Also compile the graphs with low-rank branches, for adapters whose ranks sum to at most MAX in a layer.
    #[arg(long, value_name = "MAX", value_parser = clap::value_parser!(u32).range(1..=4096))]
    lora_rank: Option<u32>,
    /// How adapters may be applied: `fuse` into the weights, `branch` as inputs of low-rank branches (needs --lora-rank)
    /// [default: fuse, and branch with --lora-rank].
    #[arg(long, value_enum, value_delimiter = ',')]
    fuse_modes: Vec<FuseMode>,
    /// Leave out an optimisation pass; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Pass::ALL.map(Pass::name)))]
    disable_pass: Vec<String>,
    /// Inputs that change from step to step, for a graph that v2l does not know. What depends on none of them is then computed
    /// once for all steps. What depends only on vectors among them, such as timesteps, is computed once for each value.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    step_inputs: Option<Vec<String>>,
    /// Say what each pass did to each graph, and what a run on the check's inputs spends its time on.
    #[arg(long)]
    explain: bool,
    /// Store the matrices of linear layers in 8 bits, with a scale for each block of 32, 64, 128 or 256 inputs.
    /// Adapters then come in low-rank branches (--lora-rank), and --precision says how the other weights are stored.
    /// With --accuracy-target, blocks that cost too much accuracy are left as they are. A hypernetwork is never changed.
    #[arg(
        long,
        value_name = "BLOCK",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "64",
        value_parser = int8_block
    )]
    int8: Option<usize>,
    /// For an ONNX file that v2l did not write: the checkpoint that it was exported from, a safetensors file or the
    /// folder of one. Its linear layers get the checkpoint's names by their content.
    #[arg(long, value_name = "CHECKPOINT")]
    weights: Option<PathBuf>,
    /// Backend to compile for.
    #[arg(long, default_value = "ort", value_parser = backend())]
    backend: &'static Entry,
    #[command(flatten)]
    types: PrecisionArgs,
    #[command(flatten)]
    tensorrt: TensorRtArgs,
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    check: CheckArgs,
    #[command(flatten)]
    output_options: OutputOptions,
}

#[derive(Subcommand)]
enum Command {
    Debug(DebugArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    Fp32,
    Fp16,
    Bf16,
    /// fp16 where values fit, else bf16, and fp32 where it must be.
    Mixed,
}

impl Precision {
    /// Type of matrices that no plan speaks of; `None`: as the model stores them.
    fn storage(self) -> Option<Dtype> {
        match self {
            Self::Fp32 => Some(Dtype::F32),
            Self::Fp16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
            Self::Mixed => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum FuseMode {
    Fuse,
    Branch,
}

/// `--backend`: the targets that the compiler has.
fn backend() -> impl TypedValueParser<Value = &'static Entry> {
    let values = TARGETS.iter().map(|entry| PossibleValue::new(entry.name).help(entry.about));
    PossibleValuesParser::new(values).try_map(|name| {
        TARGETS.iter().find(|entry| entry.name == name).ok_or_else(|| format!("no backend is called `{name}`"))
    })
}

fn int8_block(text: &str) -> Result<usize, String> {
    let block = text.parse().ok().filter(|block| [32, 64, 128, 256].contains(block));
    block.ok_or_else(|| format!("expected 32, 64, 128 or 256, found `{text}`"))
}

pub(crate) fn command() -> clap::Command {
    Args::command()
}

/// Compiles `bundle` to `engines` as a step of another command, with flags of `v2l compile`.
pub(crate) fn step(bundle: &Path, engines: &Path, flags: &[OsString], output: &mut Output) -> anyhow::Result<()> {
    let words: [OsString; 3] = [bundle.into(), "-o".into(), engines.into()];
    compile(&v2l_cli::parse("v2l compile", &[&words[..], flags].concat())?, bundle, output)
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(
        call,
        command(),
        |args: &Args| args.output_options,
        |args, output| match (&args.command, &args.input) {
            (Some(Command::Debug(args)), _) => debug::run(args, output),
            (None, Some(input)) => compile(&args, input, output),
            (None, None) => Err(Failure::usage("expected a bundle folder or an ONNX file")),
        },
    )
}

fn compile(args: &Args, input: &Path, output: &mut Output) -> anyhow::Result<()> {
    let backend = args.tensorrt.target(args)?;
    let target = match &args.output {
        Some(path) => path.clone(),
        None if input.is_dir() => return Err(Failure::usage("a bundle needs -o ENGINE_DIR")),
        None => input.with_extension("engine"),
    };
    let asked = |mode| args.fuse_modes.contains(&mode);
    if asked(FuseMode::Branch) && args.lora_rank.is_none() {
        return Err(Failure::usage("--fuse-modes branch needs --lora-rank MAX, the largest sum of ranks in a layer"));
    }
    if args.lora_rank.is_some() && asked(FuseMode::Fuse) && !asked(FuseMode::Branch) {
        return Err(Failure::usage(
            "--lora-rank is for low-rank branches; add branch to --fuse-modes, or leave it out",
        ));
    }
    let files = Files::default()
        .read(if input.is_dir() { "the bundle" } else { "the model" }, [input])
        .read("--weights", &args.weights)
        .made("-o", [&target])
        .written("--timingCacheFile", &args.tensorrt.timing_cache);
    args.types.files(args.check.files(files))?.check(output)?;
    let options = CompileOptions {
        storage: args.precision.and_then(Precision::storage),
        lora_rank: args.lora_rank.map(|max| max as usize),
        branches_only: asked(FuseMode::Branch) && !asked(FuseMode::Fuse),
        int8: args.int8,
        precision: args.types.options(
            args.precision,
            args.int8.is_some(),
            args.check.accuracy_target,
            args.check.seed,
            args.check.ort(),
        )?,
        profiles: args.shapes.profiles()?,
        check: args.check.options(args.explain),
        passes: Passes::without(args.disable_pass.iter().filter_map(|name| name.parse().ok())),
        step_inputs: args.step_inputs.clone(),
        weights: args.weights.clone(),
        target: backend,
    };
    let report = v2l_export::compile(input, &target, &options, &mut |progress| output.follow(&progress))?;
    output.finish();
    args.types.finish(&report.engines, output)?;
    if let Some(block) = args.int8.filter(|_| report.engines.iter().all(|engine| engine.int8.is_none())) {
        output.warning(&format!(
            "nothing is in 8 bits: no linear layer has a constant matrix with {block} inputs or more"
        ));
    }
    for e in &report.engines {
        check::show(&e.checks, args.check.asked_for(), output);
        if let Some(named) = &e.named {
            warn_of_names(named, args.explain, output);
        }
        let fields = json!({
            "component": e.component, "path": shown(&e.path), "bytes": e.bytes, "storage": e.storage,
            "graphs": e.graphs, "slots": e.slots, "named": e.named,
        });
        output.result("engine", fields, || {
            format!(
                "{:<14} {:>14} bytes  {:<4}  {:>4} slots  {}  {}",
                e.component,
                e.bytes,
                e.storage.to_string(),
                e.slots,
                e.graphs.join(", "),
                e.path.display()
            )
        });
        tensorrt::show(e, output);
        if args.explain {
            e.named.iter().for_each(|named| explain_slots(named, output));
            explain(e, output);
            explain_times(e, output);
        }
    }
    Ok(())
}

fn explain(engine: &EngineReport, output: &mut Output) {
    for report in &engine.passes {
        let fired: serde_json::Map<_, _> =
            report.fired.iter().map(|(pass, count)| (pass.name().to_owned(), json!(count))).collect();
        let fields = json!({
            "component": engine.component, "graph": report.graph, "fired": fired,
            "nodes_before": report.nodes_before, "nodes_after": report.nodes_after,
            "weight_bytes_before": report.weight_bytes_before, "weight_bytes_after": report.weight_bytes_after,
            "precompute_flops_per_row": report.precompute_flops,
        });
        output.result("passes", fields, || {
            let fired: Vec<String> =
                report.fired.iter().map(|(pass, count)| format!("{} {count}", pass.name())).collect();
            format!(
                "{:<14} {}: {} nodes, {} before; {} bytes of weights a run, {} before; {}",
                engine.component,
                report.graph,
                report.nodes_after,
                report.nodes_before,
                report.weight_bytes_after,
                report.weight_bytes_before,
                fired.join(", ")
            ) + &spared(report)
        });
    }
}

/// What the precompute graph spares every step, in words.
fn spared(report: &GraphReport) -> String {
    let rows = report
        .precompute_flops
        .iter()
        .map(|(inputs, flops)| format!("{} MFLOP for each row of {inputs}", *flops as f64 / 1e6));
    let rows: Vec<String> = rows.collect();
    if rows.is_empty() { String::new() } else { format!("; the precompute graph spares a step {}", rows.join(", ")) }
}

/// Says what the runs of an engine's graphs spend their time on.
fn explain_times(engine: &EngineReport, output: &mut Output) {
    for times in &engine.checks.times {
        let (total, products) = (times.operators.total(), times.operators.products());
        let share = if total > 0.0 { products / total } else { 0.0 };
        let milliseconds: serde_json::Map<_, _> =
            times.operators.seconds.iter().map(|(name, s)| (name.clone(), json!(s * 1e3))).collect();
        let fields = json!({
            "component": engine.component, "graph": times.graph, "weights": times.weights.to_string(),
            "inputs": times.inputs, "total_ms": total * 1e3, "products_share": share, "operators_ms": milliseconds,
        });
        output.result("times", fields, || {
            let largest = times.operators.seconds.iter().take(6).map(|(name, s)| format!("{name} {:.1}", s * 1e3));
            format!(
                "{:<14} {}: {:.1} ms, {:.0} % of it matrix products, weights {}, {}; in ms {}",
                engine.component,
                times.graph,
                total * 1e3,
                share * 1e2,
                times.weights,
                times.inputs,
                largest.collect::<Vec<_>>().join(", ")
            )
        });
    }
}

/// Says what is no slot, and what the checkpoint did not name.
fn warn_of_names(named: &SlotReport, explain: bool, output: &mut Output) {
    if !named.unmatched.is_empty() {
        output.warning(&format!(
            "the checkpoint does not name {} of the graph's matrices, which keep the exporter's names: {}",
            named.unmatched.len(),
            named.unmatched.join(", ")
        ));
    }
    for message in named.ambiguous.iter().map(AmbiguousSlot::message) {
        output.warning(&message);
    }
    for message in named.shared.iter().map(SharedSlot::message) {
        output.warning(&message);
    }
    let (unused, pruned) = (named.unused.len(), named.pruned.len());
    if unused > 0 {
        let parts = [
            (pruned, "that the exporter left out or computed, so that updates of them have no effect"),
            (unused - pruned, "that are tables, or that the exporter changed"),
        ];
        let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let more = if explain { "" } else { " (--explain lists them)" };
        output.note(&format!(
            "no product of the graph reads some matrices of the checkpoint: {}{more}",
            parts.join("; ")
        ));
    }
}

/// Lists what slots change besides their layer, what has no name, and what of the checkpoint is in no product.
fn explain_slots(named: &SlotReport, output: &mut Output) {
    for slot in &named.tied {
        output.result("tied", json!({ "slot": slot }), || {
            format!("slot {slot}: rows of its matrix are looked up, too (a tied embedding); an update changes both")
        });
    }
    if let Some(message) = named.unnamed_message() {
        output.result("unnamed", json!({ "slots": named.unnamed }), || message);
    }
    for tensor in &named.unused {
        let pruned = named.pruned.contains(tensor);
        output.result("unused", json!({ "tensor": tensor, "pruned": pruned }), || {
            let why = if pruned {
                "left out by the exporter: updates have no effect; or computed by it"
            } else {
                "a table, or changed"
            };
            format!("not in a product: {tensor}  {why}")
        });
    }
}
