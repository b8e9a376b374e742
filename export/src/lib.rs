//! Checkpoints to ONNX bundles, and ONNX graphs to engines.
//!
//! [`export`] reads a diffusers-layout folder, builds the graphs of its components ([`architectures`]) over the
//! checkpoint's own memory map, and streams a bundle; [`compile()`] turns a bundle or a single ONNX file into
//! engines. Both write to a temporary sibling and rename it: a failure leaves nothing behind.

pub mod architectures;
mod bundle;
pub mod check;
mod checkpoint;
mod compile;
mod component;
pub mod engine_writer;
mod error;
mod execute;
mod inspect;
pub mod precision;
mod tokenizer;

use std::path::Path;

use serde::de::DeserializeOwned;
use v2l_graphs::Model;
use v2l_runtime::atomic::AtomicFolder;
use v2l_runtime::lookalike;
use v2l_runtime::map::{map_known, read_file};
use v2l_runtime::pipeline::config::FILE_NAME;

pub use bundle::{ComponentReport, ExportOptions, ExportReport, export};
pub use check::debug;
pub use checkpoint::{Checkpoint, Vars};
pub use compile::{
    AmbiguousSlot, CompileOptions, CompileReport, EngineReport, GraphReport, PlanBuilder, PlanReport, SharedSlot,
    SlotReport, TensorRtOptions, compile,
};
pub use component::{Component, metadata};
pub use error::ExportError;
pub use execute::{ExecuteError, OrtExecutor};
pub use inspect::{OnnxSummary, summarize_onnx};
pub use v2l_graphs::passes::{Pass, Passes};
pub use v2l_trt as trt;

/// What [`export`] or [`compile()`] is doing.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A component is read and planned; its weights are written next.
    Component {
        /// The component.
        name: &'a str,
        /// Bytes of its weights.
        bytes: u64,
    },
    /// The component is written and compared with its source next.
    Checking {
        /// The component.
        name: &'a str,
    },
    /// TensorRT builds a plan of one of its graphs next.
    Building {
        /// The component.
        name: &'a str,
        /// The graph.
        graph: &'a str,
        /// The kind of GPU; `None`: the one of this machine.
        capability: Option<trt::Capability>,
    },
    /// A phase of such a build, by TensorRT's name.
    Phase {
        /// The name.
        name: &'a str,
        /// Steps of it that are done.
        done: u32,
        /// Steps of it; 0 if TensorRT does not say.
        of: u32,
    },
    /// A component's values are being measured, to decide which node computes in which type.
    Calibrating {
        /// The component.
        name: &'a str,
    },
    /// Bytes written of the component under way.
    Written {
        /// Bytes so far.
        bytes: u64,
    },
}

/// Starts a folder that will be `output`, which must not exist, be empty, or hold an earlier bundle or engine directory.
pub(crate) fn new_folder(output: &Path) -> Result<AtomicFolder, ExportError> {
    let occupied = output.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let other = output.exists() && !output.is_dir();
    if other || (occupied && !output.join(FILE_NAME).is_file()) {
        return Err(ExportError::Occupied {
            path: output.to_owned(),
            reason: format!("it exists and is no bundle or engine directory (there is no {FILE_NAME})"),
        });
    }
    AtomicFolder::create(output).map_err(ExportError::io(output))
}

/// Opens a file of the model at `model`: the graph, or its external data, which may begin with any bytes but not stand for others.
pub(crate) fn open_file(model: &Path, file: &Path) -> std::io::Result<bytes::Bytes> {
    map_known(file, |start| if file == model { lookalike::of(start) } else { lookalike::stand_in(start) })
}

/// Reads a JSON file of at most 64 MiB.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ExportError> {
    let text = read_file(path, 64 << 20).map_err(ExportError::io(path))?;
    serde_json::from_slice(&text).map_err(|e| ExportError::config(path, format!("not the JSON expected here: {e}")))
}

/// Structural checks, as one error.
pub(crate) fn check_graph(label: &str, model: &Model) -> Result<(), ExportError> {
    v2l_graphs::check::check(model).map_err(|findings| {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        ExportError::Graph { graph: label.to_owned(), reason: lines.join("; ") }
    })
}
