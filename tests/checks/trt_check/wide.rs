//! Transformers as wide as CogVideoX-Fun-V1.1-5b-InP's, at its shapes, of random weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use v2l_export::precision::Request;
use v2l_export::{ExportOptions, TrtPlanReport};
use v2l_runtime::engine::manifest::{Profile, ShapeRange};

use crate::checkpoint::Checkpoint;
use crate::models::Model;
use crate::{Build, SHARE, control, machine, memory};

/// 49 frames of 480 × 720 pixels are 13 × 60 × 90 latents and 17 550 tokens; 1 frame at least, and two samples at most.
fn profile(dynamic: bool) -> Profile {
    let inputs = [
        ("hidden_states", vec![1, 1, 16, 60, 90], vec![1, 13, 16, 60, 90], vec![2, 13, 16, 60, 90]),
        ("inpaint_latents", vec![1, 1, 17, 60, 90], vec![1, 13, 17, 60, 90], vec![2, 13, 17, 60, 90]),
        ("encoder_hidden_states", vec![1, 226, 4096], vec![1, 226, 4096], vec![2, 226, 4096]),
        ("timestep", vec![1], vec![1], vec![2]),
        ("image_rotary_emb_cos", vec![1350, 64], vec![17_550, 64], vec![17_550, 64]),
        ("image_rotary_emb_sin", vec![1350, 64], vec![17_550, 64], vec![17_550, 64]),
    ];
    let range = |(name, min, opt, max): (&str, Vec<usize>, Vec<usize>, Vec<usize>)| {
        let (min, max) = if dynamic { (min, max) } else { (opt.clone(), opt.clone()) };
        (name.to_owned(), ShapeRange { min, opt, max })
    };
    inputs.into_iter().map(range).collect()
}

/// The graph of a random model with so many layers.
fn model(layers: usize, folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, bundle) = (folder.join("model"), folder.join(format!("bundle-{layers}")));
    Checkpoint::new(Model::Cogvideox, layers).write(&source)?;
    v2l_export::export(&source, &bundle, &ExportOptions::default(), &mut |_| {})?;
    std::fs::remove_dir_all(&source)?;
    Ok(bundle.join("transformer/step.onnx"))
}

fn build(layers: usize, model: &Path, folder: &Path, dynamic: bool, plain: bool) -> anyhow::Result<TrtPlanReport> {
    let engine = folder.join("wide.engine");
    let build = Build { model, engine: &engine, request: Request::Bf16, profile: profile(dynamic), plain };
    let (report, peak) = memory::watched(|| build.run());
    let report = report.with_context(|| format!("{layers} layers"))?;
    println!(
        "{layers} layers of width 3072, {}, {}: plan of {} bytes, {:.3} % of {} bytes of weights; built in {:.1} s; \
         builder: {:.0} MB private, {:.0} MB with mapped weights",
        if dynamic { "dynamic" } else { "static" },
        if plain { "plain" } else { "placeholders" },
        report.bytes,
        report.bytes as f64 / report.weight_bytes as f64 * 1e2,
        report.weight_bytes,
        report.time.as_secs_f64(),
        machine::mega(peak.private),
        machine::mega(peak.resident),
    );
    Ok(report)
}

/// One layer and two: what a placeholder plan costs beside weights, and what each layer adds; the control on the first.
pub(crate) fn run(folder: &Path) -> anyhow::Result<()> {
    let one = model(1, folder)?;
    let plain = build(1, &one, folder, false, true)?;
    ensure!(plain.bytes > plain.weight_bytes, "a plain plan of {} bytes does not hold its weights", plain.bytes);
    let first = build(1, &one, folder, false, false)?;
    control::run(&folder.join("wide.engine"), &first, folder)?;
    let second = build(2, &model(2, folder)?, folder, false, false)?;
    let (code, weights) = (second.bytes.saturating_sub(first.bytes), second.weight_bytes - first.weight_bytes);
    let fixed = first.bytes.saturating_sub(code);
    println!(
        "placeholder plan: a fixed cost of {fixed} bytes, and {code} bytes for each layer of {weights} bytes of weights ({:.3} %)",
        code as f64 / weights as f64 * 1e2
    );
    let most = SHARE * weights as f64;
    ensure!(code as f64 <= most, "expected at most {most} bytes of a plan for another layer");
    ensure!(
        first.bytes as f64 <= SHARE * first.weight_bytes as f64,
        "one layer's plan is larger than 5 % of its weights"
    );
    Ok(())
}

/// A placeholder plan of so many layers, static and dynamic.
pub(crate) fn full(layers: usize, folder: &Path) -> anyhow::Result<()> {
    let machine = machine::machine();
    println!("{}, {} cores, {} memory", machine["cpu"], machine["cores"], machine["memory"]);
    let model = model(layers, folder)?;
    for dynamic in [false, true] {
        let report = build(layers, &model, folder, dynamic, false)?;
        let most = SHARE * report.weight_bytes as f64;
        ensure!(report.bytes as f64 <= most, "expected a plan of at most {most} bytes");
        ensure!(report.fixed_slots.is_empty(), "no adapter could change {}", report.fixed_slots.join(", "));
    }
    Ok(())
}
