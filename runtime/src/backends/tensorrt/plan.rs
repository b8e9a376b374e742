//! One graph's plan on the GPU, with its weights.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_cuda::{Driver, Memory};
use v2l_trt::DataType;
use v2l_trt::refit::{
    Applied, Cause, Engines, Fixed, Groups, Prototype, Refitter, SlotWeight, Weighted, WeightedError,
};

use super::TrtError;
use super::device::{Gpu, LoadedPlan, PlanTensor};
use super::fusing::{Fusing, Kept, Stoppable};
use crate::engine::Engine;
use crate::engine::inputs::row_major;
use crate::engine::manifest::{Graph, RANK_SUFFIX, TrtPlan};
use crate::engine::session::{Dim, Port};
use crate::io::raw::{byte_len, tensor_from_bytes};
use crate::lora::fuse::{CancelCheck, FuseError};
use crate::tensor::{Dtype, NamedTensors, Tensor, TensorView};
use crate::wording::BACKEND_ORT;

/// Bytes of fused weights that may wait for the GPU at a time; one weight may be larger.
const STAGING: usize = 512 << 20;

/// Where a graph's plan comes from.
struct Plans {
    gpu: Arc<dyn Gpu>,
    graph: String,
    bytes: Bytes,
}

impl Engines for Plans {
    type Engine = Box<dyn LoadedPlan>;
    type Error = TrtError;

    fn load(&mut self) -> Result<Box<dyn LoadedPlan>, TrtError> {
        self.gpu.load(&self.graph, &self.bytes)
    }

    fn prototypes(&self, engine: &mut Box<dyn LoadedPlan>) -> Result<IndexMap<String, Prototype>, TrtError> {
        engine.prototypes()
    }

    fn refitter<'a>(&'a self, engine: &'a mut Box<dyn LoadedPlan>) -> Result<Box<dyn Refitter + 'a>, TrtError> {
        engine.refitter()
    }
}

