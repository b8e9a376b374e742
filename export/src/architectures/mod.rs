//! One file per architecture: configuration and checkpoint to ONNX graphs.

pub mod cogvideox_transformer;
pub mod cogvideox_vae;
mod layers;
pub mod t5_encoder;
pub mod video_hyper_dream;
