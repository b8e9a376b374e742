//! ONNX graphs to an engine: one component per file, weights once, graphs without weights.

mod explain;
mod int8;
pub(crate) mod profiles;
mod slots;
mod tensorrt;
pub(crate) mod types;
pub(crate) mod variants;
pub(crate) mod weights;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;
use v2l_graphs::passes::{
    PassError, Passes, Report, hoist, infer_shapes, lower_for_ort, lower_logic, optimize_with, sort_topologically,
};
use v2l_graphs::{DataType, Model, ReadOptions, raise_precision, read_model};
use v2l_runtime::adapter::Layers;
use v2l_runtime::atomic::probe_file;
use v2l_runtime::engine::manifest::{FORMAT_VERSION, Graph, Manifest, PRECISION_PLAN, Profile, SIDE_SUFFIX};
use v2l_runtime::engine_directory::HYPERNETWORK;
use v2l_runtime::map::{map_file, read_file};
use v2l_runtime::pipeline::TRANSFORMER;
use v2l_runtime::pipeline::config::{ComponentFiles, EngineFiles, FILE_NAME, PipelineConfig};
use v2l_runtime::tensor::Dtype;
use v2l_runtime::tokenizer::MAX_FILE as MAX_TOKENIZER;

use self::int8::Int8;
use self::tensorrt::TensorRt;
use self::types::from_runtime;
use self::variants::{compile_graph, compile_stages, side_variants, typed_variant};
use self::weights::{Streamed, matrix_type, plan_weights, source_type};
use crate::check::inputs::not_served;
use crate::check::{CheckOptions, Checks, Source, check_engine, check_inputs_served};
use crate::engine_writer::{EngineBlob, EngineWeight, EngineWriteError, stage_engine};
use crate::files::{check_graph, new_folder, open_file};
use crate::precision::{Int8Report, PrecisionOptions, PrecisionReport, Request, plan_component, side_types};
use crate::{Checkpoint, ExportError, Progress, metadata};

pub use self::explain::GraphReport;
pub use self::slots::{AmbiguousSlot, SharedSlot, SlotReport};
pub(crate) use self::slots::{Discovered, slots};
pub use self::tensorrt::{PlanBuilder, PlanReport, TensorRtOptions};

/// How to compile.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Type in which matrices are stored; `None` keeps the one that the model stores each in. Vectors (biases, norm
    /// scales) and tables, which no product reads, always keep theirs.
    pub storage: Option<Dtype>,
    /// Largest sum of ranks of a layer for which a variant of each graph takes LoRA factors as inputs; `None`: no such
    /// variant. It is called as the graph with `.side` behind, shares the weights, and only graphs with slots have one; of a
    /// bundle, only the transformer's.
    pub lora_rank: Option<usize>,
    /// Leave out the graphs without a branch where there is one with: adapters can then only be given as inputs.
    pub side_only: bool,
    /// In which types nodes compute; by default all in f32.
    pub precision: PrecisionOptions,
    /// Shapes to compile for, by input; a graph takes those of its own inputs. Empty: any shape.
    pub profiles: Vec<Profile>,
    /// Compare each engine with its source before it is put in its place; `None` does not.
    pub check: Option<CheckOptions>,
    /// Store the matrices of linear layers in 8 bits, with a scale for each block of this many inputs: 32, 64, 128 or 256.
    pub int8: Option<usize>,
    /// Which passes run.
    pub passes: Passes,
    /// Inputs that change from step to step, for the passes that hoist; `None`: those of a graph that v2l knows, and of others
    /// nothing is hoisted.
    pub step_inputs: Option<Vec<String>>,
    /// Compile for TensorRT; `None`: for ONNX Runtime.
    pub tensorrt: Option<TensorRtOptions>,
    /// For a graph from elsewhere: the checkpoint that it was exported from, a safetensors file or the folder of one, whose
    /// names its linear layers get by their content.
    pub weights: Option<PathBuf>,
}

/// Engines that were written.
#[derive(Clone, Debug)]
pub struct CompileReport {
    /// One per component.
    pub engines: Vec<EngineReport>,
}

/// One engine of a [`CompileReport`].
#[derive(Clone, Debug)]
pub struct EngineReport {
    /// The component.
    pub component: String,
    /// Where the engine lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Type in which its matrices are stored.
    pub storage: Dtype,
    /// Its graphs.
    pub graphs: Vec<String>,
    /// What adapters may change in it.
    pub slots: usize,
    /// The precision plan that it was compiled by, and what was measured for it.
    pub precision: Option<PrecisionReport>,
    /// What of it is in 8 bits.
    pub int8: Option<Int8Report>,
    /// How far its outputs lie from the source's.
    pub checks: Checks,
    /// What the passes did to each graph of the source.
    pub passes: Vec<GraphReport>,
    /// What is missing or uncertain of slots; `None` without [`CompileOptions::weights`] where nothing is to be said.
    pub named: Option<SlotReport>,
    /// With [`CompileOptions::tensorrt`]: the plans of each graph.
    pub plans: Vec<PlanReport>,
}

