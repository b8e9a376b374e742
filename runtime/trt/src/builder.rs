//! From a strongly typed ONNX model to a plan.

#[cfg(feature = "build")]
mod call;
#[cfg(feature = "build")]
mod child;
#[cfg(feature = "build")]
mod events;
#[cfg(feature = "build")]
mod plan_bytes;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::{Capability, DataType};

#[cfg(feature = "build")]
pub use self::plan_bytes::PlanBytes;
/// A serialized plan, of which there is none without the feature `build`.
#[cfg(not(feature = "build"))]
pub type PlanBytes = Vec<u8>;

/// Extents that an input may take, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The input.
    pub input: String,
    /// Smallest extents.
    pub min: Vec<i64>,
    /// Extents to tune for.
    pub opt: Vec<i64>,
    /// Largest extents.
    pub max: Vec<i64>,
}

/// How the weights of a plan can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refit<'a> {
    /// They cannot.
    None,
    /// All that feed matrix products and convolutions must be set before the engine runs; the plan holds no values for them.
    /// TensorRT-RTX only, and the one kind that it builds without a GPU.
    Placeholders,
    /// Those that are named can be; the plan holds all values. Needs a GPU.
    Marked(&'a [String]),
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A serialized ONNX model, strongly typed.
    pub model: &'a [u8],
    /// Bytes of the initializers that the model names as external, in their types.
    pub weights: &'a [(String, &'a [u8])],
    /// Ranges of every input with a free extent; each profile a list of its own.
    pub profiles: &'a [Vec<Range>],
    /// GPUs to build for; none: that of this machine. TensorRT-RTX only, and with placeholders one at a time.
    pub capabilities: &'a [Capability],
    /// What can be replaced.
    pub refit: Refit<'a>,
    /// What earlier builds learned of how long kernels take, nothing yet if it is empty, to be learned from and added to; `None`: nothing
    /// is kept. TensorRT only: TensorRT-RTX has no use for it.
    pub timing_cache: Option<&'a [u8]>,
}

/// A step of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// TensorRT's name for the phase.
    pub phase: &'a str,
    /// Steps of it that are done.
    pub done: u32,
    /// Steps of it; 0 if TensorRT does not say.
    pub of: u32,
}

/// A weight that the parser offers for a refit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refittable {
    /// TensorRT's name for it.
    pub name: String,
    /// The initializer that it is, as it is; `None` if it is made of several or of none.
    pub initializer: Option<String>,
    /// Element type in which it is set; `None` for types that v2l has no use for.
    pub dtype: Option<DataType>,
    /// Elements.
    pub count: u64,
}

/// A process of its own to build a plan in.
#[derive(Clone, Copy, Debug)]
pub struct Child<'a> {
    /// A program that begins with [`serve_if_asked`]. `/proc/self/exe`, this program, is the same text wherever it lies.
    pub program: &'a Path,
    /// Folder for a file without a name, of the model's size, that carries the request and the plan.
    pub scratch: &'a Path,
}

/// In a process that was started as a [`Child`]: builds the plan, and returns the exit code to end with. In any other: `None`.
///
/// To be called first of all in `main`: what is allocated before decides on addresses, and so on the plan's bytes.
pub fn serve_if_asked() -> Option<ExitCode> {
    #[cfg(feature = "build")]
    return child::serve_if_asked();
    #[cfg(not(feature = "build"))]
    None
}

/// A built plan.
#[derive(Debug)]
pub struct Built {
    /// The serialized plan.
    pub plan: PlanBytes,
    /// True if memory lay where it lies every time, so that a plan with placeholders has the same bytes when it is built again.
    pub reproducible: bool,
    /// What the parser offers for a refit: a superset of what the engine takes.
    pub refittable: Vec<Refittable>,
    /// TensorRT's warnings.
    pub warnings: Vec<String>,
    /// With [`Request::timing_cache`]: what is known now.
    pub timing_cache: Option<Vec<u8>>,
}

