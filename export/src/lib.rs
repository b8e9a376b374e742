//! Checkpoints to ONNX bundles, and ONNX graphs to engines.
//!
//! [`export`] reads a diffusers-layout folder, builds the graphs of its components ([`models`]) over the
//! checkpoint's own memory map, and streams a bundle; [`compile()`] turns a bundle or a single ONNX file into
//! engines. Both write to a temporary sibling and rename it: a failure leaves nothing behind.

mod bundle;
pub mod check;
mod checkpoint;
mod compile;
mod component;
mod debug;
pub mod engine_cache;
pub mod engine_writer;
mod error;
mod execute;
mod files;
mod finite;
mod inspect;
pub mod models;
pub mod precision;
mod progress;
mod remedy;
mod source;
mod stored;
mod tokenizer;
mod types;

pub use bundle::{ComponentReport, ExportOptions, ExportReport, PredictorPackage, export};
pub use checkpoint::{Checkpoint, Vars};
pub use compile::targets::{self, PlanBuilder, TensorRtOptions};
pub use compile::{
    AmbiguousSlot, CompileOptions, CompileReport, EngineReport, GraphReport, SharedSlot, SlotReport, TrtPlanReport,
    compile,
};
pub use component::{Component, metadata};
pub use debug::debug;
pub use error::ExportError;
pub use execute::{ExecuteError, OrtExecutor};
pub use inspect::{OnnxSummary, summarize_onnx};
pub use progress::Progress;
pub use remedy::Remedy;
pub use source::Parts;
pub use v2l_graphs::DataType;
pub use v2l_graphs::passes::{Pass, Passes};
pub use v2l_trt as trt;
