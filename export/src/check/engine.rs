//! The check of an engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution, StandardNormal};
use v2l_calibration::{Limits, Trace, walk};
use v2l_graphs::passes::{Passes, lower_for_ort};
use v2l_graphs::{DataType, Model};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::onnxruntime::{Arithmetic, OrtEngine};
use v2l_runtime::backends::openvino::OpenVinoPrecision;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{BRANCH_SUFFIX, Graph, RANK_SUFFIX, Slot};
use v2l_runtime::engine::session::{Dim, Session};
use v2l_runtime::error::{Classified, ErrorClass};
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::lora::branch;
use v2l_runtime::options::{OpenOptions, OrtWeights, RunLimits, WeightMode};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::compare::{default_tolerance, outputs, rounds};
use super::inputs::{FACTOR_RANK, InputSet, named_files, never_used, read_inputs, used_by};
use super::locate::locate;
use super::made::Runs;
use super::options::CheckOptions;
use super::reference::{Reference, run};
use super::report::{Checks, Failed, GraphCheck, GraphTimes, Tolerance, Unchecked};
use super::runs::{reference_runs, tables};
use crate::ExportError;
use crate::execute::ExecuteError;
use crate::execute::adapted::AdaptedExecutor;

/// Without [`CheckOptions::thorough`], weights are not held in f32 beyond this many bytes.
const F32_LIMIT: u64 = 1 << 30;

/// Runs before the one that is timed.
const WARM_RUNS: usize = 2;

/// An engine may lie this many times further from a source that rounds than the source from itself on inputs whose last
/// bits differ: its passes take sums in another order more than once.
const UNREST_MARGIN: f64 = 8.0;

/// How many values inside a graph are compared: those of the first blocks, as the others are alike.
const MOST_INSIDE: usize = 32;

/// How far they may lie apart on two backends that compute in f32 over the same weights.
const INSIDE: Tolerance = Tolerance::RelativeL2(1e-3);

/// No more than this is allowed for rounding, and this where no input can be moved.
const MOST_UNREST: f64 = 1e-2;

/// A source graph and what the compiler made of it.
pub(crate) struct Source<'a> {
    pub(crate) graph: &'a str,
    pub(crate) path: &'a Path,
    /// As it was read.
    pub(crate) read: &'a Model,
    /// In f32, optimised.
    pub(crate) prepared: &'a Model,
    /// Which passes ran.
    pub(crate) passes: &'a Passes,
    /// What adapters may change in it.
    pub(crate) slots: &'a [Slot],
    /// Its weights are, in part, what an 8-bit form stands for.
    pub(crate) int8: bool,
}

impl Source<'_> {
    fn reference(&self) -> Reference {
        Reference::new(self.path, self.read.clone())
    }

    /// As ONNX Runtime gets it, in one piece.
    fn lowered(&self) -> Model {
        let mut model = self.prepared.clone();
        lower_for_ort(&mut model, self.passes);
        model
    }
}

