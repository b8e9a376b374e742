//! Which node computes in which type: decided by rules and measured values, and checked.
//!
//! A model is run in float32 on calibration inputs, with adapters at several strengths; what was seen and the rules make a
//! plan. The plan is tried on the same inputs by emulation: a float32 graph that rounds where the plan does. With an accuracy
//! target, blocks are taken out of 16 bits until it is met.

pub(crate) mod adapted;
mod blocks;
mod measure;
mod search;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use v2l_calibration::{GraphPlan, Island, PlanError, Precision, PrecisionPlan, RangeRow, Request};
use v2l_calibration::{MAX_PLAN_BYTES, PlanOptions, Ranges, observe_weights, plan_graph};
use v2l_graphs::{DataType, Freedom, Model, freedom, matrix_types};
use v2l_runtime::adapter::{Adapter, Layers, ReadOptions, read_adapter};
use v2l_runtime::map::read_text;
use v2l_runtime::ort_backend::OpenOptions;

pub use self::adapted::AdaptedError;
pub use self::blocks::blocks;
pub use self::measure::PlanCheck;
pub(crate) use self::measure::expected_of;
use self::measure::{Bench, inputs_of};
pub use self::search::BlockSensitivity;
use crate::ExportError;
use crate::check::CheckOptions;

/// How node types are decided.
#[derive(Clone, Debug)]
pub struct PrecisionOptions {
    /// What is asked for; `None`: no plan, unless one is given.
    pub request: Option<Request>,
    /// A plan file to go by; nothing is then calibrated.
    pub plan: Option<PathBuf>,
    /// Safetensors files of named tensors, or folders of them; each serves the graphs whose inputs it names. A graph that
    /// none serves is calibrated on made inputs.
    pub calibration: Vec<PathBuf>,
    /// Adapters to calibrate with, and their strengths.
    pub adapters: Vec<(PathBuf, f32)>,
    /// Beside 0 and 1, what the adapters' strengths are multiplied with.
    pub max_strength: f32,
    /// Plan by the rules alone: no values are measured.
    pub rules_only: bool,
    /// Largest relative L2 distance of the outputs from those in float32: a plan is sought that keeps it, unless one is given
    /// or the rules alone decide.
    pub accuracy_target: Option<f64>,
    /// Measure what each block in 16 bits does to the outputs, though no target asks for it.
    pub sensitivity: bool,
    /// Seed of made inputs.
    pub seed: u64,
    /// Library and threads.
    pub ort: OpenOptions,
}

impl Default for PrecisionOptions {
    fn default() -> Self {
        Self {
            request: None,
            plan: None,
            calibration: Vec::new(),
            adapters: Vec::new(),
            max_strength: 1.0,
            rules_only: false,
            accuracy_target: None,
            sensitivity: false,
            seed: 0,
            ort: OpenOptions::default(),
        }
    }
}

/// What was planned for a component, and how it was found to do.
#[derive(Clone, Debug, Default)]
pub struct PrecisionReport {
    /// The plan, its graphs called `component/graph`.
    pub plan: PrecisionPlan,
    /// Outputs of the emulated plan against float32, by graph, inputs and strength.
    pub checks: Vec<PlanCheck>,
    /// What each block does, if that was measured.
    pub sensitivity: Vec<BlockSensitivity>,
    /// What was seen, by graph.
    pub ranges: Vec<(String, Ranges)>,
    /// Calibration files that serve none of the component's graphs, and why the first graph does not take them.
    pub unserved: Vec<(PathBuf, String)>,
    /// Graphs that could not be run, and why: planned by the rules alone, and not checked.
    pub skipped: Vec<(String, String)>,
}

/// The types to compile by.
pub(crate) struct Planned {
    pub(crate) report: PrecisionReport,
    /// Graph → types of its nodes.
    pub(crate) types: BTreeMap<String, Vec<DataType>>,
    /// Types in which matrices are stored.
    pub(crate) storage: BTreeMap<String, DataType>,
}

