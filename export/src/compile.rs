//! ONNX graphs to an engine: one component per file, weights once, graphs without weights.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::Value as Json;
use v2l_graphs::passes::{SideSlot, add_side_branches};
use v2l_graphs::{
    Attribute, DataType, Dim, Initializer, Location, Model, Node, ReadOptions, TensorData, ValueInfo, encode_model,
    raise_precision, read_model,
};
use v2l_runtime::engine::manifest::{FORMAT_VERSION, Graph, GraphFiles, Manifest, WEIGHTS_PLACEHOLDER};
use v2l_runtime::engine::manifest::{RESERVED_PREFIX, SIDE_SUFFIX, Slot};
use v2l_runtime::map::map_file;
use v2l_runtime::pipeline::TRANSFORMER;
use v2l_runtime::pipeline::config::{ComponentFiles, EngineFiles, FILE_NAME, PipelineConfig};
use v2l_runtime::session::{self, Port};
use v2l_runtime::tensor::Dtype;

use crate::atomic_dir::AtomicDir;
use crate::engine_writer::{EngineBlob, EngineWeight, WeightSource, write_engine};
use crate::{ExportError, Progress, check_graph, metadata};

/// How to compile.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Type in which matrices are stored; `None` keeps the one that the model stores them in. Vectors (biases, norm
    /// scales) always keep theirs.
    pub storage: Option<Dtype>,
    /// Largest sum of ranks of a layer for which a variant of each graph takes LoRA factors as inputs; `None`: no such
    /// variant. It is called as the graph with `.side` behind, shares the weights, and only graphs with slots have one; of a
    /// bundle, only the transformer's.
    pub lora_rank: Option<usize>,
    /// Leave out the graphs without a branch where there is one with: adapters can then only be given as inputs.
    pub side_only: bool,
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
    if !input.is_dir() {
        let graphs = vec![(graph_name(input), input.to_owned())];
        let report = compile_component(None, &graphs, output, options, progress)?;
        return Ok(CompileReport { engines: vec![report] });
    }
    let mut pipeline =
        PipelineConfig::read(input).map_err(|e| ExportError::config(input.join(FILE_NAME), e.to_string()))?;
    if options.lora_rank.is_some() && !pipeline.components.contains_key(TRANSFORMER) {
        let reason = "it has no transformer, which alone can have low-rank branches; compile without --lora-rank";
        return Err(ExportError::config(input.join(FILE_NAME), reason));
    }
    let dir = AtomicDir::create(output)?;
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
        let options = CompileOptions { lora_rank, side_only: options.side_only && branches, ..options.clone() };
        let mut report = compile_component(Some(name), &graphs, &dir.path().join(&file), &options, progress)?;
        report.path = output.join(&file);
        engines.push(report);
        *files = ComponentFiles::Engine(EngineFiles { engine: file });
    }
    if let Some(tokenizer) = &pipeline.tokenizer {
        let (from, to) = (input.join(&tokenizer.file), dir.path().join(&tokenizer.file));
        std::fs::copy(&from, to).map_err(ExportError::io(from))?;
    }
    let text = serde_json::to_string_pretty(&pipeline).map_err(|e| ExportError::config(input, e.to_string()))?;
    let path = dir.path().join(FILE_NAME);
    std::fs::write(&path, format!("{text}\n")).map_err(ExportError::io(&path))?;
    dir.commit()?;
    Ok(CompileReport { engines })
}

fn graph_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| "graph".into(), |stem| stem.to_string_lossy().into_owned())
}