/// Compiles a bundle to an engine directory, or a single ONNX file to an engine file.
///
/// Weights are streamed from the source's memory map; private memory does not depend on their size. `output` appears
/// whole or not at all, and equal input gives equal bytes.
///
/// # Errors
/// [`ExportError`], naming graph, node and tensor.
pub fn compile(
    input: &Path,
    output: &Path,
    options: &CompileOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CompileReport, ExportError> {
    // Before anything else: it may be missing.
    let tensorrt = options.tensorrt.as_ref().map(|options| TensorRt::open(options, output)).transpose()?;
    let tensorrt = tensorrt.as_ref();
    if !input.is_dir() {
        probe_file(output).map_err(|source| EngineWriteError::Io { path: output.to_owned(), source })?;
        let graphs = vec![(graph_name(input), input.to_owned())];
        check_profile_inputs(&graphs, &options.profiles)?;
        let report = compile_component(None, &graphs, output, options, tensorrt, progress)?;
        return Ok(CompileReport { engines: vec![report] });
    }
    if options.weights.is_some() {
        let reason = "a bundle names its slots itself; leave --weights out, it is for a single ONNX file";
        return Err(ExportError::config(input.join(FILE_NAME), reason));
    }
    let mut pipeline = PipelineConfig::read(input).map_err(|e| ExportError::pipeline(input.join(FILE_NAME), e))?;
    if options.lora_rank.is_some() && !pipeline.components.contains_key(TRANSFORMER) {
        let reason = "it has no transformer, which alone can have low-rank branches; compile without --lora-rank";
        return Err(ExportError::config(input.join(FILE_NAME), reason));
    }
    if !options.profiles.is_empty() {
        let files = pipeline.components.values().filter_map(|files| match files {
            ComponentFiles::Graphs(bundle) => {
                Some(bundle.graphs.iter().map(|(name, file)| (name.clone(), input.join(file))))
            }
            ComponentFiles::Engine(_) => None,
        });
        check_profile_inputs(&files.flatten().collect::<Vec<_>>(), &options.profiles)?;
    }
    let dir = new_folder(output)?;
    let mut engines = Vec::new();
    for (name, files) in &mut pipeline.components {
        let ComponentFiles::Graphs(bundle) = &*files else {
            return Err(ExportError::config(
                input.join(FILE_NAME),
                format!("component `{name}` is an engine already; expected the output of v2l-export"),
            ));
        };
        let graphs: Vec<_> = bundle.graphs.iter().map(|(graph, file)| (graph.clone(), input.join(file))).collect();
        let file = format!("{name}.engine");
        // Adapters change the transformer only.
        let branches = name == TRANSFORMER;
        let lora_rank = options.lora_rank.filter(|_| branches);
        let mut options = CompileOptions { lora_rank, side_only: options.side_only && branches, ..options.clone() };
        if !branches {
            options.precision.adapters.clear();
        }
        let mut report = compile_component(Some(name), &graphs, &dir.path().join(&file), &options, tensorrt, progress)?;
        report.path = output.join(&file);
        engines.push(report);
        *files = ComponentFiles::Engine(EngineFiles { engine: file });
    }
    let checks: Vec<&Checks> = engines.iter().map(|engine: &EngineReport| &engine.checks).collect();
    let unserved: Vec<_> =
        engines.iter().filter_map(|engine| unserved(engine.precision.as_ref(), engine.int8.as_ref())).collect();
    check_served(options, &checks, &unserved)?;
    if let Some(tokenizer) = &pipeline.tokenizer {
        let from = input.join(&tokenizer.file);
        let bytes = read_file(&from, MAX_TOKENIZER).map_err(ExportError::io(from))?;
        dir.write(&tokenizer.file, &bytes).map_err(ExportError::io(output.join(&tokenizer.file)))?;
    }
    let text = serde_json::to_string_pretty(&pipeline).map_err(|e| ExportError::config(input, e.to_string()))?;
    dir.write(FILE_NAME, format!("{text}\n").as_bytes()).map_err(ExportError::io(output.join(FILE_NAME)))?;
    dir.commit().map_err(ExportError::io(output))?;
    Ok(CompileReport { engines })
}

/// Every input that a profile names must belong to a graph.
fn check_profile_inputs(graphs: &[(String, PathBuf)], profiles: &[Profile]) -> Result<(), ExportError> {
    let mut known: Vec<String> = Vec::new();
    for (_, path) in graphs.iter().filter(|_| !profiles.is_empty()) {
        let model = read_model(path, &ReadOptions { open: &|file| open_file(path, file) })?;
        known.extend(model.graph.inputs.into_iter().map(|input| input.name));
    }
    match profiles.iter().flat_map(Profile::keys).find(|name| !known.contains(name)) {
        Some(input) => Err(ExportError::ProfileInput { input: input.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

/// The inputs that change from step to step.
fn step_inputs(
    component: &str,
    models: &[(String, Model)],
    options: &CompileOptions,
) -> Result<Vec<String>, ExportError> {
    let Some(asked) = &options.step_inputs else {
        let known: &[&str] = if component == TRANSFORMER { &["hidden_states", "timestep"] } else { &[] };
        return Ok(known.iter().map(|&name| name.to_owned()).collect());
    };
    for (graph, model) in models {
        let inputs: Vec<&str> = model.graph.inputs.iter().map(|input| &input.name[..]).collect();
        if let Some(unknown) = asked.iter().find(|name| !inputs.contains(&&name[..])) {
            let reason = format!("it has no input `{unknown}` that --step-inputs names; it has {}", inputs.join(", "));
            return Err(ExportError::Graph { graph: graph.clone(), reason });
        }
    }
    Ok(asked.clone())
}

/// Refuses files of calibration and check that no graph takes.
fn check_served(
    options: &CompileOptions,
    checks: &[&Checks],
    unserved: &[&Vec<(PathBuf, String)>],
) -> Result<(), ExportError> {
    if let Some((path, reason)) = not_served(&options.precision.calibration, unserved)? {
        return Err(ExportError::Calibration { path, reason });
    }
    options.check.as_ref().map_or(Ok(()), |check| check_inputs_served(check, checks))
}

/// The calibration files that serve no graph of a component, if it was calibrated.
fn unserved<'a>(
    precision: Option<&'a PrecisionReport>,
    int8: Option<&'a Int8Report>,
) -> Option<&'a Vec<(PathBuf, String)>> {
    precision.map(|report| &report.unserved).or(int8.map(|report| &report.unserved))
}

fn graph_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| "graph".into(), |stem| stem.to_string_lossy().into_owned())
}

/// A graph as it was read and optimised, for any backend.
pub(crate) struct Prepared {
    pub(crate) model: Model,
    nodes_before: usize,
    fired: Report,
}

/// Reads a graph, checks it, brings it to f32, holds it to the profiles and optimises it. `output` may be none of its files.
pub(crate) fn prepare(
    graph: &str,
    path: &Path,
    output: Option<&Path>,
    options: &CompileOptions,
) -> Result<Prepared, ExportError> {
    let output = output.and_then(|output| output.canonicalize().ok());
    let open = |file: &Path| match &output {
        Some(output) if file.canonicalize().is_ok_and(|file| file == *output) => {
            let message = "the engine would replace it; write the engine to another path";
            Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, message))
        }
        _ => open_file(path, file),
    };
    let mut model = read_model(path, &ReadOptions { open: &open })?;
    let label = path.display().to_string();
    if let [first, rest @ ..] = &v2l_graphs::check::unsupported_operators(&model)[..] {
        let others: Vec<&str> = rest.iter().map(|o| o.op_type.as_str()).collect();
        let others = if others.is_empty() { String::new() } else { format!("; nor are {}", others.join(", ")) };
        return Err(ExportError::Unsupported {
            what: format!("{label}: node `{}`: operator {}", first.node, first.op_type),
            reason: format!("{}{others}", first.way_out),
        });
    }
    let pass = |e: PassError| ExportError::Graph { graph: label.clone(), reason: e.to_string() };
    sort_topologically(&mut model).map_err(pass)?;
    check_graph(&label, &model)?;
    raise_precision(&mut model);
    let nodes_before = model.graph.nodes.len();
    lower_logic(&mut model);
    profiles::apply(&options.profiles, graph, &mut model)?;
    let fired = optimize_with(&mut model, &options.passes).map_err(pass)?;
    infer_shapes(&mut model);
    check_graph(&label, &model)?;
    Ok(Prepared { model, nodes_before, fired })
}

