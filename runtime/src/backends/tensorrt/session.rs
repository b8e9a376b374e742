//! One graph as callers see it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::TrtError;
use super::plan::{Held, Input, Plan, lock};
use crate::engine::inputs::{bind, laid_out, views};
use crate::engine::manifest::{Graph, Profile};
use crate::engine::profiles;
use crate::engine::session::{Port, Session, SessionError};
use crate::tensor::{NamedTensors, Tensor, TensorView};

/// A graph of an engine on TensorRT. Sessions of one graph share its plan and its weights, and take turns.
pub struct TrtSession {
    backend: &'static str,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    profiles: Vec<Profile>,
    plan: Arc<Mutex<Plan>>,
    /// Inputs that runs need not give.
    held: HashMap<String, Held>,
}

impl TrtSession {
    pub(super) fn new(backend: &'static str, graph: &Graph, plan: Arc<Mutex<Plan>>) -> Self {
        let (inputs, outputs, profiles) = (graph.inputs.clone(), graph.outputs.clone(), graph.profiles.clone());
        Self { backend, inputs, outputs, profiles, plan, held: HashMap::new() }
    }

    fn failed(&self, error: &TrtError) -> SessionError {
        SessionError::of(self.backend, error)
    }
}

impl Session for TrtSession {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        self.run_views(&views(&laid_out(inputs)))
    }

    fn run_views(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, SessionError> {
        let profile = profiles::choose(&self.profiles, inputs)?;
        let is_held =
            |port: &Port| self.held.contains_key(&port.name) && !inputs.iter().any(|(name, _)| *name == port.name);
        let wanted: Vec<&Port> = self.inputs.iter().filter(|port| !is_held(port)).collect();
        let bound = bind(&wanted, inputs)?;
        let mut bound = bound.iter();
        let given: Vec<Input<'_>> = self
            .inputs
            .iter()
            .filter_map(|port| match self.held.get(&port.name).filter(|_| is_held(port)) {
                Some(held) => Some(Input::Held(held)),
                None => bound.next().map(|input| Input::Given(input.view())),
            })
            .collect();
        lock(&self.plan).run(profile, &given).map_err(|error| self.failed(&error))
    }

    fn hold(&mut self, inputs: &[(&str, &Tensor)]) -> Result<bool, SessionError> {
        let given = laid_out(inputs);
        let given = views(&given);
        // There may be no room for both.
        self.held.clear();
        let ports: Vec<&Port> =
            self.inputs.iter().filter(|port| given.iter().any(|(name, _)| *name == port.name)).collect();
        let mut held = HashMap::new();
        for (port, input) in ports.iter().zip(bind(&ports, &given)?) {
            let kept = lock(&self.plan).hold(port, input.view()).map_err(|error| self.failed(&error))?;
            held.insert(port.name.clone(), kept);
        }
        self.held = held;
        Ok(true)
    }
}