fn compile_component(
    name: Option<&str>,
    graphs: &[(String, PathBuf)],
    output: &Path,
    options: &CompileOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EngineReport, ExportError> {
    let mut models = Vec::new();
    let mut made_from = IndexMap::new();
    for (graph, path) in graphs {
        let mut model = read_model(path, &ReadOptions { open: &|path| map_file(path) })?;
        let label = path.display().to_string();
        check_graph(&label, &model)?;
        raise_precision(&mut model);
        v2l_graphs::passes::optimize(&mut model)
            .map_err(|e| ExportError::Graph { graph: label.clone(), reason: e.to_string() })?;
        v2l_graphs::passes::infer_shapes(&mut model);
        check_graph(&label, &model)?;
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
    let slots = slots(&models)?;
    let side = options.lora_rank.map_or_else(|| Ok(Vec::new()), |_| side_variants(&models, &slots))?;
    if options.side_only {
        models.retain(|(graph, _)| !side.iter().any(|(of, _)| of == graph));
    }
    let weights = plan_weights(models.iter().chain(&side), options)?;
    let storage = matrix_type(&weights);
    let mut blobs = Vec::new();
    let mut compiled = Vec::new();
    for (graph, model) in &models {
        compiled.push(compile_graph(graph, model, &weights, &mut blobs)?);
    }
    for (graph, model) in &side {
        let graph = compile_graph(&format!("{graph}{SIDE_SUFFIX}"), model, &weights, &mut blobs)?;
        compiled.push(Graph { lora_rank: options.lora_rank, ..graph });
    }
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        component: component.clone(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        made_from,
        storage,
        graphs: compiled,
        slots,
        attributes,
        tensors: IndexMap::new(),
    };
    let total = weights.values().map(|w| w.data.len() as u64).sum();
    progress(Progress::Component { name: &component, bytes: total });
    let sources: Vec<EngineWeight<'_>> = weights
        .into_iter()
        .map(|(name, w)| EngineWeight { name, dtype: w.dtype, shape: w.shape, source: Box::new(Streamed(w.data)) })
        .collect();
    let manifest =
        write_engine(output, manifest, &sources, &blobs, &mut |bytes| progress(Progress::Written { bytes }))?;
    Ok(EngineReport {
        component,
        path: output.to_owned(),
        bytes: std::fs::metadata(output).map_err(ExportError::io(output))?.len(),
        storage,
        graphs: manifest.graphs.iter().map(|graph| graph.name.clone()).collect(),
        slots: manifest.slots.len(),
    })
}

/// For each graph that reads a slot's weight, the variant with low-rank branches.
fn side_variants(models: &[(String, Model)], slots: &[Slot]) -> Result<Vec<(String, Model)>, ExportError> {
    let mut variants = Vec::new();
    for (graph, model) in models {
        let fail = |reason: String| ExportError::Graph { graph: graph.clone(), reason };
        let mut sides = Vec::new();
        for slot in slots {
            let Some(weight) = model.graph.initializers.get(&slot.tensor) else { continue };
            let range = slot.row_range();
            let total_rows = weight.shape.get(usize::from(slot.transposed)).copied();
            sides.push(SideSlot {
                name: slot.name.clone(),
                tensor: slot.tensor.clone(),
                rows: (range.start, range.end),
                total_rows: total_rows.ok_or_else(|| fail(format!("`{}` is no matrix", slot.tensor)))?,
                in_features: slot.in_features,
                transposed: slot.transposed,
            });
        }
        if sides.is_empty() {
            continue;
        }
        let mut variant = model.clone();
        add_side_branches(&mut variant, &sides).map_err(|e| fail(e.to_string()))?;
        v2l_graphs::passes::infer_shapes(&mut variant);
        check_graph(graph, &variant)?;
        variants.push((graph.clone(), variant));
    }
    Ok(variants)
}

/// Weight bytes as an engine source.
struct Streamed(TensorData);

impl WeightSource for Streamed {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_to(out)
    }
}

/// One weight as it will be stored.
struct StoredWeight {
    dtype: Dtype,
    shape: Vec<usize>,
    data: TensorData,
}

/// The union of the graphs' weights, each in its storage type.
fn plan_weights<'a>(
    models: impl Iterator<Item = &'a (String, Model)>,
    options: &CompileOptions,
) -> Result<BTreeMap<String, StoredWeight>, ExportError> {
    let mut union: BTreeMap<&str, (&str, &Initializer)> = BTreeMap::new();
    for (graph, model) in models {
        for (name, weight) in model.graph.initializers.iter().filter(|(_, w)| w.external) {
            let fail = |reason: String| Err(ExportError::Graph { graph: graph.clone(), reason });
            if name.starts_with(RESERVED_PREFIX) {
                return fail(format!(
                    "weight `{name}`: names under `{RESERVED_PREFIX}` are the engine's own; rename it"
                ));
            }
            match union.get(name.as_str()) {
                Some((other, known)) if (known.dtype, &known.shape) != (weight.dtype, &weight.shape) => {
                    return fail(format!(
                        "weight `{name}` is {} {:?}, but {} {:?} in graph `{other}`; \
                         graphs of one component share their weights",
                        weight.dtype, weight.shape, known.dtype, known.shape
                    ));
                }
                Some(_) => {}
                None => drop(union.insert(name, (graph, weight))),
            }
        }
    }
    let kept = kept_type(union.values().map(|(_, w)| *w));
    let matrix_type = options.storage.map_or(kept, from_runtime);
    union
        .into_iter()
        .map(|(name, (graph, weight))| {
            let own = weight.data.widened_from().filter(|t| *t != DataType::Double).unwrap_or(weight.dtype);
            let target = if weight.dtype == DataType::Float && weight.shape.len() >= 2 { matrix_type } else { own };
            let data = weight.data.clone().converted(weight.dtype, target);
            let dtype = to_runtime(target).ok_or_else(|| ExportError::Unsupported {
                what: format!("{graph}: weight `{name}` of type {target}"),
                reason: "float32, float16, bfloat16, int64, int32, uint8 and bool are".into(),
            })?;
            Ok((name.to_owned(), StoredWeight { dtype, shape: weight.shape.clone(), data }))
        })
        .collect()
}

