//! In place of a GPU with TensorRT: host memory, and ONNX Runtime on the weights that the refitter was given. A plan is the graph's ONNX.
#![allow(unsafe_code, reason = "addresses of a GPU's memory")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_cuda::Driver;
use v2l_trt::refit::{Outcome, Prototype, RefitError, Refitter};
use v2l_trt::{Capability, Flavour};

use super::TrtError;
use super::device::{Gpu, LoadedPlan, PlanTensor};
use super::plan::data_type;
use crate::backends::interface::{GraphWeight, Interface};
use crate::backends::onnxruntime::OrtSession;
use crate::engine::Engine;
use crate::engine::manifest::Graph;
use crate::engine::session::{Dim, Session};
use crate::io::raw::{byte_len, tensor_bytes, tensor_from_bytes};
use crate::options::OpenOptions;
use crate::tensor::{NamedTensors, Tensor};
use crate::testing::driver::StandInDriver;

/// A change of what a plan says of its inputs and outputs.
pub(super) type Edit = fn(&mut Vec<PlanTensor>);

/// What goes wrong, and what is seen.
#[derive(Default)]
pub(super) struct Behaviour {
    /// Whether the next refits fail, after half of the weights; later ones do not.
    pub(super) failing: VecDeque<bool>,
    /// A weight that is taken, and then not used: the plan keeps what it held, or has zeros.
    pub(super) ignored: Option<String>,
    /// The graph that this is so in; all if none is named.
    pub(super) ignoring: Option<String>,
    /// Weights that are wanted together.
    pub(super) groups: Vec<BTreeSet<String>>,
    /// Weights of each refit.
    pub(super) refits: Vec<BTreeSet<String>>,
    /// Profiles that were run.
    pub(super) profiles: Vec<usize>,
    /// What plans have otherwise than their graphs.
    pub(super) tensors: Option<Edit>,
    /// Graphs whose plans are loaded.
    pub(super) alive: BTreeSet<String>,
}

/// Everything but the plans.
pub(super) struct StandInGpu {
    pub(super) host: Arc<StandInDriver>,
    memory: Arc<dyn Driver>,
    engine: Arc<Engine>,
    pub(super) capability: Capability,
    pub(super) behaviour: Arc<Mutex<Behaviour>>,
}

impl StandInGpu {
    pub(super) fn new(engine: &Arc<Engine>) -> Self {
        let capability = Capability { major: 8, minor: 9 };
        let host = StandInDriver::new();
        let memory: Arc<dyn Driver> = Arc::clone(&host) as _;
        Self { host, memory, engine: Arc::clone(engine), capability, behaviour: Arc::default() }
    }
}

impl Gpu for StandInGpu {
    fn flavour(&self) -> Flavour {
        Flavour::Rtx
    }

    fn describe(&self) -> (&str, Capability) {
        ("stand-in", self.capability)
    }

    fn memory(&self) -> &Arc<dyn Driver> {
        &self.memory
    }

    fn load(&self, graph: &str, plan: &[u8]) -> Result<Box<dyn LoadedPlan>, TrtError> {
        let graph = self.engine.graph(graph)?.clone();
        let mut behaviour = self.behaviour.lock().unwrap();
        assert!(behaviour.alive.insert(graph.name.clone()), "there is room for one plan of each graph");
        let stored = &graph.files.plans[0];
        let weight = |name: &String| {
            let view = self.engine.weight(name).unwrap();
            let data = if stored.placeholders && stored.weights.contains(name) { Bytes::new() } else { view.data };
            (name.clone(), GraphWeight { name: name.clone(), dtype: view.dtype, shape: view.shape.to_vec(), data })
        };
        Ok(Box::new(OnHost {
            memory: Arc::clone(&self.memory),
            behaviour: Arc::clone(&self.behaviour),
            settable: stored.weights.clone(),
            weights: graph.weights.iter().map(weight).collect(),
            plan: plan.to_vec(),
            graph,
            given: Vec::new(),
        }))
    }
}

struct OnHost {
    memory: Arc<dyn Driver>,
    behaviour: Arc<Mutex<Behaviour>>,
    settable: Vec<String>,
    /// What the plan holds; nothing for a placeholder.
    weights: IndexMap<String, GraphWeight>,
    plan: Vec<u8>,
    graph: Graph,
    /// The inputs' shapes.
    given: Vec<(String, Vec<usize>)>,
}

impl Drop for OnHost {
    fn drop(&mut self) {
        self.behaviour.lock().unwrap().alive.remove(&self.graph.name);
    }
}

impl LoadedPlan for OnHost {
    fn tensors(&mut self) -> Result<Vec<PlanTensor>, TrtError> {
        let ports = [(true, &self.graph.inputs), (false, &self.graph.outputs)];
        let of = |(is_input, ports): (bool, &Vec<crate::engine::session::Port>)| {
            let tensor = |port: &crate::engine::session::Port| PlanTensor {
                name: port.name.clone(),
                is_input,
                dtype: data_type(port.dtype).unwrap(),
                is_plain: true,
                rank: port.shape.len(),
            };
            ports.iter().map(tensor).collect::<Vec<_>>()
        };
        let mut tensors: Vec<PlanTensor> = ports.into_iter().flat_map(of).collect();
        self.behaviour.lock().unwrap().tensors.iter().for_each(|edit| edit(&mut tensors));
        Ok(tensors)
    }

