//! ONNX Runtime: graphs in f32 over weights as they are stored, without what is computed once for several steps.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use v2l_calibration::Request;
use v2l_graphs::passes::{
    LoweredForOpenVino, Precomputed, flops_per_row, infer_shapes, lower_for_openvino, lower_for_ort, precompute,
};
use v2l_graphs::{DataType, Location, Model, apply_precision, encode_model};
use v2l_runtime::engine::footprint::{Extent, Footprint, Footprints};
use v2l_runtime::engine::manifest::{
    Graph, GraphFiles, OpenVinoGraph, PrecomputedGraphs, RESERVED_PREFIX, TimestepRows, TypedGraph, WEIGHTS_PLACEHOLDER,
};
use v2l_runtime::tensor::Dtype;

use super::target::{CompiledGraph, GraphCompiler, GraphTask, Target};
use crate::compile::weights::StoredWeight;
use crate::engine_writer::EngineBlob;
use crate::files::check_graph;
use crate::precision::arithmetic;
use crate::stored::stored_variant;
use crate::types::{from_runtime, ports};
use crate::{ExportError, Progress};

/// ONNX Runtime. It has no options.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnnxRuntime;

impl Target for OnnxRuntime {
    fn backend(&self) -> &'static str {
        "ort"
    }

    fn takes_int8(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, _: &Path) -> Result<Box<dyn GraphCompiler + 'a>, ExportError> {
        Ok(Box::new(Self))
    }
}

impl GraphCompiler for OnnxRuntime {
    fn native_types(&self, _: DataType) -> Option<Request> {
        None
    }

    fn compile(&self, task: &GraphTask<'_>, _: &mut dyn FnMut(Progress<'_>)) -> Result<CompiledGraph, ExportError> {
        Ok(forms(task, Forms::Onnx)?.0)
    }
}

/// Which forms of a graph are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forms {
    /// Those that every engine has.
    Onnx,
    /// That for OpenVINO besides.
    WithOpenVino,
}

/// The ONNX forms of a graph, and its strongly typed form if its nodes have types.
pub(crate) fn forms(task: &GraphTask<'_>, wanted: Forms) -> Result<(CompiledGraph, Option<Model>), ExportError> {
    let &GraphTask { name, whole, weights, .. } = task;
    let mut model = whole.clone();
    let lowered = lower_for_ort(&mut model, task.passes);
    let mut main = model.clone();
    let precomputed = precompute(&mut main, task.step, task.passes);
    check_graph(name, &main)?;
    // The typed graph is whole and keeps ONNX's own operators: backends that take it know no others.
    let typed = task.types.map(|types| typed_variant(name, whole, types, weights)).transpose()?;
    let mut blobs = Vec::new();
    let mut store = Store { weights, wanted, blobs: &mut blobs };
    let graph = store.graph(name, (&main, &model), typed.as_ref())?;
    let graph = store.precomputed(&model, graph, &precomputed)?;
    let nodes = main.graph.nodes.len();
    let precompute_flops =
        precomputed.precompute.as_ref().map(|precompute| flops_per_row(&precompute.graph)).unwrap_or_default();
    let compiled = CompiledGraph { graph, blobs, plans: Vec::new(), nodes, lowered, precompute_flops };
    Ok((compiled, typed.map(|typed| typed.model)))
}

/// A graph in which every node has a type of its own.
struct StronglyTyped {
    model: Model,
    /// `fp32`, `fp16`, `bf16` or `mixed`.
    arithmetic: &'static str,
}

/// The strongly typed variant of a whole graph, its weights in their storage types.
fn typed_variant(
    name: &str,
    whole: &Model,
    types: &[DataType],
    weights: &BTreeMap<String, StoredWeight>,
) -> Result<StronglyTyped, ExportError> {
    let mut model = whole.clone();
    apply_precision(&mut model, types, &|name, _| from_runtime(weights[name].dtype));
    infer_shapes(&mut model);
    check_graph(name, &model)?;
    Ok(StronglyTyped { model, arithmetic: arithmetic(types) })
}

/// A graph's bytes without its weights: every one arrives through an override, and the placeholder file is empty.
pub(super) fn encode_weightless(file: &str, model: &Model) -> Result<Vec<u8>, ExportError> {
    let location = |weight: &str| {
        let value = model.graph.initializers.get(weight)?;
        let length = value.expected_len()? as u64;
        Some(Location { file: WEIGHTS_PLACEHOLDER.into(), offset: 0, length })
    };
    encode_model(model, &location).map_err(ExportError::io(file))
}

/// Stores graphs over these weights.
struct Store<'a> {
    weights: &'a BTreeMap<String, StoredWeight>,
    wanted: Forms,
    blobs: &'a mut Vec<EngineBlob>,
}