/// Plans all graphs of a component, if a plan is asked for.
///
/// With `check`, the plan is tried by emulation, and fails if it misses the tolerance, or what its types let expect.
pub(crate) fn plan_component(
    component: &str,
    graphs: &[(String, Model)],
    layers: Layers<'_>,
    options: &PrecisionOptions,
    check: Option<&CheckOptions>,
) -> Result<Option<Planned>, ExportError> {
    let given = match options.plan.as_deref() {
        Some(path) => Some((path.display().to_string(), read_plan(path)?)),
        None => None,
    };
    let request = match (options.request, &given) {
        (None | Some(Request::Fp32), None) => return Ok(None),
        (request, _) => request.unwrap_or(Request::Mixed),
    };
    let mut report = PrecisionReport::default();
    let mut types = BTreeMap::new();
    let (slots, adapters) = (layers.slots, read_adapters(options, layers)?);
    let (inputs, unserved) = inputs_of(graphs, options)?;
    report.unserved = unserved;
    for ((graph, model), files) in graphs.iter().zip(inputs) {
        let name = format!("{component}/{graph}");
        let bench = Bench::new(&name, model, slots, &adapters, options);
        let wants_ranges = !options.rules_only && given.is_none();
        let target = options.accuracy_target.filter(|_| wants_ranges);
        let wants_runs = wants_ranges || check.is_some() || options.sensitivity;
        let mut ranges = Ranges::default();
        let runs =
            if wants_runs { bench.reference(files, wants_ranges.then_some(&mut ranges)) } else { Ok(Vec::new()) };
        let runs = match runs {
            Ok(runs) => runs,
            Err(reason) if given.is_none() && options.calibration.is_empty() && adapters.is_empty() => {
                report.skipped.push((name.clone(), reason.to_string()));
                ranges = Ranges::default();
                Vec::new()
            }
            Err(reason) => return Err(reason),
        };
        if !ranges.is_empty() {
            observe_weights(&mut ranges, model).map_err(ExportError::io(&name))?;
        }
        let mut plan = match &given {
            Some((file, whole)) => agreeing(file, whole.graph(file, &name)?, options.request)?.clone(),
            None => {
                let seen = Some(&ranges).filter(|ranges| !ranges.is_empty());
                plan_graph(&name, model, request, seen, PlanOptions::default())
            }
        };
        let file = given.as_ref().map_or("the plan", |(file, _)| file);
        let mut of_graph = plan.types(file, &model.graph)?;
        if !runs.is_empty() && (options.sensitivity || target.is_some()) {
            let rows = search::fit(&bench, &runs, &mut plan, &of_graph, &ranges, target)?;
            report.sensitivity.extend(rows);
            of_graph = plan.types(file, &model.graph)?;
        }
        if let Some(check) = check.filter(|_| !runs.is_empty()) {
            report.checks.extend(bench.check(&runs, &of_graph, check.tolerance)?);
        }
        report.ranges.push((name, ranges));
        report.plan.graphs.push(plan);
        types.insert(graph.clone(), of_graph);
    }
    let pairs: Vec<(&Model, &[DataType])> = graphs.iter().map(|(graph, model)| (model, &types[graph][..])).collect();
    let storage = matrix_types(&pairs);
    Ok(Some(Planned { report, types, storage }))
}

/// What an accuracy target left in 8 bits.
#[derive(Clone, Debug)]
pub struct Int8Report {
    /// Inputs to a scale.
    pub block: usize,
    /// Matrices in 8 bits.
    pub matrices: usize,
    /// Matrices that could be, and that the target keeps as they were.
    pub left_out: usize,
    /// What each block does with its matrices in 8 bits; empty without a target.
    pub sensitivity: Vec<BlockSensitivity>,
    /// Calibration files that serve none of the component's graphs, and why the first graph does not take them.
    pub unserved: Vec<(PathBuf, String)>,
}

