//! One graph as callers see it, on backends that are given weights and precomputed graphs as ONNX Runtime is.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::device_weights::{DeviceWeights, HeldInput, InUse, State};
use super::precomputed::{Precomputed, RunnableGraph};
use crate::engine::Engine;
use crate::engine::footprint::Shapes;
use crate::engine::inputs::{bind, laid_out, row_major, views};
use crate::engine::manifest::Profile;
use crate::engine::profiles;
use crate::engine::session::{Port, Session, SessionError};
use crate::lora::fuse::FuseError;
use crate::memory::{available_memory, readable};
use crate::tensor::{NamedTensors, Tensor, TensorView};

/// A graph of an engine, its precomputed graphs before it.
#[derive(Debug)]
pub struct GraphSession<P> {
    inputs: Vec<Port>,
    profiles: Vec<Profile>,
    pub(super) main: P,
    precomputed: Option<Precomputed<P>>,
    /// Weights that may change between runs, and which of them the precomputed graphs were last computed with.
    device_weights: Option<(Arc<DeviceWeights>, u64)>,
    /// Inputs that runs need not give, on the weights' device.
    held: HashMap<String, HeldInput>,
    memory_check: Option<MemoryCheck>,
}

/// What runs take, where that is host memory.
#[derive(Debug)]
struct MemoryCheck {
    engine: Arc<Engine>,
    graph: String,
    stored_weights: bool,
    /// Of the last run.
    shapes: Shapes,
    /// Bytes that the largest run so far took.
    most: u64,
}