/// Compares an engine with its sources, every output of every graph.
///
/// The reference is the source itself, unoptimised, in f32, on ONNX Runtime. Memory is bounded by activations: neither
/// side copies its weights unless they are held in f32.
pub(crate) fn check_engine(
    engine: &Path,
    component: &str,
    sources: &[Source<'_>],
    stored: &dyn Fn(&str) -> DataType,
    options: &CheckOptions,
) -> Result<Checks, ExportError> {
    let engine = Arc::new(Engine::open(engine).map_err(|e| ExportError::config(engine, e.to_string()))?);
    let mut ort = options.ort.clone();
    ort.backend = "ort".parse().unwrap_or_default();
    let options = &CheckOptions { ort, ..options.clone() };
    let given = named_files(&options.inputs)?;
    let mut used = Vec::new();
    let mut checks = Checks::default();
    for source in sources {
        let reference = source.reference();
        let graph = &reference.model.graph;
        let files: Vec<&PathBuf> = given.iter().filter(|(_, names)| used_by(names, graph)).map(|(p, _)| p).collect();
        used.extend(files.iter().copied());
        let sets: Vec<InputSet> = files.iter().map(|path| read_inputs(path, graph)).collect::<Result<_, _>>()?;
        let lowered = source.lowered();
        let limits = sets.is_empty().then(|| options.run_limits());
        let check = Checked { engine: &engine, component, source, reference, lowered, stored, options, limits };
        match check.on(sets, &mut checks) {
            Err(ExportError::NotChecked(unchecked)) if !options.thorough => checks.skipped.push(unchecked),
            done => done?,
        }
    }
    if let Some(source) = sources.first().filter(|_| used.len() < given.len()) {
        let reference = source.reference();
        for (path, _) in given.iter().filter(|(path, _)| !used.contains(&path)) {
            let reason = read_inputs(path, &reference.model.graph).err().map(|e| e.to_string());
            checks.unused.push((path.clone(), reason.unwrap_or_default()));
        }
    }
    Ok(checks)
}

/// One graph of an engine beside its source.
struct Checked<'a> {
    engine: &'a Arc<Engine>,
    component: &'a str,
    source: &'a Source<'a>,
    reference: Reference,
    lowered: Model,
    stored: &'a dyn Fn(&str) -> DataType,
    options: &'a CheckOptions,
    /// What a run may take: made inputs may ask for more than anybody would.
    limits: Option<RunLimits>,
}