/// One entry of the ONNX parser's list of errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParserError {
    /// NVIDIA's number for its kind.
    pub code: i32,
    /// Name and operator of the node, if it is about one.
    pub node: Option<(String, String)>,
    /// TensorRT's words.
    pub description: String,
}

impl ParserError {
    /// True if the model is intact and TensorRT has no way to run a part of it.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self.code, 7..=13)
    }
}

impl fmt::Display for ParserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some((name, op_type)) => write!(f, "node `{name}` ({op_type}): {}", self.description),
            None => f.write_str(&self.description),
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// TensorRT gave no builder, network or parser.
    #[error("{title} gave no {what}{}; check its installation and driver", words(messages))]
    Unavailable {
        /// Which TensorRT.
        title: &'static str,
        /// `builder`, `network`, `parser`.
        what: &'static str,
        /// TensorRT's words.
        messages: Vec<String>,
    },
    /// TensorRT does not build for a GPU.
    #[error("{title} {version} does not build for compute capability {capability}{}; {way_out}", words(messages))]
    Capability {
        /// Which TensorRT.
        title: &'static str,
        /// Its version.
        version: String,
        /// What was asked for.
        capability: Capability,
        /// TensorRT's words.
        messages: Vec<String>,
        /// What to do instead.
        way_out: &'static str,
    },
    /// The ONNX parser refused the model.
    #[error("the ONNX parser refuses the model: {}", list(errors))]
    Parse {
        /// Its whole list.
        errors: Vec<ParserError>,
    },
    /// An external initializer does not fit the model.
    #[error("the ONNX parser refuses initializer `{name}` of {size} bytes: {}", list(errors))]
    Weight {
        /// The initializer.
        name: String,
        /// The bytes given.
        size: usize,
        /// Its whole list.
        errors: Vec<ParserError>,
    },
    /// A profile does not fit the network.
    #[error("profile {index} does not fit{}; give min ≤ opt ≤ max for each input with a free extent", words(messages))]
    Profile {
        /// Which, from 0.
        index: usize,
        /// TensorRT's words.
        messages: Vec<String>,
    },
    /// A weight cannot be made refittable.
    #[error("weight `{name}` cannot be made refittable{}; it must feed its layer directly", words(messages))]
    Mark {
        /// The weight.
        name: String,
        /// TensorRT's words.
        messages: Vec<String>,
    },
    /// The build was stopped by the progress callback.
    #[error("the build was stopped")]
    Cancelled,
    /// The builder failed.
    #[error("{title} builds no plan{}", words(messages))]
    Build {
        /// Which TensorRT.
        title: &'static str,
        /// TensorRT's words.
        messages: Vec<String>,
    },
    /// The process that builds could not be started or talked to.
    #[error("{title}: {what}: {reason}")]
    Process {
        /// Which TensorRT.
        title: &'static str,
        /// What could not be done.
        what: &'static str,
        /// The reason.
        reason: String,
    },
    /// The process that builds ended without an answer.
    #[error("{title}: the builder was ended by {by}{}; {way_out}", words(messages))]
    Died {
        /// Which TensorRT.
        title: &'static str,
        /// A signal, an exit code.
        by: String,
        /// Its last words.
        messages: Vec<String>,
        /// What to do.
        way_out: &'static str,
    },
    /// TensorRT does not take what earlier builds learned.
    #[error(
        "{title} does not take the timing cache{}; TensorRT-RTX has none, and TensorRT takes those of its own version and GPU: remove \
         the file",
        words(messages)
    )]
    TimingCache {
        /// Which TensorRT.
        title: &'static str,
        /// Its words.
        messages: Vec<String>,
    },
    /// A name holds a NUL byte.
    #[error("the name `{name}` holds a NUL byte; rename it")]
    Name {
        /// The name.
        name: String,
    },
}

/// What the library said, behind a colon.
pub(crate) fn words(messages: &[String]) -> String {
    if messages.is_empty() { String::new() } else { format!(": {}", messages.join("; ")) }
}

fn list(errors: &[ParserError]) -> String {
    match errors {
        [] => "it does not say why".to_owned(),
        errors => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}
