//! Models, and pieces of them, on ONNX Runtime: the compiler looks at what they compute.

pub(crate) mod adapted;
pub(crate) mod openvino;

use std::borrow::Cow;

use indexmap::IndexMap;
use v2l_calibration::Executor;
use v2l_graphs::passes::NotForOpenVino;
use v2l_graphs::{Location, Model, encode_model};
use v2l_runtime::backends::onnxruntime::{OrtError, OrtSession};
use v2l_runtime::backends::{BackendError, GraphWeight, Interface};
use v2l_runtime::engine::manifest::WEIGHTS_PLACEHOLDER;
use v2l_runtime::engine::session::{Dim, Port, Session, SessionError};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::Tensor;

use crate::types::to_runtime;

/// Why a model did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// A weight cannot be read or converted.
    #[error("weight `{name}`: {reason}")]
    Weight {
        /// The weight.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An output's element type is unknown, or nothing that can be looked at.
    #[error("output `{name}`: its element type is unknown; run shape inference on the model first")]
    Output {
        /// The output.
        name: String,
    },
    /// The graph cannot be written.
    #[error(transparent)]
    Encode(#[from] std::io::Error),
    /// ONNX Runtime refuses the graph.
    #[error(transparent)]
    Open(#[from] OrtError),
    /// A graph cannot be written for OpenVINO.
    #[error(transparent)]
    Lower(#[from] NotForOpenVino),
    /// Another backend refuses the graph.
    #[error(transparent)]
    OpenOn(#[from] BackendError),
    /// This build has no such backend, or it runs engines alone.
    #[error("this build runs no graph on {backend}; expected one with the feature `{backend}`")]
    NoBackend {
        /// The backend.
        backend: &'static str,
    },
    /// ONNX Runtime cannot run it.
    #[error(transparent)]
    Run(#[from] SessionError),
}

impl ExecuteError {
    /// True if a run would have taken more time or memory than it may.
    pub(crate) fn is_beyond_limits(&self) -> bool {
        matches!(self, Self::Run(SessionError::Stopped { .. } | SessionError::Memory { .. }))
    }
}

/// Runs models on ONNX Runtime as they stand, on the CPU.
///
/// Weights that lie in a map in the graph's own type are used in place; others are made in private memory for one run.
#[derive(Clone, Debug, Default)]
pub struct OrtExecutor {
    /// Library and threads.
    pub options: OpenOptions,
    /// Weights to use in place of the model's own, in the graph's type: fused ones.
    pub overrides: IndexMap<String, bytes::Bytes>,
}

impl OrtExecutor {
    /// A session over the model with these input extents.
    ///
    /// # Errors
    /// [`ExecuteError`].
    pub fn session(&self, model: &Model, inputs: Vec<Port>) -> Result<OrtSession, ExecuteError> {
        let weights = weights(model, &self.overrides)?;
        Ok(OrtSession::from_graph(interface(model, inputs)?, &encoded(model)?, weights, &self.options)?)
    }
}

impl Executor for OrtExecutor {
    type Value = Tensor;
    type Error = ExecuteError;

    fn run(&mut self, model: &Model, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, ExecuteError> {
        let mut session = self.session(model, ports_of(inputs))?;
        Ok(session.run(inputs)?.into_iter().collect())
    }

    fn floats(value: &Tensor) -> Option<Cow<'_, [f32]>> {
        match value {
            Tensor::F32(array) if array.is_standard_layout() => array.as_slice().map(Cow::Borrowed),
            other => other.to_f32().map(|array| Cow::Owned(array.iter().copied().collect())),
        }
    }
}

/// The model's bytes; it names its weights.
fn encoded(model: &Model) -> Result<Vec<u8>, ExecuteError> {
    let location = |name: &str| {
        let length = model.graph.initializers.get(name)?.expected_len()? as u64;
        Some(Location { file: WEIGHTS_PLACEHOLDER.into(), offset: 0, length })
    };
    Ok(encode_model(model, &location)?)
}

/// The weights of a model, those in `overrides` with other values.
fn weights(model: &Model, overrides: &IndexMap<String, bytes::Bytes>) -> Result<Vec<GraphWeight>, ExecuteError> {
    let external = model.graph.initializers.iter().filter(|(_, weight)| weight.external);
    let weight = external.map(|(name, weight)| {
        let fail = |reason: String| ExecuteError::Weight { name: name.clone(), reason };
        let data = match overrides.get(name) {
            Some(data) => data.clone(),
            None => weight.data.to_bytes().map_err(|e| fail(e.to_string()))?,
        };
        Ok(GraphWeight { name: name.clone(), dtype: to_runtime(weight.dtype), shape: weight.shape.clone(), data })
    });
    weight.collect()
}

/// What the model takes and gives.
fn interface(model: &Model, inputs: Vec<Port>) -> Result<Interface, ExecuteError> {
    let outputs = model.graph.outputs.iter().map(|output| {
        let dtype = output.ty.as_ref().map(|ty| to_runtime(ty.dtype));
        let dtype = dtype.ok_or_else(|| ExecuteError::Output { name: output.name.clone() })?;
        Ok(Port { name: output.name.clone(), dtype, shape: Vec::new() })
    });
    let outputs = outputs.collect::<Result<_, ExecuteError>>()?;
    Ok(Interface { name: model.graph.name.clone(), inputs, outputs })
}

/// Inputs of just these extents.
fn ports_of(inputs: &[(&str, &Tensor)]) -> Vec<Port> {
    let port = |(name, tensor): &(&str, &Tensor)| {
        let shape = tensor.shape().iter().map(|&n| Dim::Fixed(n)).collect();
        Port { name: (*name).to_owned(), dtype: tensor.dtype(), shape }
    };
    inputs.iter().map(port).collect()
}
