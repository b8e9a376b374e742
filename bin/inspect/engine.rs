//! Engine files.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value as Json, json};
use v2l_cli::{Output, shown};
use v2l_export::ExportError;
use v2l_export::precision::PrecisionPlan;
use v2l_runtime::engine::manifest::{Absent, Manifest, PRECISION_PLAN, RESERVED_PREFIX, ShapeRange, Slot, TrtPlan};
use v2l_runtime::engine::session::{Dim, Port};
use v2l_runtime::engine::{Engine, EngineError};
use v2l_runtime::io::raw::byte_len;

use super::count;

/// Longer texts and lists are cut.
const SHORT: usize = 160;
const MANY: usize = 16;

/// The manifest of one engine.
pub(crate) fn show(path: &Path, verify: bool, output: &mut Output) -> anyhow::Result<()> {
    let engine = Engine::open(path)?;
    let manifest = engine.manifest();
    let bytes = size(path);
    let weights = weights(manifest);
    let (number, total) = weights.values().fold((0, 0), |(n, b), (count, bytes)| (n + count, b + bytes));
    let by_type: BTreeMap<_, _> =
        weights.iter().map(|(dtype, (n, bytes))| (dtype, json!({ "tensors": n, "bytes": bytes }))).collect();
    let fields = json!({
        "path": shown(path), "component": manifest.component, "format_version": manifest.format_version,
        "tool_version": manifest.tool_version, "bytes": bytes, "storage": manifest.storage,
        "weights": number, "weight_bytes": total, "weights_by_type": by_type, "made_from": manifest.made_from,
        "attributes": manifest.attributes, "slots": manifest.slots.len(),
    });
    output.result("engine", fields, || {
        let types: Vec<String> =
            weights.iter().map(|(dtype, (n, bytes))| format!("{dtype} {n} ({bytes} bytes)")).collect();
        let mut lines = vec![
            format!("engine {}", path.display()),
            format!("  component {}, storage {}, {bytes} bytes", manifest.component, manifest.storage),
            format!("  format {}, written by v2l {}", manifest.format_version, manifest.tool_version),
            format!("  weights {number} ({total} bytes): {}", types.join(", ")),
        ];
        lines.extend(manifest.made_from.iter().map(|(name, what)| format!("  made from {name} {what}")));
        lines.extend(attributes(&manifest.attributes));
        lines.join("\n")
    });
    for graph in &manifest.graphs {
        let fields = json!({
            "graph": graph.name, "backend": graph.backend, "precision": graph.precision,
            "inputs": graph.inputs, "outputs": graph.outputs, "weights": graph.weights.len(),
            "profiles": graph.profiles, "plans": graph.files.plans.iter().map(|plan| trt_plan(manifest, plan)).collect::<Vec<_>>(),
            "probe": graph.probe.as_ref().map(|probe| json!({ "relative_l2": probe.tolerance })),
            "precomputed": graph.parts().skip(1).map(|part| &part.name).collect::<Vec<_>>(),
        });
        output.result("graph", fields, || {
            let weights = count(graph.weights.len(), "weight");
            let mut lines = vec![format!("  graph {} ({}, {}, {weights})", graph.name, graph.backend, graph.precision)];
            lines.extend(ports("in ", &graph.inputs));
            lines.extend(ports("out", &graph.outputs));
            for (index, profile) in graph.profiles.iter().enumerate() {
                let range = |(name, r): (&String, &ShapeRange)| format!("{name} {:?} {:?} {:?}", r.min, r.opt, r.max);
                let ranges: Vec<String> = profile.iter().map(range).collect();
                lines.push(format!("    profile {index} (min, opt, max): {}", ranges.join(", ")));
            }
            lines.extend(graph.files.plans.iter().map(|plan| trt_plan_line(manifest, &graph.backend, plan)));
            lines.extend(graph.probe.iter().map(|probe| {
                format!("    verified when its weights were set, within relative L2 {:.1e}", probe.tolerance)
            }));
            lines.extend(graph.parts().skip(1).map(|part| {
                let (weights, values) = (count(part.weights.len(), "weight"), count(part.outputs.len(), "value"));
                format!("    precomputed graph {} ({weights}, {values})", part.name)
            }));
            lines.join("\n")
        });
    }
    if manifest.tensors.contains_key(PRECISION_PLAN) {
        plan(&engine, output)?;
    }
    slots(&manifest.slots, output);
    absent(&manifest.absent, output);
    if verify {
        check_hashes(&engine, output)?;
    }
    Ok(())
}

/// Bytes of tensors.
fn bytes_of<'a>(manifest: &Manifest, names: impl IntoIterator<Item = &'a String>) -> usize {
    let records = names.into_iter().filter_map(|name| manifest.tensors.get(name));
    records.map(|record| byte_len(record.dtype, &record.shape).unwrap_or(0)).sum()
}

/// Slots of a plan whose weights can be set.
fn plan_slots(manifest: &Manifest, plan: &TrtPlan) -> usize {
    manifest.slots.iter().filter(|slot| plan.weights.contains(&slot.tensor)).count()
}

fn trt_plan(manifest: &Manifest, plan: &TrtPlan) -> Json {
    json!({
        "version": plan.version, "compute_capability": plan.compute_capability,
        "bytes": bytes_of(manifest, [&plan.file]), "weights": plan.weights.len(),
        "weight_bytes": bytes_of(manifest, &plan.weights), "placeholders": plan.placeholders,
        "slots": plan_slots(manifest, plan),
    })
}

