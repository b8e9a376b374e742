//! One graph's plan on the GPU, with its weights.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_cuda::{Driver, Memory};
use v2l_trt::DataType;
use v2l_trt::refit::{
    Applied, Cause, Engines, Fixed, Groups, Prototype, Refitter, SlotWeight, Weighted, WeightedError,
};

use super::TrtError;
use super::device::{Gpu, Loaded, PlanTensor};
use super::fusing::{Fusing, Kept, Stoppable};
use crate::engine::Engine;
use crate::engine::manifest::{Graph, TrtPlan};
use crate::fuse::{Cancelled, FuseError};
use crate::raw::{byte_len, tensor_from_bytes};
use crate::session::Port;
use crate::tensor::{Dtype, NamedTensors, TensorView};

/// Bytes of fused weights that may wait for the GPU at a time; one weight may be larger.
const STAGING: usize = 512 << 20;

/// Where a graph's plan comes from.
struct Plans {
    gpu: Arc<dyn Gpu>,
    graph: String,
    bytes: Bytes,
}

impl Engines for Plans {
    type Engine = Box<dyn Loaded>;
    type Error = TrtError;

    fn load(&mut self) -> Result<Box<dyn Loaded>, TrtError> {
        self.gpu.load(&self.graph, &self.bytes)
    }

    fn prototypes(&self, engine: &mut Box<dyn Loaded>) -> Result<IndexMap<String, Prototype>, TrtError> {
        engine.prototypes()
    }

    fn refitter<'a>(&'a self, engine: &'a mut Box<dyn Loaded>) -> Result<Box<dyn Refitter + 'a>, TrtError> {
        engine.refitter()
    }
}

/// A graph's plan on the GPU, its weights, and memory for its inputs and outputs.
pub(super) struct Plan {
    graph: String,
    weighted: Weighted<Plans, Kept>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    memory: Arc<dyn Driver>,
    /// By input or output; kept for the next run.
    buffers: HashMap<String, Memory>,
}

impl Plan {
    /// Loads the graph's plan for this GPU and gives it its weights.
    pub(super) fn open(
        engine: &Engine,
        graph: &Graph,
        gpu: &Arc<dyn Gpu>,
        fusing: &Arc<Fusing>,
        cancelled: Cancelled<'_>,
    ) -> Result<Self, TrtError> {
        let plan = choose(graph, gpu.as_ref())?;
        let plans = Plans { gpu: Arc::clone(gpu), graph: graph.name.clone(), bytes: engine.blob(&plan.file)? };
        let through = Stoppable { fusing, cancelled };
        let opened =
            Weighted::open(plans, fixed(engine, plan)?, fusing.digests().clone(), Kept(Arc::clone(fusing)), &through);
        let mut weighted = opened.map_err(|error| refused(&graph.name, error))?;
        if let Some(engine) = weighted.engine() {
            check_interface(graph, &engine.tensors()?)?;
        }
        Ok(Self {
            graph: graph.name.clone(),
            weighted,
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
            memory: Arc::clone(gpu.memory()),
            buffers: HashMap::new(),
        })
    }

    /// The graph's name.
    pub(super) fn graph(&self) -> &str {
        &self.graph
    }

    /// Sets the weights that differ; on an error all are as they were, unless it says that the engine is gone.
    pub(super) fn set(&mut self, fusing: &Arc<Fusing>, cancelled: Cancelled<'_>) -> Result<Applied, TrtError> {
        let through = Stoppable { fusing, cancelled };
        let set = self.weighted.set(fusing.digests().clone(), Kept(Arc::clone(fusing)), &through);
        set.map_err(|error| refused(&self.graph, error))
    }

    /// Runs once, on exactly the inputs in order, whose shapes lie in the ranges of `profile`.
    pub(super) fn run(&mut self, profile: usize, inputs: &[TensorView<'_>]) -> Result<NamedTensors, TrtError> {
        let Self { graph, weighted, buffers, memory, .. } = self;
        let gone = || TrtError::Refit {
            graph: graph.clone(),
            reason: "the engine is gone after an earlier failure; open it anew".to_owned(),
        };
        let engine = weighted.engine().ok_or_else(gone)?;
        let shapes: Vec<(&str, &[usize])> =
            self.inputs.iter().zip(inputs).map(|(port, view)| (&port.name[..], view.shape())).collect();
        let names: Vec<&str> = self.outputs.iter().map(|port| &port.name[..]).collect();
        let given = engine.shape(profile, &shapes, &names)?;
        let mut addresses = Vec::with_capacity(shapes.len() + names.len());
        for (port, view) in self.inputs.iter().zip(inputs) {
            let buffer = buffer(buffers, memory, &port.name, view.data().len())?;
            buffer.upload(0, view.data())?;
            addresses.push((&port.name[..], buffer.address()));
        }
        for (port, shape) in self.outputs.iter().zip(&given) {
            let bytes = byte_len(port.dtype, shape).ok_or_else(|| too_large(port, shape))?;
            addresses.push((&port.name[..], buffer(buffers, memory, &port.name, bytes)?.address()));
        }
        // SAFETY: each buffer has the bytes that type and shape ask for, on this GPU; nothing else knows them, and none is dropped before the
        // run has ended.
        #[allow(unsafe_code)]
        unsafe { engine.run(&addresses) }?;
        let mut outputs = NamedTensors::new();
        for (port, shape) in self.outputs.iter().zip(&given) {
            let buffer = buffer(buffers, memory, &port.name, 0)?;
            let bytes = buffer.download(0..byte_len(port.dtype, shape).unwrap_or(0))?;
            let tensor = tensor_from_bytes(port.dtype, shape, &bytes).ok_or_else(|| too_large(port, shape))?;
            outputs.insert(port.name.clone(), tensor);
        }
        Ok(outputs)
    }
}

fn too_large(port: &Port, shape: &[usize]) -> TrtError {
    TrtError::Failed(format!("output `{}` {shape:?} is no {} tensor", port.name, port.dtype))
}

/// Memory of at least `bytes` for an input or output.
fn buffer<'a>(
    buffers: &'a mut HashMap<String, Memory>,
    memory: &Arc<dyn Driver>,
    name: &str,
    bytes: usize,
) -> Result<&'a mut Memory, TrtError> {
    if buffers.get(name).is_none_or(|buffer| buffer.len() < bytes) {
        buffers.remove(name);
        buffers.insert(name.to_owned(), Memory::new(memory, bytes)?);
    }
    match buffers.get_mut(name) {
        Some(buffer) => Ok(buffer),
        None => unreachable!("just put there"),
    }
}