impl Checked<'_> {
    fn failed(&self, error: &dyn std::error::Error) -> ExportError {
        ExportError::Graph { graph: self.source.graph.to_owned(), reason: error.to_string() }
    }

    /// Why a run failed; one that would have taken too much says nothing of the engine.
    fn stopped(&self, error: &ExecuteError) -> ExportError {
        match error.is_beyond_limits() {
            true => ExportError::NotChecked(Unchecked::on_inputs(self.source.graph, error.to_string())),
            false => self.failed(error),
        }
    }

    /// How sessions are opened, within the limits.
    fn bounded(&self) -> OpenOptions {
        OpenOptions { limits: self.limits, ..self.options.ort.clone() }
    }

    /// Checks the graph on the given inputs, or on made ones.
    fn on(&self, given: Vec<InputSet>, checks: &mut Checks) -> Result<(), ExportError> {
        let (name, tables) = (self.source.graph, tables(&self.lowered.graph));
        let runs = reference_runs(&self.reference, name, given, &tables, self.engine, (self.options, &self.bounded()))?;
        self.run(&runs, checks)
    }

    fn run(&self, runs: &Runs, checks: &mut Checks) -> Result<(), ExportError> {
        let (source, options) = (self.source, self.options);
        let tolerance = options.tolerance;
        let tolerance = tolerance.unwrap_or_else(|| default_tolerance(source.prepared, source.int8, self.stored));
        let branched = format!("{}{BRANCH_SUFFIX}", source.graph);
        for name in [source.graph, &branched] {
            let Some(graph) = self.engine.manifest().graph(name) else { continue };
            let ways = ways(self.engine, options.thorough);
            for &weights in &ways {
                let open = OpenOptions { weights, ..self.bounded() };
                self.compare(name, &open, runs, tolerance, "", checks)?;
            }
            if graph.files.typed.is_some() && graph.precision == "fp16" {
                let mut open = self.bounded();
                open.ort.arithmetic = Arithmetic::Plan;
                let tolerance = options.tolerance.unwrap_or_else(|| Tolerance::of_plan(false));
                self.compare(name, &open, runs, tolerance, "; arithmetic as planned", checks)?;
            }
            if graph.parts().all(|part| part.files.openvino.is_some()) {
                self.compare_on_openvino(graph, runs, tolerance, checks)?;
            }
            if let (Some(max), Some((set, _))) = (graph.lora_rank, runs.first()) {
                let run = self.with_factors(set, max, name)?;
                let open = OpenOptions { weights: OrtWeights::Stored, ..self.bounded() };
                self.compare(name, &open, &vec![run], tolerance, "", checks)?;
            }
            if let Some((set, _)) = runs.first().filter(|_| options.times) {
                let weights = ways.last().copied().unwrap_or_default();
                let mut open = OpenOptions { weights, ..self.bounded() };
                open.ort.profile = true;
                checks.times.push(time(self.engine, name, set, &open).map_err(|e| self.stopped(&e))?);
            }
        }
        Ok(())
    }

    /// Compares the graph's form for OpenVINO, in float32. Where there is no OpenVINO it is said to be unchecked.
    fn compare_on_openvino(
        &self,
        graph: &Graph,
        runs: &Runs,
        tolerance: Tolerance,
        checks: &mut Checks,
    ) -> Result<(), ExportError> {
        // A build without it has no such name.
        let Ok(backend) = "openvino".parse() else { return Ok(()) };
        let mut open = OpenOptions { backend, ..self.bounded() };
        open.openvino.precision = OpenVinoPrecision::F32;
        match OpenEngine::open(Arc::clone(self.engine), &open) {
            Err(error) if error.class() == ErrorClass::Version => {
                let unchecked = Unchecked::new(&graph.name, format!("its form for OpenVINO: {error}"));
                if self.options.thorough {
                    return Err(ExportError::NotChecked(unchecked));
                }
                checks.skipped.push(unchecked);
                Ok(())
            }
            _ => {
                self.compare(&graph.name, &open, runs, tolerance, "; on OpenVINO", checks)?;
                self.compare_inside(&graph.name, &open, runs, checks)
            }
        }
    }

    /// Compares what a graph computes inside, opened in one way, with the same on ONNX Runtime over the same weights: an error that the output
    /// hides. Skipped where no value inside can be read.
    fn compare_inside(
        &self,
        name: &str,
        open: &OpenOptions,
        runs: &Runs,
        checks: &mut Checks,
    ) -> Result<(), ExportError> {
        let Some((set, _)) = runs.first() else { return Ok(()) };
        let shown = self.engine.with_inner_outputs(name, MOST_INSIDE).map_err(|e| self.failed(&e))?;
        let Some((engine, values)) = shown else { return Ok(()) };
        let engine = Arc::new(engine);
        let inside = |open: &OpenOptions| -> Result<NamedTensors, ExportError> {
            let mut backend = OpenEngine::open(Arc::clone(&engine), open).map_err(|e| self.failed(&e))?;
            let mut session = backend.session(name).map_err(|e| self.failed(&e))?;
            let tensors = with_empty_factors(&*session, &set.tensors);
            let mut found = run(&mut *session, &tensors).map_err(|e| self.stopped(&e))?;
            found.retain(|name, _| values.contains(name));
            Ok(found)
        };
        let expected = inside(&OpenOptions { weights: OrtWeights::Stored, ..self.bounded() })?;
        let actual = inside(open)?;
        let tolerance = self.options.tolerance.unwrap_or(match rounds(&self.source.prepared.graph) {
            true => Tolerance::RelativeL2(MOST_UNREST),
            false => INSIDE,
        });
        let check = GraphCheck {
            component: self.component.to_owned(),
            graph: name.to_owned(),
            weights: WeightMode::Stored,
            inputs: format!("{}; on OpenVINO, inside, against ONNX Runtime", set.label),
            tolerance,
            outputs: outputs(&actual, &expected, tolerance),
        };
        match check.passed() {
            true => checks.done.push(check),
            false => {
                let trace = self.locate(set, open).ok();
                return Err(ExportError::Numeric(Box::new(Failed { check, trace })));
            }
        }
        Ok(())
    }

    /// Compares a graph of the engine, opened in one way, with what is expected. `how` says more of the way.
    fn compare(
        &self,
        name: &str,
        open: &OpenOptions,
        runs: &Runs,
        tolerance: Tolerance,
        how: &str,
        checks: &mut Checks,
    ) -> Result<(), ExportError> {
        let mut backend = OpenEngine::open(Arc::clone(self.engine), open).map_err(|e| self.failed(&e))?;
        let weights = backend.report().mode;
        let mut session = backend.session(name).map_err(|e| self.failed(&e))?;
        for (set, expected) in runs {
            let tensors = with_empty_factors(&*session, &set.tensors);
            let actual = run(&mut *session, &tensors).map_err(|e| self.stopped(&e))?;
            let mut check = GraphCheck {
                component: self.component.to_owned(),
                graph: name.to_owned(),
                weights,
                inputs: format!("{}{how}", set.label),
                tolerance,
                outputs: outputs(&actual, expected, tolerance),
            };
            if !check.passed()
                && let Some(tolerance) = self.with_unrest(set, tolerance)?
            {
                check = GraphCheck { tolerance, outputs: outputs(&actual, expected, tolerance), ..check };
            }
            if !check.passed() {
                let trace = self.locate(set, open).ok();
                return Err(ExportError::Numeric(Box::new(Failed { check, trace })));
            }
            checks.done.push(check);
        }
        Ok(())
    }

    /// What may be allowed of a graph that rounds: it answers a change in the last bit of a value by a whole step of
    /// the type that it rounds to. `None` for another graph, and where a tolerance was asked for.
    fn with_unrest(&self, set: &InputSet, tolerance: Tolerance) -> Result<Option<Tolerance>, ExportError> {
        let Tolerance::RelativeL2(usual) = tolerance else { return Ok(None) };
        if self.options.tolerance.is_some() || !rounds(&self.source.prepared.graph) {
            return Ok(None);
        }
        let mut given = set.tensors.clone();
        given.retain(|name, _| self.reference.model.graph.inputs.iter().any(|input| input.name == *name));
        let Some(shifted) = self.reference.shifted(&given) else {
            return Ok(Some(Tolerance::RelativeL2(usual.max(MOST_UNREST))));
        };
        let mut session = self.reference.session(&self.bounded()).map_err(|e| self.stopped(&e))?;
        let still = run(&mut session, &given).map_err(|e| self.stopped(&e))?;
        let moved = run(&mut session, &shifted).map_err(|e| self.stopped(&e))?;
        let distances = outputs(&moved, &still, tolerance);
        let distances = distances.iter().filter_map(|output| Some(output.comparison?.relative_l2));
        let unrest = (UNREST_MARGIN * distances.fold(0.0, f64::max)).min(MOST_UNREST);
        Ok(Some(Tolerance::RelativeL2(usual.max(unrest))))
    }

    /// The same inputs with factors for every branch, and what the source gives with them in its weights.
    fn with_factors(
        &self,
        set: &InputSet,
        max: usize,
        branched: &str,
    ) -> Result<(InputSet, NamedTensors), ExportError> {
        let rank = max.min(FACTOR_RANK);
        let adapters = [(made_adapter(self.source.slots, rank, self.options.seed), 1.0)];
        let mut executor = AdaptedExecutor::new(&self.options.ort, self.source.slots, &adapters, 1.0, false);
        let model = self.source.prepared;
        let expected = walk(&mut executor, model, &set.tensors, Limits::default(), &|_| false, &mut |_, _| {});
        let graph = self.engine.graph(branched).map_err(|e| self.failed(&e))?;
        let mut tensors = set.tensors.clone();
        let [(adapter, strength)] = &adapters;
        tensors.extend(branch::inputs(self.engine, graph, &[(adapter, *strength)]).map_err(|e| self.failed(&e))?);
        let label = format!("{}, factors of rank {rank}", set.label);
        Ok((InputSet { label, tensors }, expected.map_err(|e| self.failed(&e))?))
    }

    /// Where the compiled graph leaves its source.
    fn locate(&self, set: &InputSet, open: &OpenOptions) -> Result<Trace, ExportError> {
        let how = (&self.options.ort, open.backend.name() == Some("openvino"));
        locate(&self.reference, &self.lowered, self.stored, set, how, Limits::default())
    }
}

