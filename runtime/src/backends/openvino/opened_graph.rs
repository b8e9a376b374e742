//! One stored graph, ready to run.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use v2l_openvino::{Borrowed, Compiled, Element, Lent, OpenVinoError, Request};

use super::NAME;
use super::error::{OvError, failed};
use crate::backends::device_weights::{DeviceWeights, InUse, State, bytes};
use crate::backends::interface::Interface;
use crate::backends::precomputed::RunnableGraph;
use crate::engine::inputs::bind;
use crate::engine::session::{Port, SessionError};
use crate::io::raw::tensor_from_bytes;
use crate::options::RunLimits;
use crate::tensor::{Dtype, NamedTensors, TensorView};

/// A stored graph on OpenVINO, and what it is given in every run.
pub struct OvGraph {
    request: Request,
    /// Inputs that are weights: all that the graph does not hold itself.
    weights: Vec<String>,
    device_weights: Arc<DeviceWeights>,
    inputs: Vec<Port>,
    /// Those that no node reads: OpenVINO leaves them out.
    unread: Vec<String>,
    outputs: Vec<Port>,
    limits: Option<RunLimits>,
}

impl OvGraph {
    /// Over these weights, after checking that it is the graph that is expected.
    pub(super) fn new(
        Interface { name, inputs, outputs }: Interface,
        weights: &[String],
        (compiled, device_weights): (&Compiled, &Arc<DeviceWeights>),
        limits: Option<RunLimits>,
    ) -> Result<Self, OvError> {
        let interface = |what: String| OvError::Interface { graph: name.clone(), what };
        let expected = inputs.iter().map(|port| &port.name).chain(weights);
        if let Some(missing) = weights.iter().find(|name| !compiled.inputs().contains(name)) {
            return Err(interface(format!(
                "the manifest has the weight `{missing}`, the stored graph does not read it"
            )));
        }
        if let Some(more) = compiled.inputs().iter().find(|name| !expected.clone().any(|known| known == *name)) {
            return Err(interface(format!("the stored graph has the input `{more}`, the manifest has not")));
        }
        if let Some(port) = inputs.iter().chain(&outputs).find(|port| element(port.dtype).is_none()) {
            return Err(interface(format!("`{}` is of {}, which OpenVINO is not given", port.name, port.dtype)));
        }
        let request = compiled.request().map_err(|source| OvError::Graph { graph: name.clone(), source })?;
        let is_unread = |name: &&String| !compiled.inputs().contains(name);
        Ok(Self {
            request,
            unread: inputs.iter().map(|port| &port.name).filter(is_unread).cloned().collect(),
            weights: weights.to_vec(),
            device_weights: Arc::clone(device_weights),
            inputs,
            outputs,
            limits,
        })
    }

    /// Sees to it that every weight in use without adapters is set, and gives those with adapters: they may be others in the next run.
    fn weights(&mut self, state: &State) -> Result<Vec<(usize, Bytes)>, OpenVinoError> {
        let mut fused = Vec::new();
        for (at, name) in self.weights.iter().enumerate() {
            if let Some(block) = state.fused(name) {
                fused.push((at, bytes(block)));
            } else if let Some(held) = self.device_weights.held(name).filter(|_| !self.request.is_set(name)) {
                self.request.set_input(name, borrowed(held.dtype, &held.shape, bytes(&held.base))?)?;
            }
        }
        Ok(fused)
    }
}

/// OpenVINO's name for a type.
pub(super) fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::Bf16 => Some(Element::BF16),
        Dtype::I64 => Some(Element::I64),
        Dtype::I32 => Some(Element::I32),
        Dtype::I8 => Some(Element::I8),
        Dtype::U8 => Some(Element::U8),
        Dtype::Bool => Some(Element::Bool),
        _ => None,
    }
}

