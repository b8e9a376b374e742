//! The full-size check: time and memory of export, compile and open at the size of a real model.
//!
//! ```text
//! cargo run --release -p v2l-checks --bin full_size -- [--model NAME] [--layers N] [--keep DIR] [--json]
//! ```
//!
//! Writes a random checkpoint with the shapes of CogVideoX-Fun-V1.1-5b-InP's transformer (42 layers, 11.14 GB in bf16), of
//! Wan 2.1's of 1.3 billion parameters (30 layers, 2.84 GB) or of Wan 2.2's two of 14 billion (8 of 40 layers); then three times: a synced `cp` of it, `v2l-export`, `v2l-compile --no-verify`, each from a cold page cache; then compiles
//! once more with the numeric check, and opens the engine in fresh processes, weights as stored. Prints every number, and fails
//! if a bound is missed. Linux; needs the free disk space that it checks for first. `--layers 2` is a quick try: everything
//! as wide, but not as deep.

mod checkpoint;
mod machine;
mod measure;
mod models;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value as Json, json};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::options::{OpenOptions, OrtWeights};

use checkpoint::Checkpoint;
use machine::{median, mega};
use measure::{Taken, giga};
use models::Model;

const ROUNDS: usize = 3;
/// Bounds: private memory of export and compile, in bytes; their time over that of the copy.
const STAGE_PRIVATE: u64 = 1_500_000_000;
const STAGE_RATIO: f64 = 3.0;
/// Bound: private memory of compiling with the numeric check, in bytes.
const CHECKED_PRIVATE: u64 = 2_000_000_000;
/// Bounds: seconds from the start of the process until a session over stored weights is ready, and its private memory in bytes.
const OPEN_SECONDS: f64 = 0.5;
const OPEN_PRIVATE: u64 = 300_000_000;
/// Bytes of graphs and manifest that a bundle or engine may have beside the weights.
const STRUCTURE_BYTES: u64 = 64 << 20;
/// Checkpoint, bundle and engine lie on the disk at once.
const COPIES: u64 = 3;

