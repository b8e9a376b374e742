//! Engines: one compiled component per `.engine` file.

mod demand;
pub mod footprint;
mod inner;
pub(crate) mod inputs;
pub mod manifest;
pub mod parameters;
pub(crate) mod profiles;
mod reader;
pub mod recording;
pub mod session;

pub use manifest::Manifest;
pub use reader::{Engine, EngineError};
