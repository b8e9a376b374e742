//! One graph as callers see it.

use super::inputs::{bind, laid_out, row_major, views};
use super::operator_times::OperatorTimes;
use super::part::Part;
use super::profiles;
use super::stages::Stages;
use crate::engine::manifest::Profile;
use crate::session::{Port, Session, SessionError};
use crate::tensor::{NamedTensors, Tensor, TensorView};

/// A graph of an engine on ONNX Runtime.
#[derive(Debug)]
pub struct OrtSession {
    inputs: Vec<Port>,
    profiles: Vec<Profile>,
    main: Part,
    stages: Option<Stages>,
}

impl OrtSession {
    /// `inputs` are the callers'; `main` may take others, which `stages` gives it.
    pub(super) fn new(inputs: Vec<Port>, profiles: Vec<Profile>, main: Part, stages: Option<Stages>) -> Self {
        Self { inputs, profiles, main, stages }
    }

    /// Ends profiling: what the last run spent its time on, its stages left out, which only some runs need; `None` if the
    /// engine was opened without [`OpenOptions::profile`](super::OpenOptions::profile), or on the second call.
    ///
    /// # Errors
    /// [`SessionError::Backend`] if the profile cannot be read.
    pub fn operator_times(&mut self) -> Result<Option<OperatorTimes>, SessionError> {
        self.main.operator_times()
    }
}

impl Session for OrtSession {
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
        profiles::check(&self.profiles, inputs)?;
        let Some(stages) = &mut self.stages else { return self.main.run(inputs) };
        let bound = bind(&self.inputs, inputs)?;
        let names = self.inputs.iter().map(|port| &port.name[..]);
        let mut given: Vec<(&str, TensorView<'_>)> = names.zip(bound.iter().map(|input| input.view())).collect();
        let rows = stages.run(&mut given)?;
        given.extend(rows.iter().map(|(name, tensor)| (&name[..], row_major(tensor))));
        let wanted = self.main.inputs().iter().map(|port| &port.name);
        let given: Vec<(&str, TensorView<'_>)> =
            wanted.filter_map(|name| given.iter().find(|(known, _)| known == name).copied()).collect();
        self.main.run(&given)
    }

    fn prepare(&mut self, inputs: &[(&str, &Tensor)]) -> Result<(), SessionError> {
        self.stages.as_mut().map_or(Ok(()), |stages| stages.prepare(&views(&laid_out(inputs))))
    }
}