/// An adapter that changes what every layer gives by about a tenth.
fn made_adapter(slots: &[Slot], rank: usize, seed: u64) -> Adapter {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut normal = |shape: (usize, usize), scale: f32| {
        Array2::from_shape_simple_fn(shape, || scale * Distribution::<f32>::sample(&StandardNormal, &mut rng))
    };
    let layer = |slot: &Slot| {
        let down = normal((rank, slot.in_features), (slot.in_features as f32).sqrt().recip());
        let up = normal((slot.out_features, rank), 0.1 * (rank as f32).sqrt().recip());
        (slot.name.clone(), LowRank { down, up, alpha: rank as f32 }.into())
    };
    Adapter { name: "made".to_owned(), layers: slots.iter().map(layer).collect() }
}

/// Runs a graph until its precomputed graphs and ONNX Runtime's memory are settled, and times the last run.
fn time(engine: &Arc<Engine>, graph: &str, set: &InputSet, open: &OpenOptions) -> Result<GraphTimes, ExecuteError> {
    let mut backend = OrtEngine::open(Arc::clone(engine), open)?;
    let weights = backend.report().mode;
    let mut session = backend.session(graph)?;
    let tensors = with_empty_factors(&session, &set.tensors);
    for _ in 0..WARM_RUNS + 1 {
        run(&mut session, &tensors)?;
    }
    let operators = session.operator_times()?.unwrap_or_default();
    Ok(GraphTimes { graph: graph.to_owned(), weights, inputs: set.label.clone(), operators })
}

