//! Compiling for TensorRT: the flags, and what was built.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use v2l_cli::{Failure, Output};
use v2l_export::targets::Target;
use v2l_export::trt::{Capability, Flavour};
use v2l_export::{EngineReport, PlanBuilder, TensorRtOptions};

/// What plans are built with, and for.
#[derive(Args)]
pub(crate) struct TensorRtArgs {
    /// TensorRT's library, or the folder of it and its ONNX parser [default: $V2L_TRT_LIB, vendor/, Python packages,
    /// the loader].
    #[arg(long, value_name = "PATH", help_heading = "TensorRT")]
    trt_lib: Option<PathBuf>,
    /// GPUs to build a plan for, by compute capability: 8.0, 8.6, 8.9, 12.0, 12.1 [default: 8.6,8.9,12.0 for
    /// tensorrt-rtx].
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "TensorRT")]
    compute_capability: Vec<Capability>,
    /// For tensorrt: file with the times of kernels that it measured; read if it is there, and written after each plan.
    #[arg(long = "timingCacheFile", value_name = "FILE", help_heading = "TensorRT")]
    pub(crate) timing_cache: Option<PathBuf>,
}

impl TensorRtArgs {
    /// The chosen backend with what the flags ask for.
    pub(crate) fn target(&self, args: &super::Args) -> anyhow::Result<Arc<dyn Target>> {
        let Some(flavour) = [Flavour::Rtx, Flavour::TensorRt].into_iter().find(|f| f.backend() == args.backend.name)
        else {
            let given = [
                ("--trt-lib", self.trt_lib.is_some()),
                ("--compute-capability", !self.compute_capability.is_empty()),
                ("--timingCacheFile", self.timing_cache.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Failure::usage(format!("{flag} needs --backend tensorrt-rtx or tensorrt"))),
                None => Ok(args.backend.target()),
            };
        };
        let backend = flavour.backend();
        if args.int8.is_some() {
            return Err(Failure::usage(format!(
                "--int8 is for --backend ort and openvino; leave it out for {backend}"
            )));
        }
        if flavour == Flavour::Rtx && self.timing_cache.is_some() {
            return Err(Failure::usage(
                "--timingCacheFile is for --backend tensorrt; TensorRT-RTX keeps no timings: leave it out",
            ));
        }
        let mut options = TensorRtOptions::new(flavour);
        if !self.compute_capability.is_empty() {
            options.capabilities.clone_from(&self.compute_capability);
            options.capabilities.sort_unstable();
            options.capabilities.dedup();
        }
        // This program, under a name that is the same wherever it lies.
        options.builder = PlanBuilder::Program("/proc/self/exe".into());
        options.library.clone_from(&self.trt_lib);
        options.timing_cache.clone_from(&self.timing_cache);
        Ok(Arc::new(options))
    }
}

/// One line for each plan.
pub(crate) fn show(engine: &EngineReport, output: &mut Output) {
    for plan in &engine.plans {
        let seconds = plan.time.as_secs_f64();
        let fields = json!({
            "component": engine.component, "graph": plan.graph,
            "compute_capability": plan.capability.map(|capability| capability.to_string()), "bytes": plan.bytes,
            "weight_bytes": plan.weight_bytes, "refittable_bytes": plan.refittable_bytes,
            "fixed_slots": plan.fixed_slots, "reproducible": plan.reproducible, "seconds": seconds,
        });
        output.result("plan", fields, || {
            format!(
                "{:<14} {}{}: plan of {} bytes, built in {seconds:.1} s; {} of {} bytes of weights are set \
                 when it is loaded",
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
                "{} {}: this system places memory at random and forbids turning that off (personality); \
                 the plan's bytes may differ when it is built again",
                engine.component, plan.graph
            ));
        }
        for warning in &plan.warnings {
            output.note(&format!("{} {}: TensorRT: {warning}", engine.component, plan.graph));
        }
    }
}
