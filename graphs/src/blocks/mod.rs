//! Network blocks as ONNX nodes: one small file per family.
//!
//! Weights come as [`Value`](crate::Value)s, in the orientation of PyTorch's `state_dict`: a linear layer is one `Gemm`
//! with `transB = 1` fed directly by its `[out, in]` weight.

mod activation;
mod attention;
mod causal_conv;
mod linear;
mod norm;
mod resample;
mod rotary;
mod sinusoid;

pub use activation::{gelu, gelu_tanh, quick_gelu, silu};
pub use attention::{merge_heads, scaled_dot_product_attention, split_heads};
pub use causal_conv::{TimeCache, causal_conv3d, causal_time_conv, conv2d_per_frame, conv3d, zero_frames_before};
pub use linear::linear;
pub use norm::{channel_norm, group_norm, layer_norm, modulate, rms_norm};
pub use resample::{average_frame_pairs, double_space, nearest_frames, repeat_frames, resize_space_like};
pub use rotary::{RotaryTables, rotate_interleaved};
pub use sinusoid::timestep_sinusoid;
