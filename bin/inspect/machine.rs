//! What this machine can run engines on.

use serde_json::{Value as Json, json};
use v2l_cli::Output;
use v2l_runtime::backends::BACKENDS;
use v2l_runtime::memory::{memory_limit, readable};
use v2l_runtime::options::OpenOptions;

/// Each backend, whether it would be taken, and why. Loads their libraries.
pub(crate) fn show(output: &mut Output) {
    let options = OpenOptions::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<(&str, bool, String)> = BACKENDS
        .iter()
        .map(|backend| {
            let (taken, why) = backend.on_this_machine(&options);
            (backend.name(), taken, why)
        })
        .collect();
    let backend = |(name, taken, why): &(&str, bool, String)| json!({ "name": name, "taken": taken, "reason": why });
    let backends: Vec<Json> = found.iter().map(backend).collect();
    let memory = memory_limit();
    output.result("machine", json!({ "cores": cores, "memory": memory, "backends": backends }), || {
        let memory = memory.map_or("memory unknown".to_owned(), readable);
        let mut lines = vec![format!("{cores} cores, {memory}")];
        lines.extend(found.iter().map(|(name, taken, why)| {
            let taken = if *taken { "taken for engines that hold its form" } else { "not taken" };
            format!("{name}: {taken}: {why}")
        }));
        lines.join("\n")
    });
}
