//! Files: written whole or not at all, mapped, raw tensors, safetensors, JSON, libraries.

pub(crate) mod ahead;
pub mod atomic;
pub(crate) mod bounded;
pub mod float8;
pub mod json;
pub mod library;
pub mod lookalike;
pub mod map;
pub(crate) mod own;
pub mod raw;
pub mod user_cache;
pub mod weights;
pub mod wrappers;
