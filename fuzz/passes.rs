//! What is compiled from a random graph, with some of the passes, against ONNX Runtime on the file as it stands.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use v2l_export::precision::{PrecisionOptions, Request};
use v2l_export::{CompileOptions, Pass, Passes};
use v2l_graphs::{DataType, Dim, Model, ValueInfo, encode_model};
use v2l_runtime::backends::Interface;
use v2l_runtime::backends::onnxruntime::{DeviceWeightChoice, OrtEngine, OrtSession};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::{self, Port, Session};
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use super::graphs::{Drawn, Draws, Kind, MOST_ROWS, NAMES, ROWS, draw, noise};
use super::stored::{Stored, over_stored};

/// Passes sum in another order; the graphs' values stay near 1.
const TOLERANCE: f32 = 1e-3;

/// How to compile a graph and what to run it on.
pub(crate) struct Trial {
    pub(crate) off: Vec<Pass>,
    pub(crate) step: Option<Vec<String>>,
    pub(crate) weights: OrtWeights,
    pub(crate) device_weights: DeviceWeightChoice,
    /// Announce every run's timesteps.
    pub(crate) prepare: bool,
    /// Run the graph with low-rank branches, which add nothing.
    pub(crate) branches: bool,
    /// Runs, by number, that must give in a fresh session the same bits as in the used one.
    pub(crate) fresh: Vec<usize>,
    pub(crate) settings_as_long_as_rows: bool,
    pub(crate) stored: Stored,
}

impl Trial {
    /// All passes, for a step whose latents and timesteps change.
    pub(crate) fn usual(drawn: &Drawn) -> Self {
        Self {
            off: Vec::new(),
            step: Some(["x", "time"].map(str::to_owned).into()),
            weights: OrtWeights::F32,
            device_weights: DeviceWeightChoice::None,
            prepare: false,
            branches: false,
            fresh: (0..runs().len()).collect(),
            settings_as_long_as_rows: drawn.settings_as_long_as_rows,
            stored: Stored::AsGiven,
        }
    }

    fn drawn(draws: &mut Draws<'_>, drawn: &Drawn) -> Self {
        let off = match draws.below(3) {
            0 => Vec::new(),
            _ => Pass::ALL.into_iter().filter(|_| draws.below(4) == 0).collect(),
        };
        let step = match draws.below(8) {
            0 => None,
            1 => Some(vec!["time".to_owned()]),
            2 => Some(vec!["x".to_owned()]),
            3 => Some(["x", "time", "guide"].map(str::to_owned).into()),
            _ => Some(["x", "time"].map(str::to_owned).into()),
        };
        let weights = if draws.below(2) == 0 { OrtWeights::F32 } else { OrtWeights::Stored };
        let device_weights =
            [DeviceWeightChoice::None, DeviceWeightChoice::None, DeviceWeightChoice::Slots, DeviceWeightChoice::All]
                [draws.below(4)];
        let settings_as_long_as_rows = drawn.settings_as_long_as_rows && draws.below(2) == 0;
        let (prepare, fresh) = (draws.below(2) == 0, vec![draws.below(runs().len())]);
        let branches = draws.below(4) == 0;
        let stored = match draws.below(6) {
            0 | 1 => Stored::AsGiven,
            2 => Stored::As(Dtype::F16),
            3 => Stored::As(Dtype::Bf16),
            4 => Stored::Planned([Request::Fp16, Request::Bf16, Request::Mixed][draws.below(3)]),
            _ => Stored::InBlocks([32, 64, 128][draws.below(3)]),
        };
        Self { off, step, weights, device_weights, prepare, branches, fresh, settings_as_long_as_rows, stored }
    }
}

/// What came of a graph that was right.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// It has a graph whose results are kept by timestep.
    pub(crate) tables: bool,
}

/// Timesteps of each run, by number: different, one of them, equal, one that is new, known and new ones, and very many.
pub(crate) fn runs() -> Vec<Vec<usize>> {
    vec![vec![0, 1, 2], vec![1], vec![0, 0, 0], vec![5], vec![6, 2, 7, 7], (0..MOST_ROWS).collect(), vec![3]]
}

/// The fuzz target: draws a graph and how to compile it, and panics where the engine gives something else than the
/// file.
pub(crate) fn check(bytes: &[u8], folder: &Path) {
    static ORACLE: std::sync::Once = std::sync::Once::new();
    ORACLE.call_once(|| assert_eq!(try_oracle(&[1; 24], folder), Ok(true), "a planted error is not found"));
    let mut draws = Draws::new(bytes);
    let kind = [Kind::Any, Kind::Any, Kind::Timesteps, Kind::Mixing][draws.below(4)];
    // First, so that graphs that begin alike are tried in several ways.
    let ways = bytes.get(bytes.len().saturating_sub(24)..).unwrap_or_default();
    let drawn = draw(&mut draws, kind);
    let trial = Trial::drawn(&mut Draws::new(ways), &drawn);
    if let Err(found) = compare(&drawn.model, &drawn.model, &trial, &runs(), folder) {
        let Trial { off, step, stored, .. } = &trial;
        panic!("{found}\nwithout {off:?}, step inputs {step:?}, weights {stored:?}\n{}", listing(&drawn.model));
    }
}

