//! What runs engines. Each backend is a folder here and a line of [`BACKENDS`], and implements [`Backend`].

pub mod backend;
mod device_weights;
mod error;
mod graph_session;
mod interface;
pub mod onnxruntime;
mod open;
pub mod openvino;
mod precomputed;
pub mod tensorrt;
mod weights;

use std::str::FromStr;

use v2l_trt::Flavour;

pub use backend::{Backend, BackendEngine, Fused, OpenReport, Reopen};
pub use error::{BackendError, BackendFailure};
pub use interface::{GraphWeight, Interface};
pub use open::OpenEngine;

use crate::options::BackendChoice;

use crate::components::Needs;
use crate::engine::footprint::Shapes;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::options::{OpenOptions, WeightMode};
use onnxruntime::OnnxRuntime;
#[cfg(feature = "openvino")]
use openvino::OpenVino;
use tensorrt::TensorRt;

/// The backends. A line each. The first runs any engine, and those that suit no other.
pub static BACKENDS: &[&dyn Backend] = &[
    &OnnxRuntime,
    #[cfg(feature = "openvino")]
    &OpenVino,
    &TensorRt(Flavour::Rtx),
    &TensorRt(Flavour::TensorRt),
];

/// What users write for the backend that suits an engine best.
pub const AUTO: &str = "auto";

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = BACKENDS.iter().find(|backend| backend.name() == text);
        match found {
            Some(backend) => Ok(Self::named(backend.name())),
            None if text == AUTO => Ok(Self::default()),
            None => {
                let names: Vec<&str> = BACKENDS.iter().map(|backend| backend.name()).collect();
                Err(format!("expected {AUTO}, {}, found `{text}`", names.join(", ")))
            }
        }
    }
}

/// The backend that runs an engine with these options.
pub fn chosen(engine: &Engine, options: &OpenOptions) -> &'static dyn Backend {
    let wanted = |backend: &&&dyn Backend| match options.backend.name() {
        Some(name) => backend.name() == name,
        None => backend.suits(engine, options),
    };
    // From the last: the first suits every engine.
    BACKENDS.iter().rev().find(wanted).copied().unwrap_or(&OnnxRuntime)
}

/// Opens a graph that belongs to no engine on the backend that the options name: see [`Backend::open_graph`].
///
/// # Errors
/// As [`Backend::open_graph`].
pub fn open_graph(
    interface: &Interface,
    onnx: &[u8],
    weights: &[GraphWeight],
    options: &OpenOptions,
) -> Option<Result<Box<dyn Session>, BackendError>> {
    let named = |backend: &&&dyn Backend| options.backend.name() == Some(backend.name());
    BACKENDS.iter().find(named)?.open_graph(interface, onnx, weights, options)
}

/// How an engine's weights will be held with these options, and why, in words: see [`Backend::held_weights`].
///
/// # Errors
/// [`EngineError`] if a graph names a weight that the engine lacks.
pub fn held_weights(engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
    chosen(engine, options).held_weights(engine, options)
}

/// What a graph takes if it is opened with these options: see [`Backend::needs`].
///
/// # Errors
/// [`EngineError`] if there is no such graph, or it names a weight that the engine lacks.
pub fn needs(
    engine: &Engine,
    graph: &str,
    options: &OpenOptions,
    fused: Fused<'_>,
    (shapes, runs): (&Shapes, usize),
) -> Result<Option<Needs>, EngineError> {
    chosen(engine, options).needs(engine, graph, options, fused, shapes, runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_is_read_from_the_names_of_the_registry_and_no_name_stands_twice() {
        assert_eq!(AUTO.parse(), Ok(BackendChoice::default()));
        let names: Vec<&str> = BACKENDS.iter().map(|backend| backend.name()).collect();
        for (at, name) in names.iter().enumerate() {
            let choice: BackendChoice = name.parse().unwrap();
            assert!(BACKENDS.iter().any(|backend| choice.name() == Some(backend.name())), "{name}");
            assert!(*name != AUTO && !names[..at].contains(name), "{name} stands twice");
        }
        let refused = "directml".parse::<BackendChoice>().unwrap_err();
        let openvino = if cfg!(feature = "openvino") { "openvino, " } else { "" };
        assert_eq!(refused, format!("expected auto, ort, {openvino}tensorrt-rtx, tensorrt, found `directml`"));
    }
}