/// Refuses whole numbers that OpenVINO would cut off: it computes with 32 bits of 64.
fn within_32_bits(name: &str, view: &TensorView<'_>) -> Result<(), SessionError> {
    if view.dtype() != Dtype::I64 {
        return Ok(());
    }
    let (values, _) = view.data().as_chunks::<8>();
    match values.iter().map(|bytes| i64::from_ne_bytes(*bytes)).find(|value| i32::try_from(*value).is_err()) {
        Some(value) => Err(SessionError::InputMismatch {
            name: name.to_owned(),
            expected: format!("numbers from {} to {}, as OpenVINO has 32 bits for them", i32::MIN, i32::MAX),
            found: value.to_string(),
        }),
        None => Ok(()),
    }
}

/// A weight as OpenVINO takes it.
pub(super) fn borrowed(dtype: Dtype, shape: &[usize], data: Bytes) -> Result<Borrowed, OpenVinoError> {
    Borrowed::new(known(dtype)?, shape, Arc::new(data))
}

fn known(dtype: Dtype) -> Result<Element, OpenVinoError> {
    element(dtype).ok_or_else(|| OpenVinoError::Tensor { reason: format!("OpenVINO is given no {dtype}") })
}

impl RunnableGraph for OvGraph {
    const BACKEND: &'static str = NAME;

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)], in_use: InUse<'_>) -> Result<NamedTensors, SessionError> {
        let fused = match in_use.weights {
            Some(state) => self.weights(state).map_err(failed)?,
            None => Vec::new(),
        };
        let left = in_use.left(&self.inputs, inputs);
        let bound = bind(&left, inputs)?;
        let kept = self.inputs.iter().filter(|port| left.iter().all(|left| left.name != port.name));
        let kept: Vec<(&Port, &[usize], Bytes)> = kept
            .filter_map(|port| in_use.inputs.get(&port.name).map(|held| (port, &held.shape[..], bytes(&held.block))))
            .collect();
        let mut lent: Vec<(&str, Lent<'_>)> = Vec::with_capacity(self.inputs.len() + fused.len());
        let mut lend = |name, dtype, shape: &[usize], data| -> Result<(), OpenVinoError> {
            lent.push((name, Lent::new(known(dtype)?, shape, data)?));
            Ok(())
        };
        let is_read = |port: &Port| !self.unread.contains(&port.name);
        for (port, input) in left.iter().zip(&bound).filter(|(port, _)| is_read(port)) {
            let view = input.view();
            within_32_bits(&port.name, &view)?;
            lend(&port.name[..], view.dtype(), view.shape(), view.data()).map_err(failed)?;
        }
        for (port, shape, data) in kept.iter().filter(|(port, ..)| is_read(port)) {
            lend(&port.name[..], port.dtype, shape, data).map_err(failed)?;
        }
        for (at, data) in &fused {
            let name = &self.weights[*at][..];
            let Some(held) = self.device_weights.held(name) else { continue };
            lend(name, held.dtype, &held.shape, data).map_err(failed)?;
        }
        let started = Instant::now();
        let late = || self.limits.is_some_and(|limits| started.elapsed() > limits.time);
        let is_cancelled = || in_use.cancelled.is_some_and(|cancelled| cancelled());
        let ran = self.request.run_on(&lent, &|| is_cancelled() || late());
        let ran = ran.map_err(|error| match (error, self.limits) {
            (OpenVinoError::Cancelled, Some(limits)) if !is_cancelled() => {
                SessionError::Stopped { seconds: limits.time.as_secs() }
            }
            (error, _) => failed(error),
        })?;
        let mut outputs = NamedTensors::new();
        for port in &self.outputs {
            let output = ran.output(&port.name).map_err(failed)?;
            let tensor = (element(port.dtype) == Some(output.element()))
                .then(|| tensor_from_bytes(port.dtype, output.shape(), output.bytes()))
                .flatten();
            let tensor = tensor.ok_or_else(|| {
                let (name, found, shape) = (&port.name, output.element(), output.shape());
                let message = format!("output `{name}`: expected {}, found {found} {shape:?}", port.dtype);
                SessionError::Backend { backend: NAME, message }
            })?;
            outputs.insert(port.name.clone(), tensor);
        }
        Ok(outputs)
    }
}
