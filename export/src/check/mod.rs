//! Does an engine still compute what its source computes? Measured, not argued.

pub mod inputs;
mod reference;
mod report;
mod rows;
mod uses;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use ndarray::Array2;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rand_distr::{Distribution, StandardNormal};
pub use v2l_calibration::{BlockError, Comparison, NodeError, Trace};
use v2l_calibration::{Limits, compare, trace, walk};
use v2l_graphs::passes::{Passes, lower_for_ort};
use v2l_graphs::{Attribute, DataType, Graph, Model, Node};
use v2l_runtime::adapter::{Adapter, LowRank};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{Profile, RANK_SUFFIX, SIDE_SUFFIX, ShapeRange, Slot};
use v2l_runtime::memory::available_memory;
use v2l_runtime::ort_backend::{
    Arithmetic, OpenOptions, OperatorTimes, OrtEngine, OrtError, OrtWeights, RunLimits, WeightMode,
};
use v2l_runtime::session::{Dim, Session};
use v2l_runtime::side;
use v2l_runtime::tensor::{NamedTensors, Tensor};

pub(crate) use self::reference::Reference;
pub use self::report::{Failed, GraphCheck, OutputCheck, Tolerance};
use crate::ExportError;
use crate::compile::types::from_runtime;
use crate::compile::weights::plan_weights;
use crate::compile::{CompileOptions, prepare, slots};
use crate::execute::{ExecuteError, OrtExecutor};
use crate::precision::adapted::AdaptedExecutor;
use crate::precision::expected_of;
use inputs::{InputSet, generate, input_files, read_inputs};
use reference::run;
use rows::RowInputs;

/// What an engine is checked on, and how strictly.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Safetensors files of named tensors, or folders of them; each serves the graphs whose inputs it names. A graph that
    /// none serves is checked on made inputs.
    pub inputs: Vec<PathBuf>,
    /// Sizes of named extents for made inputs.
    pub extents: IndexMap<String, usize>,
    /// Largest distance allowed; chosen by what the weights are stored in if not given.
    pub tolerance: Option<Tolerance>,
    /// Check every way to hold the weights, however much memory it takes, and fail if a graph cannot be checked.
    pub thorough: bool,
    /// Time what each graph spends a run on.
    pub times: bool,
    /// Seed of made inputs.
    pub seed: u64,
    /// What a run on made inputs may take; by default five minutes and half of the memory that is available. Beyond it the graph is
    /// not checked.
    pub limits: Option<RunLimits>,
    /// Library and threads.
    pub ort: OpenOptions,
}

impl CheckOptions {
    /// How a reference is opened for made inputs, which may ask for more than anybody would.
    fn bounded(&self) -> OpenOptions {
        let memory = || available_memory().map_or(UNKNOWN_MEMORY, |available| available / 2);
        let limits = self.limits.unwrap_or_else(|| RunLimits { time: MADE_RUN, memory: memory() });
        OpenOptions { limits: Some(limits), ..self.ort.clone() }
    }
}

/// Longest run on made inputs.
const MADE_RUN: Duration = Duration::from_secs(300);

/// Bytes that a run on made inputs may take where the system does not say how much there is.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// Rank of the factors that low-rank branches are checked with, if they take as many.
pub(crate) const FACTOR_RANK: usize = 4;

/// Without [`CheckOptions::thorough`], weights are not widened beyond this many bytes.
const WIDENED_LIMIT: u64 = 1 << 30;

/// Runs before the one that is timed.
const WARM_RUNS: usize = 2;

/// What weights in 8 bits let expect.
const INT8_TOLERANCE: Tolerance = Tolerance::RelativeL2(5e-2);

/// An engine may lie this many times further from a source that rounds than the source from itself on inputs whose last bits
/// differ: its passes take sums in another order more than once.
const UNREST_MARGIN: f64 = 8.0;

/// No more than this is allowed for rounding, and this where no input can be moved.
const MOST_UNREST: f64 = 1e-2;

/// What was checked.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// By graph, way to hold the weights, and inputs.
    pub done: Vec<GraphCheck>,
    /// What a run of each graph spends its time on, if that was asked for.
    pub times: Vec<GraphTimes>,
    /// Graphs that could not be checked, and why.
    pub skipped: Vec<(String, String)>,
    /// Input files that serve none of the component's graphs, and why the first graph does not take them.
    pub unserved: Vec<(PathBuf, String)>,
}

