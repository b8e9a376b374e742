//! What ships: predict a LoRA from a reference, fuse it into an engine's weights, generate the video.
//!
//! [`Generator`] is the way in. It owns an engine directory, as `v2l-compile` makes one:
//!
//! ```
//! use v2l_runtime::{AdapterSet, Clip, Generator, Request};
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/doc/sample.rs"));
//! # fn main() -> Result<(), v2l_runtime::Error> {
//! # let (folder, options) = sample();
//! # std::env::set_current_dir(&folder).expect("the folder is there");
//! # let references = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/miniature/references");
//! # let effect = std::path::Path::new(references).join("squash");
//! let mut generator = Generator::open("engines", &options)?;
//! let effect = generator.predict(&Clip::read(&effect, None)?)?;
//! generator.set_adapters(&AdapterSet::from([(&effect.adapter, 1.0)]), None)?;
//!
//! let mut request = Request::new("a paper boat");
//! request.num_inference_steps = Some(2);
//! let video = generator.generate(&request)?;
//! video.save("frames/")?;
//! # assert_eq!(std::fs::read_dir("frames").expect("they were written").count(), video.frames.count());
//! # Ok(())
//! # }
//! ```
//!
//! Every error says its [`class`](Error::class), names what was expected and found, and the way out.
//!
//! Nothing here knows ONNX protobuf, checkpoints or the compiler; see `ARCHITECTURE.md`.

// `testing/engines.rs` is compiled into the tests of other crates, too, and calls this one by its name.
#[cfg(test)]
extern crate self as v2l_runtime;

pub mod backends;
pub mod components;
pub mod decisions;
pub mod directory;
pub mod engine;
pub mod error;
pub mod events;
pub mod generator;
pub mod interrupt;
pub mod io;
pub mod lora;
pub mod media;
pub mod memory;
pub mod models;
pub mod noise;
pub mod options;
pub mod pipeline;
pub mod predict;
pub mod request;
pub mod schedulers;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod values;
pub mod wording;

pub use engine::Engine;
pub use error::{Error, ErrorClass};
pub use generator::{Generator, Job, Options, PredictOptions, Video};
pub use lora::AdapterSet;
pub use lora::adapter::{Adapter, AdapterFormat};
pub use media::clip::Clip;
pub use predict::Prediction;
pub use request::Request;
