//! Which node computes in which type: the flags, and how the results are shown.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use v2l_cli::bar_chart::{Bar, write_bar_chart};
use v2l_cli::{Failure, Files, Output, split_strength};
use v2l_export::EngineReport;
use v2l_export::precision::{BlockSensitivity, Precision as Type, PrecisionOptions, PrecisionPlan, Request};
use v2l_runtime::io::atomic::write_file;
use v2l_runtime::options::OpenOptions;

use super::Precision;
use super::check::not_negative;

/// Deciding precision by measurement.
#[derive(Args)]
pub(crate) struct PrecisionArgs {
    /// Named tensors to calibrate on: a safetensors file or a folder of them, each for the graph whose inputs it names
    /// [default: made inputs].
    #[arg(
        long,
        value_name = "FILE|FOLDER",
        conflicts_with_all = ["no_calibration", "precision_plan"],
        help_heading = "Precision"
    )]
    calibration: Vec<PathBuf>,
    /// Adapter to calibrate with, at strengths 0, 1 and --max-strength times its own. Repeatable.
    #[arg(
        long,
        value_name = "PATH[=STRENGTH]",
        conflicts_with_all = ["no_calibration", "precision_plan"],
        help_heading = "Precision"
    )]
    calibration_lora: Vec<OsString>,
    /// Largest factor of the strengths of --calibration-lora.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        value_parser = not_negative,
        requires = "calibration_lora",
        help_heading = "Precision"
    )]
    max_strength: f64,
    /// Decide by the structure of the graph alone: no values are measured.
    #[arg(long, help_heading = "Precision")]
    no_calibration: bool,
    /// Precision plan to go by.
    #[arg(long, value_name = "FILE", help_heading = "Precision")]
    precision_plan: Option<PathBuf>,
    /// Where to save the precision plan.
    #[arg(long, value_name = "FILE", help_heading = "Precision")]
    save_precision_plan: Option<PathBuf>,
    /// Where to save what was measured, as JSON: per value its range, percentiles and what is not finite.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["no_calibration", "precision_plan"],
        help_heading = "Precision"
    )]
    save_calibration: Option<PathBuf>,
    /// Where to draw what each block in 16 bits does to the outputs (a PNG).
    #[arg(long, value_name = "PNG", help_heading = "Precision")]
    sensitivity_chart: Option<PathBuf>,
}

impl PrecisionArgs {
    pub(crate) fn options(
        &self,
        precision: Option<Precision>,
        int8: bool,
        accuracy_target: Option<f64>,
        seed: u64,
        ort: OpenOptions,
    ) -> anyhow::Result<PrecisionOptions> {
        let request = precision.map(|precision| match precision {
            Precision::Fp32 => Request::Fp32,
            Precision::Fp16 => Request::Fp16,
            Precision::Bf16 => Request::Bf16,
            Precision::Mixed => Request::Mixed,
        });
        let planned = self.precision_plan.is_some() || request.is_some_and(|request| request != Request::Fp32);
        let flags = [
            ("--calibration", !self.calibration.is_empty()),
            ("--calibration-lora", !self.calibration_lora.is_empty()),
            ("--no-calibration", self.no_calibration),
            ("--save-precision-plan", self.save_precision_plan.is_some()),
            ("--save-calibration", self.save_calibration.is_some()),
            ("--sensitivity-chart", self.sensitivity_chart.is_some()),
        ];
        let given = |flag: &str| flags.iter().any(|(name, given)| *name == flag && *given);
        if int8 {
            if request == Some(Request::Mixed) || self.precision_plan.is_some() {
                let message = "--int8 stores matrices in 8 bits and plans no arithmetic: leave out --precision mixed \
                               and --precision-plan, or --int8";
                return Err(Failure::usage(message));
            }
            if given("--calibration") && accuracy_target.is_none() {
                return Err(Failure::usage(
                    "--calibration with --int8 needs --accuracy-target; without it there is nothing to decide",
                ));
            }
        }
        let useless = |flag: &str| if int8 { flag != "--calibration" } else { !planned };
        if let Some((flag, _)) = flags.iter().find(|(flag, given)| *given && useless(flag)) {
            let message = match int8 {
                true => format!("{flag} is about the types that nodes compute in, which --int8 leaves alone"),
                false => format!("{flag} needs --precision fp16, bf16 or mixed: in float32 there is nothing to decide"),
            };
            return Err(Failure::usage(message));
        }
        if let Some(path) = &self.sensitivity_chart {
            v2l_runtime::media::video::check_png(path)?;
        }
        let adapters = self.calibration_lora.iter().map(|text| {
            let (path, strength) = split_strength(text)?;
            Ok((path.to_owned(), strength))
        });
        Ok(PrecisionOptions {
            request,
            plan: self.precision_plan.clone(),
            calibration: self.calibration.clone(),
            adapters: adapters.collect::<anyhow::Result<_>>()?,
            max_strength: self.max_strength as f32,
            rules_only: self.no_calibration,
            accuracy_target,
            sensitivity: self.sensitivity_chart.is_some(),
            seed,
            ort,
        })
    }