/// The plan for this GPU.
fn choose<'a>(graph: &'a Graph, gpu: &dyn Gpu) -> Result<&'a TrtPlan, TrtError> {
    let flavour = gpu.flavour();
    if graph.backend != flavour.backend() {
        let (graph, found) = (graph.name.clone(), graph.backend.clone());
        return Err(TrtError::WrongBackend { graph, expected: flavour.backend(), found });
    }
    let (name, capability) = gpu.describe();
    let found = capability.to_string();
    let fits = |plan: &&TrtPlan| plan.compute_capability.as_ref().is_none_or(|capability| *capability == found);
    graph.files.plans.iter().find(fits).ok_or_else(|| {
        let built: Vec<&str> = graph.files.plans.iter().filter_map(|plan| plan.compute_capability.as_deref()).collect();
        let built = if built.is_empty() { "no GPU".to_owned() } else { built.join(", ") };
        TrtError::NoPlan { graph: graph.name.clone(), built, gpu: name.to_owned(), found }
    })
}

pub(super) const fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F32 => DataType::F32,
        Dtype::F16 => DataType::F16,
        Dtype::Bf16 => DataType::Bf16,
        Dtype::I64 => DataType::I64,
        Dtype::I32 => DataType::I32,
        Dtype::U8 => DataType::U8,
        Dtype::Bool => DataType::Bool,
    }
}

/// What does not change between refits of a plan.
fn fixed(engine: &Engine, plan: &TrtPlan) -> Result<Fixed, TrtError> {
    let slots = engine.manifest().slots.iter();
    let slots = slots.map(|slot| SlotWeight { slot: slot.name.clone(), weight: slot.tensor.clone() }).collect();
    let mut stored = BTreeMap::new();
    for name in &plan.weights {
        let view = engine.weight(name)?;
        let prototype = Prototype { dtype: data_type(view.dtype), count: view.data.len() / view.dtype.size() };
        stored.insert(name.clone(), prototype);
    }
    let largest = stored.values().map(Prototype::bytes).max().unwrap_or(0);
    let (groups, staging) = (Groups::default(), largest.max(STAGING));
    Ok(Fixed { slots, stored, groups, staging, placeholders: plan.placeholders })
}

/// Refuses a plan whose inputs and outputs are not the graph's.
fn check_interface(graph: &Graph, tensors: &[PlanTensor]) -> Result<(), TrtError> {
    let fail = |what: String, expected: String, found: String| {
        Err(TrtError::Interface { graph: graph.name.clone(), what, expected, found })
    };
    for (what, ports, is_input) in [("input", &graph.inputs, true), ("output", &graph.outputs, false)] {
        let found: Vec<&PlanTensor> = tensors.iter().filter(|tensor| tensor.is_input == is_input).collect();
        if found.len() != ports.len() {
            return fail(format!("number of {what}s"), ports.len().to_string(), found.len().to_string());
        }
        for port in ports {
            let (expected, rank) = (data_type(port.dtype), port.shape.len());
            let found = found.iter().find(|tensor| tensor.name == port.name);
            if found.is_none_or(|tensor| (tensor.dtype, tensor.rank) != (expected, rank)) {
                let text = |dtype: DataType, rank: usize| format!("{dtype} of {rank} axes");
                let found = found.map_or("none".to_owned(), |tensor| text(tensor.dtype, tensor.rank));
                return fail(format!("{what} `{}`", port.name), text(expected, rank), found);
            }
        }
    }
    Ok(())
}

/// Why the weights are not those that were asked for.
fn refused(graph: &str, error: WeightedError<TrtError, FuseError>) -> TrtError {
    let reason = error.to_string();
    match error {
        WeightedError::Load(error) => error,
        WeightedError::Refused(Cause::Staging(error)) | WeightedError::Restored(Cause::Staging(error)) => error.into(),
        _ => TrtError::Refit { graph: graph.to_owned(), reason },
    }
}
