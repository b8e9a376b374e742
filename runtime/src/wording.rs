//! What options are called where this library is used: each front end sets its own words once, as a program sets its locale.
//!
//! Errors name an option by one of the constants here, and so tell every user what to change in the words of the tool, language or
//! function that they use.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// A front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Speaker {
    /// This crate: names of its types and members.
    Rust,
    /// The command-line tools: flags.
    CommandLine,
    /// The C library: members and constants.
    C,
}

static SPEAKER: AtomicU8 = AtomicU8::new(Speaker::Rust as u8);

/// Says whose words errors use, in the whole process and from now on.
pub fn speak(speaker: Speaker) {
    SPEAKER.store(speaker as u8, Ordering::Relaxed);
}

/// What an option, or a value of one, is called in Rust, on the command line and in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words(&'static [&'static str; 3]);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaker = usize::from(SPEAKER.load(Ordering::Relaxed));
        f.write_str(self.0.get(speaker).unwrap_or(&self.0[0]))
    }
}

/// Options that are given together, each a name and perhaps a value.
pub fn together(options: &[String]) -> String {
    let spoken = SPEAKER.load(Ordering::Relaxed) == Speaker::CommandLine as u8;
    options.join(if spoken { " " } else { " and " })
}

/// Adapters whose keys match only in part.
pub const ALLOW_PARTIAL: Words = Words(&["allow_partial: true", "--allow-partial", "allow_partial"]);
/// Arithmetic in float32.
pub const ARITHMETIC_FP32: Words =
    Words(&["ort.arithmetic: Arithmetic::Fp32", "--ort-arithmetic fp32", "V2L_ARITHMETIC_FP32"]);
/// The model whose weights a predictor reads.
pub const BASE_ENGINE: Words = Words(&["base", "--engine ENGINE", "model"]);
/// What runs an engine.
pub const BACKEND: Words = Words(&["backend", "--backend", "backend"]);
/// ONNX Runtime runs an engine.
pub const BACKEND_ORT: Words = Words(&["backend \"ort\"", "--backend ort", "V2L_BACKEND_ORT"]);
/// OpenVINO's library.
pub const OPENVINO_LIBRARY: Words = Words(&["openvino.library", "--openvino-lib", "openvino_library"]);
/// OpenVINO computes in float32.
pub const OPENVINO_F32: Words =
    Words(&["openvino.precision: OpenVinoPrecision::F32", "--openvino-precision f32", "V2L_OPENVINO_F32"]);
/// Adapters in low-rank branches.
pub const BRANCH: Words = Words(&["AdapterMode::Branch", "--fuse-mode branch", "V2L_ADAPTERS_SIDE"]);
/// The GPU.
pub const DEVICE: Words = Words(&["trt.device", "--device", "device"]);
/// Embeddings in place of a predictor's prompt.
pub const EFFECT_EMBEDS: Words = Words(&["Source::tensors", "--effect-embeds FILE", "tensors"]);
/// The ffmpeg program.
pub const FFMPEG: Words = Words(&["ffmpeg", "--ffmpeg", "ffmpeg"]);
/// Adapters in the weights.
pub const FUSE: Words = Words(&["AdapterMode::Fuse", "--fuse-mode fuse", "V2L_ADAPTERS_FUSE"]);
/// Height of the video.
pub const HEIGHT: Words = Words(&["height", "--height", "height"]);
/// Weights are given to sessions as initializers, not as inputs on a device.
pub const NO_DEVICE_WEIGHTS: Words =
    Words(&["ort.device_weights: DeviceWeightChoice::None", "--provider cpu", "provider \"cpu\""]);
/// Engines are not compared with what was recorded when they were compiled.
pub const NO_VERIFY: Words = Words(&["trt.verify: false", "--no-verify", "no_verify"]);
/// Frames of the video.
pub const NUM_FRAMES: Words = Words(&["num_frames", "--num-frames", "num_frames"]);
/// ONNX Runtime's library.
pub const ORT_LIBRARY: Words = Words(&["ort.library", "--ort-lib", "ort_library"]);
/// ONNX Runtime computes on a GPU.
pub const PROVIDER_CUDA: Words = Words(&["ort.provider: Provider::Cuda", "--provider cuda", "provider \"cuda\""]);
/// The shift of a scheduler.
pub const SHIFT: Words = Words(&["shift", "--shift", "shift"]);
/// The autoencoder's tiles.
pub const TILING: Words = Words(&["vae_tiling: Some(true)", "--vae-tiling on", "V2L_TILING_ON"]);
/// Weights are held in float32.
pub const WEIGHTS_F32: Words = Words(&["OrtWeights::F32", "--ort-weights f32", "V2L_WEIGHTS_WIDENED"]);
/// Weights are held as they are stored.
pub const WEIGHTS_STORED: Words = Words(&["OrtWeights::Stored", "--ort-weights stored", "V2L_WEIGHTS_LAZY"]);
/// Width of the video.
pub const WIDTH: Words = Words(&["width", "--width", "width"]);
