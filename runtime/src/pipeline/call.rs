//! A run of a graph, and what it gave.

use ndarray::ArrayD;

use super::error::PipelineError;
use crate::engine::session::{Session, SessionError};
use crate::events::PhaseProgress;
use crate::tensor::{Dtype, NamedTensors, Tensor};

/// Runs a graph, unless the observer asks to stop; float inputs are rounded to the types that it declares.
pub(super) fn run(
    session: &mut dyn Session,
    component: &'static str,
    graph: &str,
    inputs: &[(&str, &Tensor)],
    progress: &PhaseProgress<'_>,
) -> Result<NamedTensors, PipelineError> {
    let types: Vec<Option<Dtype>> = inputs
        .iter()
        .map(|(name, _)| session.inputs().iter().find(|port| port.name == *name).map(|port| port.dtype))
        .collect();
    let rounded: Vec<Option<Tensor>> = inputs
        .iter()
        .zip(types)
        .map(|((_, tensor), dtype)| match (tensor, dtype) {
            (Tensor::F32(array), Some(dtype)) if dtype != Dtype::F32 => Tensor::from_floats(array.clone(), dtype),
            _ => None,
        })
        .collect();
    let inputs: Vec<(&str, &Tensor)> = inputs
        .iter()
        .zip(&rounded)
        .map(|((name, tensor), rounded)| (*name, rounded.as_ref().unwrap_or(tensor)))
        .collect();
    session.run_unless(&inputs, &|| progress.is_cancelled()).map_err(|source| failed(component, graph, source))
}

/// Why a session of this graph failed, or that it was ended.
pub(super) fn failed(component: &'static str, graph: &str, source: SessionError) -> PipelineError {
    match source {
        SessionError::Cancelled(cancelled) => cancelled.into(),
        source => PipelineError::Session { component, graph: graph.to_owned(), source },
    }
}

/// One float output of a graph, its shape checked.
pub(super) fn take(
    outputs: &mut NamedTensors,
    component: &'static str,
    graph: &str,
    output: &'static str,
    fits: impl Fn(&[usize]) -> bool,
) -> Result<ArrayD<f32>, PipelineError> {
    let tensor = outputs.shift_remove(output);
    let found = tensor.as_ref().map_or("absent".to_owned(), |t| format!("{} {:?}", t.dtype(), t.shape()));
    tensor.and_then(Tensor::into_f32).filter(|array| fits(array.shape())).ok_or_else(|| PipelineError::Output {
        component,
        graph: graph.to_owned(),
        output,
        found,
        expected: "a float tensor of the shape of the input".to_owned(),
    })
}
