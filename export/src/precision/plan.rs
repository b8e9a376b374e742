//! Planning a component.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use v2l_calibration::{
    GraphPlan, MAX_PLAN_BYTES, PlanOptions, Precision, PrecisionPlan, Ranges, Request, observe_weights, plan_graph,
};
use v2l_graphs::{DataType, Model, matrix_types};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::io::map::read_text;
use v2l_runtime::lora::adapter::{Adapter, Layers, ReadOptions, read_adapter};

use super::measure::{Bench, Run, inputs_of};
use super::options::PrecisionOptions;
use super::report::PrecisionReport;
use super::search;
use crate::ExportError;
use crate::check::CheckOptions;
use crate::remedy::Remedy;

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
    let adapters = read_adapters(options, layers)?;
    let (inputs, unused) = inputs_of(graphs, options)?;
    let mut report = PrecisionReport { unused, ..PrecisionReport::default() };
    let planner = Planner { given: given.as_ref(), request, options, check, adapters: &adapters };
    let changeable: Vec<Slot> = layers.slots.iter().chain(layers.parameters).cloned().collect();
    let mut types = BTreeMap::new();
    for ((graph, model), files) in graphs.iter().zip(inputs) {
        let name = format!("{component}/{graph}");
        let bench = Bench::new(&name, model, &changeable, &adapters, options);
        types.insert(graph.clone(), planner.plan(&bench, files, &mut report)?);
    }
    let pairs: Vec<(&Model, &[DataType])> = graphs.iter().map(|(graph, model)| (model, &types[graph][..])).collect();
    let storage = matrix_types(&pairs);
    Ok(Some(Planned { report, types, storage }))
}

/// How the graphs of one component are planned.
struct Planner<'a> {
    /// A plan to go by, and its file.
    given: Option<&'a (String, PrecisionPlan)>,
    request: Request,
    options: &'a PrecisionOptions,
    check: Option<&'a CheckOptions>,
    adapters: &'a [(Adapter, f32)],
}

impl Planner<'_> {
    /// The types of a graph's nodes; adds to the report what was planned and measured.
    fn plan(
        &self,
        bench: &Bench<'_>,
        files: Vec<PathBuf>,
        report: &mut PrecisionReport,
    ) -> Result<Vec<DataType>, ExportError> {
        let (options, model) = (self.options, bench.model);
        let measured = !options.rules_only && self.given.is_none();
        let target = options.accuracy_target.filter(|_| measured);
        let (runs, mut ranges) = self.runs(bench, files, measured, report)?;
        if !ranges.is_empty() {
            observe_weights(&mut ranges, model).map_err(ExportError::io(bench.name))?;
        }
        let mut plan = match self.given {
            Some((file, whole)) => agreeing(file, whole.graph(file, bench.name)?, options.request)?.clone(),
            None => {
                let seen = Some(&ranges).filter(|ranges| !ranges.is_empty());
                plan_graph(bench.name, model, self.request, seen, PlanOptions::default())
            }
        };
        let file = self.given.map_or("the plan", |(file, _)| file);
        let mut types = plan.types(file, &model.graph)?;
        if !runs.is_empty() && (options.sensitivity || target.is_some()) {
            let rows = search::fit(bench, &runs, &mut plan, &types, &ranges, target)?;
            report.sensitivity.extend(rows);
            types = plan.types(file, &model.graph)?;
        }
        if let Some(check) = self.check.filter(|_| !runs.is_empty()) {
            report.checks.extend(bench.check(&runs, &types, check.tolerance)?);
        }
        report.ranges.push((bench.name.to_owned(), ranges));
        report.plan.graphs.push(plan);
        Ok(types)
    }

    /// Runs in float32 and the values that were seen, as far as anything needs them. A graph that does not run on made
    /// inputs is planned without, where nobody asked for measurements.
    fn runs(
        &self,
        bench: &Bench<'_>,
        files: Vec<PathBuf>,
        measured: bool,
        report: &mut PrecisionReport,
    ) -> Result<(Vec<Run>, Ranges), ExportError> {
        let mut ranges = Ranges::default();
        if !(measured || self.check.is_some() || self.options.sensitivity) {
            return Ok((Vec::new(), ranges));
        }
        match bench.reference(files, measured.then_some(&mut ranges)) {
            Ok(runs) => Ok((runs, ranges)),
            Err(reason) if self.given.is_none() && self.options.calibration.is_empty() && self.adapters.is_empty() => {
                report.skipped.push((bench.name.to_owned(), reason.to_string()));
                Ok((Vec::new(), Ranges::default()))
            }
            Err(reason) => Err(reason),
        }
    }
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
    let reason = format!("graph `{}` is planned in {}, and another type is asked for", plan.name, plan.default);
    Err(ExportError::config(file, reason).advised(&[Remedy::WithoutRequest, Remedy::WithoutPlan]))
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
