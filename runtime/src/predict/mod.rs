//! Predictors: from a reference to an adapter.

pub mod cache;
pub(crate) mod mapped;
pub mod video2lora;
