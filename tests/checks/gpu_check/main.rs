//! What v2l does on an NVIDIA GPU, checked and measured: the fusion kernel, against the CPU kernels and the card's copy bandwidth; the
//! miniature on ONNX Runtime's CUDA provider, against the CPU; TensorRT-RTX's plans, against ONNX Runtime, if it has code for the card.
//!
//! `bin/dev/gpu-check [--json]` fetches the libraries and runs this. Without a GPU it says so and exits with 6. Ratios are of runs in turn
//! on the same card; nothing about time is asserted. A difference in bits, or beyond a tolerance, exits with 7.

#[path = "../miniature/lab.rs"]
#[expect(dead_code, reason = "shared with the evaluation of the miniature")]
mod lab;
#[path = "../miniature/trials.rs"]
#[expect(dead_code, reason = "shared with the evaluation of the miniature")]
mod trials;

#[path = "../trt_check/cases.rs"]
mod cases;
#[path = "../full_size/checkpoint.rs"]
#[allow(dead_code, reason = "shared with the full-size check")]
mod checkpoint;
mod kernel;
mod miniature;
#[path = "../full_size/models.rs"]
#[allow(dead_code, reason = "shared with the full-size check")]
mod models;
mod shapes;
mod tensorrt;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, ValueEnum};
use serde_json::json;
use v2l_cli::{Call, OutputOptions};
use v2l_cuda::CudaError;
use v2l_runtime::lora::fuse::FuseError;

/// Check v2l on this machine's first NVIDIA GPU.
#[derive(Parser)]
#[command(name = "gpu_check")]
struct Args {
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 11)]
    rounds: usize,
    /// Check this alone; may be given several times.
    #[arg(long, value_name = "PART", value_enum)]
    only: Vec<Part>,
    /// Folder of the miniature.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/miniature"))]
    model: PathBuf,
    #[command(flatten)]
    output_options: OutputOptions,
}

/// What there is to check.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// The fusion kernel.
    Kernel,
    /// The miniature on the CUDA provider.
    Miniature,
    /// TensorRT-RTX's plans.
    Tensorrt,
}

fn main() -> ExitCode {
    if let Some(code) = v2l_export::trt::builder::serve_if_asked() {
        return code;
    }
    let options = |args: &Args| args.output_options;
    let call = Call { name: "gpu-check".to_owned(), words: std::env::args_os().skip(1).collect() };
    v2l_cli::run(&call, Args::command(), options, |args, output| {
        // The runtime's own error decides the exit code.
        let (info, driver) = v2l_cuda::open(0, None).map_err(FuseError::Device)?;
        let (major, minor) = info.capability;
        let fields = json!({ "name": info.name, "capability": format!("{major}.{minor}"), "memory": info.memory });
        let gigabytes = info.memory as f64 / 1e9;
        output
            .result("card", fields, || format!("{}, compute capability {major}.{minor}, {gigabytes:.1} GB", info.name));
        let (asked, rounds) = (|part| args.only.is_empty() || args.only.contains(&part), args.rounds.max(1));
        if asked(Part::Kernel) {
            kernel::check(&driver, rounds, output)?;
        }
        if asked(Part::Miniature) {
            miniature::check(&args.model, rounds, output)?;
        }
        if asked(Part::Tensorrt) {
            tensorrt::check(&args.model, &info, &driver, rounds, output)?;
        }
        Ok(())
    })
}

/// Seconds that something takes.
fn timed<T>(work: impl FnOnce() -> Result<T, CudaError>) -> Result<f64, CudaError> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