/// Flavour, version, GPUs, sizes, and what can be set.
fn trt_plan_line(manifest: &Manifest, backend: &str, plan: &TrtPlan) -> String {
    let gpus = match &plan.compute_capability {
        None => "the GPU that built it".to_owned(),
        Some(capability) => format!("compute capability {capability}"),
    };
    let (bytes, settable) = (bytes_of(manifest, [&plan.file]), bytes_of(manifest, &plan.weights));
    let (weights, slots) = (count(plan.weights.len(), "weight"), count(plan_slots(manifest, plan), "slot"));
    let when = if plan.placeholders { "set when it is loaded" } else { "can be set" };
    format!("    plan {backend} {}, {gpus}: {bytes} bytes; {weights} ({settable} bytes, {slots}) {when}", plan.version)
}

/// The precision plan: per graph, its type and what is apart from it, by reason.
fn plan(engine: &Engine, output: &mut Output) -> anyhow::Result<()> {
    let bytes = engine.blob(PRECISION_PLAN)?;
    let plan = PrecisionPlan::parse(PRECISION_PLAN, &String::from_utf8_lossy(&bytes)).map_err(ExportError::from)?;
    for graph in &plan.graphs {
        let mut reasons: IndexMap<String, usize> = IndexMap::new();
        for exception in graph.exceptions.values() {
            // What follows a colon is about one node.
            let why = exception.why.split(':').next().unwrap_or_default();
            *reasons.entry(format!("{} {why}", exception.precision)).or_default() += 1;
        }
        let fields = json!({ "graph": graph.name, "default": graph.default, "exceptions": graph.exceptions });
        output.result("precision_plan", fields, || {
            let head =
                format!("  plan of {}: {}, {}", graph.name, graph.default, count(graph.exceptions.len(), "exception"));
            let lines = reasons.iter().map(|(why, n)| format!("    {n:>5}  {why}"));
            std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
        });
    }
    Ok(())
}

/// Reads the whole engine and says that it is intact.
pub(crate) fn check_hashes(engine: &Engine, output: &mut Output) -> Result<(), EngineError> {
    engine.verify_hashes()?;
    let tensors = engine.manifest().tensors.len();
    output.result("verified", json!({ "path": shown(engine.path()), "tensors": tensors }), || {
        format!("  hashes of {} match", count(tensors, "tensor"))
    });
    Ok(())
}

/// A table of slots.
pub(crate) fn slots(slots: &[Slot], output: &mut Output) {
    if slots.is_empty() {
        return;
    }
    for slot in slots {
        output.event("slot", json!(slot));
    }
    if !output.is_json() {
        output.result("slots", Json::Null, || {
            let width = slots.iter().map(|s| s.name.len()).max().unwrap_or(0);
            // One line says what all have in common.
            let common = Some(&slots[0].found).filter(|found| slots.iter().all(|s| s.found == **found));
            let by = common.map_or_else(String::new, |found| format!(", by {found}"));
            let mut lines = vec![format!("  {}{by}", count(slots.len(), "slot"))];
            lines.extend(slots.iter().map(|s| {
                let mut line = format!("    {:<width$}  {} -> {}", s.name, s.in_features, s.out_features);
                if let Some(rows) = s.rows {
                    line += &format!("  rows {}..{} of {}", rows.start, rows.end, s.tensor);
                }
                if s.transposed {
                    line += "  transposed";
                }
                if !s.aliases.is_empty() {
                    line += &format!("  also {}", s.aliases.join(", "));
                }
                if !s.lookups.is_empty() {
                    line += &format!("  its rows looked up by {}: an update changes both", s.lookups.join(", "));
                }
                if s.rows.is_none() && s.tensor != format!("{}.weight", s.name) {
                    line += &format!("  in {}", s.tensor);
                }
                if common.is_none() {
                    line += &format!("  by {}", s.found);
                }
                line
            }));
            lines.join("\n")
        });
    }
}

/// Layers that adapters may name and that are no slots.
pub(crate) fn absent(layers: &[Absent], output: &mut Output) {
    for Absent { layer, why, reason } in layers {
        let fields = json!({ "layer": layer.name, "tensor": layer.tensor, "why": why, "reason": reason });
        output.result("absent", fields, || format!("    {}  {reason}", layer.name));
    }
}

/// Bytes of a file; 0 if it is gone.
pub(crate) fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Per type: how many weights, and their bytes.
pub(crate) fn weights(manifest: &Manifest) -> BTreeMap<String, (usize, usize)> {
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (_, record) in manifest.tensors.iter().filter(|(name, _)| !name.starts_with(RESERVED_PREFIX)) {
        let entry = found.entry(record.dtype.to_string()).or_default();
        entry.0 += 1;
        entry.1 += byte_len(record.dtype, &record.shape).unwrap_or(0);
    }
    found
}

/// One line per port; of very many, the first.
fn ports(direction: &str, ports: &[Port]) -> Vec<String> {
    let shown = if ports.len() > MANY { MANY / 2 } else { ports.len() };
    let mut lines: Vec<String> = ports[..shown].iter().map(|p| format!("    {direction} {}", port(p))).collect();
    if shown < ports.len() {
        lines.push(format!("    {direction} … {} more", ports.len() - shown));
    }
    lines
}

/// `name: f32 [batch, 16]`.
fn port(port: &Port) -> String {
    let extents: Vec<String> = port.shape.iter().map(Dim::to_string).collect();
    format!("{}: {} [{}]", port.name, port.dtype, extents.join(", "))
}

fn attributes(attributes: &Json) -> Vec<String> {
    let Some(map) = attributes.as_object() else { return Vec::new() };
    let value = |value: &Json| match value {
        Json::Array(items) if items.iter().any(Json::is_object) => count(items.len(), "item"),
        other => short(&other.to_string()),
    };
    map.iter().map(|(key, v)| format!("  attribute {key} = {}", value(v))).collect()
}

/// The beginning of a long text.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
