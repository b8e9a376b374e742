//! What was decided for a run and changes the last bits of its results: recorded with them, and said in `--json`.

use indexmap::IndexMap;
use serde_json::json;
use v2l_cli::Output;
use v2l_runtime::engine::manifest::SIDE_SUFFIX;
use v2l_runtime::engine_directory::EngineDirectory;
use v2l_runtime::pipeline::StepGraph;

/// Decisions by name, as they are written into the metadata of a result: `v2l.weights.<component>`, `v2l.fuse_mode`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions(IndexMap<String, String>);

impl Decisions {
    /// How the weights of these components are held, of those that the directory has.
    pub(crate) fn of(
        directory: &mut EngineDirectory,
        components: &[&str],
        output: &mut Output,
    ) -> anyhow::Result<Self> {
        let mut decisions = Self::default();
        for &component in components {
            if directory.has(component) {
                let (mode, reason) = directory.held_weights(component)?;
                let weights = mode.to_string();
                output.event("weights", json!({ "component": component, "weights": weights, "reason": reason }));
                decisions.weights(component, weights);
            }
        }
        Ok(decisions)
    }

    /// How a component's weights are held.
    pub(crate) fn weights(&mut self, component: &str, mode: String) {
        self.0.insert(format!("v2l.weights.{component}"), mode);
    }

    /// How adapters are applied, if there are any.
    pub(crate) fn fuse_mode(&mut self, step: &StepGraph, adapters: usize) {
        let mode = if step.graph.ends_with(SIDE_SUFFIX) { "side" } else { "fuse" };
        if adapters > 0 {
            self.0.insert("v2l.fuse_mode".to_owned(), mode.to_owned());
        }
    }

    /// For a safetensors file's header.
    pub(crate) fn metadata(&self) -> &IndexMap<String, String> {
        &self.0
    }

    /// For a video's comment.
    pub(crate) fn comment(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}