/// The type in which the matrices of the source lose nothing: f16 or bf16 if all have that type, else f32.
fn kept_type<'a>(weights: impl Iterator<Item = &'a Initializer>) -> DataType {
    let mut types = weights
        .filter(|w| w.dtype == DataType::Float && w.shape.len() >= 2)
        .map(|w| w.data.widened_from().filter(|t| t.size() == 2).unwrap_or(DataType::Float));
    match types.next() {
        Some(first) if types.all(|t| t == first) => first,
        _ => DataType::Float,
    }
}

/// The storage type of the matrices, f32 if there are none.
fn matrix_type(weights: &BTreeMap<String, StoredWeight>) -> Dtype {
    weights.values().find(|w| w.shape.len() >= 2 && w.dtype.is_float()).map_or(Dtype::F32, |w| w.dtype)
}

/// Stores the graph's two variants and describes it.
fn compile_graph(
    name: &str,
    model: &Model,
    weights: &BTreeMap<String, StoredWeight>,
    blobs: &mut Vec<EngineBlob>,
) -> Result<Graph, ExportError> {
    let mut store = |variant: &str, model: &Model| -> Result<String, ExportError> {
        let file = format!("{RESERVED_PREFIX}graphs/{name}/{variant}.onnx");
        // Every weight arrives through an override; the placeholder file is empty.
        let location = |weight: &str| {
            let value = model.graph.initializers.get(weight)?;
            let length = value.expected_len()? as u64;
            Some(Location { file: WEIGHTS_PLACEHOLDER.into(), offset: 0, length })
        };
        let bytes = encode_model(model, &location).map_err(ExportError::io(&file))?;
        blobs.push(EngineBlob { name: file.clone(), data: Bytes::from(bytes) });
        Ok(file)
    };
    let used: Vec<String> =
        model.graph.initializers.iter().filter(|(_, w)| w.external).map(|(name, _)| name.clone()).collect();
    let narrow = used.iter().any(|w| matches!(weights[w].dtype, Dtype::F16 | Dtype::Bf16));
    let widened = store("widened", model)?;
    let lazy = if narrow { Some(store("lazy", &lazy_variant(model, weights))?) } else { None };
    Ok(Graph {
        name: name.to_owned(),
        backend: "ort".into(),
        precision: "fp32".into(),
        inputs: ports(name, &model.graph.inputs)?,
        outputs: ports(name, &model.graph.outputs)?,
        weights: used,
        files: GraphFiles { widened, lazy },
        profiles: Vec::new(),
        lora_rank: None,
    })
}

