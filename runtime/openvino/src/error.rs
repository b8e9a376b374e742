//! What fails, in OpenVINO's words.

use std::ffi::CStr;
use std::path::PathBuf;

use openvino_sys::ov_status_e;
use v2l_search::LibraryError;

use crate::library::OPENVINO;

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenVinoError {
    /// OpenVINO itself cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// One of the libraries that OpenVINO loads by itself is missing.
    #[error("OpenVINO's {file} is not in {}: {reason}; {}, which brings all five libraries", folder.display(), OPENVINO.supply)]
    MissingFile {
        /// What its name begins with.
        file: &'static str,
        /// Where the C library lies.
        folder: PathBuf,
        /// OpenVINO's words.
        reason: String,
    },
    /// A graph names files or addresses.
    #[error(
        "OpenVINO's graphs hold their own data or take them as inputs, but tensor `{tensor}` lies {place}; compile the model again"
    )]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// What it names.
        place: String,
    },
    /// Bytes that are no graph, or one that OpenVINO does not take.
    #[error("OpenVINO refuses the graph: {reason}")]
    Refused {
        /// OpenVINO's words.
        reason: String,
    },
    /// A tensor that is none, or does not fit.
    #[error("tensor: {reason}")]
    Tensor {
        /// What is wrong: expected and found.
        reason: String,
    },
    /// A tensor that a graph does not take or give.
    #[error("the graph has no {port} `{name}` of this type and shape: {reason}")]
    Port {
        /// `input` or `output`.
        port: &'static str,
        /// The name.
        name: String,
        /// OpenVINO's words.
        reason: String,
    },
    /// Too little memory.
    #[error("OpenVINO ran out of memory while it {action}: {reason}")]
    OutOfMemory {
        /// What was under way: `compiles`, `runs`.
        action: &'static str,
        /// OpenVINO's words.
        reason: String,
    },
    /// The caller wanted it to end.
    #[error("cancelled")]
    Cancelled,
    /// There is nothing to read yet.
    #[error("the graph has not run, or its last run failed: there is no output `{name}`")]
    NotRun {
        /// The output.
        name: String,
    },
    /// Anything else.
    #[error("OpenVINO fails while it {action}: {reason}")]
    Failed {
        /// What was under way.
        action: &'static str,
        /// OpenVINO's words.
        reason: String,
    },
}

/// What a failed call left: its status, and what OpenVINO says of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ov_status_e,
    pub(crate) reason: String,
}

impl Failure {
    /// The error of an action that has no better name for it.
    pub(crate) fn during(self, action: &'static str) -> OpenVinoError {
        let reason = self.reason;
        match self.status {
            ov_status_e::INFER_CANCELLED => OpenVinoError::Cancelled,
            _ if is_memory(&reason) => OpenVinoError::OutOfMemory { action, reason },
            _ => OpenVinoError::Failed { action, reason },
        }
    }

    /// The error of an action on a graph, which the graph is to blame for.
    pub(crate) fn of_graph(self, action: &'static str) -> OpenVinoError {
        match self.during(action) {
            OpenVinoError::Failed { reason, .. } => OpenVinoError::Refused { reason },
            other => other,
        }
    }
}

/// C++'s word for it, and oneDNN's.
fn is_memory(reason: &str) -> bool {
    ["bad_alloc", "out of memory", "out_of_memory", "Failed to allocate", "Can't allocate"]
        .iter()
        .any(|word| reason.contains(word))
}

/// Turns a status into a result, with OpenVINO's text of the call that has just failed.
///
/// OpenVINO keeps one text for the process: where two threads fail at the same moment, one may get the other's.
pub(crate) fn check(status: ov_status_e) -> Result<(), Failure> {
    if status == ov_status_e::OK {
        return Ok(());
    }
    // Calls that fail for their arguments leave the text of an earlier failure.
    let has_text = !matches!(status, ov_status_e::INVALID_C_PARAM | ov_status_e::RESULT_NOT_READY);
    let text = if has_text { last_message() } else { None };
    let reason = text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("{status:?}"));
    Err(Failure { status, reason })
}

fn last_message() -> Option<String> {
    // SAFETY: OpenVINO gives a copy of its text under a lock of its own, or null; the copy is ours until it is given to `ov_free`.
    #[allow(unsafe_code, reason = "OpenVINO's C API")]
    let text = unsafe {
        let text = openvino_sys::ov_get_last_err_msg();
        let copy = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        openvino_sys::ov_free(text);
        copy
    };
    text.map(|text| without_places(&text))
}

/// OpenVINO's text without the lines that name places in its source, on one line.
fn without_places(text: &str) -> String {
    let told = |line: &&str| !line.is_empty() && !line.starts_with("Exception from ") && !line.starts_with("Check '");
    let kept: Vec<&str> = text.lines().map(str::trim).filter(told).collect();
    if kept.is_empty() { text.trim().replace('\n', " ") } else { kept.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_out_places_in_openvinos_source_unless_there_is_nothing_else() {
        let text = "Exception from src/inference/src/cpp/core.cpp:105:\nException from src/x.cpp:188:\nUnable to read the model.\n\n";
        assert_eq!(without_places(text), "Unable to read the model.");
        assert_eq!(
            without_places("Exception from a.cpp:1:\nCheck 'b' failed\n"),
            "Exception from a.cpp:1: Check 'b' failed"
        );
    }

    #[test]
    fn failures_are_told_apart_by_status_and_text() {
        let failure = |status, reason: &str| Failure { status, reason: reason.to_owned() };
        let cancelled = failure(ov_status_e::INFER_CANCELLED, "Infer Request was canceled");
        assert_eq!(cancelled.during("runs"), OpenVinoError::Cancelled);
        let memory = failure(ov_status_e::GENERAL_ERROR, "std::bad_alloc").of_graph("compiles");
        assert_eq!(memory, OpenVinoError::OutOfMemory { action: "compiles", reason: "std::bad_alloc".into() });
        let refused = failure(ov_status_e::GENERAL_ERROR, "no rule").of_graph("reads");
        assert_eq!(refused, OpenVinoError::Refused { reason: "no rule".into() });
    }
}