/// Where one run of a graph, its stages left out, spends its time.
#[derive(Clone, Debug)]
pub struct GraphTimes {
    /// The graph.
    pub graph: String,
    /// How the weights were held.
    pub weights: WeightMode,
    /// What it ran on.
    pub inputs: String,
    /// By operator.
    pub operators: OperatorTimes,
}

/// A source graph and what the compiler made of it.
pub(crate) struct Source<'a> {
    pub(crate) graph: &'a str,
    pub(crate) path: &'a Path,
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
    /// As ONNX Runtime gets it, in one piece.
    fn lowered(&self) -> Model {
        let mut model = self.prepared.clone();
        lower_for_ort(&mut model, self.passes);
        model
    }
}

/// Compares an engine with its sources, every output of every graph.
///
/// The reference is the source itself, unoptimised, in f32, on ONNX Runtime. Memory is bounded by activations: neither side
/// copies its weights unless they are widened.
pub(crate) fn check_engine(
    engine: &Path,
    component: &str,
    sources: &[Source<'_>],
    stored: &dyn Fn(&str) -> DataType,
    options: &CheckOptions,
) -> Result<Checks, ExportError> {
    let engine = Arc::new(Engine::open(engine).map_err(|e| ExportError::config(engine, e.to_string()))?);
    let ort = OpenOptions { any_backend: true, ..options.ort.clone() };
    let options = &CheckOptions { ort, ..options.clone() };
    let (given, mut used) = (files(&options.inputs)?, Vec::new());
    let mut checks = Checks::default();
    for source in sources {
        let reference = Reference::read(source.path)?;
        let graph = &reference.model.graph;
        let serving: Vec<&PathBuf> = given.iter().filter(|(_, names)| serves(names, graph)).map(|(p, _)| p).collect();
        used.extend(serving.iter().copied());
        let sets: Vec<InputSet> = serving.iter().map(|path| read_inputs(path, graph)).collect::<Result<_, _>>()?;
        let lowered = source.lowered();
        let runs = match reference_runs(&reference, source.graph, sets, &tables(&lowered.graph), &engine, options)? {
            Ok(runs) => runs,
            Err(reason) if options.thorough => {
                return Err(ExportError::NotChecked { graph: source.graph.to_owned(), reason });
            }
            Err(reason) => {
                checks.skipped.push((source.graph.to_owned(), reason));
                continue;
            }
        };
        let check = Checked { engine: &engine, component, source, reference, lowered, stored, options };
        check.run(&runs, &mut checks)?;
    }
    if let [source, ..] = sources
        && used.len() < given.len()
    {
        let reference = Reference::read(source.path)?;
        for (path, _) in given.iter().filter(|(path, _)| !used.contains(&path)) {
            let reason = read_inputs(path, &reference.model.graph).err().map(|e| e.to_string());
            checks.unserved.push((path.clone(), reason.unwrap_or_default()));
        }
    }
    Ok(checks)
}

/// Inputs, and what the reference gives for them.
type Runs = Vec<(InputSet, NamedTensors)>;

/// Runs the reference on the given inputs, or on made ones; why not, if the library is missing or none can be made.
fn reference_runs(
    reference: &Reference,
    name: &str,
    given: Vec<InputSet>,
    tables: &HashSet<String>,
    engine: &Engine,
    options: &CheckOptions,
) -> Result<Result<Runs, String>, ExportError> {
    let graph_error = |reason: String| ExportError::Graph { graph: name.to_owned(), reason };
    let bounded = given.is_empty().then(|| options.bounded());
    let mut session = match reference.session(bounded.as_ref().unwrap_or(&options.ort)) {
        Ok(session) => session,
        Err(ExecuteError::Open(error @ OrtError::Library(_))) => return Ok(Err(error.to_string())),
        Err(error) => return Err(graph_error(format!("{error}; --no-verify compiles it unchecked"))),
    };
    let sizes = sizes(engine, name, &reference.model.graph, options);
    let runs = match given.is_empty() {
        true => made_runs(reference, &mut session, &sizes, tables, options.seed),
        false => {
            let runs = given.into_iter().map(|set| {
                let set = InputSet { tensors: reference.fitted(set.tensors), ..set };
                let outputs =
                    run(&mut session, &set.tensors).map_err(|e| graph_error(format!("{}: {e}", set.label)))?;
                Ok((set, outputs))
            });
            Ok(runs.collect::<Result<_, ExportError>>()?)
        }
    };
    let rows = RowInputs::of(reference, engine, name).filter(|_| options.thorough);
    Ok(match (runs, rows) {
        (Ok(mut runs), Some(rows)) => rows.add(&mut runs, &mut session, &sizes, options.seed).map(|()| runs),
        (runs, _) => runs,
    })
}

/// The graph's inputs that decide between the branches of an `If`: the tables of rotary embeddings, whose neighbours are
/// equal or not.
fn tables(graph: &Graph) -> HashSet<String> {
    let makers: HashMap<&str, &Node> =
        graph.nodes.iter().flat_map(|node| node.outputs.iter().map(move |output| (output.as_str(), node))).collect();
    let mut open: Vec<&str> = graph
        .nodes
        .iter()
        .filter(|node| node.op_type == "If")
        .filter_map(|node| Some(node.inputs.first()?.as_str()))
        .collect();
    let mut seen = HashSet::new();
    while let Some(name) = open.pop() {
        if seen.insert(name)
            && let Some(node) = makers.get(name)
        {
            open.extend(node.inputs.iter().map(String::as_str));
        }
    }
    graph.inputs.iter().map(|input| &input.name).filter(|name| seen.contains(name.as_str())).cloned().collect()
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
}

impl Checked<'_> {
    fn failed(&self, error: &dyn std::error::Error) -> ExportError {
        ExportError::Graph { graph: self.source.graph.to_owned(), reason: error.to_string() }
    }

    fn run(&self, runs: &Runs, checks: &mut Checks) -> Result<(), ExportError> {
        let (source, options) = (self.source, self.options);
        let tolerance = options.tolerance.unwrap_or_else(|| match source.int8 {
            true => INT8_TOLERANCE,
            false => default_tolerance(source.prepared, self.stored),
        });
        let side = format!("{}{SIDE_SUFFIX}", source.graph);
        for name in [source.graph, &side] {
            let Some(graph) = self.engine.manifest().graph(name) else { continue };
            let ways = ways(self.engine, options.thorough);
            for &weights in &ways {
                let open = OpenOptions { weights, ..options.ort.clone() };
                self.compare(name, &open, runs, tolerance, "", checks)?;
            }
            if graph.files.typed.is_some() && graph.precision == "fp16" {
                let open = OpenOptions { arithmetic: Arithmetic::Plan, ..options.ort.clone() };
                let tolerance = options.tolerance.unwrap_or_else(|| expected_of(false));
                self.compare(name, &open, runs, tolerance, "; arithmetic as planned", checks)?;
            }
            if let (Some(max), Some((set, _))) = (graph.lora_rank, runs.first()) {
                let run = self.with_factors(set, max, name)?;
                let open = OpenOptions { weights: OrtWeights::Lazy, ..options.ort.clone() };
                self.compare(name, &open, &vec![run], tolerance, "", checks)?;
            }
            if let Some((set, _)) = runs.first().filter(|_| options.times) {
                let weights = ways.last().copied().unwrap_or_default();
                let open = OpenOptions { weights, profile: true, ..options.ort.clone() };
                checks.times.push(time(self.engine, name, set, &open).map_err(|e| self.failed(&e))?);
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
        let mut backend = OrtEngine::open(Arc::clone(self.engine), open).map_err(|e| self.failed(&e))?;
        let weights = backend.report().mode;
        let mut session = backend.session(name).map_err(|e| self.failed(&e))?;
        for (set, expected) in runs {
            let tensors = with_empty_factors(&session, &set.tensors);
            let actual = run(&mut session, &tensors).map_err(|e| self.failed(&e))?;
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
                let trace = self.locate(set).ok();
                return Err(ExportError::Numeric(Box::new(Failed { check, trace })));
            }
            checks.done.push(check);
        }
        Ok(())
    }

    /// What may be allowed of a graph that rounds: it answers a change in the last bit of a value by a whole step of the type that
    /// it rounds to. `None` for another graph, and where a tolerance was asked for.
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
        let mut session = self.reference.session(&self.options.ort).map_err(|e| self.failed(&e))?;
        let still = run(&mut session, &given).map_err(|e| self.failed(&e))?;
        let moved = run(&mut session, &shifted).map_err(|e| self.failed(&e))?;
        let distances = outputs(&moved, &still, tolerance);
        let distances = distances.iter().filter_map(|output| Some(output.comparison?.relative_l2));
        let unrest = (UNREST_MARGIN * distances.fold(0.0, f64::max)).min(MOST_UNREST);
        Ok(Some(Tolerance::RelativeL2(usual.max(unrest))))
    }

    /// The same inputs with factors for every branch, and what the source gives with them in its weights.
    fn with_factors(&self, set: &InputSet, max: usize, side: &str) -> Result<(InputSet, NamedTensors), ExportError> {
        let rank = max.min(FACTOR_RANK);
        let adapters = [(made_adapter(self.source.slots, rank, self.options.seed), 1.0)];
        let mut executor = AdaptedExecutor::new(&self.options.ort, self.source.slots, &adapters, 1.0, false);
        let model = self.source.prepared;
        let expected = walk(&mut executor, model, &set.tensors, Limits::default(), &|_| false, &mut |_, _| {});
        let graph = self.engine.graph(side).map_err(|e| self.failed(&e))?;
        let mut tensors = set.tensors.clone();
        let [(adapter, strength)] = &adapters;
        tensors.extend(side::inputs(self.engine, graph, &[(adapter, *strength)]).map_err(|e| self.failed(&e))?);
        let label = format!("{}, factors of rank {rank}", set.label);
        Ok((InputSet { label, tensors }, expected.map_err(|e| self.failed(&e))?))
    }

    /// Where the compiled graph leaves its source.
    fn locate(&self, set: &InputSet) -> Result<Trace, ExportError> {
        locate(&self.reference, &self.lowered, self.stored, set, &self.options.ort, Limits::default())
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
        (slot.name.clone(), LowRank { down, up, alpha: rank as f32 })
    };
    Adapter { name: "made".to_owned(), layers: slots.iter().map(layer).collect() }
}