/// The graph whose narrow weights keep their storage type, each behind one Cast to float32.
fn lazy_variant(model: &Model, weights: &BTreeMap<String, StoredWeight>) -> Model {
    let mut model = model.clone();
    let mut casts = Vec::new();
    for (name, value) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external) {
        let stored = from_runtime(weights[name].dtype);
        if stored == value.dtype {
            continue;
        }
        value.data = value.data.clone().converted(value.dtype, stored);
        value.dtype = stored;
        casts.push(name.clone());
    }
    let widened = |name: &str| format!("{name}.float32");
    for node in &mut model.graph.nodes {
        for input in node.inputs.iter_mut().filter(|i| casts.contains(i)) {
            *input = widened(input);
        }
    }
    let nodes = casts.iter().map(|name| Node {
        name: format!("{name}/Cast"),
        op_type: "Cast".into(),
        inputs: vec![name.clone()],
        outputs: vec![widened(name)],
        attributes: [("to".to_owned(), Attribute::Int(DataType::Float.onnx().into()))].into_iter().collect(),
        ..Node::default()
    });
    model.graph.nodes.splice(0..0, nodes.collect::<Vec<_>>());
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}

/// Slots of the models' metadata; for a graph from elsewhere, each matrix that feeds a MatMul or Gemm directly.
pub(crate) fn slots(models: &[(String, Model)]) -> Result<Vec<Slot>, ExportError> {
    let mut slots: Vec<Slot> = Vec::new();
    for (graph, model) in models {
        let found: Vec<Slot> = match model.metadata.get(metadata::SLOTS) {
            Some(text) => serde_json::from_str(text).map_err(|e| ExportError::Graph {
                graph: graph.clone(),
                reason: format!("metadata `{}`: {e}", metadata::SLOTS),
            })?,
            None => v2l_graphs::check::linear_weights(&model.graph)
                .into_iter()
                .map(|w| Slot {
                    transposed: w.transposed,
                    tensor: w.name.clone(),
                    ..Slot::linear(w.name.strip_suffix(".weight").unwrap_or(&w.name), w.out_features, w.in_features)
                })
                .collect(),
        };
        for slot in found {
            if !slots.iter().any(|s| s.name == slot.name) {
                slots.push(slot);
            }
        }
        let names: Vec<&str> = slots.iter().map(|s| s.tensor.as_str()).collect();
        let present: Vec<&str> = names.into_iter().filter(|n| model.graph.initializers.contains_key(*n)).collect();
        if let Err(findings) = v2l_graphs::check::check_slots(&model.graph, &present) {
            let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
            return Err(ExportError::Graph { graph: graph.clone(), reason: lines.join("; ") });
        }
    }
    Ok(slots)
}

fn ports(graph: &str, infos: &[ValueInfo]) -> Result<Vec<Port>, ExportError> {
    infos
        .iter()
        .map(|info| {
            let ty = info.ty.as_ref();
            let dtype = ty.and_then(|t| to_runtime(t.dtype));
            let (Some(dtype), Some(shape)) = (dtype, ty.and_then(|t| t.shape.as_ref())) else {
                return Err(ExportError::Graph {
                    graph: graph.to_owned(),
                    reason: format!(
                        "`{}` is no tensor of a supported type and known rank; run shape inference on the model first",
                        info.name
                    ),
                });
            };
            let dim = |(axis, d): (usize, &Dim)| match d {
                Dim::Fixed(n) => session::Dim::Fixed(*n),
                Dim::Symbol(s) => session::Dim::Symbol(s.clone()),
                Dim::Unknown => session::Dim::Symbol(format!("{}.{axis}", info.name)),
            };
            Ok(Port { name: info.name.clone(), dtype, shape: shape.iter().enumerate().map(dim).collect() })
        })
        .collect()
}

fn to_runtime(dtype: DataType) -> Option<Dtype> {
    Some(match dtype {
        DataType::Float => Dtype::F32,
        DataType::Float16 => Dtype::F16,
        DataType::Bfloat16 => Dtype::Bf16,
        DataType::Int64 => Dtype::I64,
        DataType::Int32 => Dtype::I32,
        DataType::Uint8 => Dtype::U8,
        DataType::Bool => Dtype::Bool,
        _ => return None,
    })
}

fn from_runtime(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F32 => DataType::Float,
        Dtype::F16 => DataType::Float16,
        Dtype::Bf16 => DataType::Bfloat16,
        Dtype::I64 => DataType::Int64,
        Dtype::I32 => DataType::Int32,
        Dtype::U8 => DataType::Uint8,
        Dtype::Bool => DataType::Bool,
    }
}
