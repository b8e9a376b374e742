//! One graph as callers see it.

use std::sync::{Arc, Mutex, PoisonError};

use super::plan::Plan;
use crate::engine::manifest::{Graph, Profile};
use crate::inputs::{bind, laid_out, views};
use crate::profiles;
use crate::session::{Port, Session, SessionError};
use crate::tensor::{NamedTensors, Tensor, TensorView};

/// A graph of an engine on TensorRT. Sessions of one graph share its plan and its weights, and take turns.
pub struct TrtSession {
    backend: &'static str,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    profiles: Vec<Profile>,
    plan: Arc<Mutex<Plan>>,
}

impl TrtSession {
    pub(super) fn new(backend: &'static str, graph: &Graph, plan: Arc<Mutex<Plan>>) -> Self {
        let (inputs, outputs, profiles) = (graph.inputs.clone(), graph.outputs.clone(), graph.profiles.clone());
        Self { backend, inputs, outputs, profiles, plan }
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
        let bound = bind(&self.inputs.iter().collect::<Vec<_>>(), inputs)?;
        let given: Vec<TensorView<'_>> = bound.iter().map(|input| input.view()).collect();
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let failed =
            |error: super::TrtError| SessionError::Backend { backend: self.backend, message: error.to_string() };
        plan.run(profile, &given).map_err(failed)
    }
}
