//! Files: written whole or not at all, mapped, raw tensors, safetensors, JSON, libraries.

pub(crate) mod ahead;
pub mod atomic;
pub(crate) mod bounded;
pub mod detect;
pub mod float8;
pub mod json;
pub mod library;
pub mod map;
pub mod own;
pub mod raw;
pub mod user_cache;
pub mod weights;
pub mod wrappers;