/// Export, compile and open a random model of full size; compare time and memory with bounds.
#[derive(Parser)]
#[command(name = "full_size")]
struct Args {
    /// The model whose shapes are taken.
    #[arg(long, value_name = "NAME", value_enum, default_value = "cogvideox")]
    model: Model,
    /// Transformer blocks [default: the model's]; fewer are a quick try at the same widths.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Work in this new folder, and keep checkpoint, bundle and engine there [default: a folder that is removed].
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print one JSON event per line.
    #[arg(long)]
    json: bool,
    /// Open this engine, print what it took, and end: what the check runs in fresh processes.
    #[arg(long, value_name = "ENGINE", hide = true)]
    open: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let args = Args::parse();
    if let Some(engine) = &args.open {
        open(engine, start)?;
        return Ok(ExitCode::SUCCESS);
    }
    let passed = check(&args)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a result for people, or as an event.
fn say(args: &Args, event: &str, fields: &Json, text: &str) {
    if args.json {
        let mut line = json!({ "event": event });
        if let (Some(line), Json::Object(fields)) = (line.as_object_mut(), fields.clone()) {
            line.extend(fields);
        }
        println!("{line}");
    } else {
        println!("{text}");
    }
}

fn check(args: &Args) -> anyhow::Result<bool> {
    let layers = args.layers.unwrap_or_else(|| args.model.usual_layers());
    ensure!((1..=256).contains(&layers), "--layers {layers}: expected 1 to 256");
    let tools = machine::build_release(&["--bin", "v2l", "--bin", "v2l-export", "--bin", "v2l-compile"])?;
    let checkpoint = Checkpoint::new(args.model, layers);
    let bytes = checkpoint.bytes();

    let machine = machine::machine();
    let text = |key: &str| machine[key].as_str().map_or_else(|| machine[key].to_string(), str::to_owned);
    let line = format!("{}, {} cores, {} memory, Linux {}", text("cpu"), text("cores"), text("memory"), text("kernel"));
    say(args, "machine", &machine, &line);

    let temporary;
    let folder = match &args.keep {
        Some(folder) => {
            let free = folder.read_dir().map_or(true, |mut entries| entries.next().is_none());
            ensure!(free, "{}: it is not empty; name a new folder", folder.display());
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            folder.canonicalize()?
        }
        None => {
            let beside = tools.parent().unwrap_or(&tools);
            temporary = tempfile::Builder::new().prefix("full_size.").tempdir_in(beside)?;
            temporary.path().to_owned()
        }
    };
    let needed = COPIES * bytes + bytes / 10 + COPIES * STRUCTURE_BYTES;
    let free = measure::check_free_disk(&folder, needed)?;
    let fields = json!({ "layers": layers, "bytes": bytes, "folder": folder, "needed": needed, "free": free });
    let line = format!(
        "{layers} layers, {:.2} GB in bf16; working in {}, {:.1} GB needed, {:.1} GB free",
        giga(bytes),
        folder.display(),
        giga(needed),
        giga(free)
    );
    say(args, "model", &fields, &line);

    let source = folder.join("model");
    let start = Instant::now();
    checkpoint.write(&source)?;
    let seconds = start.elapsed().as_secs_f64();
    say(args, "checkpoint", &json!({ "seconds": seconds }), &format!("checkpoint written in {seconds:.1} s"));

    let rounds = rounds(args, &tools, &folder, &source)?;
    let checked = compile(&tools, &folder, &[])?;
    say_stage(args, ROUNDS, "compile, checked", checked);
    let opened = open_rounds(args, &folder.join("engines/transformer.engine"))?;
    Ok(verdict(args, bytes, &rounds, checked, &opened))
}

/// One round: the copy, export, compile.
type Round = [Taken; 3];
const STAGES: [&str; 3] = ["cp", "export", "compile"];

fn rounds(args: &Args, tools: &Path, folder: &Path, source: &Path) -> anyhow::Result<Vec<Round>> {
    let [copy, bundle, engines] = ["copy", "bundle", "engines"].map(|name| folder.join(name));
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        for output in [&copy, &bundle, &engines] {
            remove(output)?;
        }
        measure::settle(source)?;
        let copied = measure::synced_copy(source, &copy)?;
        remove(&copy)?;
        measure::settle(source)?;
        let mut export = Command::new(tools.join("v2l-export"));
        let exported = measure::run(export.arg(source).arg("-o").arg(&bundle).arg("--quiet"))?;
        measure::settle(&bundle)?;
        let compiled = compile(tools, folder, &["--no-verify"])?;
        let taken = [copied, exported, compiled];
        for (stage, taken) in STAGES.iter().zip(&taken) {
            say_stage(args, round, stage, *taken);
        }
        rounds.push(taken);
        // More would be measured against the wrong copy, and would not fit the disk that was checked for.
        for output in [&bundle, &engines] {
            let (found, limit) = (measure::size(output)?, measure::size(source)? + STRUCTURE_BYTES);
            let name = output.display();
            ensure!(
                found <= limit,
                "{name}: {found} bytes; expected at most {limit}, the checkpoint's and its graphs'"
            );
        }
    }
    Ok(rounds)
}

/// Compiles the bundle from a cold page cache; an earlier engine directory is replaced.
fn compile(tools: &Path, folder: &Path, flags: &[&str]) -> anyhow::Result<Taken> {
    let [bundle, engines] = ["bundle", "engines"].map(|name| folder.join(name));
    remove(&engines)?;
    measure::settle(&bundle)?;
    let mut compile = Command::new(tools.join("v2l-compile"));
    measure::run(compile.arg(bundle).arg("-o").arg(engines).args(flags).arg("--quiet"))
}

fn say_stage(args: &Args, round: usize, stage: &str, taken: Taken) {
    let fields = json!({ "round": round, "stage": stage, "seconds": taken.seconds, "private_bytes": taken.private });
    let (seconds, private) = (taken.seconds, mega(taken.private));
    let line = format!("round {round}: {stage:<16} {seconds:>7.2} s  {private:>7.1} MB private at most");
    say(args, "stage", &fields, &line);
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| folder.display().to_string()),
        _ => Ok(()),
    }
}