/// Runs a graph until its stages and ONNX Runtime's memory are settled, and times the last run.
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

/// Refuses input files that serve no graph of any of the components that were checked.
pub(crate) fn check_inputs_served(options: &CheckOptions, checks: &[&Checks]) -> Result<(), ExportError> {
    let lists: Vec<_> = checks.iter().map(|checks| &checks.unserved).collect();
    match inputs::not_served(&options.inputs, &lists)? {
        Some((path, reason)) => Err(ExportError::Calibration { path, reason }),
        None => Ok(()),
    }
}

/// The input files and the tensors that each names.
fn files(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Vec<String>)>, ExportError> {
    let mut found = Vec::new();
    for path in paths {
        for file in input_files(path)? {
            let names = v2l_runtime::weights::WeightFile::open(&file)?.names();
            found.push((file, names));
        }
    }
    Ok(found)
}

pub(crate) fn serves(names: &[String], graph: &Graph) -> bool {
    names.len() == graph.inputs.len() && graph.inputs.iter().all(|input| names.contains(&input.name))
}

/// Extents that the profiles ask for: the first one's opt, and with `thorough` every one's min, opt and max.
fn sizes(engine: &Engine, name: &str, graph: &Graph, options: &CheckOptions) -> Vec<IndexMap<String, usize>> {
    let manifest = engine.manifest();
    let compiled = manifest.graph(name).or_else(|| manifest.graph(&format!("{name}{SIDE_SUFFIX}")));
    let profiles = compiled.map(|graph| graph.profiles.clone()).unwrap_or_default();
    let of = |profile: &Profile, choose: fn(&ShapeRange) -> &Vec<usize>| {
        profile_extents(graph, profile, choose, options.extents.clone())
    };
    let mut sizes: Vec<IndexMap<String, usize>> = match options.thorough {
        true => profiles.iter().flat_map(|p| [of(p, |r| &r.min), of(p, |r| &r.opt), of(p, |r| &r.max)]).collect(),
        false => profiles.first().map(|p| of(p, |r| &r.opt)).into_iter().collect(),
    };
    sizes.dedup();
    if sizes.is_empty() { vec![options.extents.clone()] } else { sizes }
}

