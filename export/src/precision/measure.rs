//! Running a graph in float32 and as planned, and comparing.

use std::path::PathBuf;

use v2l_calibration::{Comparison, Executor, Limits, Ranges, calibrate, compare, trace, walk};
use v2l_graphs::{DataType, Model, apply_precision, emulate_precision, matrix_types};
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::options::WeightMode;
use v2l_runtime::tensor::NamedTensors;

use super::options::PrecisionOptions;
use super::report::PrecisionPlanCheck;
use super::types::arithmetic;
use crate::ExportError;
use crate::check::inputs::{InputSet, generate, input_files, read_inputs, used_by};
use crate::check::{Failed, GraphCheck, OutputCheck, Tolerance, Unchecked};
use crate::execute::adapted::AdaptedExecutor;

/// How much of a graph is calibrated at a time: all values of a piece are in memory at once.
const PIECES: Limits = Limits { weight_bytes: 1 << 30, nodes: 40 };

/// One run in float32.
pub(super) struct Run {
    label: String,
    strength: f32,
    inputs: NamedTensors,
    expected: NamedTensors,
}

/// Calibration files by graph.
type ByGraph = Vec<Vec<PathBuf>>;

/// The calibration files that each graph uses, and those that none uses and why.
pub(super) fn inputs_of(
    graphs: &[(String, Model)],
    options: &PrecisionOptions,
) -> Result<(ByGraph, Vec<(PathBuf, String)>), ExportError> {
    let mut found: ByGraph = vec![Vec::new(); graphs.len()];
    let mut unused = Vec::new();
    for path in &options.calibration {
        for file in input_files(path)? {
            let names = v2l_runtime::io::weights::WeightFile::open(&file)?.names();
            let mut used = false;
            for ((_, model), files) in graphs.iter().zip(&mut found).filter(|((_, m), _)| used_by(&names, &m.graph)) {
                let refused = |e: ExportError| ExportError::Calibration { path: file.clone(), reason: e.to_string() };
                read_inputs(&file, &model.graph).map_err(refused)?;
                files.push(file.clone());
                used = true;
            }
            if let (false, Some((_, model))) = (used, graphs.first()) {
                let reason = read_inputs(&file, &model.graph).err().map(|e| e.to_string());
                unused.push((file, reason.unwrap_or_default()));
            }
        }
    }
    Ok((found, unused))
}