/// A graph's plan on the GPU, its weights, and memory for its inputs and outputs.
pub(super) struct Plan {
    graph: String,
    /// Slots whose weights the graph reads.
    slots: HashSet<String>,
    weighted: Weighted<Plans, Kept>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// The rank that factors of low-rank branches are padded to.
    lora_rank: Option<usize>,
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
        cancelled: CancelCheck<'_>,
    ) -> Result<Self, TrtError> {
        let plan = choose(graph, gpu.as_ref())?;
        let plans = Plans { gpu: Arc::clone(gpu), graph: graph.name.clone(), bytes: engine.blob(&plan.file)? };
        let fixed = fixed(engine, graph, plan)?;
        let slots: HashSet<String> = fixed.slots.iter().map(|slot| slot.slot.clone()).collect();
        let (digests, through) = (fusing.digests_of(&slots), Stoppable { fusing, cancelled });
        let opened = Weighted::open(plans, fixed, digests, Kept(Arc::clone(fusing)), &through);
        let mut weighted = opened.map_err(|error| refused(&graph.name, error))?;
        if let Some(engine) = weighted.engine() {
            check_interface(graph, &engine.tensors()?)?;
        }
        Ok(Self {
            graph: graph.name.clone(),
            slots,
            weighted,
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
            lora_rank: graph.lora_rank,
            memory: Arc::clone(gpu.memory()),
            buffers: HashMap::new(),
        })
    }

    /// True if the adapters change some of its weights.
    pub(super) fn is_changed_by(&self, fusing: &Fusing) -> bool {
        !fusing.digests_of(&self.slots).is_empty()
    }

    /// Sets the weights that differ, or all if an earlier failure left none; on an error all are as they were, unless it says that they
    /// are gone.
    pub(super) fn set(&mut self, fusing: &Arc<Fusing>, cancelled: CancelCheck<'_>) -> Result<Applied, TrtError> {
        let through = Stoppable { fusing, cancelled };
        let set = self.weighted.set(fusing.digests_of(&self.slots), Kept(Arc::clone(fusing)), &through);
        set.map_err(|error| refused(&self.graph, error))
    }

    /// Loads the plan again and gives it these weights, whatever it has now; why it is gone if that fails.
    pub(super) fn reset(&mut self, fusing: &Arc<Fusing>) -> Result<(), String> {
        self.weighted.reset(fusing.digests_of(&self.slots), Kept(Arc::clone(fusing)))
    }

    /// Lets it go: it must not run with the weights that it has.
    pub(super) fn discard(&mut self) {
        self.weighted.discard();
    }

    /// Brings an input to the GPU, to be given to many runs.
    pub(super) fn hold(&self, port: &Port, view: TensorView<'_>) -> Result<Held, TrtError> {
        let padded = padded(port, view, self.lora_rank)?;
        let view = padded.as_ref().map_or(view, row_major);
        Ok(Held { shape: view.shape().to_vec(), memory: Memory::of(&self.memory, view.data())? })
    }

    /// Runs once, on exactly the inputs in order, whose shapes lie in the ranges of `profile`.
    pub(super) fn run(&mut self, profile: usize, inputs: &[Input<'_>]) -> Result<NamedTensors, TrtError> {
        let Self { graph, weighted, buffers, memory, .. } = self;
        let gone = "its weights are gone after an earlier failure; set adapters again, or none";
        let gone = || TrtError::Refit { graph: graph.clone(), reason: gone.to_owned() };
        let engine = weighted.engine().ok_or_else(gone)?;
        let mut copies = Vec::with_capacity(inputs.len());
        for (port, input) in self.inputs.iter().zip(inputs) {
            copies.push(match input {
                Input::Given(view) => padded(port, *view, self.lora_rank)?,
                Input::Held(_) => None,
            });
        }
        let given: Vec<Input<'_>> = inputs
            .iter()
            .zip(&copies)
            .map(|(input, copy)| copy.as_ref().map_or(*input, |copy| Input::Given(row_major(copy))))
            .collect();
        let shapes: Vec<(&str, &[usize])> =
            self.inputs.iter().zip(&given).map(|(port, input)| (&port.name[..], input.shape())).collect();
        let names: Vec<&str> = self.outputs.iter().map(|port| &port.name[..]).collect();
        let results = engine.shape(profile, &shapes, &names)?;
        let mut addresses = Vec::with_capacity(shapes.len() + names.len());
        for (port, input) in self.inputs.iter().zip(&given) {
            let address = match input {
                Input::Held(held) => held.memory.address(),
                Input::Given(view) => {
                    let buffer = buffer(buffers, memory, &port.name, view.data().len())?;
                    buffer.upload(0, view.data())?;
                    buffer.address()
                }
            };
            addresses.push((&port.name[..], address));
        }
        for (port, shape) in self.outputs.iter().zip(&results) {
            let bytes = byte_len(port.dtype, shape).ok_or_else(|| too_large(port, shape))?;
            addresses.push((&port.name[..], buffer(buffers, memory, &port.name, bytes)?.address()));
        }
        // SAFETY: each address is memory of this GPU of the bytes that type and shape ask for; nothing else uses the buffers, nobody writes
        // to what is held, and none of them is dropped before the run has ended.
        #[allow(unsafe_code, reason = "addresses of a GPU's memory")]
        unsafe { engine.run(&addresses) }?;
        let mut outputs = NamedTensors::new();
        for (port, shape) in self.outputs.iter().zip(&results) {
            let buffer = buffer(buffers, memory, &port.name, 0)?;
            let bytes = buffer.download(0..byte_len(port.dtype, shape).unwrap_or(0))?;
            let tensor = tensor_from_bytes(port.dtype, shape, &bytes).ok_or_else(|| too_large(port, shape))?;
            outputs.insert(port.name.clone(), tensor);
        }
        Ok(outputs)
    }
}

/// An input on the GPU.
pub(super) struct Held {
    shape: Vec<usize>,
    memory: Memory,
}

/// An input of a run.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// In this process's memory.
    Given(TensorView<'a>),
    /// Of [`Plan::hold`].
    Held(&'a Held),
}

impl Input<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Given(view) => view.shape(),
            Self::Held(held) => &held.shape,
        }
    }
}

