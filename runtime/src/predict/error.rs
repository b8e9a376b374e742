//! Why there is no prediction.

use std::path::{Path, PathBuf};

use crate::backends::BackendError;
use crate::directory::DirectoryError;
use crate::engine::EngineError;
use crate::engine::session::SessionError;
use crate::error::{Classified, ErrorClass};
use crate::lora::Strength;
use crate::wording::{EFFECT_EMBEDS, HEIGHT, WIDTH};

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictorError {
    /// The engine is no hypernetwork, or its attributes contradict themselves.
    #[error("{path}: not a usable predictor: {reason}; export the hypernetwork again")]
    Config {
        /// The engine.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The engine cannot be opened.
    #[error(transparent)]
    Open(#[from] BackendError),
    /// The engine lacks something.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A graph did not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The backbone has no such layer, or one of another size.
    #[error(
        "the predictor's slot `{slot}`: expected {expected} in the backbone, found {found}; use the backbone that it was trained for"
    )]
    Backbone {
        /// The slot.
        slot: String,
        /// What the predictor needs.
        expected: String,
        /// What the backbone has.
        found: String,
    },
    /// An input or output has the wrong shape.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The tensor.
        what: String,
        /// What fits.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The prediction holds NaN or infinity.
    #[error(
        "{what} holds NaN or infinity; check the reference, or compile the predictor with \
         `v2l-compile --precision fp32`"
    )]
    NotFinite {
        /// The tensor.
        what: String,
    },
    /// The file that assigns outputs to slots cannot be read.
    #[error("{}: {source}", path.display())]
    MapFile {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file that assigns outputs to slots is malformed, or does not fit the predictor or the model.
    #[error("{}: {reason}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What is wrong, what was expected, and the way out.
        reason: String,
    },
    /// One adapter would have to have two strengths.
    #[error(
        "the predictor map's `strength` is {} for `cond` and {} for `uncond`: a LoRA file, or one adapter, has one strength for \
         both; generate a video with it (`v2l-run -o`), or give both the same number",
        strength.cond,
        strength.uncond
    )]
    Uneven {
        /// The map's strengths.
        strength: Strength,
    },
    /// A graph of a map did not run.
    #[error("graph `{graph}`: {source}")]
    Graph {
        /// What the map calls it.
        graph: String,
        /// Why.
        source: SessionError,
    },
    /// The tensors of a request are not those that a map's graphs read.
    #[error("the predictor's inputs: {reason}")]
    Inputs {
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// An engine directory that a map names cannot be opened.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Tokens were made by another predictor.
    #[error(
        "the tokens belong to auxiliary factors {expected}, this predictor has {found}; use the predictor that made them"
    )]
    OtherAuxiliary {
        /// From the file.
        expected: String,
        /// Of this predictor.
        found: String,
    },
    /// Something that the predictor reads was not given.
    #[error("the predictor needs {what}; give it one")]
    NotGiven {
        /// What is missing.
        what: &'static str,
    },
    /// Something was given that the predictor does not read.
    #[error("a predictor of the kind `{kind}` reads {reads}, and was given {given}; leave that out")]
    NotRead {
        /// The predictor's kind.
        kind: &'static str,
        /// What was given.
        given: &'static str,
        /// What it reads.
        reads: String,
    },
    /// The predictor reads what an engine directory has, and stands alone.
    #[error("the predictor reads from an engine directory, and was opened without one; open it with its directory")]
    NoDirectory,
    /// A prompt that the predictor cannot read.
    #[error("the predictor's prompt {prompt:?}: {reason}")]
    Prompt {
        /// The prompt, or its beginning.
        prompt: String,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// Nothing turns a prompt into the embeddings that the predictor reads.
    #[error(
        "the predictor reads embeddings of width {width} of its text encoder, and {found}; give them with `{EFFECT_EMBEDS}`, or \
         export the predictor with its text encoder (`v2l-export --predictor-text-encoder FOLDER`)"
    )]
    NoEncoder {
        /// The width.
        width: usize,
        /// What there is.
        found: String,
    },
    /// Nothing says which size reference frames are brought to.
    #[error("give `{WIDTH}` and `{HEIGHT}`: the pipeline has no VAE to take them from")]
    NoSize,
    /// The predictor's adapters have no tokens.
    #[error("a predictor of the kind `{kind}` gives factors and no tokens; expected another form of adapter")]
    NoTokens {
        /// The predictor's kind.
        kind: &'static str,
    },
}

impl PredictorError {
    /// [`Self::Map`].
    pub(super) fn map(path: &Path, reason: impl Into<String>) -> Self {
        Self::Map { path: path.to_owned(), reason: reason.into() }
    }
}

impl Classified for PredictorError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Open(error) => error.class(),
            Self::Engine(error) => error.class(),
            Self::Session(error) | Self::Graph { source: error, .. } => error.class(),
            Self::Directory(error) => error.class(),
            Self::Config { .. } => ErrorClass::BadModel,
            Self::NotFinite { .. } => ErrorClass::Numeric,
            Self::MapFile { source, .. } => source.class(),
            Self::NotGiven { .. }
            | Self::NotRead { .. }
            | Self::NoDirectory
            | Self::NoSize
            | Self::NoTokens { .. }
            | Self::Inputs { .. }
            | Self::Prompt { .. }
            | Self::NoEncoder { .. } => ErrorClass::Usage,
            _ => ErrorClass::BadAdapter,
        }
    }
}
