//! A session in the making whose weights all arrive through overrides.

use bytes::Bytes;
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::OrtError;
use super::scratch::Scratch;
use super::value::borrow;
use crate::engine::manifest::WEIGHTS_PLACEHOLDER;
use crate::tensor::Dtype;

/// Configuration key: where external data are looked for when a graph comes from memory.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A session in the making, and the memory that it borrows.
pub(super) struct WeightedBuilder {
    // Fields drop in order: ONNX Runtime lets go of the weights before they go.
    builder: SessionBuilder,
    held: Vec<Bytes>,
    /// Only making a session needs it.
    _placeholder: Scratch,
    graph: String,
}

impl WeightedBuilder {
    /// `graph` is what messages call it.
    pub(super) fn new(graph: &str, builder: SessionBuilder) -> Result<Self, OrtError> {
        // An empty file in place of external data.
        let placeholder = Scratch::new(&[WEIGHTS_PLACEHOLDER])?;
        let builder = builder
            .with_config_entry(EXTERNAL_FOLDER, placeholder.name())
            .map_err(|e| OrtError::refused(graph, e.to_string()))?;
        Ok(Self { builder, held: Vec::new(), _placeholder: placeholder, graph: graph.to_owned() })
    }

    /// Gives the initializer `name` these elements, which are not copied.
    pub(super) fn add(self, name: &str, dtype: Dtype, shape: &[usize], data: Bytes) -> Result<Self, OrtError> {
        let Self { builder, mut held, _placeholder, graph } = self;
        let fail = |message: String| OrtError::refused(&graph, format!("`{name}`: {message}"));
        // SAFETY: the bytes are shared with `held`, which outlives the builder and is handed on with the session; on an
        // error the builder and its values are dropped, and no session was made. Nothing writes to them.
        #[allow(unsafe_code, reason = "ONNX Runtime's C API, and memory that it borrows")]
        let value = unsafe { borrow(dtype, shape, &data) }.map_err(fail)?;
        let builder = builder.with_initializer(name, value).map_err(|e| fail(e.to_string()))?;
        held.push(data);
        Ok(Self { builder, held, _placeholder, graph })
    }

    /// The session over the ONNX bytes, and the weights, which must be kept as long as it.
    pub(super) fn commit(mut self, onnx: &[u8]) -> Result<(Session, Vec<Bytes>), OrtError> {
        let session =
            self.builder.commit_from_memory(onnx).map_err(|e| OrtError::refused(&self.graph, e.to_string()))?;
        drop(self.builder);
        Ok((session, self.held))
    }
}
