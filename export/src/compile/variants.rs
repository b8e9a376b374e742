//! The variants of a graph that an engine stores.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use v2l_graphs::passes::{Hoisted, SideSlot, add_side_branches, rename_uses};
use v2l_graphs::{Attribute, DataType, Location, Model, Node, apply_precision, encode_model};
use v2l_runtime::engine::footprint::{Extent, Footprint, Footprints};
use v2l_runtime::engine::manifest::{
    Graph, GraphFiles, RESERVED_PREFIX, Slot, Stages, Times, TypedGraph, WEIGHTS_PLACEHOLDER,
};
use v2l_runtime::tensor::Dtype;

use super::types::{from_runtime, ports};
use super::weights::StoredWeight;
use crate::ExportError;
use crate::engine_writer::EngineBlob;
use crate::files::check_graph;
use crate::precision::arithmetic;

/// For each graph that reads a slot's weight, the variant with low-rank branches.
pub(super) fn side_variants(models: &[(String, Model)], slots: &[Slot]) -> Result<Vec<(String, Model)>, ExportError> {
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

/// A graph in which every node has a type of its own.
pub(super) struct Typed {
    pub(super) model: Model,
    /// `fp32`, `fp16`, `bf16` or `mixed`.
    arithmetic: &'static str,
}

/// The strongly typed variant of a whole graph, its weights in their storage types.
pub(super) fn typed_variant(
    name: &str,
    whole: &Model,
    types: &[DataType],
    weights: &BTreeMap<String, StoredWeight>,
) -> Result<Typed, ExportError> {
    let mut model = whole.clone();
    apply_precision(&mut model, types, &|name, _| from_runtime(weights[name].dtype));
    v2l_graphs::passes::infer_shapes(&mut model);
    check_graph(name, &model)?;
    Ok(Typed { model, arithmetic: arithmetic(types) })
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

/// Stores the graph's variants and describes it; `whole` is the graph before stages were hoisted out of it.
pub(super) fn compile_graph(
    name: &str,
    (model, whole): (&Model, &Model),
    typed: Option<&Typed>,
    weights: &BTreeMap<String, StoredWeight>,
    blobs: &mut Vec<EngineBlob>,
) -> Result<Graph, ExportError> {
    let mut store = |variant: &str, model: &Model| -> Result<String, ExportError> {
        let file = format!("{RESERVED_PREFIX}graphs/{name}/{variant}.onnx");
        let data = Bytes::from(encode_weightless(&file, model)?);
        blobs.push(EngineBlob { name: file.clone(), data });
        Ok(file)
    };
    let used = external(model);
    let mut prints = Footprints { widened: footprint_of(model, whole), lazy: None };
    let narrow = used.iter().any(|w| matches!(weights[w].dtype, Dtype::F16 | Dtype::Bf16));
    let widened = store("widened", model)?;
    let lazy = if narrow {
        let lazy = stored_variant(model, &|name| from_runtime(weights[name].dtype));
        prints.lazy = Some(footprint_of(&lazy, whole));
        Some(store("lazy", &lazy)?)
    } else {
        None
    };
    let arithmetic = typed.map_or("fp32", |typed| typed.arithmetic);
    let typed = match typed {
        Some(Typed { model, .. }) => Some(TypedGraph { file: store("typed", model)?, weights: external(model) }),
        None => None,
    };
    Ok(Graph {
        name: name.to_owned(),
        backend: "ort".into(),
        precision: arithmetic.into(),
        inputs: ports(name, &model.graph.inputs)?,
        outputs: ports(name, &model.graph.outputs)?,
        weights: used,
        files: GraphFiles { widened, lazy, typed, plans: Vec::new() },
        profiles: Vec::new(),
        lora_rank: None,
        stages: None,
        footprint: Some(prints),
        probe: None,
    })
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

/// Stores a graph and what was hoisted out of it; `whole` is the graph before.
pub(super) fn compile_stages(
    whole: &Model,
    main: Graph,
    hoisted: &Hoisted,
    weights: &BTreeMap<String, StoredWeight>,
    blobs: &mut Vec<EngineBlob>,
) -> Result<Graph, ExportError> {
    if hoisted.prologue.is_none() && hoisted.times.is_none() {
        return Ok(main);
    }
    let mut stage = |suffix: &str, model: &Model| -> Result<Box<Graph>, ExportError> {
        let name = format!("{}.{suffix}", main.name);
        check_graph(&name, model)?;
        compile_graph(&name, (model, whole), None, weights, blobs).map(Box::new)
    };
    let prologue = hoisted.prologue.as_ref().map(|model| stage("prologue", model)).transpose()?;
    let times = match &hoisted.times {
        Some(times) => Some(Times { graph: stage("times", &times.model)?, rows: times.rows.clone() }),
        None => None,
    };
    let inputs = ports(&main.name, &whole.graph.inputs)?;
    let stages = Stages { inputs: main.inputs, prologue, times };
    Ok(Graph { inputs, stages: Some(stages), ..main })
}

/// The f32 graph whose weights have the type that `stored` says, each narrow one behind one Cast to float32.
pub(crate) fn stored_variant(model: &Model, stored: &dyn Fn(&str) -> DataType) -> Model {
    let mut model = model.clone();
    let mut casts = HashMap::new();
    let mut nodes = Vec::new();
    for (name, value) in model.graph.initializers.iter_mut().filter(|(_, w)| w.external) {
        let stored = stored(name);
        if stored == value.dtype {
            continue;
        }
        value.data = value.data.clone().converted(value.dtype, stored);
        value.dtype = stored;
        let widened = format!("{name}.float32");
        nodes.push(Node {
            name: format!("{name}/Cast"),
            op_type: "Cast".into(),
            inputs: vec![name.clone()],
            outputs: vec![widened.clone()],
            attributes: [("to".to_owned(), Attribute::Int(DataType::Float.onnx().into()))].into_iter().collect(),
            ..Node::default()
        });
        casts.insert(name.clone(), widened);
    }
    rename_uses(&mut model.graph, &casts);
    model.graph.nodes.splice(0..0, nodes);
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}
