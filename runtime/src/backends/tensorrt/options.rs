//! What TensorRT alone is asked for.

use std::path::PathBuf;

/// How engines that are compiled for TensorRT are opened.
#[derive(Clone, Debug)]
pub struct TrtOptions {
    /// The library, or the folder that holds it; found as [`v2l_search::Product`] says if not given.
    pub library: Option<PathBuf>,
    /// The GPU, counted from 0.
    pub device: u16,
    /// Compare what the engine computes with what it shall compute, whenever its weights were set: the base with the probe that
    /// was recorded when it was compiled, adapters with ONNX Runtime on the probe's inputs.
    pub verify: bool,
}

impl Default for TrtOptions {
    fn default() -> Self {
        Self { library: None, device: 0, verify: true }
    }
}
