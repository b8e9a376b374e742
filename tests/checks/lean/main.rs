//! How lean the C library is: its size and what it links, and how soon and with how much memory a program that uses it has its first
//! output, beside one that gives the same graph to ONNX Runtime.
//!
//! `cargo run --release -p v2l-checks --bin lean [-- --json]` builds and installs the library, exports and compiles the miniature, then starts both
//! programs in turn. Linux.

#[path = "../full_size/machine.rs"]
mod machine;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use indexmap::IndexMap;
use machine::{median, mega};
use serde_json::json;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::io::library::find_onnxruntime;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::tensor::Tensor;

/// What a step of the miniature takes: nine frames of 48x48.
const INPUTS: [&str; 6] = [
    "hidden_states:f32:1x3x16x6x6",
    "inpaint_latents:f32:1x3x17x6x6",
    "encoder_hidden_states:f32:1x16x64",
    "timestep:i64:1",
    "image_rotary_emb_cos:f32:27x32",
    "image_rotary_emb_sin:f32:27x32",
];

/// How lean the C library is.
#[derive(Parser)]
struct Args {
    /// Starts of each program.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

/// What one start showed.
struct Start {
    /// From the start of the process to its first output, in milliseconds.
    first_output: f64,
    /// Private memory after it, in bytes.
    private: u64,
}

/// Starts a program that says when it has its first output, and looks at its memory.
fn start(program: &Path, arguments: &[&Path], ort: &Path) -> anyhow::Result<Start> {
    let mut command = Command::new(program);
    command.args(arguments).args(INPUTS).env("ORT_DYLIB_PATH", ort).env_remove("V2L_ORT_LIB");
    let begin = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let first_output = begin.elapsed().as_secs_f64() * 1e3;
    let private = machine::private_memory(&child.id().to_string());
    drop(child.stdin.take());
    ensure!(child.wait()?.success() && line == "ran\n", "{command:?} failed");
    Ok(Start { first_output, private: private.context("/proc has no RssAnon; this measures on Linux")? })
}

/// Packages that the C library links, its own crates included.
fn packages() -> anyhow::Result<usize> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.current_dir(machine::ROOT);
    tree.args(["tree", "--locked", "-p", "v2l-capi", "-e", "normal,no-proc-macro", "--prefix", "none", "-f", "{p}"]);
    let output = tree.output()?;
    ensure!(output.status.success(), "{tree:?}: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    // A package that comes a second time is marked.
    let names = printed.lines().map(|line| line.trim_end_matches(" (*)")).filter(|name| !name.is_empty());
    Ok(names.collect::<BTreeSet<_>>().len())
}

/// Shared libraries that the loader brings in with `library`.
fn needed(library: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("readelf").arg("-d").arg(library).output().context("readelf")?;
    let printed = String::from_utf8(output.stdout)?;
    let lines = printed.lines().filter(|line| line.contains("(NEEDED)"));
    Ok(lines.filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned())).collect())
}

/// Compiles the program that uses the library installed at `prefix`.
fn program(prefix: &Path) -> anyhow::Result<PathBuf> {
    let program = prefix.join("first_output");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(prefix.join("include"));
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("lean/first_output.c")).arg("-o").arg(&program);
    compiler.arg("-L").arg(prefix.join("lib")).arg("-lv2l");
    compiler.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display()));
    ensure!(compiler.status()?.success(), "{compiler:?} failed");
    Ok(program)
}

/// The miniature's transformer in f32, since ONNX Runtime runs no bfloat16 products on CPUs: as an engine, and as the graph that it was
/// compiled from.
fn compiled(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/miniature/transformer");
    let [model, bundle, engines] = ["model", "bundle", "engines"].map(|name| folder.join(name));
    std::fs::create_dir(&model)?;
    std::fs::copy(stored.join("config.json"), model.join("config.json"))?;
    let weights = "diffusion_pytorch_model.safetensors";
    let widened = read_tensors(stored.join(weights))?.into_iter().map(|(name, tensor)| {
        let wide = tensor.into_f32().with_context(|| format!("{name} is no floating-point tensor"))?;
        Ok((name, Tensor::F32(wide)))
    });
    write_tensors(model.join(weights), &widened.collect::<anyhow::Result<_>>()?, &IndexMap::new())?;
    v2l_export::export(&model, &bundle, &ExportOptions::default(), &mut |_| {})?;
    v2l_export::compile(&bundle, &engines, &CompileOptions::default(), &mut |_| {})?;
    Ok((engines.join("transformer.engine"), bundle.join("transformer/step.onnx")))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let root = Path::new(machine::ROOT);
    let release = machine::build_release(&["-p", "v2l-checks", "--bin", "lean_ort"])?;
    let peer = release.join("lean_ort");
    let folder = tempfile::tempdir()?;
    let prefix = folder.path().join("prefix");
    let mut install = Command::new(root.join("bin/dev/install-capi"));
    install.arg("--prefix").arg(&prefix).env("CARGO_TARGET_DIR", release.parent().context("no target folder")?);
    ensure!(install.status()?.success(), "{install:?} failed");
    let program = program(&prefix)?;

    let (engine, model) = compiled(folder.path())?;
    let ort = find_onnxruntime(None)?.path;

    let (mut with_v2l, mut with_ort) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds.max(1) {
        with_v2l.push(start(&program, &[&engine, Path::new("step")], &ort)?);
        with_ort.push(start(&peer, &[&model], &ort)?);
    }
    let of = |starts: &[Start]| {
        (median(starts.iter().map(|s| s.first_output)), median(starts.iter().map(|s| mega(s.private))))
    };
    let ((v2l_ms, v2l_mb), (ort_ms, ort_mb)) = (of(&with_v2l), of(&with_ort));
    let library = prefix.join("lib/libv2l.so");
    let size = |path: &Path| Ok::<_, std::io::Error>(mega(std::fs::metadata(path)?.len()));
    let (library_mb, ort_library_mb, packages, needed) = (size(&library)?, size(&ort)?, packages()?, needed(&library)?);
    let machine = machine::machine();
    if args.json {
        let side = |mb: f64, first_output: f64, private: f64| json!({ "library_mb": mb, "first_output_ms": first_output, "private_mb": private });
        let report = json!({
            "machine": machine,
            "rounds": args.rounds,
            "v2l": side(library_mb, v2l_ms, v2l_mb),
            "onnxruntime": side(ort_library_mb, ort_ms, ort_mb),
            "packages": packages,
            "needed": needed,
        });
        println!("{report}");
        return Ok(());
    }
    println!("{machine}");
    println!("libv2l.so links {packages} packages and wants {}", needed.join(", "));
    println!("medians of {} starts                 v2l   ONNX Runtime's C API", args.rounds);
    println!("library, MB                    {library_mb:>9.1}   {ort_library_mb:>9.1}   (v2l loads the latter, too)");
    println!("start to first output, ms      {v2l_ms:>9.1}   {ort_ms:>9.1}   {:.2} times", v2l_ms / ort_ms);
    println!("private memory after it, MB    {v2l_mb:>9.1}   {ort_mb:>9.1}   {:.2} times", v2l_mb / ort_mb);
    Ok(())
}