    fn prototypes(&mut self) -> Result<IndexMap<String, Prototype>, TrtError> {
        let prototype = |name: &String| {
            let weight = &self.weights[name];
            (name.clone(), Prototype { dtype: data_type(weight.dtype).unwrap(), count: weight.shape.iter().product() })
        };
        Ok(self.settable.iter().map(prototype).collect())
    }

    fn refitter<'a>(&'a mut self) -> Result<Box<dyn Refitter + 'a>, TrtError> {
        Ok(Box::new(Refit(self)))
    }

    fn shape(
        &mut self,
        profile: usize,
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
    ) -> Result<Vec<Vec<usize>>, TrtError> {
        self.behaviour.lock().unwrap().profiles.push(profile);
        self.given = inputs.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        let mut symbols = HashMap::new();
        for (port, (name, shape)) in self.graph.inputs.iter().zip(inputs) {
            assert_eq!(port.name, *name);
            for (dim, extent) in port.shape.iter().zip(*shape) {
                if let Dim::Symbol(symbol) = dim {
                    symbols.insert(symbol, *extent);
                }
            }
        }
        let extent = |dim: &Dim| match dim {
            Dim::Fixed(extent) => *extent,
            Dim::Symbol(symbol) => symbols[symbol],
        };
        assert!(outputs.iter().eq(self.graph.outputs.iter().map(|port| &port.name)));
        Ok(self.graph.outputs.iter().map(|port| port.shape.iter().map(extent).collect()).collect())
    }

    unsafe fn run(&mut self, addresses: &[(&str, u64)]) -> Result<(), TrtError> {
        if let Some((name, _)) = self.weights.iter().find(|(_, weight)| weight.data.is_empty()) {
            return Err(TrtError::Failed(format!("`{name}` was never set")));
        }
        let addresses: BTreeMap<&str, u64> = addresses.iter().copied().collect();
        let mut inputs = NamedTensors::new();
        for (port, (name, shape)) in self.graph.inputs.iter().zip(&self.given) {
            let mut bytes = vec![0; byte_len(port.dtype, shape).unwrap()];
            // SAFETY: as the caller promises.
            unsafe { self.memory.download(addresses[&name[..]], &mut bytes) }?;
            inputs.insert(name.clone(), tensor_from_bytes(port.dtype, shape, &bytes).unwrap());
        }
        let Graph { name, inputs: taken, outputs, .. } = &self.graph;
        let interface = Interface { name: name.clone(), inputs: taken.clone(), outputs: outputs.clone() };
        let options = OpenOptions { threads: Some(1), ..OpenOptions::default() };
        let weights = self.weights.values().cloned().collect();
        let mut session = OrtSession::from_graph(interface, &self.plan, weights, &options).unwrap();
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        for (name, tensor) in session.run(&given).unwrap() {
            // SAFETY: as above.
            unsafe { self.memory.upload(&tensor_bytes(&tensor), addresses[&name[..]]) }?;
        }
        Ok(())
    }
}

struct Refit<'a>(&'a mut OnHost);

impl Refitter for Refit<'_> {
    fn refit(&mut self, weights: &[(&str, &[u8])]) -> Result<Outcome, RefitError> {
        let OnHost { behaviour, weights: held, settable, graph, .. } = &mut *self.0;
        let mut behaviour = behaviour.lock().unwrap();
        let names: BTreeSet<String> = weights.iter().map(|(name, _)| (*name).to_owned()).collect();
        let together =
            |name: &String| behaviour.groups.iter().any(|group| group.contains(name) && !group.is_disjoint(&names));
        let missing = |name: &&String| !names.contains(*name) && (held[*name].data.is_empty() || together(name));
        let missing: Vec<String> = settable.iter().filter(missing).cloned().collect();
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        let fails = behaviour.failing.pop_front().unwrap_or(false);
        for (name, bytes) in weights.iter().take(if fails { weights.len() / 2 } else { weights.len() }) {
            let weight = held.get_mut(*name).unwrap();
            assert_eq!(bytes.len(), byte_len(weight.dtype, &weight.shape).unwrap());
            let ignored = behaviour.ignored.as_ref().is_some_and(|ignored| ignored == name)
                && behaviour.ignoring.as_ref().is_none_or(|ignoring| *ignoring == graph.name);
            if !ignored || weight.data.is_empty() {
                // An ignored placeholder is zero.
                let bytes = if ignored { vec![0; bytes.len()] } else { bytes.to_vec() };
                weight.data = bytes.into();
            }
        }
        if fails {
            return Err(RefitError::Failed { reason: "planted".to_owned() });
        }
        behaviour.refits.push(names);
        Ok(Outcome::Done)
    }
}
