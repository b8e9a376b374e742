//! `v2l cache`: the engines that were made from models.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;
use v2l_cli::{Call, Output, OutputOptions, shown};
use v2l_export::engine_cache::{CachedEngines, EngineCache};
use v2l_runtime::memory::readable;

use super::model::{self, BuildArgs, parse_size, said_removed};

/// List, make and remove the engines that are kept of models.
///
/// They lie in the folder $V2L_CACHE, or in v2l/engines of the user's folder for caches.
#[derive(Parser)]
#[command(name = "v2l-cache", version)]
struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    output_options: OutputOptions,
}

#[derive(Subcommand)]
enum Action {
    /// Make the engines of a model now, and say where they are.
    Add {
        /// Model folder or file, or bundle.
        #[arg(value_name = "MODEL")]
        model: PathBuf,
        #[command(flatten)]
        build: BuildArgs,
    },
    /// List them, those first that were used last.
    List(Folder),
    /// Remove all that are not in use.
    Clear(Folder),
    /// Remove those that were not used for longest, until the others fit; none that is in use.
    Prune {
        /// Bytes that may stay, such as 100GB.
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        max_size: u64,
        #[command(flatten)]
        folder: Folder,
    },
}

// No documentation: it would be that of each command.
#[derive(clap::Args)]
struct Folder {
    /// Folder in which engines are kept [default: $V2L_CACHE, or v2l/engines in the user's folder for caches].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(crate) fn command() -> clap::Command {
    Args::command()
}

pub(crate) fn main(call: &Call) -> ExitCode {
    v2l_cli::run(
        call,
        command(),
        |args: &Args| args.output_options,
        |args, output| match args.action {
            Action::Add { model, build } => {
                let engines = model::engines(&model, &build, output)?;
                output.result("added", json!({ "path": shown(&engines.path) }), || engines.path.display().to_string());
                Ok(())
            }
            Action::List(folder) => list(&folder, output),
            Action::Clear(folder) => shrink(&folder, 0, output),
            Action::Prune { max_size, folder } => shrink(&folder, max_size, output),
        },
    )
}

fn list(folder: &Folder, output: &mut Output) -> anyhow::Result<()> {
    let cache = EngineCache::open(folder.cache.as_deref())?;
    let entries = cache.entries()?;
    for entry in &entries {
        let CachedEngines { model, engines, bytes, used, in_use, .. } = entry;
        let seconds = used.elapsed().unwrap_or_default().as_secs();
        let fields = json!({
            "model": shown(model), "path": shown(engines), "bytes": bytes, "unused_seconds": seconds, "in_use": in_use,
        });
        output.result("cached", fields, || {
            let used = if *in_use { "in use".to_owned() } else { format!("used {} ago", span(seconds)) };
            format!("{:>8}  {used:<18}  {}  {}", readable(*bytes), model.display(), engines.display())
        });
    }
    total(&cache, &entries, output);
    Ok(())
}

fn shrink(folder: &Folder, limit: u64, output: &mut Output) -> anyhow::Result<()> {
    let cache = EngineCache::open(folder.cache.as_deref())?;
    for entry in cache.shrink(limit)? {
        said_removed(&entry, output);
    }
    total(&cache, &cache.entries()?, output);
    Ok(())
}

fn total(cache: &EngineCache, entries: &[CachedEngines], output: &mut Output) {
    let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let fields = json!({ "path": shown(cache.root()), "entries": entries.len(), "bytes": bytes, "free": cache.free() });
    output.result("cache", fields, || {
        let free = cache.free().map_or_else(String::new, |free| format!(", {} free", readable(free)));
        let models = if entries.len() == 1 { "model" } else { "models" };
        format!("{}: engines of {} {models}, {}{free}", cache.root().display(), entries.len(), readable(bytes))
    });
}

/// A time for people, in its largest unit.
fn span(seconds: u64) -> String {
    let units = [(86400, "days"), (3600, "hours"), (60, "minutes")];
    let found = units.iter().find(|(size, _)| seconds >= 2 * size);
    found.map_or_else(|| format!("{seconds} seconds"), |(size, name)| format!("{} {name}", seconds / size))
}
