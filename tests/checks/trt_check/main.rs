//! TensorRT-RTX plans, built without a GPU: sizes, times, memory, and what v2l relies on.
//!
//! `bin/dev/trt-check [--layers N] [GRAPH]…` fetches the library and runs this. Without arguments: all graphs of the miniature, and two
//! transformers of full width. With words: the graphs whose names contain one, and `wide` for the latter. With `--layers`: a
//! transformer of full width with N layers alone. Nothing is executed on a GPU.

mod cases;
#[allow(dead_code, reason = "shared with the full-size check")]
#[path = "../full_size/checkpoint.rs"]
mod checkpoint;
mod control;
mod inside;
#[expect(dead_code, reason = "shared with other checks")]
#[path = "../full_size/machine.rs"]
mod machine;
mod memory;
#[allow(dead_code, reason = "shared with the full-size check")]
#[path = "../full_size/models.rs"]
mod models;
mod wide;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use v2l_export::precision::{PrecisionOptions, Request};
use v2l_export::trt::{Capability, Flavour};
use v2l_export::{CompileOptions, ExportOptions, PlanBuilder, TensorRtOptions, TrtPlanReport};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Profile;

use cases::{CASES, Case};

/// What a placeholder plan may hold of the weights, beside code and tables.
const SHARE: f64 = 0.05;

/// Compiles one graph to one engine.
pub(crate) struct Build<'a> {
    pub(crate) model: &'a Path,
    pub(crate) engine: &'a Path,
    pub(crate) request: Request,
    pub(crate) profile: Profile,
    pub(crate) plain: bool,
}

impl Build<'_> {
    pub(crate) fn run(&self) -> anyhow::Result<TrtPlanReport> {
        let options = CompileOptions {
            precision: PrecisionOptions {
                request: Some(self.request),
                rules_only: true,
                ..PrecisionOptions::default()
            },
            profiles: vec![self.profile.clone()],
            target: Arc::new(TensorRtOptions {
                flavour: Flavour::Rtx,
                library: None,
                capabilities: vec![Capability { major: 8, minor: 9 }],
                plain: self.plain,
                builder: PlanBuilder::Program("/proc/self/exe".into()),
                timing_cache: None,
            }),
            ..CompileOptions::default()
        };
        let report = v2l_export::compile(self.model, self.engine, &options, &mut |_| {})?;
        let plans = report.engines.into_iter().flat_map(|engine| engine.plans);
        plans.into_iter().next().context("no plan was built")
    }
}

fn main() -> anyhow::Result<()> {
    if v2l_export::trt::builder::serve_if_asked().is_some() {
        return Ok(());
    }
    // A folder on a disk, where /tmp may be memory.
    let executable = std::env::current_exe()?;
    let folder =
        tempfile::Builder::new().prefix("trt_check.").tempdir_in(executable.parent().unwrap_or(&executable))?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, layers] = &words[..]
        && flag == "--layers"
    {
        let layers = layers.parse().ok().filter(|layers| (1..=256).contains(layers));
        wide::full(layers.context("--layers: expected 1 to 256")?, folder.path())?;
    } else {
        let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(&word[..]));
        miniature(folder.path(), &wanted)?;
        if wanted("wide") {
            wide::run(folder.path())?;
        }
    }
    println!("passed; nothing was executed on a GPU");
    Ok(())
}

fn miniature(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<()> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| wanted(case.graph)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    let bundle = folder.join("bundle");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/miniature");
    let predictor = Some((model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors")));
    v2l_export::export(&model, &bundle, &ExportOptions { predictor, ..ExportOptions::default() }, &mut |_| {})?;
    println!(
        "{:<22} {:<5} {:<8} {:<12} {:>10} {:>10} {:>10} {:>6} {:>11}",
        "graph", "type", "shapes", "weights", "plan", "stripped", "of bytes", "s", "private MB"
    );
    for case in cases {
        for (request, name) in [(Request::Bf16, "bf16"), (Request::Fp16, "fp16")] {
            for dynamic in [false, true] {
                compare(case, &bundle, folder, (request, name), dynamic)?;
            }
        }
    }
    Ok(())
}

/// The plain plan, the placeholder plan, and the latter again: equal in all bytes.
fn compare(
    case: &Case,
    bundle: &Path,
    folder: &Path,
    (request, name): (Request, &str),
    dynamic: bool,
) -> anyhow::Result<()> {
    let shapes = if dynamic { "dynamic" } else { "static" };
    let model = bundle.join(format!("{}.onnx", case.graph));
    let engine = |kind: &str| folder.join(format!("{kind}.engine"));
    let plan_bytes = |engine: &Path| -> anyhow::Result<Vec<u8>> {
        let engine = Engine::open(engine)?;
        let plan = engine.manifest().graphs[0].files.plans.first().context("no plan")?;
        Ok(engine.blob(&plan.file)?.to_vec())
    };
    let build = |kind: &'static str, plain: bool| -> anyhow::Result<(TrtPlanReport, PathBuf)> {
        let engine = engine(kind);
        let build = Build { model: &model, engine: &engine, request, profile: case.profile(&model, dynamic)?, plain };
        let (report, peak) = memory::watched(|| build.run());
        let report = report.with_context(|| format!("{} in {name}, {shapes}, {kind}", case.graph))?;
        println!(
            "{:<22} {name:<5} {shapes:<8} {kind:<12} {:>10} {:>10} {:>10} {:>6.1} {:>11.0}",
            case.graph,
            report.bytes,
            report.refittable_bytes,
            report.weight_bytes,
            report.time.as_secs_f64(),
            machine::mega(peak.private)
        );
        Ok((report, engine))
    };
    let (plain, in_plain) = build("plain", true)?;
    let in_plain = inside::weight_bytes(&in_plain)?;
    let (stripped, in_stripped) = build("placeholder", false)?;
    let in_stripped = inside::weight_bytes(&in_stripped)?;
    ensure!(stripped.fixed_slots.is_empty(), "no adapter could change {}", stripped.fixed_slots.join(", "));
    println!(
        "{:<22} weights inside: {in_plain} bytes of the plain plan, {in_stripped} of the other, whose fixed cost is {} bytes",
        "",
        stripped.bytes - in_stripped
    );
    let most = SHARE * plain.weight_bytes as f64;
    ensure!(in_stripped as f64 <= most, "expected at most {most} bytes of weights in a placeholder plan");
    ensure!(in_plain as f64 > most, "weights in a plain plan are not recognised, so that the measure says nothing");
    let (report, again) = build("again", false)?;
    ensure!(
        report.reproducible,
        "this system does not let addresses be fixed, so that nothing can be said of equal bytes"
    );
    ensure!(plan_bytes(&engine("placeholder"))? == plan_bytes(&again)?, "the same build gives a plan of other bytes");
    Ok(())
}
