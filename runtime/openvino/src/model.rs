//! Graphs.

use std::ptr::null;
use std::sync::Arc;

use openvino_sys::ov_model_t;

use crate::constants::over;
use crate::handle::Handle;
use crate::{Borrowed, Core, OpenVinoError};

/// A graph that OpenVINO has read.
pub struct Model {
    handle: Handle<ov_model_t>,
    /// What its constants are read from.
    constants: Arc<[Borrowed]>,
    /// The frontend that the graph came from is the core's.
    _core: Core,
}

impl Model {
    /// Reads an ONNX model that holds all its data; what it does not hold it takes as inputs. Takes 10 to 25 ms for the graph of a transformer.
    ///
    /// # Errors
    /// [`OpenVinoError::ExternalData`] if a tensor names a file: OpenVINO takes one name for an address in this process's memory, and opens absolute
    /// paths. [`OpenVinoError::Refused`] with OpenVINO's words, [`OpenVinoError::MissingFile`] without its ONNX frontend.
    pub fn from_onnx_bytes(core: &Core, onnx: &[u8]) -> Result<Self, OpenVinoError> {
        Self::over_constants(core, onnx, &[])
    }

    /// As [`Self::from_onnx_bytes`], with the initializers of these names over memory that the caller owns. OpenVINO copies them while it reads;
    /// what it compiles from them is another copy.
    ///
    /// # Errors
    /// As [`Self::from_onnx_bytes`]; [`OpenVinoError::Refused`] if the model has no such initializer.
    pub fn over_constants(core: &Core, onnx: &[u8], constants: &[(&str, Borrowed)]) -> Result<Self, OpenVinoError> {
        let onnx = over(onnx, constants)?;
        // SAFETY: the bytes are there for the call and copied; null stands for no weights. Addresses in them are those of `constants`, whose owners the
        // model holds. What the call gives is freed by `ov_model_free`.
        #[allow(unsafe_code, reason = "OpenVINO's C API")]
        let handle = unsafe {
            Handle::new(
                |model| {
                    openvino_sys::ov_core_read_model_from_memory_buffer(
                        core.raw(),
                        onnx.as_ptr().cast(),
                        onnx.len(),
                        null(),
                        model,
                    )
                },
                |model| openvino_sys::ov_model_free(model),
            )
        };
        let handle = handle.map_err(|failure| {
            let missing = core.missing("libopenvino_onnx_frontend", &failure);
            missing.unwrap_or_else(|| failure.of_graph("reads the graph"))
        })?;
        let constants = constants.iter().map(|(_, constant)| constant.clone()).collect();
        Ok(Self { handle, constants, _core: core.clone() })
    }

    /// What the graph's constants are read from: they stay for as long as the graph, and what is compiled from it.
    pub(crate) fn constants(&self) -> &Arc<[Borrowed]> {
        &self.constants
    }

    pub(crate) const fn raw(&self) -> *mut ov_model_t {
        self.handle.raw()
    }
}
