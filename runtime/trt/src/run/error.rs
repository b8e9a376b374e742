use crate::builder::words;

/// Why a plan does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// TensorRT gives no runtime.
    #[error("{title} gave no runtime{}; check its installation and the NVIDIA driver", words(messages))]
    NoRuntime {
        /// Which TensorRT.
        title: &'static str,
        /// Its words.
        messages: Vec<String>,
    },
    /// There is no GPU, or no driver for one.
    #[error(
        "{title} found no NVIDIA GPU or no driver for it{}; run on a machine with both (`nvidia-smi` lists them), or compile the \
         model with `v2l-compile --backend ort`",
        words(messages)
    )]
    NoDevice {
        /// Which TensorRT.
        title: &'static str,
        /// Its words.
        messages: Vec<String>,
    },
    /// The plan is for something else.
    #[error(
        "{title} {version} does not load this plan: {reasons}{}; compile the model again for this machine",
        words(messages)
    )]
    Refused {
        /// Which TensorRT.
        title: &'static str,
        /// Its version.
        version: String,
        /// What it objects to.
        reasons: String,
        /// Its words.
        messages: Vec<String>,
    },
    /// The GPU has too little memory.
    #[error("{title}: {what} takes more GPU memory than is free{}; free some, or give a smaller size", words(messages))]
    Memory {
        /// Which TensorRT.
        title: &'static str,
        /// What was to be done.
        what: String,
        /// Its words.
        messages: Vec<String>,
    },
    /// TensorRT gave no object that was asked for, or did not do what it was told.
    #[error("{title}: {what} failed{}", words(messages))]
    Failed {
        /// Which TensorRT.
        title: &'static str,
        /// What was to be done.
        what: String,
        /// Its words.
        messages: Vec<String>,
    },
    /// A name holds a NUL byte, or a shape has more axes than TensorRT knows.
    #[error("`{name}`: {reason}")]
    Argument {
        /// The input, output or weight.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A type that v2l has no use for.
    #[error("`{name}` has element type {number} of TensorRT's, which v2l does not know; compile the model again")]
    Type {
        /// The input, output or weight.
        name: String,
        /// TensorRT's number for it.
        number: i32,
    },
}