/// A graph to be measured.
pub(super) struct Bench<'a> {
    pub(super) name: &'a str,
    pub(super) model: &'a Model,
    slots: &'a [Slot],
    adapters: &'a [(Adapter, f32)],
    options: &'a PrecisionOptions,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        name: &'a str,
        model: &'a Model,
        slots: &'a [Slot],
        adapters: &'a [(Adapter, f32)],
        options: &'a PrecisionOptions,
    ) -> Self {
        Self { name, model, slots, adapters, options }
    }

    fn executor(&self, strength: f32, rounded: bool) -> AdaptedExecutor<'a> {
        AdaptedExecutor::new(&self.options.ort, self.slots, self.adapters, strength, rounded)
    }

    /// 0, and with adapters 1 and the largest strength.
    fn strengths(&self) -> Vec<f32> {
        let mut strengths = vec![0.0];
        if !self.adapters.is_empty() {
            strengths.push(1.0);
            if self.options.max_strength != 1.0 && self.options.max_strength != 0.0 {
                strengths.push(self.options.max_strength);
            }
        }
        strengths
    }

    /// Runs the graph in float32 on every input at every strength, and adds the values to `ranges`.
    pub(super) fn reference(
        &self,
        files: Vec<PathBuf>,
        mut ranges: Option<&mut Ranges>,
    ) -> Result<Vec<Run>, ExportError> {
        let mut sets = Vec::new();
        for file in files {
            sets.push(read_inputs(&file, &self.model.graph)?);
        }
        let made = sets.is_empty();
        let mut first_failure = None;
        let candidates: Vec<InputSet> = if made {
            let (extents, paired) = Default::default();
            generate(self.model, &extents, &paired, self.options.seed).filter_map(Result::ok).collect()
        } else {
            sets
        };
        let mut runs = Vec::new();
        for set in candidates {
            let mut seen = Ranges::default();
            match self.runs_of(&set, ranges.is_some().then_some(&mut seen)) {
                Ok(done) => {
                    runs.extend(done);
                    if let Some(ranges) = &mut ranges {
                        ranges.merge(&seen);
                    }
                    // Of made inputs, the first that the graph runs on is enough.
                    if made {
                        return Ok(runs);
                    }
                }
                Err(error) if made => drop(first_failure.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        match (made, first_failure) {
            (true, Some(error)) => Err(error),
            (true, None) => {
                let reason = "no inputs can be made for it";
                Err(ExportError::NotChecked(Unchecked::on_inputs(self.name, reason)))
            }
            (false, _) => Ok(runs),
        }
    }

    fn runs_of(&self, set: &InputSet, mut ranges: Option<&mut Ranges>) -> Result<Vec<Run>, ExportError> {
        let mut runs = Vec::new();
        for strength in self.strengths() {
            let label = match self.adapters.is_empty() {
                true => set.label.clone(),
                false => format!("{}, adapters at strength {strength}", set.label),
            };
            let mut executor = self.executor(strength, false);
            let expected = match &mut ranges {
                Some(ranges) => calibrate(ranges, &label, (&mut executor, self.model), &set.tensors, PIECES),
                None => walk(&mut executor, self.model, &set.tensors, Limits::default(), &|_| false, &mut |_, _| {}),
            };
            let expected = expected.map_err(|e| self.failed(&e))?;
            runs.push(Run { label, strength, inputs: set.tensors.clone(), expected });
        }
        Ok(runs)
    }

    fn failed(&self, error: &dyn std::error::Error) -> ExportError {
        ExportError::Graph { graph: self.name.to_owned(), reason: error.to_string() }
    }

    /// The float32 graph that rounds where these types do.
    fn emulated(&self, types: &[DataType]) -> Model {
        let mut model = self.model.clone();
        let storage = matrix_types(&[(&model, types)]);
        apply_precision(&mut model, types, &|name, weight| {
            let own = weight.data.widened_from().filter(|ty| ty.size() == 2).unwrap_or(DataType::Float);
            storage.get(name).copied().unwrap_or(own)
        });
        emulate_precision(&mut model);
        model
    }

    /// Runs the emulated plan on every run's inputs; each time the output that is furthest off.
    fn measure(
        &self,
        runs: &[Run],
        types: &[DataType],
        tolerance: Tolerance,
    ) -> Result<Vec<PrecisionPlanCheck>, ExportError> {
        self.measure_model(runs, &self.emulated(types), tolerance)
    }

    /// Runs a form of the graph on every run's inputs; each time the output that is furthest off.
    fn measure_model(
        &self,
        runs: &[Run],
        model: &Model,
        tolerance: Tolerance,
    ) -> Result<Vec<PrecisionPlanCheck>, ExportError> {
        let mut checks = Vec::new();
        for run in runs {
            let mut executor = self.executor(run.strength, true);
            let found = walk(&mut executor, model, &run.inputs, Limits::default(), &|_| false, &mut |_, _| {});
            let found = found.map_err(|e| self.failed(&e))?;
            let errors = run.expected.iter().filter_map(|(name, expected)| {
                let (actual, expected) =
                    (AdaptedExecutor::floats(found.get(name)?)?, AdaptedExecutor::floats(expected)?);
                let error = compare(&actual, &expected)?;
                let passed = tolerance.allows(&error, || (actual.to_vec(), expected.to_vec()));
                Some(PrecisionPlanCheck {
                    graph: self.name.to_owned(),
                    run: run.label.clone(),
                    output: name.clone(),
                    error,
                    passed,
                })
            });
            let rank = |check: &PrecisionPlanCheck| (!check.passed, size(&check.error));
            checks.extend(errors.reduce(|a, b| if rank(&b) > rank(&a) { b } else { a }));
        }
        Ok(checks)
    }

    /// The largest error of [`Self::measure`].
    pub(super) fn error(&self, runs: &[Run], types: &[DataType]) -> Result<f64, ExportError> {
        self.error_of(runs, &self.emulated(types))
    }

    /// The largest error of a form of the graph.
    pub(super) fn error_of(&self, runs: &[Run], model: &Model) -> Result<f64, ExportError> {
        let any = Tolerance::RelativeL2(f64::INFINITY);
        Ok(self.measure_model(runs, model, any)?.iter().map(|check| size(&check.error)).fold(0.0, f64::max))
    }

    /// [`Self::measure`], which must be within the tolerance, or within what 16 bits let expect of a sound plan.
    pub(super) fn check(
        &self,
        runs: &[Run],
        types: &[DataType],
        tolerance: Option<Tolerance>,
    ) -> Result<Vec<PrecisionPlanCheck>, ExportError> {
        let tolerance = tolerance.unwrap_or_else(|| Tolerance::of_plan(types.contains(&DataType::Bfloat16)));
        let checks = self.measure(runs, types, tolerance)?;
        if let Some((check, run)) = checks.iter().zip(runs).find(|(check, _)| !check.passed) {
            let (component, graph) = self.name.split_once('/').unwrap_or(("", self.name));
            let outputs = vec![OutputCheck {
                name: check.output.clone(),
                comparison: Some(check.error),
                exact: false,
                passed: false,
            }];
            let failed = GraphCheck {
                component: component.to_owned(),
                graph: graph.to_owned(),
                weights: WeightMode::Stored,
                inputs: format!("{}; arithmetic as planned, {}, emulated", run.label, arithmetic(types)),
                tolerance,
                outputs,
            };
            let trace = self.locate(run, types).ok();
            return Err(ExportError::Numeric(Box::new(Failed { check: failed, trace })));
        }
        Ok(checks)
    }

    /// Where the emulated plan leaves float32; nodes as the plan calls them.
    fn locate(&self, run: &Run, types: &[DataType]) -> Result<v2l_calibration::Trace, ExportError> {
        let candidate = self.emulated(types);
        let (mut exact, mut rounded) = (self.executor(run.strength, false), self.executor(run.strength, true));
        let found = trace((&mut exact, self.model), (&mut rounded, &candidate), &run.inputs, Limits::default());
        let mut found = found.map_err(|e| self.failed(&e))?;
        let labels = v2l_graphs::node_labels(&self.model.graph);
        for error in &mut found.nodes {
            let makes = |node: &v2l_graphs::Node| node.outputs.contains(&error.value);
            if let Some(at) = self.model.graph.nodes.iter().position(makes) {
                error.node.clone_from(&labels[at]);
                error.op_type.clone_from(&self.model.graph.nodes[at].op_type);
            }
        }
        Ok(found)
    }
}

/// Relative L2, infinite if something became infinite or not a number.
fn size(error: &Comparison) -> f64 {
    if error.non_finite > 0 { f64::INFINITY } else { error.relative_l2 }
}
