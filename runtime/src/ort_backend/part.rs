//! One stored graph, ready to run.

use bytes::Bytes;
use ort::session::SessionInputValue;
use ort::value::ValueType;
use tempfile::TempDir;

use super::OrtError;
use super::graph::Interface;
use super::inputs::bind;
use super::operator_times::OperatorTimes;
use super::value::{borrow, copy_out, dtype_of};
use crate::session::{Port, SessionError};
use crate::tensor::{NamedTensors, TensorView};

/// A stored graph on ONNX Runtime.
#[derive(Debug)]
pub(super) struct Part {
    // Fields drop in order: ONNX Runtime lets go of the weights before they go.
    session: ort::session::Session,
    _weights: Vec<Bytes>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Where the profiler writes, if it runs.
    profile: Option<TempDir>,
}

impl Part {
    /// Takes a committed session over `weights`, after checking that it is the graph that is expected.
    pub(super) fn new(
        interface: Interface,
        session: ort::session::Session,
        weights: Vec<Bytes>,
    ) -> Result<Self, OrtError> {
        let Interface { name, inputs, outputs } = interface;
        check_interface(&name, "input", &inputs, session.inputs())?;
        check_interface(&name, "output", &outputs, session.outputs())?;
        Ok(Self { session, _weights: weights, inputs, outputs, profile: None })
    }
}

fn check_interface(graph: &str, what: &str, ports: &[Port], outlets: &[ort::value::Outlet]) -> Result<(), OrtError> {
    let fail = |what: String, expected: String, found: String| {
        Err(OrtError::Interface { graph: graph.to_owned(), what, expected, found })
    };
    if ports.len() != outlets.len() {
        return fail(format!("number of {what}s"), ports.len().to_string(), outlets.len().to_string());
    }
    for (i, (port, outlet)) in ports.iter().zip(outlets).enumerate() {
        let fits = port.name == outlet.name()
            && matches!(outlet.dtype(), ValueType::Tensor { ty, .. } if dtype_of(*ty) == Some(port.dtype));
        if !fits {
            let expected = format!("`{}` {}", port.name, port.dtype);
            return fail(format!("{what} {i}"), expected, format!("`{}` {}", outlet.name(), outlet.dtype()));
        }
    }
    Ok(())
}

impl Part {
    pub(super) fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    pub(super) fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Keeps the folder that the session's profiler writes to.
    pub(super) fn with_profile(self, folder: Option<TempDir>) -> Self {
        Self { profile: folder, ..self }
    }

    /// Ends profiling: what the last run spent its time on; `None` if the session was opened without.
    pub(super) fn operator_times(&mut self) -> Result<Option<OperatorTimes>, SessionError> {
        let Some(_folder) = self.profile.take() else { return Ok(None) };
        let backend = |message: String| SessionError::Backend { backend: "ort", message };
        let path = self.session.end_profiling().map_err(|e| backend(e.to_string()))?;
        OperatorTimes::read(path.as_ref()).map(Some).map_err(backend)
    }

    /// Runs the graph once, on exactly its inputs.
    pub(super) fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, SessionError> {
        let backend = |message: String| SessionError::Backend { backend: "ort", message };
        let bound = bind(&self.inputs, inputs)?;
        let mut values: Vec<SessionInputValue<'_>> = Vec::with_capacity(bound.len());
        for input in &bound {
            let view = input.view();
            // SAFETY: `inputs` and `bound` hold the elements until the end of this function; the value and the run end before.
            #[allow(unsafe_code)]
            let value = unsafe { borrow(view.dtype(), view.shape(), view.data()) }.map_err(backend)?;
            values.push(value.into());
        }
        let results = self.session.run(&values[..]).map_err(|e| backend(e.to_string()))?;
        let mut outputs = NamedTensors::new();
        for port in &self.outputs {
            let name = &port.name;
            let value = results.get(name).ok_or_else(|| backend(format!("output `{name}` is missing")))?;
            let tensor = copy_out(value).map_err(|e| backend(format!("output `{name}`: {e}")))?;
            outputs.insert(name.clone(), tensor);
        }
        Ok(outputs)
    }
}
