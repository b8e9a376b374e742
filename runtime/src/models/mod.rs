//! What each model family has of its own.

pub(crate) mod cogvideox;
