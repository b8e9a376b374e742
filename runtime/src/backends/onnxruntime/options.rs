//! How to open an engine on ONNX Runtime.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::bounded::RunLimits;
use super::provider::Provider;
use crate::backends::choice::Backend;
use crate::backends::tensorrt::TrtOptions;
use crate::engine::recording::Recorder;
use crate::lora::adapter::Adapter;

/// How the weights reach ONNX Runtime, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrtWeights {
    /// In f32, in private memory unless they are stored so: fastest, and a fuse loses nothing.
    Widened,
    /// In the storage type, in place: least memory; each use widens them again.
    Lazy,
    /// [`OrtWeights::Widened`] if twice the f32 weights fit in half of the memory that this process may have: the machine's, or
    /// what limits it. What is free at the moment does not count.
    #[default]
    Auto,
}

impl FromStr for OrtWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "widened" => Ok(Self::Widened),
            "lazy" => Ok(Self::Lazy),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("expected widened, lazy or auto, found `{text}`")),
        }
    }
}

/// In which types a graph computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// float32 throughout.
    #[default]
    Fp32,
    /// Each node in the type of the precision plan that the engine was compiled by; weights as they are stored.
    Plan,
}

/// How the weights reach ONNX Runtime, as decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightMode {
    /// See [`OrtWeights::Widened`].
    Widened,
    /// See [`OrtWeights::Lazy`].
    Lazy,
    /// In a TensorRT plan on the GPU, in the storage type.
    Plan,
}

impl fmt::Display for WeightMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Widened => "widened",
            Self::Lazy => "lazy",
            Self::Plan => "plan",
        })
    }
}

/// Which weights stay on the device and are given to sessions as inputs: open sessions then take other adapters without being
/// opened again. On the CPU that costs some of what ONNX Runtime gains by repacking these weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// None: all are initializers of each session.
    #[default]
    None,
    /// Those of slots.
    Slots,
    /// All, as on a GPU.
    All,
}

/// More threads than this are no request that a machine could serve.
pub const MOST_THREADS: usize = 1024;

/// How to open an engine on ONNX Runtime.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The library; found as [`find_onnxruntime`](crate::io::library::find_onnxruntime) says if not given.
    pub ort_lib: Option<PathBuf>,
    /// How the weights are held.
    pub weights: OrtWeights,
    /// In which types graphs compute. By plan, the weights are held lazily.
    pub arithmetic: Arithmetic,
    /// Threads within an operator, at most [`MOST_THREADS`]; as many as there are cores if not given.
    pub threads: Option<usize>,
    /// Adapters to fuse, with their strengths.
    pub adapters: Vec<(Adapter, f32)>,
    /// For engine directories and predictors: what every run's inputs are written by.
    pub record: Option<Recorder>,
    /// Time operators, for [`OrtSession::operator_times`](super::OrtSession::operator_times).
    pub profile: bool,
    /// Most bytes of private memory that a component's weights may take; what the machine has available if not given.
    pub memory: Option<u64>,
    /// What a run of a graph may take, its hoisted graphs each for itself; without, whatever it takes.
    pub limits: Option<RunLimits>,
    /// What to compute on. On a GPU all weights are resident, whatever [`Self::resident`] says.
    pub provider: Provider,
    /// Which weights stay on the device and are given to sessions as inputs.
    pub resident: Residence,
    /// For ONNX Runtime: run graphs that are compiled for another backend, too, by the ONNX form that every engine holds.
    pub any_backend: bool,
    /// What runs an engine.
    pub backend: Backend,
    /// How engines that are compiled for TensorRT are opened.
    pub trt: TrtOptions,
}
