//! What options are called where this library is used: each front end sets its own words once, as a program sets its locale.
//!
//! Errors name an option by one of the constants here, and so tell every user what to change in the words of the tool, language or
//! function that they use.

pub use v2l_search::wording::{Speaker, Supply, Words, speak, together};

/// Adapters whose keys match only in part.
pub const ALLOW_PARTIAL: Words = Words::new(["allow_partial: true", "--allow-partial", "allow_partial"]);
/// Arithmetic in float32.
pub const ARITHMETIC_FP32: Words =
    Words::new(["ort.arithmetic: Arithmetic::Fp32", "--ort-arithmetic fp32", "V2L_ARITHMETIC_FP32"]);
/// The model whose weights a predictor reads.
pub const BASE_ENGINE: Words = Words::new(["base", "--engine ENGINE", "model"]);
/// What runs an engine.
pub const BACKEND: Words = Words::new(["backend", "--backend", "backend"]);
/// ONNX Runtime runs an engine.
pub const BACKEND_ORT: Words = Words::new(["backend \"ort\"", "--backend ort", "V2L_BACKEND_ORT"]);
/// OpenVINO computes in float32.
pub const OPENVINO_F32: Words =
    Words::new(["openvino.precision: OpenVinoPrecision::F32", "--openvino-precision f32", "V2L_OPENVINO_F32"]);
/// Adapters in low-rank branches.
pub const BRANCH: Words = Words::new(["AdapterMode::Branch", "--fuse-mode branch", "V2L_ADAPTERS_BRANCH"]);
/// The GPU.
pub const DEVICE: Words = Words::new(["trt.device", "--device", "device"]);
/// Embeddings in place of a predictor's prompt.
pub const EFFECT_EMBEDS: Words = Words::new(["Source::tensors", "--effect-embeds FILE", "tensors"]);
/// The ffmpeg program.
pub const FFMPEG: Words = Words::new(["ffmpeg", "--ffmpeg", "ffmpeg"]);
/// Adapters in the weights.
pub const FUSE: Words = Words::new(["AdapterMode::Fuse", "--fuse-mode fuse", "V2L_ADAPTERS_FUSE"]);
/// The first frame.
pub const IMAGE: Words = Words::new(["image", "--image FILE", "image"]);
/// The last frame.
pub const LAST_IMAGE: Words = Words::new(["last_image", "--last-image FILE", "last_image"]);
/// What the video is to differ from.
pub const NEGATIVE_PROMPT: Words = Words::new(["negative_prompt", "--negative-prompt", "negative_prompt"]);
/// Height of the video.
pub const HEIGHT: Words = Words::new(["height", "--height", "height"]);
/// Weights are given to sessions as initializers, not as inputs on a device.
pub const NO_DEVICE_WEIGHTS: Words =
    Words::new(["ort.device_weights: DeviceWeightChoice::None", "--provider cpu", "provider \"cpu\""]);
/// Engines are not compared with what was recorded when they were compiled.
pub const NO_VERIFY: Words = Words::new(["trt.verify: false", "--no-verify", "no_verify"]);
/// Frames of the video.
pub const NUM_FRAMES: Words = Words::new(["num_frames", "--num-frames", "num_frames"]);
/// ONNX Runtime's library.
pub const ORT_LIBRARY: Words = Words::new(["ort.library", "--ort-lib", "ort_library"]);
/// ONNX Runtime computes on a GPU.
pub const PROVIDER_CUDA: Words = Words::new(["ort.provider: Provider::Cuda", "--provider cuda", "provider \"cuda\""]);
/// The shift of a scheduler.
pub const SHIFT: Words = Words::new(["shift", "--shift", "shift"]);
/// The autoencoder's tiles.
pub const TILING: Words = Words::new(["vae_tiling: Some(true)", "--vae-tiling on", "V2L_TILING_ON"]);
/// Weights are held in float32.
pub const WEIGHTS_F32: Words = Words::new(["OrtWeights::F32", "--ort-weights f32", "V2L_WEIGHTS_F32"]);
/// Weights are held as they are stored.
pub const WEIGHTS_STORED: Words = Words::new(["OrtWeights::Stored", "--ort-weights stored", "V2L_WEIGHTS_STORED"]);
/// Width of the video.
pub const WIDTH: Words = Words::new(["width", "--width", "width"]);
