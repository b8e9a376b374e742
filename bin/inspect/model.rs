//! ONNX models.

use std::path::Path;

use serde_json::json;
use v2l_cli::{Output, shown};
use v2l_export::{OnnxSummary, summarize_onnx};

/// Interface, weights, operators, metadata and slots.
pub(crate) fn show(path: &Path, nodes: bool, output: &mut Output) -> anyhow::Result<()> {
    let summary = summarize_onnx(path, nodes)?;
    let OnnxSummary { graph, producer, opsets, inputs, outputs, operators, weights, weight_bytes, metadata, .. } =
        &summary;
    let fields = json!({
        "path": shown(path), "graph": graph, "producer": producer, "opsets": opsets, "inputs": inputs, "outputs": outputs,
        "operators": operators, "weights": weights, "weight_bytes": weight_bytes, "metadata": metadata,
        "slots": summary.slots.len(),
    });
    output.result("model", fields, || {
        let mut lines = vec![format!("model {}", path.display())];
        if !producer.is_empty() {
            lines.push(format!("  producer {producer}"));
        }
        lines.extend(metadata.iter().map(|(key, value)| format!("  metadata {key} = {}", super::engine::short(value))));
        lines.extend(summary.text.lines().map(|line| format!("  {line}")));
        lines.join("\n")
    });
    super::engine::slots(&summary.slots, output);
    super::engine::absent(&summary.absent, output);
    for ambiguous in &summary.report.ambiguous {
        output.result("ambiguous", json!(ambiguous), || format!("    {}", ambiguous.message()));
    }
    if let Some(message) = summary.report.unnamed_message() {
        output.result("unnamed", json!({ "slots": summary.report.unnamed }), || format!("    {message}"));
    }
    Ok(())
}
