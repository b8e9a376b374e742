//! `v2l doctor`: what this machine has, what of it would run engines, and what to install.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use clap::{CommandFactory, Parser};
use serde_json::json;
use v2l_cli::{Call, Output, OutputOptions, shown};
use v2l_export::engine_cache::EngineCache;
use v2l_runtime::backends::BACKENDS;
use v2l_runtime::io::library::{self, Found, LibraryError};
use v2l_runtime::memory::{available_memory, memory_limit, readable};
use v2l_runtime::options::OpenOptions;

/// Say what this machine has, what would be chosen of it and why, and what to install.
///
/// Looks at the processor, memory, disk, ONNX Runtime, OpenVINO, TensorRT, GPUs and ffmpeg as a run would. It may time a small graph, once for
/// the machine. Ends with 0 if a model can be run, else with the exit code of what is missing.
#[derive(Parser)]
#[command(name = "v2l-doctor", version)]
struct Args {
    #[command(flatten)]
    output_options: OutputOptions,
}

pub(crate) fn command() -> clap::Command {
    Args::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(call, command(), |args: &Args| args.output_options, |_, output| examine(output))
}

fn examine(output: &mut Output) -> anyhow::Result<()> {
    processor(output);
    memory(output);
    disk(output);
    let onnxruntime = library::onnxruntime(None).map(drop);
    let version = library::onnxruntime_minor().map(|minor| format!("1.{minor}"));
    found("ONNX Runtime", &library::find_onnxruntime(None), onnxruntime.as_ref().err(), version, output);
    let ffmpeg = library::find_ffmpeg(None);
    let version = ffmpeg.as_ref().ok().and_then(|found| version_of(&found.path));
    found("ffmpeg", &ffmpeg, None, version, output);
    let has_gpu = gpus(output);
    backends(has_gpu, output);
    for reason in library::passed_over() {
        output.result("passed_over", json!({ "reason": reason }), || format!("passed over    {reason}"));
    }
    let can_run = onnxruntime.is_ok();
    output.result("doctor", json!({ "can_run": can_run, "can_write_videos": ffmpeg.is_ok() }), || {
        let videos = if ffmpeg.is_ok() { "videos" } else { "frames as PNG and GIF; for videos install ffmpeg" };
        if can_run {
            format!("this machine can run models and write {videos}")
        } else {
            "this machine cannot run models yet".to_owned()
        }
    });
    Ok(onnxruntime?)
}

fn processor(output: &mut Output) {
    let features: Vec<&str> = features().into_iter().filter_map(|(name, there)| there.then_some(name)).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    output.result("processor", json!({ "model": model, "cores": cores, "features": features }), || {
        format!("processor      {model}, {cores} cores; {}", features.join(" "))
    });
}

/// Instructions that the arithmetic of networks is faster with, and whether they are there.
#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512-BF16", std::is_x86_feature_detected!("avx512bf16")),
        ("AVX-512-VNNI", std::is_x86_feature_detected!("avx512vnni")),
        ("AVX-VNNI", std::is_x86_feature_detected!("avxvnni")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        ("dot products", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("FP16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("BF16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("I8MM", std::arch::is_aarch64_feature_detected!("i8mm")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

fn memory(output: &mut Output) {
    let (total, free) = (memory_limit(), available_memory());
    output.result("memory", json!({ "total": total, "free": free }), || {
        let words = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), readable);
        format!("memory         {}, {} free", words(total), words(free))
    });
}

/// The disk that the cache lies on.
fn disk(output: &mut Output) {
    let Ok(cache) = EngineCache::open(None) else { return };
    let entries = cache.entries().unwrap_or_default();
    let (bytes, free): (u64, _) = (entries.iter().map(|entry| entry.bytes).sum(), cache.free());
    let fields = json!({ "path": shown(cache.root()), "entries": entries.len(), "bytes": bytes, "free": free });
    output.result("disk", fields, || {
        let free = free.map_or_else(|| "unknown".to_owned(), readable);
        format!("disk           {free} free at {}, which holds {}", cache.root().display(), readable(bytes))
    });
}

/// A library or program as the search finds it; `unusable` says why it is of no use nevertheless.
fn found(
    name: &str,
    search: &Result<Found, LibraryError>,
    unusable: Option<&LibraryError>,
    version: Option<String>,
    output: &mut Output,
) {
    let reason = unusable.or(search.as_ref().err()).map(ToString::to_string);
    let place = search.as_ref().ok();
    let fields = json!({
        "name": name, "usable": reason.is_none(), "version": version, "reason": reason,
        "path": place.map(|found| shown(&found.path)), "from": place.map(|found| &found.from),
    });
    output.result("library", fields, || match (reason, place) {
        (Some(reason), _) => format!("{name:<14} not usable: {reason}"),
        (None, Some(Found { path, from })) => {
            format!("{name:<14} {}, {} (from {from})", version.as_deref().unwrap_or("version unknown"), path.display())
        }
        (None, None) => format!("{name:<14} {}", version.unwrap_or_default()),
    });
}

/// What a program says of its version, in its first line.
fn version_of(program: &Path) -> Option<String> {
    let said = Command::new(program).arg("-version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    Some(text.split_whitespace().nth(2)?.to_owned())
}

/// The GPUs and the driver that NVIDIA's kernel module speaks of; true if there are any.
fn gpus(output: &mut Output) -> bool {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = driver.as_ref().and_then(|text| text.lines().next()).map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(line)
    });
    let folders = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| std::fs::read_to_string(folder.path().join("information")).ok());
    let model = |text: String| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned());
    let gpus: Vec<String> = texts.filter_map(model).collect();
    output.result("gpus", json!({ "driver": driver, "gpus": gpus }), || match (driver, &gpus[..]) {
        (Some(driver), [_, ..]) => format!("GPU            {}; NVIDIA's driver {driver}", gpus.join(", ")),
        (Some(driver), []) => format!("GPU            none that can be used; NVIDIA's driver {driver}"),
        (None, _) => "GPU            no driver of NVIDIA's".to_owned(),
    });
    driver.is_some() && !gpus.is_empty()
}

/// Which backend would run which engines, and why.
fn backends(has_gpu: bool, output: &mut Output) {
    let options = OpenOptions::default();
    for (at, backend) in BACKENDS.iter().enumerate() {
        let (taken, reason) = backend.on_this_machine(&options);
        output.result("backend", json!({ "name": backend.name(), "taken": taken, "reason": reason }), || {
            let verdict = match (taken, at) {
                (true, 0) => "chosen for engines that no other is chosen for",
                (true, _) => "chosen for engines that hold a form for it",
                (false, _) => "not chosen",
            };
            format!("{:<14} {verdict}: {reason}", backend.name())
        });
    }
    let features = [("cuda", cfg!(feature = "cuda")), ("tensorrt", cfg!(feature = "tensorrt"))];
    let missing: Vec<&str> = features.into_iter().filter_map(|(name, there)| (!there).then_some(name)).collect();
    if has_gpu && !missing.is_empty() {
        output.result("built_without", json!({ "features": missing }), || {
            format!("GPU            this v2l does not use it; build one with --features {}", missing.join(","))
        });
    }
}
