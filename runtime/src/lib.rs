//! What ships: the engine file, adapters and fusion, ONNX Runtime, the predictor, the sampler and video.
//!
//! Nothing here knows ONNX protobuf, checkpoints or the compiler; see `ARCHITECTURE.md`.

// `engine/testing.rs` is compiled into the tests of other crates, too, and calls this one by its name.
#[cfg(test)]
extern crate self as v2l_runtime;

pub mod adapter;
pub mod atomic;
pub mod backend;
pub mod bar_chart;
#[cfg(test)]
mod emulated;
pub mod engine;
pub mod engine_directory;
pub mod error_class;
pub mod fuse;
pub mod heat_map;
mod inputs;
pub mod interrupt;
pub mod library;
pub mod lookalike;
pub mod map;
pub mod memory;
pub mod noise;
pub mod ort_backend;
pub mod pipeline;
pub mod prediction_cache;
pub mod predictor;
mod profiles;
pub mod raw;
pub mod recording;
pub mod resize;
pub mod rope;
pub mod schedulers;
pub mod session;
pub mod side;
pub mod tensor;
pub mod tokenizer;
pub mod trt_backend;
pub mod vae;
pub mod video;
pub mod weights;
