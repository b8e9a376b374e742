//! Compiling for TensorRT: the flags, and what was built.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use v2l_cli::{Failure, Output};
use v2l_export::trt::{Capability, Flavour};
use v2l_export::{EngineReport, PlanBuilder, TensorRtOptions};

use crate::Backend;

/// What plans are built with, and for.
#[derive(Args)]
pub(crate) struct TensorRtArgs {
    /// TensorRT's library, or the folder of it and its ONNX parser [default: $V2L_TRT_LIB, vendor/, Python packages, the loader].
    #[arg(long, value_name = "PATH", help_heading = "TensorRT")]
    trt_lib: Option<PathBuf>,
    /// GPUs to build a plan for, by compute capability: 8.0, 8.6, 8.9, 12.0, 12.1 [default: 8.6,8.9,12.0 for tensorrt-rtx].
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "TensorRT")]
    compute_capability: Vec<Capability>,
    /// For tensorrt: a file of what it learns of how long kernels take; read if it is there, and written after each plan.
    #[arg(long = "timingCacheFile", value_name = "FILE", help_heading = "TensorRT")]
    pub(crate) timing_cache: Option<PathBuf>,
}

/// Ampere, Ada and Blackwell as GeForce cards have them.
const DEFAULT_CAPABILITIES: [Capability; 3] =
    [Capability { major: 8, minor: 6 }, Capability { major: 8, minor: 9 }, Capability { major: 12, minor: 0 }];

impl TensorRtArgs {
    /// What the flags ask for; nothing if that is ONNX Runtime.
    pub(crate) fn options(&self, args: &crate::Args) -> anyhow::Result<Option<TensorRtOptions>> {
        let flavour = match args.backend {
            Backend::Ort => None,
            Backend::TensorrtRtx => Some(Flavour::Rtx),
            Backend::Tensorrt => Some(Flavour::TensorRt),
        };
        let Some(flavour) = flavour else {
            let given = [
                ("--trt-lib", self.trt_lib.is_some()),
                ("--compute-capability", !self.compute_capability.is_empty()),
                ("--timingCacheFile", self.timing_cache.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Failure::usage(format!("{flag} needs --backend tensorrt-rtx or tensorrt"))),
                None => Ok(None),
            };
        };
        let backend = flavour.backend();
        if args.int8.is_some() {
            return Err(Failure::usage(format!("--int8 is for --backend ort; leave it out for {backend}")));
        }
        if flavour == Flavour::Rtx && self.timing_cache.is_some() {
            return Err(Failure::usage(
                "--timingCacheFile is for --backend tensorrt; TensorRT-RTX keeps no timings: leave it out",
            ));
        }
        let mut capabilities = self.compute_capability.clone();
        if flavour == Flavour::Rtx && capabilities.is_empty() {
            capabilities = DEFAULT_CAPABILITIES.to_vec();
        }
        capabilities.sort_unstable();
        capabilities.dedup();
        // This program, under a name that is the same wherever it lies.
        let builder = PlanBuilder::Program("/proc/self/exe".into());
        let (library, timing_cache) = (self.trt_lib.clone(), self.timing_cache.clone());
        Ok(Some(TensorRtOptions { flavour, library, capabilities, plain: false, builder, timing_cache }))
    }
}

/// One line for each plan.
pub(crate) fn show(engine: &EngineReport, output: &mut Output) {
    for plan in &engine.plans {
        let seconds = plan.time.as_secs_f64();
        let fields = json!({
            "component": engine.component, "graph": plan.graph,
            "compute_capability": plan.capability.map(|capability| capability.to_string()), "bytes": plan.bytes, "weight_bytes": plan.weight_bytes,
            "refittable_bytes": plan.refittable_bytes, "fixed_slots": plan.fixed_slots, "reproducible": plan.reproducible,
            "seconds": seconds,
        });
        output.result("plan", fields, || {
            format!(
                "{:<14} {}{}: plan of {} bytes, built in {seconds:.1} s; {} of {} bytes of weights are set when it is loaded",
                engine.component,
                plan.graph,
                plan.capability.map_or_else(String::new, |capability| format!(" for {capability}")),
                plan.bytes,
                plan.refittable_bytes,
                plan.weight_bytes
            )
        });
        if !plan.fixed_slots.is_empty() {
            output.warning(&format!(
                "{} {}: no adapter can change {}: their weights do not feed their layers directly",
                engine.component,
                plan.graph,
                plan.fixed_slots.join(", ")
            ));
        }
        if !plan.reproducible {
            output.warning(&format!(
                "{} {}: this system places memory at random and forbids turning that off (personality); the plan's bytes may \
                 differ when it is built again",
                engine.component, plan.graph
            ));
        }
        for warning in &plan.warnings {
            output.note(&format!("{} {}: TensorRT: {warning}", engine.component, plan.graph));
        }
    }
}
