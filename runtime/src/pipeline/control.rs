//! Controls of a request, as inputs of a step.

use std::borrow::Cow;

use ndarray::{ArrayD, IxDyn};

use super::Pipeline;
use crate::components::{CONTROL, CONTROL_MASK, STEP_CONTROL, StepGraph};
use crate::request::ResolvedRequest;
use crate::tensor::{NamedTensors, Tensor};

impl Pipeline {
    /// The graph of a step and the inputs that stand for the controls that are on; without any it is the given graph.
    pub(super) fn with_controls<'a>(
        &self,
        step: &'a StepGraph,
        settings: &ResolvedRequest,
    ) -> (Cow<'a, StepGraph>, NamedTensors) {
        if settings.request.controls.is_empty() {
            return (Cow::Borrowed(step), NamedTensors::new());
        }
        let names = &self.config().controls;
        let shape = IxDyn(&[settings.batch(), names.len()]);
        let given =
            |at: usize| settings.request.controls.iter().find(|(name, _)| *name == names[at]).map(|(_, value)| *value);
        let row = |value: fn(Option<f32>) -> f32| {
            Tensor::F32(ArrayD::from_shape_fn(shape.clone(), |index| value(given(index[1]))))
        };
        let inputs = NamedTensors::from([
            (CONTROL.to_owned(), row(Option::unwrap_or_default)),
            (CONTROL_MASK.to_owned(), row(|value| f32::from(u8::from(value.is_some())))),
        ]);
        let graph = step.graph.replacen(&StepGraph::default().graph, STEP_CONTROL, 1);
        (Cow::Owned(StepGraph { graph, ..step.clone() }), inputs)
    }
}