/// `extents`, and what one of a profile's shapes says of those that the graph's inputs name.
pub(crate) fn profile_extents(
    graph: &Graph,
    profile: &Profile,
    choose: fn(&ShapeRange) -> &Vec<usize>,
    mut extents: IndexMap<String, usize>,
) -> IndexMap<String, usize> {
    for input in &graph.inputs {
        let shape = input.ty.as_ref().and_then(|ty| ty.shape.as_ref());
        let (Some(range), Some(shape)) = (profile.get(&input.name), shape) else { continue };
        for (axis, dim) in shape.iter().enumerate() {
            let name = match dim {
                v2l_graphs::Dim::Fixed(_) => continue,
                v2l_graphs::Dim::Symbol(name) if !name.is_empty() => name.clone(),
                _ => format!("{}.{axis}", input.name),
            };
            extents.insert(name, choose(range)[axis]);
        }
    }
    extents
}

/// For each of the sizes, the first made inputs that the reference runs on, and what it gives; where a graph tells rotary
/// tables of equal pairs from others, such ones, too.
fn made_runs(
    reference: &Reference,
    session: &mut dyn Session,
    sizes: &[IndexMap<String, usize>],
    tables: &HashSet<String>,
    seed: u64,
) -> Result<Runs, String> {
    let none = HashSet::new();
    let kinds = [&none, tables];
    let kinds = &kinds[..if tables.is_empty() { 1 } else { 2 }];
    let wanted = sizes.iter().flat_map(|extents| kinds.iter().map(move |paired| (extents, *paired)));
    wanted.map(|(extents, paired)| made_run(reference, session, extents, paired, seed)).collect()
}

