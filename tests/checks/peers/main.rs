//! v2l's side of the comparison that `peers.py` runs: fuses when told to, and says how long it took.
//!
//! ```text
//! peers ENGINE ADAPTER…                     one fuse for each line on stdin, one JSON line each on stdout
//! peers ENGINE ADAPTER… --inputs FILE       opens, fuses, runs the step once; one JSON line
//! ```

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::{ReadOptions, read_adapter};
use v2l_runtime::lora::fuse::{FuseOptions, FuseTarget, Pool, fuse_with};
use v2l_runtime::lora::{Weighted, borrowed, branch};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::Tensor;

mod status;

/// Fuse an adapter into an engine's weights, timed.
#[derive(Parser)]
struct Args {
    engine: PathBuf,
    #[arg(required = true)]
    adapters: Vec<PathBuf>,
    /// Run the step once on these tensors.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Hold weights as stored.
    #[arg(long)]
    stored: bool,
    /// Run on OpenVINO, in bfloat16.
    #[arg(long, conflicts_with = "stored")]
    openvino: bool,
}

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let args = Args::parse();
    let engine = Arc::new(Engine::open(&args.engine)?);
    let read = |path: &PathBuf| Ok((Arc::new(read_adapter(path, &*engine, &ReadOptions::default())?.adapter), 1.0));
    let adapters = args.adapters.iter().map(read).collect::<anyhow::Result<Vec<Weighted>>>()?;
    if let Some(inputs) = &args.inputs {
        let weights = if args.stored { OrtWeights::Stored } else { OrtWeights::F32 };
        let backend = if args.openvino { "openvino" } else { "ort" }.parse().map_err(anyhow::Error::msg)?;
        let openvino = OpenVinoOptions { precision: OpenVinoPrecision::Bf16, ..OpenVinoOptions::default() };
        let options = OpenOptions { weights, threads: Some(2), backend, openvino, ..OpenOptions::default() };
        let mut opened = OpenEngine::open(engine, &options)?;
        opened.set_adapters(&adapters, std::iter::empty(), None)?;
        let fused = start.elapsed().as_secs_f64();
        let mut session = opened.session("step")?;
        let ready = start.elapsed().as_secs_f64();
        let tensors = read_tensors(inputs)?;
        let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        session.run(&inputs)?;
        let done = start.elapsed().as_secs_f64();
        let (cpu, private) = (status::processor_seconds(), status::bytes("RssAnon:"));
        println!("{}", json!({ "fused": fused, "ready": ready, "done": done, "cpu": cpu, "private": private }));
        return Ok(());
    }
    // The weights are in the page cache, as the peers' are in memory.
    engine.verify_hashes()?;
    let pool = Pool::default();
    let adapters = borrowed(&adapters);
    for line in std::io::stdin().lock().lines() {
        let start = Instant::now();
        match &line?[..] {
            "fuse" => drop(fuse_with(
                &engine,
                &adapters,
                &FuseOptions { pool: Some(&pool), ..FuseOptions::new(FuseTarget::Storage) },
            )?),
            "fuse fresh" => drop(fuse_with(&engine, &adapters, &FuseOptions::new(FuseTarget::Storage))?),
            "branches" => drop(branch::inputs(&engine, engine.graph("step.branch")?, &adapters)?),
            other => anyhow::bail!("{other}: expected `fuse`, `fuse fresh` or `branches`"),
        }
        println!("{}", json!({ "seconds": start.elapsed().as_secs_f64() }));
    }
    Ok(())
}
