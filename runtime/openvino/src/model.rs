//! Graphs.

use std::ptr::null;

use openvino_sys::ov_model_t;

use crate::handle::Handle;
use crate::{Core, OpenVinoError};

/// A graph that OpenVINO has read.
pub struct Model {
    handle: Handle<ov_model_t>,
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
        let external = v2l_wire::external_data(onnx);
        let external = external.map_err(|malformed| OpenVinoError::Refused { reason: malformed.to_string() })?;
        if let Some(first) = external.into_iter().next() {
            let place = first.locations.first().map_or("outside of them".to_owned(), |place| format!("in `{place}`"));
            return Err(OpenVinoError::ExternalData { tensor: first.tensor, place });
        }
        // SAFETY: the bytes are there for the call and copied; null stands for no weights. What the call gives is freed by `ov_model_free`.
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
        Ok(Self { handle, _core: core.clone() })
    }

    pub(crate) const fn raw(&self) -> *mut ov_model_t {
        self.handle.raw()
    }
}
