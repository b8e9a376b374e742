//! v2l's side of the comparison that `step.py` runs: one step for each line on stdin, its seconds on stdout.
//!
//! ```text
//! step ENGINE INPUTS [--stored] [--provider cuda] [--plan] [--openvino f32|bf16|int8]
//! ```

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::onnxruntime::{Arithmetic, OrtOptions, Provider};
use v2l_runtime::backends::openvino::{OpenVinoOptions, OpenVinoPrecision};
use v2l_runtime::engine::Engine;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::Tensor;

mod status;

/// Run a transformer's step, timed.
#[derive(Parser)]
struct Args {
    engine: PathBuf,
    inputs: PathBuf,
    /// Hold weights as stored.
    #[arg(long)]
    stored: bool,
    /// What to compute on: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    provider: Provider,
    /// Compute in the types of the precision plan.
    #[arg(long)]
    plan: bool,
    /// Run on OpenVINO, in this precision.
    #[arg(long)]
    openvino: Option<OpenVinoPrecision>,
    /// Where to write the outputs of the first run.
    #[arg(long)]
    outputs: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let weights = if args.stored { OrtWeights::Stored } else { OrtWeights::F32 };
    let arithmetic = if args.plan { Arithmetic::Plan } else { Arithmetic::Fp32 };
    let (provider, threads) = (args.provider, Some(2));
    let options = OpenOptions {
        weights,
        threads,
        backend: if args.openvino.is_some() { "openvino" } else { "ort" }.parse().map_err(anyhow::Error::msg)?,
        ort: OrtOptions { arithmetic, provider, ..OrtOptions::default() },
        openvino: OpenVinoOptions { precision: args.openvino.unwrap_or_default(), ..OpenVinoOptions::default() },
        ..OpenOptions::default()
    };
    let mut session = OpenEngine::open(Arc::new(Engine::open(&args.engine)?), &options)?.session("step")?;
    let tensors = read_tensors(&args.inputs)?;
    let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    let outputs = session.run(&inputs)?;
    if let Some(path) = &args.outputs {
        write_tensors(path, &outputs, &Default::default())?;
    }
    for line in std::io::stdin().lock().lines() {
        line?;
        let (start, worked) = (Instant::now(), status::processor_seconds());
        session.run(&inputs)?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), status::processor_seconds() - worked);
        let (private, peak) = (status::bytes("RssAnon:"), status::bytes("VmHWM:"));
        println!("{}", json!({ "seconds": seconds, "cpu": cpu, "private": private, "peak": peak }));
    }
    Ok(())
}