/// A graph that takes the mean of all rows, and one in which every row is its own mean, as a wrong proof would have it.
pub(crate) fn planted(bytes: &[u8]) -> [Drawn; 2] {
    [Kind::Mixing, Kind::Planted].map(|kind| draw(&mut Draws::new(bytes), kind))
}

/// Shows that [`compare`] finds a graph that takes rows for independent that are not, and not on one row. True if that
/// is a precomputed graph's doing.
///
/// # Errors
/// If it does not.
pub(crate) fn try_oracle(bytes: &[u8], folder: &Path) -> Result<bool, String> {
    let [mixing, planted] = planted(bytes);
    let trial = Trial::usual(&planted);
    let seen = compare(&planted.model, &planted.model, &trial, &runs(), folder)?;
    let one = compare(&mixing.model, &planted.model, &trial, &[vec![0], vec![1]], folder);
    let many = compare(&mixing.model, &planted.model, &trial, &runs(), folder);
    match (one, many) {
        (Ok(_), Err(found)) if found.contains("expected") => Ok(seen.tables),
        (one, many) => Err(format!("one row {one:?}, several rows {many:?}")),
    }
}

/// Compiles `compiled` and compares it with what `model` gives over the weights as they are stored ([`over_stored`]),
/// over
/// `rows`, in one session after the other and in fresh ones.
///
/// # Errors
/// What differs, or does not run.
pub(crate) fn compare(
    model: &Model,
    compiled: &Model,
    trial: &Trial,
    rows: &[Vec<usize>],
    folder: &Path,
) -> Result<Seen, String> {
    let [file, source, out] = ["graph.onnx", "compiled.onnx", "graph.engine"].map(|name| folder.join(name));
    let write = |path: &Path, model: &Model| {
        let bytes = encode_model(model, &|_| None).map_err(|e| e.to_string())?;
        std::fs::write(path, bytes).map_err(|e| e.to_string())
    };
    write(&source, compiled)?;
    let _ = std::fs::remove_file(&out);
    let open = OpenOptions { threads: Some(1), ..OpenOptions::default() };
    let interface =
        Interface { name: "g".into(), inputs: ports(&model.graph.inputs), outputs: ports(&model.graph.outputs) };
    let options = CompileOptions {
        check: None,
        passes: Passes::without(trial.off.iter().copied()),
        step_inputs: trial.step.clone(),
        lora_rank: trial.branches.then_some(4),
        storage: trial.stored.dtype(),
        int8: trial.stored.block(),
        precision: PrecisionOptions {
            request: trial.stored.request(),
            rules_only: true,
            ..PrecisionOptions::default()
        },
        ..CompileOptions::default()
    };
    v2l_export::compile(&source, &out, &options, &mut |_| {}).map_err(|e| format!("not compiled: {e}"))?;
    let engine = Arc::new(Engine::open(&out).map_err(|e| format!("not opened: {e}"))?);
    write(&file, &over_stored(model, &engine, trial.stored)?)?;
    let mut reference = OrtSession::from_file(interface, &file, &open).map_err(|e| format!("no graph: {e}"))?;
    let mut open = OpenOptions { weights: trial.weights, ..open };
    open.ort.device_weights = trial.device_weights;
    let mut opened = OrtEngine::open(Arc::clone(&engine), &open).map_err(|e| format!("not opened: {e}"))?;
    let graph = engine.manifest().graphs.iter().find(|graph| graph.lora_rank.is_some() == trial.branches);
    let graph = graph.ok_or("no such graph")?;
    let mut session = || opened.session(&graph.name).map_err(|e| format!("not opened: {e}"));
    let mut used = session()?;
    for (number, rows) in rows.iter().enumerate() {
        let mut inputs = inputs(model, rows, trial.settings_as_long_as_rows);
        let expected = run(&mut reference, &inputs).map_err(|e| format!("no graph: {e}"))?;
        inputs.extend(empty_factors(&used, &inputs));
        let failed = |what: &str, e: String| format!("{what}, run {number} of {} rows: {e}", rows.len());
        if trial.prepare {
            let announced: Vec<(&str, &Tensor)> =
                inputs.iter().filter(|(name, _)| *name != "x").map(|(name, tensor)| (&name[..], tensor)).collect();
            used.prepare(&announced, &|| false).map_err(|e| failed("announced", e.to_string()))?;
        }
        let found = run(&mut used, &inputs).map_err(|e| failed("used session", e))?;
        differ(&expected, &found).map_or(Ok(()), |e| Err(failed("used session", e)))?;
        if !trial.fresh.contains(&number) {
            continue;
        }
        let fresh = run(&mut session()?, &inputs).map_err(|e| failed("fresh session", e))?;
        for (name, tensor) in &fresh {
            if tensor_bytes(tensor) != tensor_bytes(&found[name]) {
                let e = differ(&fresh, &found).unwrap_or_else(|| "in the last bits".to_owned());
                return Err(failed("used session", format!("`{name}` differs from a fresh session's: {e}")));
            }
        }
    }
    Ok(Seen { tables: graph.precomputed.as_ref().is_some_and(|precomputed| precomputed.timestep_rows.is_some()) })
}