    /// Adds the files that the flags name.
    pub(crate) fn files(&self, files: Files) -> anyhow::Result<Files> {
        let adapters = self.calibration_lora.iter().map(|text| Ok(split_strength(text)?.0));
        let files = files
            .read("--calibration", &self.calibration)
            .read("--calibration-lora", adapters.collect::<anyhow::Result<Vec<_>>>()?)
            .read("--precision-plan", &self.precision_plan)
            .written("--save-precision-plan", &self.save_precision_plan)
            .written("--save-calibration", &self.save_calibration)
            .written("--sensitivity-chart", &self.sensitivity_chart);
        Ok(files)
    }

    /// Shows what was planned, and writes the files that were asked for.
    pub(crate) fn finish(&self, engines: &[EngineReport], output: &mut Output) -> anyhow::Result<()> {
        let mut whole = PrecisionPlan::default();
        let mut sensitivity = Vec::new();
        let mut ranges = serde_json::Map::new();
        for (engine, report) in engines.iter().filter_map(|engine| Some((engine, engine.int8.as_ref()?))) {
            let fields = json!({
                "component": engine.component, "block": report.block, "matrices": report.matrices,
                "left_out": report.left_out,
            });
            output.event("int8", fields);
            let left_out = match report.left_out {
                0 => String::new(),
                count => format!(", {count} left as they are for the accuracy target"),
            };
            output.note(&format!(
                "{}: {} matrices in 8 bits, a scale for {} inputs{left_out}",
                engine.component, report.matrices, report.block
            ));
            sensitivity.extend(report.sensitivity.iter().cloned());
        }
        for report in engines.iter().filter_map(|engine| engine.precision.as_ref()) {
            for (graph, reason) in &report.skipped {
                output.warning(&format!(
                    "{graph} could not be run, so its plan follows the rules alone and is not checked: {reason}"
                ));
            }
            for plan in &report.plan.graphs {
                show_plan(plan, output);
            }
            for check in &report.checks {
                let fields = json!({
                    "graph": check.graph, "run": check.run, "output": check.output,
                    "relative_l2": check.error.relative_l2, "non_finite": check.error.non_finite,
                    "passed": check.passed,
                });
                output.event("plan_check", fields);
                output.note(&format!("{} as planned, {}: `{}` {}", check.graph, check.run, check.output, check.error));
            }
            sensitivity.extend(report.sensitivity.iter().cloned());
            whole.graphs.extend(report.plan.graphs.iter().cloned());
            ranges.extend(report.ranges.iter().map(|(graph, seen)| (graph.clone(), json!(seen.table()))));
        }
        show_sensitivity(&sensitivity, output);
        if let Some(path) = &self.save_precision_plan {
            write_file(path, whole.to_text().as_bytes()).with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &self.save_calibration {
            let text = format!("{:#}\n", serde_json::Value::Object(ranges));
            write_file(path, text.as_bytes()).with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &self.sensitivity_chart {
            let several = sensitivity.iter().any(|row| row.graph != sensitivity[0].graph);
            let bars: Vec<Bar> = sensitivity.iter().map(|row| bar(row, several)).collect();
            write_bar_chart(path, &bars)?;
        }
        Ok(())
    }
}

/// One line per graph, and one event with all of its exceptions.
pub(crate) fn show_plan(plan: &v2l_export::precision::GraphPlan, output: &mut Output) {
    let count = |ty: Type| plan.exceptions.values().filter(|exception| exception.precision == ty).count();
    let fields = json!({
        "graph": plan.name, "default": plan.default, "fingerprint": plan.fingerprint,
        "fp16": count(Type::Fp16), "bf16": count(Type::Bf16), "fp32": count(Type::Fp32), "exceptions": plan.exceptions,
    });
    output.event("precision_plan", fields);
    if !output.is_json() {
        let exceptions: Vec<String> = [Type::Fp16, Type::Bf16, Type::Fp32]
            .into_iter()
            .filter(|ty| count(*ty) > 0)
            .map(|ty| format!("{} nodes in {ty}", count(ty)))
            .collect();
        let exceptions = if exceptions.is_empty() { "no exceptions".to_owned() } else { exceptions.join(", ") };
        output.note(&format!("{}: {}, {exceptions}", plan.name, plan.default));
    }
}

fn show_sensitivity(rows: &[BlockSensitivity], output: &mut Output) {
    for row in rows {
        output.event("sensitivity", json!(row));
    }
    if rows.is_empty() || output.is_json() {
        return;
    }
    output.result("sensitivity", json!(null), || {
        let mut lines = vec![format!("{:>10}  {:>14}  block", "error", "bytes saved")];
        lines.extend(rows.iter().map(|row| {
            let error = row.error.map_or_else(|| "inf/nan".to_owned(), |error| format!("{error:.2e}"));
            let kept = if row.kept { "" } else { "  left out for the target" };
            format!("{error:>10}  {:>14}  {} {}{kept}", row.saved_bytes, row.graph, row.block)
        }));
        lines.join("\n")
    });
}

fn bar(row: &BlockSensitivity, several: bool) -> Bar {
    Bar {
        label: if several { format!("{} {}", row.graph, row.block) } else { row.block.clone() },
        value: row.error.unwrap_or(f64::INFINITY),
        text: row.error.map_or_else(|| "INF".to_owned(), |error| format!("{error:.1e}")),
        marked: !row.kept,
    }
}
