//! Models, and pieces of them, on OpenVINO.

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;
use v2l_calibration::Executor;
use v2l_graphs::passes::{infer_shapes, lower_for_openvino};
use v2l_graphs::{Dim, Model, TensorType};
use v2l_runtime::backends::open_graph;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::Tensor;

use super::{ExecuteError, OrtExecutor, encoded, interface, ports_of, weights};
use crate::types::from_runtime;

/// What options and messages call the backend.
const BACKEND: &str = "openvino";

/// Runs models on OpenVINO in float32, each written for it as engines are.
pub(crate) struct OpenVinoExecutor<'a> {
    options: OpenOptions,
    /// What pieces are cut from: it knows more shapes than they do.
    whole: &'a Model,
}

impl<'a> OpenVinoExecutor<'a> {
    /// For pieces of `whole`, with these options, whatever backend they name.
    ///
    /// # Errors
    /// [`ExecuteError::NoBackend`].
    pub(crate) fn new(options: &OpenOptions, whole: &'a Model) -> Result<Self, ExecuteError> {
        let backend = BACKEND.parse().map_err(|_| ExecuteError::NoBackend { backend: BACKEND })?;
        Ok(Self { options: OpenOptions { backend, ..options.clone() }, whole })
    }

    /// OpenVINO must know how many axes each input has, and what is written for it the widths of norms.
    fn shape(&self, piece: &mut Model, inputs: &[(&str, &Tensor)]) {
        for input in &mut piece.graph.inputs {
            if let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == input.name) {
                let shape = tensor.shape().iter().map(|&extent| Dim::Fixed(extent)).collect();
                input.ty = Some(TensorType { dtype: from_runtime(tensor.dtype()), shape: Some(shape) });
            }
        }
        let made: HashSet<&String> = piece.graph.nodes.iter().flat_map(|node| &node.outputs).collect();
        let known = self.whole.graph.value_info.iter().filter(|info| made.contains(&info.name));
        piece.graph.value_info = known.cloned().collect();
        infer_shapes(piece);
    }
}

impl Executor for OpenVinoExecutor<'_> {
    type Value = Tensor;
    type Error = ExecuteError;

    fn run(&mut self, model: &Model, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, ExecuteError> {
        let mut lowered = model.clone();
        self.shape(&mut lowered, inputs);
        let done = lower_for_openvino(&mut lowered)?;
        let mut weights = weights(model, &IndexMap::new())?;
        // The others lie in it.
        weights.retain(|weight| done.weights.contains(&weight.name) || done.constants.contains(&weight.name));
        let interface = interface(model, ports_of(inputs))?;
        let session = open_graph(&interface, &encoded(&lowered)?, &weights, &self.options);
        let mut session = session.ok_or(ExecuteError::NoBackend { backend: BACKEND })??;
        Ok(session.run(inputs)?.into_iter().collect())
    }

    fn floats(value: &Tensor) -> Option<Cow<'_, [f32]>> {
        OrtExecutor::floats(value)
    }
}