impl MemoryCheck {
    /// Refuses a run for which there is too little memory. What earlier runs took is there.
    fn check(&mut self, inputs: &[(&str, TensorView<'_>)], backend: &'static str) -> Result<(), SessionError> {
        let same = inputs.len() == self.shapes.len()
            && inputs.iter().all(|(name, view)| self.shapes.get(*name).is_some_and(|shape| shape[..] == *view.shape()));
        let Some(graph) = self.engine.manifest().graph(&self.graph).filter(|_| !same) else { return Ok(()) };
        let shapes: Shapes = inputs.iter().map(|(name, view)| ((*name).to_owned(), view.shape().to_vec())).collect();
        let demand = graph.demand(self.stored_weights, !self.stored_weights, &shapes, 1);
        let needed = demand.activations.saturating_add(demand.kept).saturating_add(demand.outputs);
        let more = needed.saturating_sub(self.most);
        if let Some(free) = (more > 0).then(available_memory).flatten().filter(|&free| more > free) {
            let (needed, free) = (readable(needed), readable(free.saturating_add(self.most)));
            let message = format!(
                "not enough memory: this run of graph `{}` needs about {needed}, {free} are free; give smaller inputs",
                self.graph
            );
            return Err(SessionError::Memory { backend, message });
        }
        self.most = self.most.max(needed);
        self.shapes = shapes;
        Ok(())
    }
}

impl<P: RunnableGraph> GraphSession<P> {
    /// `inputs` are the callers'; `main` may take others, which `precomputed` gives it.
    pub(super) fn new(inputs: Vec<Port>, profiles: Vec<Profile>, main: P, precomputed: Option<Precomputed<P>>) -> Self {
        Self { inputs, profiles, main, precomputed, device_weights: None, held: HashMap::new(), memory_check: None }
    }

    /// Over these weights, which may change between runs.
    pub(super) fn with_device_weights(self, device_weights: Option<Arc<DeviceWeights>>) -> Self {
        Self { device_weights: device_weights.map(|device_weights| (device_weights, 0)), ..self }
    }

    /// With what a run takes known: refused if there is too little memory.
    pub(super) fn with_memory_check(self, engine: &Arc<Engine>, graph: &str, stored_weights: bool) -> Self {
        let (engine, graph) = (Arc::clone(engine), graph.to_owned());
        Self {
            memory_check: Some(MemoryCheck { engine, graph, stored_weights, shapes: Shapes::new(), most: 0 }),
            ..self
        }
    }

    fn ordinal(&self) -> Option<i32> {
        self.device_weights.as_ref().and_then(|(device_weights, _)| device_weights.device().ordinal())
    }

    /// The weights in use; precomputed graphs forget what they computed with others.
    fn weights(&mut self) -> Option<Arc<State>> {
        let (device_weights, generation) = self.device_weights.as_mut()?;
        let state = device_weights.state();
        if *generation != state.generation {
            *generation = state.generation;
            if let Some(precomputed) = &mut self.precomputed {
                precomputed.forget();
            }
        }
        Some(state)
    }

    fn run_until(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        cancelled: Option<&dyn Fn() -> bool>,
    ) -> Result<NamedTensors, SessionError> {
        profiles::choose(&self.profiles, inputs)?;
        if let Some(memory_check) = &mut self.memory_check {
            memory_check.check(inputs, P::BACKEND)?;
        }
        let weights = self.weights();
        let in_use = InUse { weights: weights.as_deref(), inputs: &self.held, ordinal: self.ordinal(), cancelled };
        let Some(precomputed) = &mut self.precomputed else { return self.main.run(inputs, in_use) };
        let ports = in_use.left(&self.inputs, inputs);
        let bound = bind(&ports, inputs)?;
        let names = ports.iter().map(|port| &port.name[..]);
        let mut given: Vec<(&str, TensorView<'_>)> = names.zip(bound.iter().map(|input| input.view())).collect();
        let rows = precomputed.run(&mut given, in_use)?;
        given.extend(rows.iter().map(|(name, tensor)| (&name[..], row_major(tensor))));
        let wanted = self.main.inputs().iter().map(|port| &port.name);
        let given: Vec<(&str, TensorView<'_>)> =
            wanted.filter_map(|name| given.iter().find(|(known, _)| known == name).copied()).collect();
        self.main.run(&given, in_use)
    }
}

impl<P: RunnableGraph> Session for GraphSession<P> {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        self.main.outputs()
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        self.run_views(&views(&laid_out(inputs)))
    }

    fn run_views(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, SessionError> {
        self.run_until(inputs, None)
    }

    fn run_unless(
        &mut self,
        inputs: &[(&str, &Tensor)],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<NamedTensors, SessionError> {
        self.run_until(&views(&laid_out(inputs)), Some(cancelled))
    }

    fn hold(&mut self, inputs: &[(&str, &Tensor)]) -> Result<bool, SessionError> {
        let Some((device_weights, _)) = &self.device_weights else { return Ok(false) };
        if self.precomputed.as_ref().is_some_and(|precomputed| inputs.iter().any(|(name, _)| precomputed.is_row(name)))
        {
            return Ok(false);
        }
        let given = laid_out(inputs);
        let given = views(&given);
        let ports: Vec<&Port> =
            self.inputs.iter().filter(|port| given.iter().any(|(name, _)| *name == port.name)).collect();
        let failed = |e: FuseError| SessionError::of(P::BACKEND, &e);
        let mut held = HashMap::new();
        for (port, input) in ports.iter().zip(bind(&ports, &given)?) {
            let view = input.view();
            let block =
                device_weights.device().hold(view.dtype(), Bytes::copy_from_slice(view.data())).map_err(failed)?;
            held.insert(port.name.clone(), HeldInput { shape: view.shape().to_vec(), block });
        }
        device_weights.device().settle().map_err(failed)?;
        self.held = held;
        if let Some(precomputed) = &mut self.precomputed {
            precomputed.forget();
        }
        Ok(true)
    }

    fn prepare(&mut self, inputs: &[(&str, &Tensor)], cancelled: &dyn Fn() -> bool) -> Result<(), SessionError> {
        let weights = self.weights();
        let (ordinal, cancelled) = (self.ordinal(), Some(cancelled));
        let in_use = InUse { weights: weights.as_deref(), inputs: &self.held, ordinal, cancelled };
        let Some(precomputed) = &mut self.precomputed else { return Ok(()) };
        precomputed.prepare(&views(&laid_out(inputs)), in_use)
    }
}
