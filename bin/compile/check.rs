//! The numeric check: its flags, and how its results are shown.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use v2l_cli::{Files, Output, flags};
use v2l_export::check::{CheckOptions, Checks, Comparison, GraphCheck, Tolerance, Unchecked};
use v2l_runtime::backends::onnxruntime::OrtOptions;
use v2l_runtime::backends::openvino::OpenVinoOptions;
use v2l_runtime::options::OpenOptions;

/// Comparing what is compiled with its source.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Print how far every output lies from the source's, check every way to hold the weights, and fail if a graph
    /// cannot be checked. (A shorter check is part of every compilation.)
    #[arg(long, conflicts_with = "no_verify")]
    verify: bool,
    /// Leave out the numeric check.
    #[arg(long)]
    no_verify: bool,
    /// Named tensors to check on: a safetensors file or a folder of them, each for the graph whose inputs it names
    /// [default: made inputs].
    #[arg(long, value_name = "FILE|FOLDER", conflicts_with = "no_verify")]
    pub(crate) inputs: Vec<PathBuf>,
    /// Largest relative L2 distance of an output from the source's [default: by the type that the weights are stored
    /// in].
    #[arg(long, value_name = "REL_L2", value_parser = not_negative)]
    pub(crate) accuracy_target: Option<f64>,
    /// Absolute tolerance of every element, in place of the relative L2 distance: |actual − expected| ≤ atol +
    /// rtol·|expected|.
    #[arg(
        long,
        value_name = "ATOL",
        value_parser = not_negative,
        conflicts_with_all = ["accuracy_target", "no_verify"]
    )]
    atol: Option<f64>,
    /// Relative tolerance of every element; see --atol.
    #[arg(
        long,
        value_name = "RTOL",
        value_parser = not_negative,
        conflicts_with_all = ["accuracy_target", "no_verify"]
    )]
    rtol: Option<f64>,
    /// Seed of made inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// ONNX Runtime's library [default: looked for as v2l-run does].
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// OpenVINO's C library, or the folder of it, to check its form with [default: searched].
    #[arg(long, value_name = "PATH")]
    openvino_lib: Option<PathBuf>,
}

/// A finite number that is not negative.
pub(crate) fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("expected a number that is not negative, found `{text}`"))
}

impl CheckArgs {
    /// Adds the files that the flags name.
    pub(crate) fn files(&self, files: Files) -> Files {
        files.read("--inputs", &self.inputs)
    }

    /// True if the check was asked for, rather than just not switched off.
    pub(crate) fn asked_for(&self) -> bool {
        self.verify
    }

    /// True if there is to be no check.
    pub(crate) fn switched_off(&self) -> bool {
        self.no_verify
    }

    /// How ONNX Runtime is opened.
    pub(crate) fn ort(&self) -> OpenOptions {
        OpenOptions {
            ort: OrtOptions { library: self.ort_lib.clone(), ..OrtOptions::default() },
            openvino: OpenVinoOptions { library: self.openvino_lib.clone(), ..OpenVinoOptions::default() },
            ..OpenOptions::default()
        }
    }

    /// `None` if it is switched off.
    pub(crate) fn options(&self, times: bool) -> Option<CheckOptions> {
        let tolerance = match (self.accuracy_target, self.atol, self.rtol) {
            (Some(target), ..) => Some(Tolerance::RelativeL2(target)),
            (None, None, None) => None,
            (None, atol, rtol) => Some(Tolerance::Elementwise { atol: atol.unwrap_or(0.0), rtol: rtol.unwrap_or(0.0) }),
        };
        let ort = self.ort();
        (!self.no_verify).then(|| CheckOptions {
            inputs: self.inputs.clone(),
            tolerance,
            thorough: self.verify,
            times,
            seed: self.seed,
            ort,
            ..CheckOptions::default()
        })
    }
}

/// Events of the checks; with `--verify` a table, else a line only where something could not be checked.
pub(crate) fn show(checks: &Checks, table: bool, output: &mut Output) {
    for check in &checks.done {
        output.event("check", event(check));
        if table && !output.is_json() {
            output.result("check", json!(null), || lines(check));
        }
    }
    for Unchecked { graph, reason, remedies } in &checks.skipped {
        let way_out = flags(remedies).map_or_else(String::new, |flags| format!("; {flags}"));
        output.warning(&format!("graph `{graph}` was not checked: {reason}{way_out}"));
    }
}

fn event(check: &GraphCheck) -> serde_json::Value {
    let outputs: Vec<_> = check
        .outputs
        .iter()
        .map(|o| json!({ "name": o.name, "passed": o.passed, "error": o.comparison.as_ref().map(comparison) }))
        .collect();
    json!({
        "component": check.component, "graph": check.graph, "weights": check.weights.to_string(),
        "inputs": check.inputs, "tolerance": check.tolerance.to_string(), "passed": check.passed(),
        "outputs": outputs,
    })
}

/// A comparison in JSON; infinities, which JSON lacks, as strings.
pub(crate) fn comparison(c: &Comparison) -> serde_json::Value {
    let number = |x: f64| if x.is_finite() { json!(x) } else { json!(x.to_string()) };
    json!({
        "relative_l2": number(c.relative_l2), "max_abs": number(c.max_abs), "max_relative": number(c.max_relative),
        "cosine": number(c.cosine), "non_finite": c.non_finite,
    })
}

fn lines(check: &GraphCheck) -> String {
    let head = format!(
        "{}/{}, weights {}, {}; tolerance {}",
        check.component, check.graph, check.weights, check.inputs, check.tolerance
    );
    let rows = check.outputs.iter().map(|o| {
        let found = o.comparison.map_or_else(|| "missing".to_owned(), |c| c.to_string());
        format!("  {} {:<32} {found}", if o.passed { "ok  " } else { "FAIL" }, o.name)
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}
