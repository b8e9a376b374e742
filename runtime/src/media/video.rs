//! Video in and out: frames in memory, files through ffmpeg, folders of images, tensors.

use std::path::Path;

mod decode;
mod encode;
mod frames;
mod images;
mod pixels;
mod png;
mod sheet;

pub use encode::{needs_ffmpeg, probe_video, write_commented, write_video};
use frames::io_error;
pub use frames::{Frames, MAX_BYTES, MAX_FRAMES, MAX_SIDE, VideoError};
pub use pixels::{frames_to_pixels, pixels_to_frames, read_pixels};
pub use png::{check_png, write_png};
pub use sheet::write_contact_sheet;

/// Reads every frame of a video file, an image (`.png`, `.jpg`, `.jpeg`, `.webp`), or a folder of `.png`, `.jpg` and
/// `.jpeg` files in the order of their names.
///
/// Video files are decoded by the `ffmpeg` binary (5.1 or newer): every frame once, no rate conversion, rotation applied.
/// It is not needed for images. For tensors see [`read_pixels`].
///
/// # Errors
/// [`VideoError`]; nothing is written.
pub fn read_frames(path: &Path, ffmpeg: Option<&Path>) -> Result<Frames, VideoError> {
    let metadata = std::fs::metadata(path).map_err(io_error(path))?;
    if metadata.is_dir() {
        return images::read_folder(path);
    }
    if images::is_image(path) {
        return images::read_images(std::slice::from_ref(&path.to_owned()), path);
    }
    let ffmpeg = ffmpeg.ok_or_else(|| VideoError::NoFfmpeg { path: path.to_owned() })?;
    if metadata.is_file() {
        images::refuse_stand_in(path)?;
    }
    decode::decode(path, ffmpeg)
}

#[cfg(test)]
mod tests;
