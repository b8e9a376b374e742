//! A video or image, however it was given.

use std::path::Path;

use indexmap::IndexMap;
use ndarray::Array5;

use crate::error::Error;
use crate::io::library::find_ffmpeg;
use crate::io::weights::write_tensors;
use crate::media::video::{self, Frames, VideoError};
use crate::memory::check_room;
use crate::tensor::{NamedTensors, Tensor};

/// A video or image.
#[derive(Clone, Debug, PartialEq)]
pub enum Clip {
    /// Frames of 8 bits.
    Frames(Frames),
    /// Pixels `[1, 3, F, H, W]` in [-1, 1], which are neither resized nor cut.
    Pixels(Array5<f32>),
}

impl Clip {
    /// Reads a video, an image, an animation, a folder of images, or a `.safetensors` file with `pixels` `[1, 3, F, H, W]` in
    /// [-1, 1]. Videos take `ffmpeg`, which is searched for if it is `None`. See [`video::read_frames`].
    ///
    /// # Errors
    /// [`VideoError`], [`LibraryError`](crate::io::library::LibraryError) if there is no ffmpeg where one is needed, or
    /// [`NotEnough`](crate::memory::NotEnough) for tensors that memory does not suffice for.
    pub fn read(path: &Path, ffmpeg: Option<&Path>) -> Result<Self, Error> {
        Self::read_by(path, ffmpeg, read_frames)
    }

    /// As [`Self::read`], for an input image: of what moves, the first frame alone. A `.safetensors` file is read whole.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_image(path: &Path, ffmpeg: Option<&Path>) -> Result<Self, Error> {
        Self::read_by(path, ffmpeg, read_image)
    }

    fn read_by(path: &Path, ffmpeg: Option<&Path>, frames: Reader<Error>) -> Result<Self, Error> {
        if is_tensors(path) {
            // Once as it is stored, which may be in 16 bits, and once in f32.
            let bytes = std::fs::metadata(path).map_or(0, |file| file.len()).saturating_mul(3);
            check_room("reading this file", bytes, 0, |_| vec!["a smaller one".to_owned()])?;
            return Ok(Self::Pixels(video::read_pixels(path)?));
        }
        Ok(Self::Frames(frames(path, ffmpeg)?))
    }

    /// As frames of 8 bits.
    ///
    /// # Errors
    /// [`VideoError`] if pixels have no size that frames may have, or one is not finite.
    pub fn into_frames(self) -> Result<Frames, Error> {
        match self {
            Self::Frames(frames) => Ok(frames),
            Self::Pixels(pixels) => match pixels.iter().find(|pixel| !pixel.is_finite()) {
                Some(pixel) => Err(VideoError::NotFinite(*pixel).into()),
                None => Ok(video::pixels_to_frames(&pixels, None)?),
            },
        }
    }
}

/// True for a `.safetensors` path.
pub fn is_tensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
}

/// Frames of a video, image folder, animation or image. Videos take `ffmpeg`, which is searched for if it is `None`.
///
/// # Errors
/// As [`Clip::read`].
pub fn read_frames(path: &Path, ffmpeg: Option<&Path>) -> Result<Frames, Error> {
    read_by(path, ffmpeg, video::read_frames)
}

/// [`read_frames`], but the first frame alone: an input image.
///
/// # Errors
/// As [`Clip::read`].
pub fn read_image(path: &Path, ffmpeg: Option<&Path>) -> Result<Frames, Error> {
    read_by(path, ffmpeg, video::read_first_frame)
}

/// Reads a file, with an ffmpeg if there is one.
type Reader<E> = fn(&Path, Option<&Path>) -> Result<Frames, E>;

/// Searches for ffmpeg only if it is needed; but before a pipe is opened, which can be read once.
fn read_by(path: &Path, ffmpeg: Option<&Path>, read: Reader<VideoError>) -> Result<Frames, Error> {
    let pipe = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir());
    let found = pipe.then(|| find_ffmpeg(ffmpeg).ok()).flatten();
    match read(path, found.as_ref().map(|found| &*found.path)) {
        Err(VideoError::NoFfmpeg { .. }) => Ok(read(path, Some(&find_ffmpeg(ffmpeg)?.path))?),
        other => Ok(other?),
    }
}

/// Refuses a file that could not be written in the end, before any work is done: a video, a folder of images, or a
/// `.safetensors` file.
///
/// # Errors
/// [`VideoError`], a missing ffmpeg, or the system's words.
pub fn check_destination(path: &Path, ffmpeg: Option<&Path>) -> Result<(), Error> {
    if is_tensors(path) {
        return Ok(
            crate::io::atomic::probe_file(path).map_err(|source| VideoError::Io { path: path.to_owned(), source })?
        );
    }
    let ffmpeg = video::needs_ffmpeg(path)?.then(|| find_ffmpeg(ffmpeg)).transpose()?;
    Ok(video::probe_video(path, ffmpeg.as_ref().map(|found| &*found.path))?)
}

/// Writes frames as a video, as a folder of PNG files, or as `pixels` `[1, 3, F, H, W]` in [-1, 1] of a `.safetensors` file: whole
/// or not at all. `notes` go into the file where it has a place for them.
///
/// # Errors
/// As [`check_destination`].
pub fn write_frames(
    path: &Path,
    frames: &Frames,
    fps: f64,
    notes: &IndexMap<String, String>,
    ffmpeg: Option<&Path>,
) -> Result<(), Error> {
    if is_tensors(path) {
        return write_pixels(path, video::frames_to_pixels(frames, true), notes);
    }
    let ffmpeg = video::needs_ffmpeg(path)?.then(|| find_ffmpeg(ffmpeg)).transpose()?;
    let comment: Vec<String> = notes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(video::write_commented(path, frames, fps, &comment.join(" "), ffmpeg.as_ref().map(|found| &*found.path))?)
}

/// Writes `pixels` `[B, 3, F, H, W]` into a `.safetensors` file.
///
/// # Errors
/// [`WeightError`](crate::io::weights::WeightError).
pub fn write_pixels(path: &Path, pixels: Array5<f32>, notes: &IndexMap<String, String>) -> Result<(), Error> {
    let tensors: NamedTensors = [("pixels".to_owned(), Tensor::from(pixels.into_dyn()))].into_iter().collect();
    Ok(write_tensors(path, &tensors, notes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorClass;

    #[test]
    fn pixels_that_are_not_finite_make_no_picture() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut pixels = Array5::zeros((1, 3, 1, 2, 2));
            assert!(Clip::Pixels(pixels.clone()).into_frames().is_ok());
            pixels[[0, 2, 0, 1, 1]] = bad;
            let refused = Clip::Pixels(pixels).into_frames().unwrap_err();
            assert_eq!(refused.class(), ErrorClass::Numeric, "{refused}");
        }
    }
}
