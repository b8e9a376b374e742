//! One stored graph, ready to run.

use bytes::Bytes;
use ort::session::builder::PrepackedWeights;
use ort::session::{SessionInputValue, SessionOutputs};
use ort::value::{DynValue, ValueType};

use std::sync::Arc;

use super::cancel::Runner;
use super::operator_times::OperatorTimes;
use super::scratch::Scratch;
use super::value::{borrow, borrow_block, copy_out, dtype_of};
use super::{NAME, OrtError, failed};
use crate::backends::device_weights::{DeviceWeights, HeldInput, InUse, State};
use crate::backends::interface::Interface;
use crate::backends::precomputed::RunnableGraph;
use crate::engine::inputs::{Bound, bind};
use crate::engine::session::{Dim, Port, SessionError};
use crate::options::RunLimits;
use crate::tensor::{NamedTensors, TensorView};

/// A stored graph on ONNX Runtime.
#[derive(Debug)]
pub struct OrtGraph {
    // Fields drop in order: ONNX Runtime lets go of the weights before they go.
    session: ort::session::Session,
    _packed: Option<PrepackedWeights>,
    _weights: Vec<Bytes>,
    /// Weights that are inputs behind [`Self::inputs`], in this order, and where they are.
    device_weights: Option<(Arc<DeviceWeights>, Vec<String>)>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Where the profiler writes, if it runs.
    profile: Option<Scratch>,
    limits: Option<RunLimits>,
    runner: Runner,
}

impl OrtGraph {
    /// Takes a committed session over `weights`, after checking that it is the graph that is expected.
    pub(super) fn new(
        interface: Interface,
        session: ort::session::Session,
        weights: Vec<Bytes>,
    ) -> Result<Self, OrtError> {
        let Interface { name, inputs, outputs } = interface;
        check_interface(&name, "input", &inputs, session.inputs())?;
        check_interface(&name, "output", &outputs, session.outputs())?;
        let runner = Runner::default();
        Ok(Self {
            session,
            _packed: None,
            _weights: weights,
            device_weights: None,
            inputs,
            outputs,
            profile: None,
            limits: None,
            runner,
        })
    }

    /// As [`Self::new`], of a graph whose last inputs are the weights `names` of `device_weights`.
    pub(super) fn over(
        mut interface: Interface,
        session: ort::session::Session,
        weights: Vec<Bytes>,
        device_weights: Arc<DeviceWeights>,
        names: Vec<String>,
    ) -> Result<Self, OrtError> {
        let given = interface.inputs.len();
        for name in &names {
            let Some(held) = device_weights.held(name) else { continue };
            let shape = held.shape.iter().map(|&extent| Dim::Fixed(extent)).collect();
            interface.inputs.push(Port { name: name.clone(), dtype: held.dtype, shape });
        }
        let mut part = Self::new(interface, session, weights)?;
        part.inputs.truncate(given);
        Ok(Self { device_weights: Some((device_weights, names)), ..part })
    }
}

/// An input that was given, where it is, or converted.
fn given(input: &Bound<'_>) -> Result<DynValue, String> {
    let view = input.view();
    // SAFETY: the input holds the elements until the end of [`OrtGraph::run`]; the value and the run end before.
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    unsafe {
        borrow(view.dtype(), view.shape(), view.data())
    }
}

/// An input that the session keeps, where it is.
fn kept(in_use: InUse<'_>, port: &Port) -> Result<DynValue, String> {
    let HeldInput { shape, block } = in_use.inputs.get(&port.name).ok_or("it is neither given nor kept")?;
    // SAFETY: the block is of that device; `in_use` keeps it until the run, and with it the value, has ended, and nobody writes to
    // it.
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    unsafe {
        borrow_block(in_use.ordinal, port.dtype, shape, block.address, block.length)
    }
}

/// A weight, where it is.
fn weight(device_weights: &DeviceWeights, state: &State, name: &str) -> Result<DynValue, String> {
    let (held, block) =
        device_weights.held(name).zip(device_weights.block(state, name)).ok_or("it is not on the device")?;
    let ordinal = device_weights.device().ordinal();
    // SAFETY: the block is of that device; `state` and `device_weights` keep it until the run, and with it the value, has ended, and
    // nobody writes to memory that others have, too.
    #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
    unsafe {
        borrow_block(ordinal, held.dtype, &held.shape, block.address, block.length)
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

impl OrtGraph {
    /// Keeps the folder that the session's profiler writes to.
    pub(super) fn with_profile(self, folder: Option<Scratch>) -> Self {
        Self { profile: folder, ..self }
    }

    /// Keeps what the session shares of packed weights.
    pub(super) fn with_packed(self, packed: Option<PrepackedWeights>) -> Self {
        Self { _packed: packed, ..self }
    }

    /// Bounds every run.
    pub(super) fn with_limits(self, limits: Option<RunLimits>) -> Self {
        Self { limits, ..self }
    }

    /// Ends profiling: what the last run spent its time on; `None` if the session was opened without.
    pub(super) fn operator_times(&mut self) -> Result<Option<OperatorTimes>, SessionError> {
        let Some(_folder) = self.profile.take() else { return Ok(None) };
        let backend = |message: String| SessionError::Backend { backend: "ort", message };
        let path = self.session.end_profiling().map_err(|e| backend(e.to_string()))?;
        OperatorTimes::read(path.as_ref()).map(Some).map_err(backend)
    }
}

impl RunnableGraph for OrtGraph {
    const BACKEND: &'static str = NAME;

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<NamedTensors, SessionError> {
        let backend = failed;
        let left = in_use.left(&self.inputs, inputs);
        let bound = bind(&left, inputs)?;
        let mut bound_ports = left.iter().zip(&bound).peekable();
        let mut values: Vec<SessionInputValue<'_>> = Vec::with_capacity(self.inputs.len());
        for port in &self.inputs {
            let value = match bound_ports.next_if(|(next, _)| next.name == port.name) {
                Some((_, input)) => given(input),
                None => kept(in_use, port),
            };
            values.push(value.map_err(|e| backend(format!("input `{}`: {e}", port.name)))?.into());
        }
        if let (Some((device_weights, names)), Some(state)) = (&self.device_weights, in_use.weights) {
            for name in names {
                values.push(
                    weight(device_weights, state, name).map_err(|e| backend(format!("weight `{name}`: {e}")))?.into(),
                );
            }
        }
        let ports = &self.outputs;
        let collect = |results: &SessionOutputs<'_>| {
            let mut outputs = NamedTensors::new();
            for port in ports {
                let name = &port.name;
                let value = results.get(name).ok_or_else(|| backend(format!("output `{name}` is missing")))?;
                let tensor = copy_out(value).map_err(|e| backend(format!("output `{name}`: {e}")))?;
                outputs.insert(name.clone(), tensor);
            }
            Ok(outputs)
        };
        match (self.limits, in_use.cancelled) {
            (Some(limits), _) => limits.run(&mut self.session, &values, collect),
            (None, Some(cancelled)) => self.runner.run(&mut self.session, &values, cancelled, collect),
            (None, None) => collect(&self.session.run(&values[..]).map_err(|e| backend(e.to_string()))?),
        }
    }
}