fn made_run(
    reference: &Reference,
    session: &mut dyn Session,
    extents: &IndexMap<String, usize>,
    paired: &HashSet<String>,
    seed: u64,
) -> Result<(InputSet, NamedTensors), String> {
    let mut first = None;
    for set in generate(&reference.model, extents, paired, seed) {
        let set = set.map(|set| InputSet { tensors: reference.fitted(set.tensors), ..set });
        let reason = match set.map(|set| (run(session, &set.tensors), set)) {
            Ok((Ok(outputs), set)) => return Ok((set, outputs)),
            Ok((Err(error), _)) if error.is_beyond_limits() => {
                first = Some(error.to_string());
                break;
            }
            Ok((Err(error), _)) => error.to_string(),
            Err(reason) => reason,
        };
        first.get_or_insert(reason);
    }
    Err(format!("no made inputs run: {}; give inputs that fit with --inputs", first.unwrap_or_default()))
}

/// The ways to hold weights that are checked.
fn ways(engine: &Engine, thorough: bool) -> Vec<OrtWeights> {
    let manifest = engine.manifest();
    let narrow = manifest.graphs.iter().any(|graph| graph.files.lazy.is_some());
    let elements = |record: &v2l_runtime::engine::manifest::TensorRecord| {
        record.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64))
    };
    let widened: u64 =
        manifest.tensors.values().filter(|r| r.dtype.is_float()).map(|r| elements(r).saturating_mul(4)).sum();
    match narrow {
        true if thorough || widened <= WIDENED_LIMIT => vec![OrtWeights::Lazy, OrtWeights::Widened],
        // Without a variant of its own, lazy is the same graph without private copies.
        _ => vec![OrtWeights::Lazy],
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

fn outputs(actual: &NamedTensors, expected: &NamedTensors, tolerance: Tolerance) -> Vec<OutputCheck> {
    let check = |(name, expected): (&String, &Tensor)| {
        let comparison = actual
            .get(name)
            .filter(|a| a.shape() == expected.shape())
            .and_then(|actual| compare(&numbers(actual), &numbers(expected)));
        let passed = comparison.is_some_and(|c| tolerance.allows(&c, || (numbers(&actual[name]), numbers(expected))));
        OutputCheck { name: name.clone(), comparison, passed }
    };
    expected.iter().map(check).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    match tensor {
        Tensor::I64(a) => a.iter().map(|&v| v as f32).collect(),
        Tensor::I32(a) => a.iter().map(|&v| v as f32).collect(),
        Tensor::I16(a) => a.iter().map(|&v| f32::from(v)).collect(),
        Tensor::I8(a) => a.iter().map(|&v| f32::from(v)).collect(),
        Tensor::U64(a) => a.iter().map(|&v| v as f32).collect(),
        Tensor::U32(a) => a.iter().map(|&v| v as f32).collect(),
        Tensor::U16(a) => a.iter().map(|&v| f32::from(v)).collect(),
        Tensor::U8(a) => a.iter().map(|&v| f32::from(v)).collect(),
        Tensor::Bool(a) => a.iter().map(|&v| f32::from(u8::from(v))).collect(),
        Tensor::F64(a) => a.iter().map(|&v| v as f32).collect(),
        floats => floats.to_f32().map(|a| a.iter().copied().collect()).unwrap_or_default(),
    }
}

/// True if the graph, or a body in it, rounds to 16 or 8 bits by a node of its own.
fn rounds(graph: &Graph) -> bool {
    let low = [DataType::Float16, DataType::Bfloat16].map(|ty| Some(i64::from(ty.onnx())));
    graph.nodes.iter().any(|node| match node.op_type.as_str() {
        "Cast" => low.contains(&node.int("to")),
        "QuantizeLinear" | "DynamicQuantizeLinear" => true,
        _ => node.attributes.values().any(|a| matches!(a, Attribute::Graph(body) if rounds(body))),
    })
}

/// What the storage type of the weights lets expect of a sound engine.
fn default_tolerance(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Tolerance {
    let rank = |ty: DataType| match ty {
        DataType::Bfloat16 => 2,
        DataType::Float16 => 1,
        _ => 0,
    };
    let narrowed =
        model.graph.initializers.iter().filter(|(_, w)| w.external && w.dtype.is_float()).map(|(name, w)| {
            let (own, stored) = (w.data.widened_from().unwrap_or(w.dtype), stored(name));
            if own == stored { 0 } else { rank(stored) }
        });
    Tolerance::RelativeL2(match narrowed.max() {
        Some(2) => 5e-2,
        Some(1) => 1e-2,
        _ => 1e-4,
    })
}

/// The f32 graph over weights that were rounded to their storage type.
fn rounded(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Model {
    let mut model = model.clone();
    for (name, weight) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external && w.dtype.is_float()) {
        let (own, stored) = (weight.dtype, stored(name));
        weight.data = weight.data.clone().converted(own, stored).converted(stored, own);
    }
    model
}

/// Where `compiled`, over weights as they are stored, leaves its source.
fn locate(
    reference: &Reference,
    compiled: &Model,
    stored: &dyn Fn(&str) -> DataType,
    set: &InputSet,
    ort: &OpenOptions,
    limits: Limits,
) -> Result<Trace, ExportError> {
    let executor = || OrtExecutor { options: ort.clone(), ..OrtExecutor::default() };
    let candidate = rounded(compiled, stored);
    let (mut first, mut second) = (executor(), executor());
    trace((&mut first, &reference.model), (&mut second, &candidate), &set.tensors, limits)
        .map_err(|e| ExportError::Graph { graph: reference.model.graph.name.clone(), reason: e.to_string() })
}

/// Compares a source graph with what would be compiled from it, block by block, then node by node in the worst block.
/// Gives what it ran on, too.
///
/// # Errors
/// [`ExportError`] if either cannot be read or run.
pub fn debug(path: &Path, options: &CompileOptions, block_nodes: usize) -> Result<(String, Trace), ExportError> {
    let check = options.check.clone().unwrap_or_default();
    let reference = Reference::read(path)?;
    let graph = path.display().to_string();
    let (mut prepared, paired) = (prepare(&graph, path, None, options)?.model, HashSet::new());
    lower_for_ort(&mut prepared, &options.passes);
    let set = match &files(&check.inputs)?[..] {
        [(file, _)] => read_inputs(file, &reference.model.graph)?,
        [] => {
            let run = reference
                .session(&check.bounded())
                .map_err(|e| e.to_string())
                .and_then(|mut session| made_run(&reference, &mut session, &check.extents, &paired, check.seed));
            run.map_err(|reason| ExportError::NotChecked { graph: graph.clone(), reason })?.0
        }
        [_, (second, _), ..] => {
            let reason = "expected one file of inputs to look into, found another one".to_owned();
            return Err(ExportError::Calibration { path: second.clone(), reason });
        }
    };
    let mut models = [(graph, prepared)];
    // Marks what counts as a weight.
    slots(&mut models, None)?;
    let weights = plan_weights(models.iter(), options.storage, &Default::default())?;
    let stored = |name: &str| from_runtime(weights[name].dtype);
    let limits = Limits { nodes: block_nodes, ..Limits::default() };
    let trace = locate(&reference, &models[0].1, &stored, &set, &check.ort, limits)?;
    Ok((set.label, trace))
}
