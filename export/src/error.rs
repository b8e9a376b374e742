use std::io;
use std::path::PathBuf;

use crate::check::Unchecked;
use crate::remedy::Remedy;

/// Why an export or a compilation failed. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A checkpoint file cannot be read.
    #[error(transparent)]
    Weights(#[from] v2l_runtime::io::weights::WeightError),
    /// A JSON file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong: expected, found and the way out.
        reason: String,
    },
    /// What the pipeline is made of cannot be used.
    #[error("{}: {source}", path.display())]
    Pipeline {
        /// The file or folder that says so.
        path: PathBuf,
        /// What is wrong: expected, found and the way out.
        #[source]
        source: v2l_runtime::pipeline::config::ConfigError,
    },
    /// A folder holds nothing that can be exported.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The output exists and is something else.
    #[error("{}: {reason}; choose another output, or remove it", path.display())]
    Occupied {
        /// The output.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A tensor that the architecture needs is missing.
    #[error(
        "{checkpoint}: tensor `{name}` is missing; expected shape {expected:?}{hint}. \
         Is config.json the one of this checkpoint?"
    )]
    MissingTensor {
        /// Where it was looked for.
        checkpoint: String,
        /// Its name.
        name: String,
        /// The shape that the architecture calls for.
        expected: Vec<usize>,
        /// The closest name that is there.
        hint: String,
    },
    /// A tensor has another shape than the architecture calls for.
    #[error(
        "{checkpoint}: tensor `{name}` has shape {found:?}, expected {expected:?}. \
         Is config.json the one of this checkpoint?"
    )]
    WrongShape {
        /// Where it lies.
        checkpoint: String,
        /// Its name.
        name: String,
        /// The shape that the architecture calls for.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor has a type that cannot be exported.
    #[error("{checkpoint}: tensor `{name}` is {found}; expected f32, f16, bf16 or f64: convert the checkpoint first")]
    WrongType {
        /// Where it lies.
        checkpoint: String,
        /// Its name.
        name: String,
        /// Its type.
        found: String,
    },
    /// Tensors of the checkpoint that the architecture does not use.
    #[error(
        "{checkpoint}: {count} tensors are not used by {architecture}: {names}. \
         Is config.json the one of this checkpoint?"
    )]
    SurplusTensors {
        /// The checkpoint.
        checkpoint: String,
        /// The architecture that was built.
        architecture: String,
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// The checkpoint or graph uses something that is not supported.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What.
        what: String,
        /// Why, and the way out.
        reason: String,
    },
    /// The hypernetwork does not fit the transformer, or its parts do not fit each other.
    #[error("hypernetwork: {0}")]
    Predictor(String),
    /// Numbers of a checkpoint are damaged.
    #[error("{0}")]
    Damaged(String),
    /// An engine cannot be written.
    #[error(transparent)]
    Engine(#[from] crate::engine_writer::EngineWriteError),
    /// An ONNX file cannot be read.
    #[error(transparent)]
    Onnx(#[from] v2l_graphs::ReadError),
    /// A graph is malformed.
    #[error("{graph}: {reason}")]
    Graph {
        /// The graph.
        graph: String,
        /// What is wrong, naming node and tensor.
        reason: String,
    },
    /// Tensors that were given do not fit a graph's inputs.
    #[error("{}: {reason}; expected {expected}", path.display())]
    Inputs {
        /// The file of named tensors.
        path: PathBuf,
        /// What does not fit.
        reason: String,
        /// What the graph takes.
        expected: String,
    },
    /// A profile does not fit a graph.
    #[error("profile {index}, input `{input}` of graph `{graph}`: {reason}")]
    Profile {
        /// Which profile, from 0.
        index: usize,
        /// The input.
        input: String,
        /// The graph.
        graph: String,
        /// What does not fit.
        reason: String,
    },
    /// Profiles are given for inputs that no graph has.
    #[error("profiles name input `{input}`, which no graph has; the inputs are: {known}")]
    ProfileInput {
        /// The name given.
        input: String,
        /// The inputs of all graphs.
        known: String,
    },
    /// An engine computes something else than its source.
    #[error("{0}")]
    Numeric(Box<crate::check::Failed>),
    /// The numeric check that was asked for could not be made.
    #[error("{0}")]
    NotChecked(Unchecked),
    /// A file of named tensors fits no graph.
    #[error("{reason}")]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What does not fit, what was expected and what was found.
        reason: String,
    },
    /// A precision plan cannot be used.
    #[error(transparent)]
    Plan(#[from] v2l_calibration::PlanError),
    /// An adapter to calibrate with cannot be read.
    #[error(transparent)]
    Adapter(#[from] v2l_runtime::lora::adapter::AdapterError),
    /// TensorRT cannot be loaded.
    #[error(transparent)]
    TensorRtLibrary(#[from] v2l_trt::library::LibraryError),
    /// TensorRT builds no plan of a graph.
    #[error("graph `{graph}`: {source}")]
    TensorRt {
        /// The graph.
        graph: String,
        /// The reason, in TensorRT's words.
        source: v2l_trt::builder::BuildError,
    },
    /// A graph cannot be written for OpenVINO.
    #[error("graph `{graph}`, for OpenVINO: {source}")]
    OpenVino {
        /// The graph.
        graph: String,
        /// The node, and what OpenVINO makes of it.
        source: v2l_graphs::passes::NotForOpenVino,
    },
    /// TensorRT needs to know the extents of all inputs.
    #[error("graph `{graph}`: TensorRT needs ranges for every free extent, and there are none for {inputs}")]
    FreeExtents {
        /// The graph.
        graph: String,
        /// Its inputs without ranges, and their extents.
        inputs: String,
    },
    /// One of the others, and what can be done about it.
    #[error("{error}")]
    Advised {
        /// The error.
        error: Box<ExportError>,
        /// Each of them is enough.
        remedies: Vec<Remedy>,
    },
    /// A tokenizer cannot be converted.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl ExportError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    /// What can be done about it with the options of [`compile`](crate::compile()); each is enough.
    pub fn remedies(&self) -> Vec<Remedy> {
        match self {
            Self::Advised { remedies, .. } => remedies.clone(),
            Self::NotChecked(Unchecked { remedies, .. }) => [&remedies[..], &[Remedy::WithoutCheck]].concat(),
            Self::FreeExtents { .. } => vec![Remedy::WithProfiles],
            _ => Vec::new(),
        }
    }

    /// The same error, with what can be done about it.
    pub(crate) fn advised(self, remedies: &[Remedy]) -> Self {
        Self::Advised { error: Box::new(self), remedies: remedies.to_vec() }
    }

    /// True if the checkpoint or graph is intact, but uses something that is not supported.
    pub fn is_unsupported(&self) -> bool {
        use v2l_graphs::ReadError;
        match self {
            Self::Advised { error, .. } => error.is_unsupported(),
            Self::Unsupported { .. }
            | Self::OpenVino { .. }
            | Self::Onnx(ReadError::Unsupported { .. } | ReadError::UnsupportedType { .. }) => true,
            _ => false,
        }
    }

    pub(crate) fn pipeline(path: impl Into<PathBuf>, source: v2l_runtime::pipeline::config::ConfigError) -> Self {
        Self::Pipeline { path: path.into(), source }
    }

    pub(crate) fn config(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Config { path: path.into(), reason: reason.into() }
    }
}
