//! Files: written whole or not at all, mapped, raw tensors, safetensors, libraries.

pub(crate) mod ahead;
pub mod atomic;
pub(crate) mod bounded;
pub mod library;
pub mod lookalike;
pub mod map;
pub mod raw;
pub mod user_cache;
pub mod weights;
