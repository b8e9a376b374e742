//! What runs an engine, and what is fused into it.

use v2l_trt::Flavour;

use crate::engine::Engine;
use crate::lora::adapter::Adapter;

/// What runs an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// What it is compiled for.
    #[default]
    Compiled,
    /// ONNX Runtime, by the ONNX form that every engine holds.
    Ort,
    /// TensorRT, which the engine must be compiled for.
    TensorRt(Flavour),
}

impl Backend {
    /// The one that runs this engine; `None` is ONNX Runtime.
    pub(super) fn of(self, engine: &Engine) -> Option<Flavour> {
        let compiled = |flavour: &Flavour| engine.manifest().graphs.iter().any(|g| g.backend == flavour.backend());
        match self {
            Self::Compiled => [Flavour::Rtx, Flavour::TensorRt].into_iter().find(compiled),
            Self::Ort => None,
            Self::TensorRt(flavour) => Some(flavour),
        }
    }
}

/// What will be fused into an engine.
#[derive(Clone, Copy, Debug)]
pub enum Fused<'a> {
    /// These adapters, each with its strength.
    These(&'a [(Adapter, f32)]),
    /// Some that change every slot.
    All,
}
