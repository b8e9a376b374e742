//! One graph of one component, ready to run: what every backend provides.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Classified, ErrorClass};
use crate::events::Cancelled;
use crate::tensor::{Dtype, NamedTensors, Tensor, TensorView};

/// One extent of a graph input or output: a number, or a name such as `"frames"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A fixed extent.
    Fixed(usize),
    /// A symbolic extent, free at run time.
    Symbol(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => n.fmt(f),
            Self::Symbol(s) => s.fmt(f),
        }
    }
}

/// Name, type and extents of a graph input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name, as in the reference implementation's `forward`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<Dim>,
}

/// A graph with its weights, on some backend.
pub trait Session: Send {
    /// The graph's inputs, in graph order.
    fn inputs(&self) -> &[Port];
    /// The graph's outputs, in graph order.
    fn outputs(&self) -> &[Port];
    /// Runs the graph once. Every input must be given, by name, in any order.
    ///
    /// # Errors
    /// [`SessionError`] if a name, type or shape does not fit, or if the backend fails; the session stays usable.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError>;
    /// As [`Self::run`], on elements that somebody else holds. A backend that reads them in place copies none whose type is the
    /// graph's; others copy them all.
    ///
    /// # Errors
    /// [`SessionError`] as [`Self::run`]; the session stays usable.
    fn run_views(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, SessionError> {
        let copies: Vec<Tensor> = inputs.iter().map(|(_, view)| view.to_tensor()).collect();
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().zip(&copies).map(|((name, _), copy)| (*name, copy)).collect();
        self.run(&inputs)
    }
    /// As [`Self::run`], ended early once `cancelled` says so: it is asked before the run and, by backends that can end one in the middle,
    /// every few milliseconds of it, on this thread.
    ///
    /// # Errors
    /// [`SessionError::Cancelled`], besides those of [`Self::run`]; the session stays usable.
    fn run_unless(
        &mut self,
        inputs: &[(&str, &Tensor)],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<NamedTensors, SessionError> {
        if cancelled() { Err(SessionError::Cancelled(Cancelled)) } else { self.run(inputs) }
    }
    /// Keeps inputs that runs to come need not give, nor [`Self::prepare`], where the backend holds them better than its callers: on
    /// a GPU, say. False: it keeps none, and they must be given as always. What is given all the same comes before what is kept;
    /// keeping others lets go of these.
    ///
    /// # Errors
    /// [`SessionError`] as [`Self::run`]; nothing else is then kept.
    fn hold(&mut self, _inputs: &[(&str, &Tensor)]) -> Result<bool, SessionError> {
        Ok(false)
    }
    /// Says what runs to come will be given, so that what they share can be computed at once. `inputs` are some of the
    /// graph's, by name: a vector such as `timestep` with an element for each run, anything else as those runs will get it. Results of
    /// [`Self::run`] do not depend on it, bit for bit. It ends early once `cancelled` says so, as [`Self::run_unless`] does.
    ///
    /// # Errors
    /// [`SessionError`] as [`Self::run_unless`]; the session stays usable.
    fn prepare(&mut self, _inputs: &[(&str, &Tensor)], cancelled: &dyn Fn() -> bool) -> Result<(), SessionError> {
        if cancelled() { Err(SessionError::Cancelled(Cancelled)) } else { Ok(()) }
    }
}

/// Why a session did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A graph input was not given.
    #[error("input `{name}` is missing; the graph takes {expected}")]
    MissingInput {
        /// The input that was not given.
        name: String,
        /// All inputs of the graph.
        expected: String,
    },
    /// A tensor was given that the graph does not take.
    #[error("the graph has no input `{name}`; it takes {expected}")]
    UnknownInput {
        /// The surplus name.
        name: String,
        /// All inputs of the graph.
        expected: String,
    },
    /// An input has the wrong type or extents.
    #[error("input `{name}`: expected {expected}, found {found}")]
    InputMismatch {
        /// The input.
        name: String,
        /// What the graph declares.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An input has extents that the graph was not compiled for.
    #[error(
        "input `{name}`: its shape {found:?} lies outside what the graph was compiled for ({ranges}); \
         give another size, or compile with a profile that holds it"
    )]
    OutOfProfile {
        /// The input.
        name: String,
        /// Its extents.
        found: Vec<usize>,
        /// The ranges of each profile.
        ranges: String,
    },
    /// The inputs could not be recorded.
    #[error("recording the inputs: {source}")]
    Record {
        /// The reason.
        source: Box<crate::io::weights::WeightError>,
    },
    /// A device has too little memory for it.
    #[error("{backend}: {message}")]
    Memory {
        /// The backend's name.
        backend: &'static str,
        /// How much is needed, where it is known, and the way out.
        message: String,
    },
    /// A run took longer than it may.
    #[error("the run was stopped after {seconds} seconds")]
    Stopped {
        /// How long it may take.
        seconds: u64,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// An input has no element along an extent that has a name.
    #[error("input `{name}`: found {found}; inputs without elements are not supported: expected {expected}")]
    Empty {
        /// The input.
        name: String,
        /// What the graph declares, and that it must have an element.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The backend refused or failed.
    #[error("{backend}: {message}")]
    Backend {
        /// The backend's name.
        backend: &'static str,
        /// Its own words.
        message: String,
    },
}

impl Classified for SessionError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Record { source } => source.class(),
            Self::Memory { .. } => ErrorClass::Memory,
            Self::Backend { .. } => ErrorClass::BadModel,
            Self::Empty { .. } => ErrorClass::Unsupported,
            Self::Stopped { .. } | Self::Cancelled(_) => ErrorClass::Cancelled,
            _ => ErrorClass::Usage,
        }
    }
}

impl SessionError {
    /// What a backend says, which has run out of memory or failed.
    pub(crate) fn of(backend: &'static str, error: &dyn Classified) -> Self {
        let message = error.to_string();
        match error.class() {
            ErrorClass::Memory => Self::Memory { backend, message },
            _ => Self::Backend { backend, message },
        }
    }
}