fn compile_component(
    name: Option<&str>,
    graphs: &[(String, PathBuf)],
    output: &Path,
    options: &CompileOptions,
    tensorrt: Option<&TensorRt<'_>>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EngineReport, ExportError> {
    let (mut models, mut reports) = (Vec::new(), HashMap::new());
    let mut made_from = IndexMap::new();
    for (graph, path) in graphs {
        let Prepared { model, nodes_before, fired } = prepare(graph, path, Some(output), options)?;
        reports.insert(graph.clone(), (nodes_before, fired));
        let bytes = map_file(path).map_err(ExportError::io(path))?;
        made_from.insert(format!("{graph}.onnx"), format!("blake3:{}", blake3::hash(&bytes).to_hex()));
        models.push((graph.clone(), model));
    }
    let facts = |key: &str| models.iter().find_map(|(_, m)| m.metadata.get(key));
    let component = match name.or(facts(metadata::COMPONENT).map(String::as_str)) {
        Some(name) => name.to_owned(),
        None => graph_name(&graphs[0].1),
    };
    let attributes: Json =
        facts(metadata::ATTRIBUTES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let checkpoint = options.weights.as_deref().map(open_checkpoint).transpose()?;
    let Discovered { slots, absent, report: named } = slots(&mut models, checkpoint.as_ref())?;
    let layers = Layers { slots: &slots, absent: &absent };
    let side = options.lora_rank.map_or_else(|| Ok(Vec::new()), |_| side_variants(&models, &slots))?;
    if options.lora_rank.is_some() && side.is_empty() {
        let reason = "it has no linear layer that a low-rank branch could stand beside; compile without --lora-rank";
        return Err(ExportError::config(&graphs[0].1, reason));
    }
    let replaced = |graph: &str| options.side_only && side.iter().any(|(of, _)| of == graph);
    // A predictor's tensors are read by name, and what it predicts is what 8 bits would be corrected with.
    let int8_block = options.int8.filter(|_| component != HYPERNETWORK);
    let plans = options.precision.request.is_some() || options.precision.plan.is_some();
    if (plans && int8_block.is_none()) || (int8_block.is_some() && options.precision.accuracy_target.is_some()) {
        progress(Progress::Calibrating { name: &component });
    }
    let precision = precision_options(&models, options);
    let mut int8 = int8_block.map_or_else(Int8::default, |block| Int8::new(block, models.iter().chain(&side)));
    let int8_report = match int8.is_used() {
        true => Some(int8.fit(&component, &models, &precision)?),
        false => None,
    };
    let planned = match int8_block {
        Some(_) => None,
        None => plan_component(&component, &models, layers, &precision, options.check.as_ref())?,
    };
    let mut stored: Vec<(String, Model)> =
        models.iter().filter(|(graph, _)| !replaced(graph)).map(|m| int8.quantized(m)).collect();
    let stored_plain = stored.len();
    stored.extend(side.iter().map(|m| int8.quantized(m)));
    let matrices = planned.as_ref().map_or_else(BTreeMap::new, |planned| planned.storage.clone());
    let weights = plan_weights(stored.iter(), options.storage, &matrices)?;
    let storage = matrix_type(&weights);
    let mut blobs = Vec::new();
    let mut compiled = Vec::new();
    let step = step_inputs(&component, &models, options)?;
    let (mut passes, mut plans) = (Vec::new(), Vec::new());
    for (index, (graph, whole)) in stored.into_iter().enumerate() {
        let lora_rank = options.lora_rank.filter(|_| index >= stored_plain);
        let name = if index >= stored_plain { format!("{graph}{SIDE_SUFFIX}") } else { graph.clone() };
        let profiles = profiles::of_graph(&options.profiles, &whole);
        let types = planned.as_ref().and_then(|planned| {
            let types = planned.types.get(&graph)?;
            let base = models.iter().find(|(name, _)| *name == graph)?;
            Some(if lora_rank.is_some() { side_types(&base.1, types, &whole) } else { types.clone() })
        });
        // TensorRT takes the typed graph only.
        let types = types.or_else(|| tensorrt.map(|_| vec![DataType::Float; whole.graph.nodes.len()]));
        let mut model = whole.clone();
        let lowered = lower_for_ort(&mut model, &options.passes);
        let mut main = model.clone();
        let hoisted = hoist(&mut main, &step, &options.passes);
        check_graph(&name, &main)?;
        // The typed graph is whole and keeps ONNX's own operators: backends that take it know no others.
        let typed = types.as_ref().map(|types| typed_variant(&name, &whole, types, &weights)).transpose()?;
        let described = compile_graph(&name, (&main, &model), typed.as_ref(), &weights, &mut blobs)?;
        let mut described = compile_stages(&model, described, &hoisted, &weights, &mut blobs)?;
        if let (Some(tensorrt), Some(typed)) = (tensorrt, &typed) {
            described.backend = tensorrt.backend().into();
            let of_one_rank = lora_rank.map(|rank| tensorrt::of_one_rank(&typed.model, rank));
            let subject = (&component[..], &name[..], of_one_rank.as_ref().unwrap_or(&typed.model));
            for built in tensorrt.build(subject, &profiles, &slots, &weights, progress)? {
                described.files.plans.push(built.plan);
                blobs.push(built.blob);
                plans.push(built.report);
            }
            if let (Some(check), Some(types)) = (&options.check, &types) {
                progress(Progress::Checking { name: &component });
                match tensorrt::probe((&name, &whole, types), &weights, &profiles, lora_rank, check)? {
                    Ok((probe, blob)) => {
                        described.probe = Some(probe);
                        blobs.push(blob);
                    }
                    Err(reason) => plans.iter_mut().filter(|plan| plan.graph == name).for_each(|plan| {
                        plan.warnings.push(format!("its weights cannot be verified when they are set: {reason}"));
                    }),
                }
            }
        }
        if let Some((nodes_before, fired)) = reports.get(&graph).filter(|_| lora_rank.is_none() || replaced(&graph)) {
            let mut report = GraphReport::new(&graph, *nodes_before, fired, lowered);
            report.store(&main, &described, &weights);
            passes.push(report);
        }
        compiled.push(Graph { profiles, lora_rank, ..described });
    }
    let precision = planned.map(|planned| planned.report);
    if let Some(report) = &precision {
        let data = bytes::Bytes::from(report.plan.to_text());
        blobs.push(EngineBlob { name: PRECISION_PLAN.into(), data });
    }
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        component: component.clone(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        made_from,
        storage,
        graphs: compiled,
        slots: int8.slots(slots.clone()),
        absent: absent.clone(),
        attributes,
        tensors: IndexMap::new(),
    };
    let total = weights.values().map(|w| w.data.len() as u64).sum();
    progress(Progress::Component { name: &component, bytes: total });
    let types: HashMap<String, DataType> = weights.iter().map(|(n, w)| (n.clone(), from_runtime(w.dtype))).collect();
    let stored: Vec<EngineWeight<'_>> = weights
        .into_iter()
        .map(|(name, w)| EngineWeight { name, dtype: w.dtype, shape: w.shape, source: Box::new(Streamed(w.data)) })
        .collect();
    let staged = stage_engine(output, manifest, &stored, &blobs, &mut |bytes| progress(Progress::Written { bytes }))?;
    let checks = match &options.check {
        Some(check) => {
            progress(Progress::Checking { name: &component });
            int8.restore(&mut models);
            let pairs = models.iter().zip(graphs);
            let (int8, passes) = (int8.is_used(), &options.passes);
            let sources: Vec<Source<'_>> = pairs
                .map(|((graph, model), (_, path))| Source { graph, path, prepared: model, passes, slots: &slots, int8 })
                .collect();
            let stored = |name: &str| types.get(name).copied().unwrap_or(DataType::Float);
            check_engine(staged.path(), &component, &sources, &stored, check)?
        }
        None => Checks::default(),
    };
    if name.is_none() {
        let unserved: Vec<_> = unserved(precision.as_ref(), int8_report.as_ref()).into_iter().collect();
        check_served(options, &[&checks], &unserved)?;
    }
    let manifest = staged.commit()?;
    Ok(EngineReport {
        component,
        path: output.to_owned(),
        bytes: std::fs::metadata(output).map_err(ExportError::io(output))?.len(),
        storage,
        graphs: manifest.graphs.iter().map(|graph| graph.name.clone()).collect(),
        slots: manifest.slots.len(),
        precision,
        int8: int8_report,
        checks,
        passes,
        named: (checkpoint.is_some() || named != SlotReport::default()).then_some(named),
        plans,
    })
}

/// How to decide types. A TensorRT plan computes in the type that the matrices are stored in, unless something else is asked for.
fn precision_options(models: &[(String, Model)], options: &CompileOptions) -> PrecisionOptions {
    let mut precision = options.precision.clone();
    if options.tensorrt.is_some() && precision.request.is_none() && precision.plan.is_none() {
        let storage = options.storage.map_or_else(|| source_type(models), from_runtime);
        precision.request = Some(match storage {
            DataType::Float16 => Request::Fp16,
            DataType::Bfloat16 => Request::Bf16,
            _ => Request::Fp32,
        });
    }
    precision
}

fn open_checkpoint(path: &Path) -> Result<Checkpoint, ExportError> {
    if path.is_dir() { Checkpoint::open_folder(path) } else { Checkpoint::open_file(path) }
}
