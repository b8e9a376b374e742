//! How far the estimate of memory is from what runs take: `cargo run --release -p v2l-checks --bin memory`.
//!
//! Each case runs in a process of its own, on the miniature: the estimate before, then the largest resident set that the system
//! saw, less what was resident once ONNX Runtime was loaded. Pages of the engine's map do not count in either.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, ensure};
use ndarray::{Array5, ArrayD, IxDyn};
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::components::StepGraph;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::io::library;
use v2l_runtime::media::video::Frames;
use v2l_runtime::models::cogvideox::CogVideoX;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::pipeline::Expected;
use v2l_runtime::pipeline::Pipeline;
use v2l_runtime::request::Request;

/// Phase, width, height, frames, tiles, weights.
type Case = (&'static str, usize, usize, usize, bool, OrtWeights);

const CASES: [Case; 12] = [
    ("denoise", 256, 256, 17, false, OrtWeights::F32),
    ("denoise", 512, 512, 17, false, OrtWeights::F32),
    ("denoise", 512, 512, 17, false, OrtWeights::Stored),
    ("denoise", 512, 384, 33, false, OrtWeights::F32),
    ("decode", 256, 256, 9, false, OrtWeights::F32),
    ("decode", 384, 256, 17, false, OrtWeights::F32),
    ("decode", 384, 256, 17, false, OrtWeights::Stored),
    ("decode", 512, 256, 17, true, OrtWeights::F32),
    ("encode image", 256, 256, 9, false, OrtWeights::F32),
    ("encode image", 384, 256, 17, false, OrtWeights::F32),
    ("encode image", 384, 256, 17, false, OrtWeights::Stored),
    ("encode image", 512, 256, 17, true, OrtWeights::F32),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments[..] {
        [] => table(),
        [case, engines] => measure(case, Path::new(engines)),
        _ => Err(anyhow::anyhow!("expected no arguments")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Compiles the miniature, and runs every case.
fn table() -> anyhow::Result<()> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/miniature");
    let folder = tempfile::tempdir()?;
    let (bundle, engines) = (folder.path().join("bundle"), folder.path().join("engines"));
    v2l_export::export(&model, &bundle, &ExportOptions::default(), &mut |_| {})?;
    v2l_export::compile(&bundle, &engines, &CompileOptions::default(), &mut |_| {})?;
    println!("| phase | size | weights | estimate | measured | estimate / measured |");
    println!("|---|---|---|---|---|---|");
    for (case, (phase, width, height, frames, tiles, weights)) in CASES.into_iter().enumerate() {
        let child = Command::new(std::env::current_exe()?).arg(case.to_string()).arg(&engines).output()?;
        ensure!(child.status.success(), "case {case}: {}", String::from_utf8_lossy(&child.stderr));
        let text = String::from_utf8(child.stdout)?;
        let (estimate, measured) = text.trim().split_once(' ').context("two numbers")?;
        let (estimate, measured): (f64, f64) = (estimate.parse()?, measured.parse()?);
        let (tiles, mode) = (if tiles { ", tiles" } else { "" }, format!("{weights:?}").to_lowercase());
        println!(
            "| {phase} | {width}x{height}, {frames} frames{tiles} | {mode} | {:.0} MB | {:.0} MB | {:.2} |",
            estimate / 1e6,
            measured / 1e6,
            estimate / measured
        );
    }
    Ok(())
}

/// Prints the estimate and the measured bytes of one case.
fn measure(case: &str, engines: &Path) -> anyhow::Result<()> {
    let (phase, width, height, frames, tiles, weights) = CASES[case.parse::<usize>()?];
    let mut directory = EngineDirectory::open(engines, OpenOptions { weights, ..OpenOptions::default() })?;
    let mut config = directory.config().clone();
    let model = config.family.as_ref().and_then(|family| family.downcast_ref()).context("CogVideoX")?;
    let mut model = CogVideoX::clone(model);
    let (vae, transformer) = (model.vae.as_mut().context("a VAE")?, model.transformer.as_ref().context("a DiT")?);
    vae.tiling.enabled = tiles;
    // Tiles of the miniature as its own configuration has them do not join without seams.
    (vae.tiling.tile_sample_min_width, vae.tiling.tile_sample_min_height) = (128, 128);
    (vae.tiling.tile_overlap_factor_width, vae.tiling.tile_overlap_factor_height) = (0.25, 0.25);
    let ratio = vae.spatial_compression_ratio;
    let latent =
        [1, vae.latent_channels, (frames - 1) / vae.temporal_compression_ratio + 1, height / ratio, width / ratio];
    let tokens = transformer.max_text_seq_length;
    config.family = Some(Arc::new(model));
    let text_width = text_width(&mut directory)?;
    let tokenizer = directory.tokenizer()?;
    let pipeline = Pipeline::new(config, tokenizer.as_deref())?;
    let blank = Frames::new(width, height, vec![0; width * height * 3], None)?;
    let mut request = Request {
        width: Some(width),
        height: Some(height),
        num_frames: Some(frames),
        num_inference_steps: Some(2),
        prompt_embeds: Some(ArrayD::zeros(IxDyn(&[2, tokens, text_width]))),
        guidance_scale: Some(3.0),
        image: Some(blank),
        ..Request::default()
    };
    let estimate = pipeline.estimate(
        &mut directory,
        (&pipeline.prepare(request.clone())?, &StepGraph::default()),
        Expected::default(),
    )?;
    ensure!(estimate.complete, "the engines hold no formulas");
    let phase = estimate.phases.into_iter().find(|found| found.name == phase).context("no such phase")?;
    library::onnxruntime(None)?;
    let before = resident("RssAnon:")?;
    match phase.name {
        "decode" => drop(pipeline.decode_video(&mut directory, &Array5::zeros(latent), &mut ())?),
        "encode image" => {
            let pixels = Array5::zeros([1, 3, frames, height, width]);
            drop(pipeline.encode_video(&mut directory, &pixels, &mut ())?);
        }
        _ => {
            request.image = None;
            drop(pipeline.generate(&mut directory, (&request, &StepGraph::default()), &mut ())?);
        }
    }
    // The system keeps no largest value of anonymous memory alone; what files take of the largest is about what they take now.
    let peak = resident("VmHWM:")?.saturating_sub(resident("RssFile:")?).saturating_sub(before);
    println!("{} {peak}", phase.total());
    Ok(())
}

/// Width of the text embeddings.
fn text_width(directory: &mut EngineDirectory) -> anyhow::Result<usize> {
    let engine = directory.engine("transformer")?;
    let port = engine.graph("step")?.inputs.iter().find(|port| port.name == "encoder_hidden_states");
    match port.and_then(|port| port.shape.last()) {
        Some(v2l_runtime::engine::session::Dim::Fixed(width)) => Ok(*width),
        _ => anyhow::bail!("`encoder_hidden_states` has no fixed width"),
    }
}

/// Bytes of an entry of `/proc/self/status`.
fn resident(entry: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(entry)).context("no such entry")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
