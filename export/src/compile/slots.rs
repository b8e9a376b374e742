//! What adapters may change in a model.

use v2l_graphs::Model;
use v2l_runtime::engine::manifest::Slot;

use crate::{ExportError, metadata};

/// Slots of the models' metadata; for a graph from elsewhere, each matrix that feeds a MatMul or Gemm directly.
pub(crate) fn slots(models: &[(String, Model)]) -> Result<Vec<Slot>, ExportError> {
    let mut slots: Vec<Slot> = Vec::new();
    for (graph, model) in models {
        let found: Vec<Slot> = match model.metadata.get(metadata::SLOTS) {
            Some(text) => serde_json::from_str(text).map_err(|e| ExportError::Graph {
                graph: graph.clone(),
                reason: format!("metadata `{}`: {e}", metadata::SLOTS),
            })?,
            None => v2l_graphs::check::linear_weights(&model.graph)
                .into_iter()
                .map(|w| Slot {
                    transposed: w.transposed,
                    tensor: w.name.clone(),
                    ..Slot::linear(w.name.strip_suffix(".weight").unwrap_or(&w.name), w.out_features, w.in_features)
                })
                .collect(),
        };
        for slot in found {
            if !slots.iter().any(|s| s.name == slot.name) {
                slots.push(slot);
            }
        }
        let names: Vec<&str> = slots.iter().map(|s| s.tensor.as_str()).collect();
        let present: Vec<&str> = names.into_iter().filter(|n| model.graph.initializers.contains_key(*n)).collect();
        if let Err(findings) = v2l_graphs::check::check_slots(&model.graph, &present) {
            let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
            return Err(ExportError::Graph { graph: graph.clone(), reason: lines.join("; ") });
        }
    }
    Ok(slots)
}
