//! What v2l does on an NVIDIA GPU, checked and measured: the fusion kernel, against the CPU kernels and the card's copy bandwidth; the
//! miniature on ONNX Runtime's CUDA provider, against the CPU; TensorRT-RTX's plans, against ONNX Runtime, if it has code for the card.
//!
//! `bin/gpu-check [--json]` fetches the libraries and runs this. Without a GPU it says so and exits with 6. Ratios are of runs in turn
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

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use v2l_cli::OutputOptions;
use v2l_cuda::CudaError;
use v2l_runtime::lora::fuse::FuseError;

/// Check v2l on this machine's first NVIDIA GPU.
#[derive(Parser)]
#[command(name = "gpu_check")]
struct Args {
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 11)]
    rounds: usize,
    #[command(flatten)]
    output_options: OutputOptions,
}

fn main() -> ExitCode {
    if let Some(code) = v2l_export::trt::builder::serve_if_asked() {
        return code;
    }
    let options = |args: &Args| args.output_options;
    v2l_cli::run(options, |args, output| {
        // The runtime's own error decides the exit code.
        let (info, driver) = v2l_cuda::open(0, None).map_err(FuseError::Device)?;
        let (major, minor) = info.capability;
        let fields = json!({ "name": info.name, "capability": format!("{major}.{minor}"), "memory": info.memory });
        let gigabytes = info.memory as f64 / 1e9;
        output
            .result("card", fields, || format!("{}, compute capability {major}.{minor}, {gigabytes:.1} GB", info.name));
        kernel::check(&driver, args.rounds.max(1), output)?;
        miniature::check(args.rounds.max(1), output)?;
        tensorrt::check(&info, &driver, args.rounds.max(1), output)
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
