//! CogVideoX.

pub mod rope;
pub mod vae;