/// Takes matrices from `names` until the 8-bit forms of the others keep every output of every graph within the target, if
/// there is one.
pub(crate) fn fit_int8(
    component: &str,
    graphs: &[(String, Model)],
    names: &mut Vec<String>,
    block: usize,
    options: &PrecisionOptions,
) -> Result<Int8Report, ExportError> {
    let all = names.len();
    let mut report = Int8Report { block, matrices: all, left_out: 0, sensitivity: Vec::new(), unserved: Vec::new() };
    let Some(target) = options.accuracy_target else { return Ok(report) };
    let (inputs, unserved) = inputs_of(graphs, options)?;
    report.unserved = unserved;
    for ((graph, model), files) in graphs.iter().zip(inputs) {
        let name = format!("{component}/{graph}");
        let bench = Bench::new(&name, model, &[], &[], options);
        let runs = bench.reference(files, None)?;
        report.sensitivity.extend(search::fit_int8(&bench, &runs, names, block, target)?);
    }
    report.matrices = names.len();
    report.left_out = all - names.len();
    Ok(report)
}

/// The plan, unless it computes in another type than is asked for.
fn agreeing<'a>(file: &str, plan: &'a GraphPlan, request: Option<Request>) -> Result<&'a GraphPlan, ExportError> {
    let agrees = match request {
        None | Some(Request::Mixed) => true,
        Some(Request::Fp32) => plan.default == Precision::Fp32,
        Some(Request::Fp16) => plan.default == Precision::Fp16,
        Some(Request::Bf16) => plan.default == Precision::Bf16,
    };
    if agrees {
        return Ok(plan);
    }
    let reason = format!(
        "graph `{}` is planned in {}, and --precision asks for another type; leave --precision out, or plan anew",
        plan.name, plan.default
    );
    Err(ExportError::config(file, reason))
}

/// Reads a plan file of at most [`MAX_PLAN_BYTES`].
///
/// # Errors
/// [`ExportError`], naming the file, and the line where there is one.
pub fn read_plan(path: &Path) -> Result<PrecisionPlan, ExportError> {
    let text = read_text(path, MAX_PLAN_BYTES).map_err(ExportError::io(path))?;
    Ok(PrecisionPlan::parse(&path.display().to_string(), &text)?)
}

fn read_adapters(options: &PrecisionOptions, layers: Layers<'_>) -> Result<Vec<(Adapter, f32)>, ExportError> {
    let read = |(path, strength): &(PathBuf, f32)| {
        let loaded = read_adapter(path, layers, &ReadOptions::default())?;
        Ok((loaded.adapter, *strength))
    };
    options.adapters.iter().map(read).collect()
}

/// The types of a variant's nodes with low-rank branches: those of the plain graph's nodes, and for each branch that of the
/// layer that it stands beside.
pub(crate) fn side_types(plain: &Model, types: &[DataType], side: &Model) -> Vec<DataType> {
    let outputs = plain.graph.nodes.iter().zip(types).flat_map(|(node, ty)| node.outputs.iter().map(move |o| (o, *ty)));
    let by_output: BTreeMap<&str, DataType> = outputs.map(|(name, ty)| (name.as_str(), ty)).collect();
    let free = freedom(&side.graph);
    let of = |output: &str| {
        let ends = output.rmatch_indices('/').map(|(at, _)| &output[..at]);
        std::iter::once(output).chain(ends).find_map(|name| by_output.get(name).copied())
    };
    let of_node = |(node, free): (&v2l_graphs::Node, &Freedom)| {
        let known = node.outputs.iter().find_map(|output| of(output)).filter(|_| *free == Freedom::Any);
        known.unwrap_or(DataType::Float)
    };
    side.graph.nodes.iter().zip(&free).map(of_node).collect()
}

/// `fp16` or `bf16` if these types have only that beside float32, `mixed` if both, `fp32` if neither.
pub(crate) fn arithmetic(types: &[DataType]) -> &'static str {
    let has = |ty: DataType| types.contains(&ty);
    match (has(DataType::Float16), has(DataType::Bfloat16)) {
        (true, true) => "mixed",
        (true, false) => "fp16",
        (false, true) => "bf16",
        (false, false) => "fp32",
    }
}