/// Refuses input files that are used by no graph of any of the components that were checked.
pub(crate) fn check_inputs_used(options: &CheckOptions, checks: &[&Checks]) -> Result<(), ExportError> {
    let lists: Vec<_> = checks.iter().map(|checks| &checks.unused).collect();
    match never_used(&options.inputs, &lists)? {
        Some((path, reason)) => Err(ExportError::Calibration { path, reason }),
        None => Ok(()),
    }
}

/// The ways to hold weights that are checked.
fn ways(engine: &Engine, thorough: bool) -> Vec<OrtWeights> {
    let manifest = engine.manifest();
    let narrow = manifest.graphs.iter().any(|graph| graph.files.stored.is_some());
    let elements = |record: &v2l_runtime::engine::manifest::TensorRecord| {
        record.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64))
    };
    let in_f32: u64 =
        manifest.tensors.values().filter(|r| r.dtype.is_float()).map(|r| elements(r).saturating_mul(4)).sum();
    match narrow {
        true if thorough || in_f32 <= F32_LIMIT => vec![OrtWeights::Stored, OrtWeights::F32],
        // Without a variant of its own, stored weights take the same graph without private copies.
        _ => vec![OrtWeights::Stored],
    }
}

/// Factors of rank 0 for every branch: nothing is added to the base.
fn with_empty_factors(session: &dyn Session, tensors: &NamedTensors) -> NamedTensors {
    let mut all = tensors.clone();
    for port in session.inputs().iter().filter(|port| !tensors.contains_key(&port.name)) {
        let extent = |dim: &Dim| match dim {
            Dim::Fixed(n) => *n,
            Dim::Symbol(name) if name.ends_with(RANK_SUFFIX) => 0,
            Dim::Symbol(_) => 1,
        };
        let shape: Vec<usize> = port.shape.iter().map(extent).collect();
        let count = shape.iter().product();
        if let Some(tensor) = Tensor::from_f32(&shape, vec![0.0; count]) {
            all.insert(port.name.clone(), tensor);
        }
    }
    all
}
