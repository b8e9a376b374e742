//! Video in and out: frames in memory, files through ffmpeg, folders of images, tensors.

use std::path::Path;

mod decode;
mod encode;
mod frames;
mod growing;
mod images;
mod natural;
mod picture;
mod pixels;
mod png;
mod sheet;
mod source;

pub use encode::{needs_ffmpeg, probe_video, write_commented, write_video};
pub use frames::{FRAME_RATES, Frames, MAX_BYTES, MAX_FRAMES, MAX_SIDE, VideoError};
use picture::{Asked, Bad, Kind, Wanted, check_avif};
pub use pixels::{frames_to_pixels, pixels_to_frames, read_pixels};
pub use png::{check_png, write_png};
pub use sheet::write_contact_sheet;

/// Reads every frame of a video file, a picture (PNG, JPEG, WebP, GIF, AVIF), an animation (PNG, WebP, GIF), or a folder of
/// PNG, JPEG and WebP pictures in the natural order of their names: 2 before 10. What a file is, its content says.
///
/// Pictures are turned upright as EXIF or XMP say, in RGB of 8 bits as Pillow gives them: transparency is dropped, colour
/// profiles are not applied. Frames of animations have their durations ([`Frames::starts`]).
///
/// Video files are decoded by the `ffmpeg` binary (5.1 or newer): every frame once, no rate conversion, rotation applied,
/// colours by the matrix and range that the file is tagged with, BT.601 without tags. AVIF pictures take it, too.
/// For tensors see [`read_pixels`].
///
/// # Errors
/// [`VideoError`]; nothing is written.
pub fn read_frames(path: &Path, ffmpeg: Option<&Path>) -> Result<Frames, VideoError> {
    source::read(path, ffmpeg, Wanted::All)
}

/// [`read_frames`], but the first frame alone: an input image. Of an animation it is what Pillow opens; of a folder, the first
/// picture.
///
/// # Errors
/// [`VideoError`].
pub fn read_first_frame(path: &Path, ffmpeg: Option<&Path>) -> Result<Frames, VideoError> {
    source::read(path, ffmpeg, Wanted::First)
}

/// [`read_frames`] of a picture's or animation's bytes: `None` for what is no PNG, JPEG, WebP or GIF file. `first` gives the first
/// frame alone. The frames may take `most` bytes, and the decoder about 4 times as many besides.
///
/// # Errors
/// [`VideoError`]; where it names a file, it is `name`.
pub fn decode_picture(bytes: &[u8], first: bool, most: usize, name: &Path) -> Result<Option<Frames>, VideoError> {
    let wanted = if first { Wanted::First } else { Wanted::All };
    let named = |bad: Bad| bad.of(name);
    match picture::kind(bytes).check().map_err(named)? {
        Kind::Picture(format) => picture::read(format, bytes, Asked { wanted, most }).map(Some).map_err(named),
        Kind::Avif => check_avif(bytes, !first).map(|()| None).map_err(named),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
