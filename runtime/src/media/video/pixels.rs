//! Frames as f32 tensors in [-1, 1], and tensors from files.

use std::path::Path;

use half::{bf16, f16};
use ndarray::Array5;
use safetensors::{Dtype, SafeTensors};

use super::frames::{Frames, VideoError, check_total, io_error};
use crate::io::map::map_file;

/// Frames as `[1, 3, F, H, W]` f32: `x / 255`, or `2 · (x / 255) - 1` if `signed`.
pub fn frames_to_pixels(frames: &Frames, signed: bool) -> Array5<f32> {
    let (count, height, width) = (frames.count(), frames.height(), frames.width());
    let data = frames.data();
    let value = |byte: u8| {
        let unit = f32::from(byte) / 255.0;
        if signed { 2.0 * unit - 1.0 } else { unit }
    };
    let table: Vec<f32> = (0..=255).map(value).collect();
    Array5::from_shape_fn((1, 3, count, height, width), |(_, c, f, y, x)| {
        table[usize::from(data[((f * height + y) * width + x) * 3 + c])]
    })
}

/// Decoder output `[1, 3, F, H, W]`, about [-1, 1], as frames: `floor(clamp(y / 2 + 0.5, 0, 1) · 255)`.
///
/// # Errors
/// [`VideoError::Size`] if the size is out of bounds; [`VideoError::Length`] if there is no frame or the tensor holds
/// another number of videos or channels.
pub fn pixels_to_frames(pixels: &Array5<f32>, fps: Option<f64>) -> Result<Frames, VideoError> {
    let (batch, channels, count, height, width) = pixels.dim();
    check_total(width, height, count)?;
    if batch != 1 || channels != 3 {
        return Err(VideoError::Length { found: pixels.len(), frame: height * width * 3 });
    }
    let bytes = pixels.view().permuted_axes([0, 2, 3, 4, 1]);
    let data = bytes.iter().map(|y| ((y / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0) as u8).collect();
    Frames::new(width, height, data, fps)
}

/// Reads a safetensors file that holds one tensor, `pixels` `[1, 3, F, H, W]` in [-1, 1]; another name will do.
///
/// # Errors
/// [`VideoError::Io`], or [`VideoError::Tensor`] if the file holds anything else or a finite value outside the range.
pub fn read_pixels(path: &Path) -> Result<Array5<f32>, VideoError> {
    let error = |message: String| VideoError::Tensor { path: path.to_owned(), message };
    let bytes = map_file(path).map_err(io_error(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| error(e.to_string()))?;
    let names = file.names().join(", ");
    let [name] = file.names()[..] else { return Err(error(format!("found tensors [{names}]"))) };
    let tensor = file.tensor(name).map_err(|e| error(e.to_string()))?;
    let &[1, 3, count, height, width] = tensor.shape() else {
        return Err(error(format!("`{name}` has shape {:?}", tensor.shape())));
    };
    check_total(width, height, count)?;
    let halves = || tensor.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        other => return Err(error(format!("`{name}` has type {other:?}"))),
    };
    // What is not finite is found by those who compute with it.
    if let Some(bad) = values.iter().find(|v| v.is_finite() && !(-1.0..=1.0).contains(*v)) {
        return Err(error(format!("`{name}` holds the value {bad}")));
    }
    Array5::from_shape_vec((1, 3, count, height, width), values).map_err(|e| error(e.to_string()))
}
