//! The machine that is measured on, and release builds to measure.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// The root of the workspace, where `vendor/` is found.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Bytes of anonymous memory of a process (`self` for this one).
pub(crate) fn private_memory(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

/// Processor, cores, memory, kernel.
pub(crate) fn machine() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    serde_json::json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// The middle value.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Builds more of the workspace as this program was built, which has to be for release; the folder of the binaries.
pub(crate) fn build_release(arguments: &[&str]) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let tools = program.parent().context("the program lies in no target folder")?.to_owned();
    ensure!(
        tools.ends_with("release"),
        "this measures release builds; run it with `cargo run --release -p v2l-checks`"
    );
    let target = tools.parent().context("the program lies in no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(ROOT).args(["build", "--release", "--locked", "--quiet"]).args(arguments);
    build.arg("--target-dir").arg(target);
    ensure!(build.status().with_context(|| format!("{build:?}"))?.success(), "{build:?} failed");
    Ok(tools)
}
