//! Bundles and engine directories.

use std::path::Path;

use serde_json::json;
use v2l_cli::{Output, shown};
use v2l_export::summarize_onnx;
use v2l_runtime::engine::Engine;
use v2l_runtime::pipeline::config::{ComponentFiles, PipelineConfig, ReferenceFrames, resolve};

use super::{count, engine, model};

/// Settings, then one line per engine or the graphs of each component.
pub(crate) fn show(folder: &Path, verify: bool, nodes: bool, output: &mut Output) -> anyhow::Result<()> {
    let config = PipelineConfig::read(folder)?;
    let compiled = config.components.values().all(|files| matches!(files, ComponentFiles::Engine(_)));
    let kind = if compiled { "engine directory" } else { "bundle" };
    output.result("pipeline", json!({ "path": shown(folder), "kind": kind, "config": config }), || {
        let mut lines = vec![format!("{kind} {}", folder.display())];
        lines.extend(settings(&config));
        lines.join("\n")
    });
    for (name, files) in &config.components {
        match files {
            ComponentFiles::Engine(files) => {
                let path = resolve(folder, name, &files.engine)?;
                let engine = Engine::open(&path)?;
                component(name, &files.engine, &path, &engine, output);
                if verify {
                    engine::check_hashes(&engine, output)?;
                }
            }
            ComponentFiles::Graphs(files) => {
                for (graph, file) in &files.graphs {
                    let path = resolve(folder, name, file)?;
                    if nodes || output.is_json() {
                        model::show(&path, nodes, output)?;
                        continue;
                    }
                    let summary = summarize_onnx(&path, false)?;
                    output.result("graph", json!(null), || {
                        let operators: usize = summary.operators.values().sum();
                        format!(
                            "  {name}/{graph}: {}, {} ({} bytes), {}  {file}",
                            count(operators, "node"),
                            count(summary.weights, "weight"),
                            summary.weight_bytes,
                            count(summary.slots.len(), "slot"),
                        )
                    });
                }
            }
        }
    }
    Ok(())
}

fn component(name: &str, file: &str, path: &Path, engine: &Engine, output: &mut Output) {
    let manifest = engine.manifest();
    let bytes = engine::size(path);
    let graphs: Vec<&str> = manifest.graphs.iter().map(|g| g.name.as_str()).collect();
    let fields = json!({
        "component": name, "path": shown(path), "bytes": bytes, "storage": manifest.storage, "graphs": graphs,
        "slots": manifest.slots.len(),
    });
    output.result("component", fields, || {
        format!(
            "  {name}: {bytes} bytes, {}, {}, graphs {}  {file}",
            manifest.storage,
            count(manifest.slots.len(), "slot"),
            graphs.join(", ")
        )
    });
}

/// One line per section that is there.
fn settings(config: &PipelineConfig) -> Vec<String> {
    let sections = config.family.as_ref().map_or_else(Vec::new, |family| family.describe());
    let mut lines: Vec<String> = sections.iter().map(|line| format!("  {line}")).collect();
    if let Some(s) = &config.scheduler {
        let class = s.config["_class_name"].as_str().unwrap_or("?");
        let sampler = s.sampler.as_ref().map_or_else(String::new, |name| format!(", sampled as {name}"));
        let spacing = s.config["timestep_spacing"].as_str().map_or_else(String::new, |text| format!(", {text}"));
        lines.push(format!("  scheduler {class}{spacing}{sampler}"));
    }
    if let Some(t) = &config.tokenizer {
        lines.push(format!("  tokenizer {}, {} tokens", t.file, t.max_length));
    }
    let (r, d) = (&config.reference, &config.defaults);
    let frames = match r.frames {
        ReferenceFrames::All => "all frames".to_owned(),
        ReferenceFrames::FirstN(n) => format!("the first {n} frames"),
        ReferenceFrames::Resample { count, fps } => format!("up to {count} frames at {fps} fps"),
    };
    let knobs = format!("{:?} range, {frames}, {:?}, {:?}", r.range, r.resize, r.latent).to_lowercase();
    lines.push(format!("  reference {knobs}"));
    lines.push(format!(
        "  defaults {} steps, guidance {}, {} frames at {} fps, seed {}",
        d.num_inference_steps, d.guidance_scale, d.num_frames, d.fps, d.seed
    ));
    lines
}
