//! Engines: one compiled component per `.engine` file.

pub mod footprint;
pub mod manifest;
mod reader;
#[cfg(test)]
pub(crate) mod testing;

pub use manifest::Manifest;
pub use reader::{Engine, EngineError};
