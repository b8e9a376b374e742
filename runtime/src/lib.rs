//! What ships: the engine file, adapters and fusion, ONNX Runtime, the predictor, the sampler and video.
//!
//! Nothing here knows ONNX protobuf, checkpoints or the compiler; see `ARCHITECTURE.md`.

// `engine/testing.rs` is compiled into the tests of other crates, too, and calls this one by its name.
#[cfg(test)]
extern crate self as v2l_runtime;

pub mod backends;
pub mod bar_chart;
pub mod components;
pub mod decisions;
pub mod directory;
pub mod engine;
pub mod error;
pub mod events;
pub mod generator;
pub mod heat_map;
pub mod interrupt;
mod io;
mod lora;
mod media;
pub mod memory;
mod models;
pub mod pipeline;
pub mod predict;
pub mod schedulers;
pub mod tensor;
pub mod wording;

pub use backends as backend;
pub use backends::{onnxruntime as ort_backend, tensorrt as trt_backend};
pub use directory as engine_directory;
pub use engine::{recording, session};
pub use io::{atomic, library, lookalike, map, raw, weights};
pub use lora::{adapter, branch as side, fuse, mode};
pub use media::{clip, resize, video};
pub use models::cogvideox::{rope, vae};
pub use pipeline::{noise, tokenizer};
pub use predict::{cache as prediction_cache, video2lora as predictor};
