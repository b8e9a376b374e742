//! How engines are opened: what all backends share, and what each is asked for by itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::backends::onnxruntime::options::OrtOptions;
use crate::backends::openvino::options::OpenVinoOptions;
use crate::backends::tensorrt::options::TrtOptions;
use crate::engine::recording::Recorder;
use crate::lora::fuse::FusedCache;

/// What runs an engine: a backend by its name, or the one that suits the engine. It is read from a backend's name, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendChoice(Option<&'static str>);

impl BackendChoice {
    /// A backend of the registry.
    pub(crate) const fn named(name: &'static str) -> Self {
        Self(Some(name))
    }

    /// The backend's name; `None` is the one that suits.
    pub fn name(self) -> Option<&'static str> {
        self.0
    }
}

/// How the weights are held, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrtWeights {
    /// In f32, in private memory unless they are stored so: fastest, and a fuse loses nothing.
    F32,
    /// In the storage type, in place: least memory; each use widens them again.
    Stored,
    /// [`OrtWeights::F32`] if twice the f32 weights fit in half of the memory that this process may have: the machine's, or
    /// what limits it. What is free at the moment does not count.
    #[default]
    Auto,
}

impl FromStr for OrtWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "stored" => Ok(Self::Stored),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("expected f32, stored or auto, found `{text}`")),
        }
    }
}

/// How the weights are held, as decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightMode {
    /// See [`OrtWeights::F32`].
    F32,
    /// See [`OrtWeights::Stored`].
    Stored,
    /// In a TensorRT plan on the GPU, in the storage type.
    Plan,
}

/// The words of results, metadata and keys of predictions, which programs read.
impl fmt::Display for WeightMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Stored => "stored",
            Self::Plan => "plan",
        })
    }
}

/// What a run may take before it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Time; a run ends after the operator in which it passes.
    pub time: Duration,
    /// Bytes of values, of all bounded sessions of the process together; the first session's number holds.
    pub memory: u64,
}

/// More threads than this are no request that a machine could serve.
pub const MOST_THREADS: usize = 1024;

/// How to open an engine.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// How the weights are held.
    pub weights: OrtWeights,
    /// Threads within an operator, at most [`MOST_THREADS`]; as many as there are cores if not given.
    pub threads: Option<usize>,
    /// For engine directories and predictors: what every run's inputs are written by.
    pub record: Option<Recorder>,
    /// Most bytes of private memory that a component's weights may take; what the machine has available if not given.
    pub memory: Option<u64>,
    /// Where weights that adapters are fused into are kept, on ONNX Runtime's CPU backend, to be mapped when the same adapters come again.
    pub fused_cache: Option<FusedCache>,
    /// What a run of a graph may take, its precomputed graphs each for itself; without, whatever it takes.
    pub limits: Option<RunLimits>,
    /// What runs an engine.
    pub backend: BackendChoice,
    /// For ONNX Runtime.
    pub ort: OrtOptions,
    /// For OpenVINO.
    pub openvino: OpenVinoOptions,
    /// For TensorRT.
    pub trt: TrtOptions,
}
