//! Videos and images: from files, from the caller's memory, to files.

use std::ffi::c_char;
use std::path::Path;

use ndarray::{Array5, Ix5};
use v2l_runtime::library::find_ffmpeg;
use v2l_runtime::tensor::{Dtype, Tensor};
use v2l_runtime::video::{self, Frames, VideoError};

use crate::failure::Failure;
use crate::pointers::{optional, optional_path};
use crate::status::V2L_ERROR_TENSOR;
use crate::tensor::{Input, v2l_tensor};

/// A video or image, however it was given.
pub(crate) enum Clip {
    Frames(Frames),
    /// `[1, 3, F, H, W]` in [-1, 1].
    Pixels(Array5<f32>),
}

impl Clip {
    /// What a path, or else a tensor, says; `None` if both are NULL.
    ///
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn given(
        what: &str,
        file: *const c_char,
        tensor: *const v2l_tensor,
        fps: f64,
        ffmpeg: Option<&Path>,
    ) -> Result<Option<Self>, Failure> {
        // SAFETY: the caller's promise, for both.
        let (file, tensor) = unsafe { (optional_path(file, what)?, optional(tensor, what)?) };
        match (file, tensor) {
            (None, None) => Ok(None),
            (Some(file), None) => Self::read(file, ffmpeg).map(Some),
            // SAFETY: as above.
            (None, Some(tensor)) => Self::from_input(what, &unsafe { Input::new(tensor, what) }?, fps).map(Some),
            (Some(_), Some(_)) => {
                Err(Failure::argument(format!("the {what} is given twice; expected a file or a tensor")))
            }
        }
    }

    fn read(file: &Path, ffmpeg: Option<&Path>) -> Result<Self, Failure> {
        if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")) {
            return Ok(Self::Pixels(video::read_pixels(file)?));
        }
        match video::read_frames(file, None) {
            Err(VideoError::NoFfmpeg { .. }) => {
                Ok(Self::Frames(video::read_frames(file, Some(&find_ffmpeg(ffmpeg)?.path))?))
            }
            other => Ok(Self::Frames(other?)),
        }
    }

    fn from_input(what: &str, input: &Input<'_>, fps: f64) -> Result<Self, Failure> {
        let view = input.view();
        match (view.dtype(), view.shape()) {
            (Dtype::U8, &[_, height, width, 3]) => {
                Ok(Self::Frames(Frames::new(width, height, view.data().to_vec(), Some(fps))?))
            }
            (Dtype::F32, &[1, 3, _, _, _]) => Ok(Self::Pixels(five_axes(what, view.to_tensor())?)),
            (dtype, shape) => Err(Failure::new(
                V2L_ERROR_TENSOR,
                format!(
                    "the {what} is {dtype} {shape:?}; expected u8 [frames, height, width, 3], or f32 [1, 3, frames, height, \
                     width] in [-1, 1]"
                ),
            )),
        }
    }

    /// Frames of 8 bits.
    pub(crate) fn into_frames(self) -> Result<Frames, Failure> {
        match self {
            Self::Frames(frames) => Ok(frames),
            Self::Pixels(pixels) => Ok(video::pixels_to_frames(&pixels, None)?),
        }
    }
}

/// An f32 tensor with five axes.
pub(crate) fn five_axes(what: &str, tensor: Tensor) -> Result<Array5<f32>, Failure> {
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let array = tensor.into_f32().and_then(|array| array.into_dimensionality::<Ix5>().ok());
    array.ok_or_else(|| Failure::new(V2L_ERROR_TENSOR, format!("the {what} is {found}; expected f32 with five axes")))
}

/// Refuses a video that could not be written in the end, before any work is done.
pub(crate) fn check_output(file: &Path, ffmpeg: Option<&Path>) -> Result<(), Failure> {
    if video::needs_ffmpeg(file)? {
        find_ffmpeg(ffmpeg)?;
    }
    Ok(())
}

/// Writes frames as a video, or as a folder of PNG files, whole or not at all.
pub(crate) fn write(file: &Path, frames: &Frames, fps: f64, ffmpeg: Option<&Path>) -> Result<(), Failure> {
    let found = if video::needs_ffmpeg(file)? { Some(find_ffmpeg(ffmpeg)?.path) } else { None };
    Ok(video::write_video(file, frames, fps, found.as_deref())?)
}
