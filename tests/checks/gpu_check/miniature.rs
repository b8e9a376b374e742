//! The trained miniature on the CUDA provider: its latents against the CPU's, swaps, and the base bit for bit.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use v2l_calibration::compare;
use v2l_cli::{Exit, Failure, Output};
use v2l_runtime::backends::onnxruntime::Provider;
use v2l_runtime::options::OrtWeights;
use v2l_runtime::tensor::Dtype;

use crate::lab::{Lab, Setup, request};
use crate::median;
use crate::trials::Index;

/// Relative L2 between latents after twenty steps in f32 on CPU and GPU, whose sums differ in order.
const TOLERANCE: f64 = 1e-3;

/// Generates the same video with and without an adapter on both, fused and in low-rank branches.
pub(crate) fn check(model: &Path, rounds: usize, output: &mut Output) -> anyhow::Result<()> {
    let index = Index::read(model)?;
    let effect = index.effects().next().context("the miniature has no effects")?;
    let trials = index.trials(model, effect, 1)?;
    let trial = trials.first().context("the effect has no trials")?;
    let asked = request(trial);
    for branches in [false, true] {
        let on_cpu = Setup { storage: Some(Dtype::F32), weights: OrtWeights::F32, branches, ..Setup::default() };
        let on_gpu = Setup { provider: Provider::Cuda { device: 0 }, ..on_cpu };
        let (mut cpu, mut gpu) = (Lab::new(model, on_cpu)?, Lab::new(model, on_gpu)?);
        let tokens = cpu.tokens(&trial.reference)?;
        let adapter = cpu.adapter(&tokens)?;
        let latents = |lab: &mut Lab| anyhow::Ok(lab.finish(&asked)?.0.latents);
        let (cpu_base, gpu_base) = (latents(&mut cpu)?, latents(&mut gpu)?);
        let adapters = vec![(adapter, 1.0)];
        let mut swaps = Vec::new();
        for _ in 0..rounds {
            let start = Instant::now();
            gpu.steer(adapters.clone())?;
            swaps.push(1e3 * start.elapsed().as_secs_f64());
            gpu.steer(Vec::new())?;
        }
        gpu.steer(adapters.clone())?;
        cpu.steer(adapters)?;
        let (cpu_steered, gpu_steered) = (latents(&mut cpu)?, latents(&mut gpu)?);
        gpu.steer(Vec::new())?;
        let back = latents(&mut gpu)? == gpu_base;
        let error = |a: &ndarray::Array5<f32>, b: &ndarray::Array5<f32>| {
            let (a, b): (Vec<f32>, Vec<f32>) = (a.iter().copied().collect(), b.iter().copied().collect());
            compare(&a, &b).map(|found| found.relative_l2).context("the latents differ in number")
        };
        let (base, steered) = (error(&gpu_base, &cpu_base)?, error(&gpu_steered, &cpu_steered)?);
        let (way, first, later) = (if branches { "branch" } else { "fuse" }, swaps[0], median(swaps.iter().copied()));
        let fields = json!({
            "mode": way, "base_relative_l2": base, "steered_relative_l2": steered, "base_comes_back": back,
            "first_swap_ms": first, "swap_ms": later,
        });
        output.result("miniature", fields, || {
            format!(
                "miniature, {way}: latents differ from the CPU's by {base:.1e} (base) and {steered:.1e} (steered), relative L2; a swap \
                 takes {later:.1} ms, the first {first:.1}"
            )
        });
        if !(back && base <= TOLERANCE && steered <= TOLERANCE) {
            let message =
                format!("miniature, {way}: beyond {TOLERANCE:.0e}, or the base did not come back bit for bit");
            return Err(Failure { exit: Exit::Numeric, message }.into());
        }
    }
    Ok(())
}