fn ports(infos: &[ValueInfo]) -> Vec<Port> {
    let port = |info: &ValueInfo| {
        let ty = info.ty.as_ref().expect("declared by the generator");
        let dim = |dim: &Dim| match dim {
            Dim::Fixed(n) => session::Dim::Fixed(*n),
            other => session::Dim::Symbol(other.to_string()),
        };
        let dtype = if ty.dtype == DataType::Int64 { Dtype::I64 } else { Dtype::F32 };
        Port { name: info.name.clone(), dtype, shape: ty.shape.iter().flatten().map(dim).collect() }
    };
    infos.iter().map(port).collect()
}

/// Factors of rank 0 for every branch.
fn empty_factors(session: &dyn Session, given: &NamedTensors) -> NamedTensors {
    let missing = session.inputs().iter().filter(|port| !given.contains_key(&port.name));
    let factor = |port: &Port| {
        let extent = |dim: &session::Dim| if let session::Dim::Fixed(n) = dim { *n } else { 0 };
        let shape: Vec<usize> = port.shape.iter().map(extent).collect();
        (port.name.clone(), Tensor::from_f32(&shape, Vec::new()).expect("nothing, of any shape"))
    };
    missing.map(factor).collect()
}

fn run(session: &mut dyn Session, inputs: &NamedTensors) -> Result<NamedTensors, String> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    session.run(&inputs).map_err(|e| e.to_string())
}

/// Inputs of a run on these timesteps; whatever has a row for each is decided by its number.
fn inputs(model: &Model, rows: &[usize], settings_as_long_as_rows: bool) -> NamedTensors {
    let width = if settings_as_long_as_rows { rows.len() } else { 3 };
    let extents = HashMap::from([(ROWS, rows.len()), (NAMES[0], 2), (NAMES[1], 3), (NAMES[2], width)]);
    let extent = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Symbol(name) => extents[&name[..]],
        Dim::Unknown => unreachable!("declared by the generator"),
    };
    let tensor = |info: &ValueInfo| {
        let ty = info.ty.as_ref().expect("declared by the generator");
        let shape: Vec<usize> = ty.shape.iter().flatten().map(extent).collect();
        let count = shape.iter().product();
        let bytes: Vec<u8> = match (&info.name[..], ty.dtype) {
            ("time", DataType::Int64) => rows.iter().flat_map(|row| ((row * 37 % 1000) as i64).to_le_bytes()).collect(),
            ("time", _) => rows.iter().flat_map(|row| ((row * 37 % 1000) as f32).to_le_bytes()).collect(),
            // Two timesteps share one.
            ("guide", _) => rows.iter().flat_map(|row| noise(*row as u64 / 2, 1)[0].to_le_bytes()).collect(),
            (name, _) => {
                noise(name.len() as u64 + rows.len() as u64, count).iter().flat_map(|v| v.to_le_bytes()).collect()
            }
        };
        let dtype = if ty.dtype == DataType::Int64 { Dtype::I64 } else { Dtype::F32 };
        let tensor = tensor_from_bytes(dtype, &shape, &bytes).expect("as many elements as the shape says");
        (info.name.clone(), tensor)
    };
    model.graph.inputs.iter().map(tensor).collect()
}

/// What differs by more than roundings.
fn differ(expected: &NamedTensors, found: &NamedTensors) -> Option<String> {
    expected.iter().find_map(|(name, expected)| {
        let Some(found) = found.get(name) else { return Some(format!("`{name}` is missing")) };
        if found.shape() != expected.shape() || found.dtype() != expected.dtype() {
            return Some(format!("`{name}` is {:?}, expected {:?}", found.shape(), expected.shape()));
        }
        let numbers = |t: &Tensor| t.to_f32().map(|a| a.iter().copied().collect::<Vec<f32>>()).unwrap_or_default();
        let (expected, found) = (numbers(expected), numbers(found));
        let finite = expected.iter().filter(|v| v.is_finite());
        let allowed = TOLERANCE * (1.0 + finite.fold(0f32, |most, v| most.max(v.abs())));
        let close = |(e, f): (&f32, &f32)| e == f || (e.is_nan() && f.is_nan()) || (e - f).abs() <= allowed;
        let at = expected.iter().zip(&found).position(|pair| !close(pair))?;
        Some(format!("`{name}`[{at}] is {}, expected {}", found[at], expected[at]))
    })
}

/// The graph in lines.
fn listing(model: &Model) -> String {
    let mut lines = Vec::new();
    for node in &model.graph.nodes {
        let attributes: Vec<String> = node
            .attributes
            .iter()
            .map(|(name, value)| match value {
                v2l_graphs::Attribute::Graph(_) => format!("{name}=…"),
                value => format!("{name}={value:?}"),
            })
            .collect();
        let inputs = node.inputs.join(", ");
        lines.push(format!("{} = {}({inputs}) {}", node.outputs.join(", "), node.op_type, attributes.join(" ")));
    }
    lines.join("\n")
}