/// Opens the engine in fresh processes, the first time from a cold page cache.
fn open_rounds(args: &Args, engine: &Path) -> anyhow::Result<Vec<Taken>> {
    measure::settle(engine.parent().unwrap_or(engine))?;
    let mut opened = Vec::new();
    for round in 1..=ROUNDS {
        let mut command = Command::new(std::env::current_exe()?);
        // From here vendor/ is found, wherever the target folder is.
        command.current_dir(machine::ROOT);
        let child = command.arg("--open").arg(engine).stdout(Stdio::piped()).spawn()?;
        let (child, peak) = measure::watch(child)?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "opening {}: {}", engine.display(), output.status);
        let report: Json = serde_json::from_slice(&output.stdout)?;
        let (Some(seconds), Some(ready)) = (report["seconds"].as_f64(), report["private_bytes"].as_u64()) else {
            anyhow::bail!("the process that opened the engine answered {report}");
        };
        let taken = Taken { seconds, private: ready.max(peak) };
        let fields = json!({ "round": round, "seconds": taken.seconds, "private_bytes": taken.private });
        let line =
            format!("open {round}: session ready after {seconds:.3} s, {:.1} MB private at most", mega(taken.private));
        say(args, "open", &fields, &line);
        opened.push(taken);
    }
    Ok(opened)
}

/// In a fresh process: opens the engine with its weights as stored and makes its session.
fn open(path: &Path, start: Instant) -> anyhow::Result<()> {
    let engine = Arc::new(Engine::open(path)?);
    let options = OpenOptions { weights: OrtWeights::Stored, ..OpenOptions::default() };
    let session = OrtEngine::open(engine, &options)?.session("step")?;
    let seconds = start.elapsed().as_secs_f64();
    let private =
        machine::private_memory("self").context("/proc/self/status has no RssAnon; this check needs Linux")?;
    println!("{}", json!({ "seconds": seconds, "private_bytes": private }));
    drop(session);
    Ok(())
}

/// Prints medians and compares with the bounds; true if all are met.
fn verdict(args: &Args, bytes: u64, rounds: &[Round], checked: Taken, opened: &[Taken]) -> bool {
    let seconds = |stage: usize| median(rounds.iter().map(|round| round[stage].seconds));
    let copy = seconds(0);
    let line = format!("median: cp {copy:.2} s, {:.2} GB/s", giga(bytes) / copy);
    say(args, "median", &json!({ "stage": "cp", "seconds": copy }), &line);
    let mut passed = true;
    let mut bound = |name: String, found: f64, limit: f64, unit: &str| {
        let met = found <= limit;
        passed &= met;
        let line = format!("{name}: {found:.3} {unit}, bound {limit} {unit}: {}", if met { "met" } else { "MISSED" });
        say(args, "bound", &json!({ "name": name, "found": found, "bound": limit, "unit": unit, "met": met }), &line);
    };
    for (stage, name) in STAGES.iter().enumerate().skip(1) {
        let private = rounds.iter().map(|round| round[stage].private).max().unwrap_or(0);
        say(
            args,
            "median",
            &json!({ "stage": name, "seconds": seconds(stage) }),
            &format!("median: {name} {:.2} s", seconds(stage)),
        );
        bound(format!("{name}, time over cp"), seconds(stage) / copy, STAGE_RATIO, "x");
        bound(format!("{name}, private memory"), giga(private), giga(STAGE_PRIVATE), "GB");
    }
    bound("compile with the check, private memory".into(), giga(checked.private), giga(CHECKED_PRIVATE), "GB");
    let slowest = opened.iter().map(|taken| taken.seconds).fold(0.0, f64::max);
    let private = opened.iter().map(|taken| taken.private).max().unwrap_or(0);
    bound("open, slowest".into(), slowest, OPEN_SECONDS, "s");
    bound("open, private memory".into(), mega(private), mega(OPEN_PRIVATE), "MB");
    say(args, "result", &json!({ "passed": passed }), if passed { "passed" } else { "FAILED: a bound is missed" });
    passed
}