/// A factor of a low-rank branch with zeros behind it, up to the rank that the plan is for; `None` for what is as it shall be.
pub(super) fn padded(port: &Port, view: TensorView<'_>, lora_rank: Option<usize>) -> Result<Option<Tensor>, TrtError> {
    let is_rank = |dim: &Dim| matches!(dim, Dim::Symbol(name) if name.ends_with(RANK_SUFFIX));
    let (Some(rank), Some(axis), [rows, columns]) = (lora_rank, port.shape.iter().position(is_rank), view.shape())
    else {
        return Ok(None);
    };
    let found = view.shape()[axis];
    if found == rank {
        return Ok(None);
    }
    let message = |what: String| TrtError::Failed(format!("input `{}`: {what}", port.name));
    if found > rank {
        return Err(message(format!("expected a rank of at most {rank}, for which it was compiled, found {found}")));
    }
    let (new_rows, new_columns) = if axis == 0 { (rank, *columns) } else { (*rows, rank) };
    let size = view.dtype().size();
    let length =
        byte_len(view.dtype(), &[new_rows, new_columns]).ok_or_else(|| message("it is too large".to_owned()))?;
    let mut bytes = vec![0; length];
    if *columns > 0 && new_columns > 0 {
        let from = view.data().chunks_exact(columns * size);
        for (to, from) in bytes.chunks_exact_mut(new_columns * size).zip(from) {
            to[..from.len()].copy_from_slice(from);
        }
    }
    let tensor = tensor_from_bytes(view.dtype(), &[new_rows, new_columns], &bytes);
    tensor.map(Some).ok_or_else(|| message("it cannot be padded".to_owned()))
}

/// A plan, whoever panicked while they had it.
pub(super) fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The weights that a graph reads.
pub(super) fn reads(graph: &Graph) -> HashSet<&str> {
    let typed = graph.files.typed.iter().flat_map(|typed| &typed.weights);
    graph.weights.iter().chain(typed).map(String::as_str).collect()
}

/// The plan for this GPU.
pub(super) fn choose<'a>(graph: &'a Graph, gpu: &dyn Gpu) -> Result<&'a TrtPlan, TrtError> {
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

/// TensorRT's type; `None` if it has none.
pub(super) const fn data_type(dtype: Dtype) -> Option<DataType> {
    Some(match dtype {
        Dtype::F32 => DataType::F32,
        Dtype::F16 => DataType::F16,
        Dtype::Bf16 => DataType::Bf16,
        Dtype::I64 => DataType::I64,
        Dtype::I32 => DataType::I32,
        Dtype::I8 => DataType::I8,
        Dtype::U8 => DataType::U8,
        Dtype::Bool => DataType::Bool,
        Dtype::F64 | Dtype::I16 | Dtype::U16 | Dtype::U32 | Dtype::U64 => return None,
    })
}

/// What does not change between refits of a plan.
fn fixed(engine: &Engine, graph: &Graph, plan: &TrtPlan) -> Result<Fixed, TrtError> {
    let reads = reads(graph);
    let slots = engine.manifest().slots.iter().filter(|slot| reads.contains(&slot.tensor[..]));
    let slots = slots.map(|slot| SlotWeight { slot: slot.name.clone(), weight: slot.tensor.clone() }).collect();
    let mut stored = BTreeMap::new();
    for name in &plan.weights {
        let view = engine.weight(name)?;
        let dtype = data_type(view.dtype).ok_or_else(|| TrtError::Refused {
            graph: graph.name.clone(),
            reason: format!("TensorRT has no type for weight `{name}`, {}; use `{BACKEND_ORT}`", view.dtype),
        })?;
        let prototype = Prototype { dtype, count: view.data.len() / view.dtype.size() };
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
            if found.is_some_and(|tensor| !tensor.is_plain) {
                let (place, found) = ("on the GPU, row-major", "on the host, or in another layout");
                return fail(format!("{what} `{}`", port.name), place.to_owned(), found.to_owned());
            }
            if found.is_none_or(|tensor| (Some(tensor.dtype), tensor.rank) != (expected, rank)) {
                let text = |dtype: &dyn Display, rank: usize| format!("{dtype} of {rank} axes");
                let found = found.map_or("none".to_owned(), |tensor| text(&tensor.dtype, tensor.rank));
                return fail(format!("{what} `{}`", port.name), text(&port.dtype, rank), found);
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