impl Store<'_> {
    fn variant(&mut self, graph: &str, variant: &str, model: &Model) -> Result<String, ExportError> {
        let file = format!("{RESERVED_PREFIX}graphs/{graph}/{variant}.onnx");
        let data = Bytes::from(encode_weightless(&file, model)?);
        self.blobs.push(EngineBlob { name: file.clone(), data });
        Ok(file)
    }

    /// Stores the form for OpenVINO of a graph whose weights have their storage types.
    fn openvino(&mut self, graph: &str, stored: &Model) -> Result<OpenVinoGraph, ExportError> {
        let mut model = stored.clone();
        let lowered = lower_for_openvino(&mut model)
            .map_err(|source| ExportError::OpenVino { graph: graph.to_owned(), source })?;
        check_graph(graph, &model)?;
        let LoweredForOpenVino { weights, constants, .. } = lowered;
        Ok(OpenVinoGraph { file: self.variant(graph, "openvino", &model)?, weights, constants })
    }

    /// Stores the graph's variants and describes it; `whole` is the graph before others were taken out of it.
    fn graph(
        &mut self,
        name: &str,
        (model, whole): (&Model, &Model),
        typed: Option<&StronglyTyped>,
    ) -> Result<Graph, ExportError> {
        let used = external(model);
        let mut footprint = Footprints { f32: footprint_of(model, whole), stored: None };
        let weights = self.weights;
        let narrow = used.iter().any(|w| matches!(weights[w].dtype, Dtype::F16 | Dtype::Bf16));
        let stored_model = narrow.then(|| stored_variant(model, &|name| from_runtime(weights[name].dtype)));
        let f32 = self.variant(name, "f32", model)?;
        let stored = match &stored_model {
            Some(stored) => {
                footprint.stored = Some(footprint_of(stored, whole));
                Some(self.variant(name, "stored", stored)?)
            }
            None => None,
        };
        let arithmetic = typed.map_or("fp32", |typed| typed.arithmetic);
        let typed = match typed {
            Some(StronglyTyped { model, .. }) => {
                Some(TypedGraph { file: self.variant(name, "typed", model)?, weights: external(model) })
            }
            None => None,
        };
        let openvino = match self.wanted {
            Forms::Onnx => None,
            Forms::WithOpenVino => Some(self.openvino(name, stored_model.as_ref().unwrap_or(model))?),
        };
        Ok(Graph {
            name: name.to_owned(),
            backend: "ort".into(),
            precision: arithmetic.into(),
            inputs: ports(name, &model.graph.inputs)?,
            outputs: ports(name, &model.graph.outputs)?,
            weights: used,
            files: GraphFiles { f32, stored, typed, openvino, plans: Vec::new() },
            profiles: Vec::new(),
            lora_rank: None,
            precomputed: None,
            footprint,
            probe: None,
        })
    }

    /// Stores what was taken out of a graph to be precomputed; `whole` is the graph before.
    fn precomputed(&mut self, whole: &Model, main: Graph, precomputed: &Precomputed) -> Result<Graph, ExportError> {
        if precomputed.precompute.is_none() && precomputed.timestep_rows.is_none() {
            return Ok(main);
        }
        let mut part = |suffix: &str, model: &Model| -> Result<Box<Graph>, ExportError> {
            let name = format!("{}.{suffix}", main.name);
            check_graph(&name, model)?;
            self.graph(&name, (model, whole), None).map(Box::new)
        };
        let precompute = precomputed.precompute.as_ref().map(|model| part("precompute", model)).transpose()?;
        let timestep_rows = match &precomputed.timestep_rows {
            Some(rows) => Some(TimestepRows { graph: part("timestep_rows", &rows.model)?, rows: rows.rows.clone() }),
            None => None,
        };
        let inputs = ports(&main.name, &whole.graph.inputs)?;
        let precomputed = PrecomputedGraphs { inputs: main.inputs, precompute, timestep_rows };
        Ok(Graph { inputs, precomputed: Some(precomputed), ..main })
    }
}

/// A graph's footprint in the runtime's words.
fn footprint_of(model: &Model, whole: &Model) -> Footprint {
    let found = v2l_graphs::passes::footprint(model, whole);
    let extent = |extent| match extent {
        v2l_graphs::passes::Extent::Input(name) => Extent::Input(name),
        v2l_graphs::passes::Extent::Open => Extent::Open,
        v2l_graphs::passes::Extent::Quotient(a, n) => Extent::Quotient(a, n),
        v2l_graphs::passes::Extent::Remainder(a, n) => Extent::Remainder(a, n),
        v2l_graphs::passes::Extent::Larger(a, b) => Extent::Larger(a, b),
        v2l_graphs::passes::Extent::Smaller(a, b) => Extent::Smaller(a, b),
    };
    Footprint {
        extents: found.extents.into_iter().map(extent).collect(),
        peaks: found.peaks,
        outputs: found.outputs,
        unknown: found.unknown,
    }
}

/// The weights of a model that come from elsewhere.
fn external(model: &Model) -> Vec<String> {
    model.graph.initializers.iter().filter(|(_, w)| w.external).map(|(name, _)| name.clone()).collect()
}
