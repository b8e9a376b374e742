//! Videos and images, from files or from the caller's memory.

use std::ffi::c_char;
use std::path::Path;

use ndarray::{Array5, Ix5};
use v2l_runtime::media::clip::Clip;
use v2l_runtime::media::video::Frames;
use v2l_runtime::tensor::{Dtype, Tensor};

use crate::failure::Failure;
use crate::pointers::{optional_path, optional_value};
use crate::status::{V2L_ERROR_NUMERIC, V2L_ERROR_TENSOR};
use crate::tensor::{Input, v2l_tensor};

/// How a file is read.
pub(crate) type Reader = fn(&Path, Option<&Path>) -> Result<Clip, v2l_runtime::Error>;

/// What a path, or else a tensor, says; `None` if both are NULL.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn given(
    (what, read): (&str, Reader),
    file: *const c_char,
    tensor: *const v2l_tensor,
    fps: f64,
    ffmpeg: Option<&Path>,
) -> Result<Option<Clip>, Failure> {
    // SAFETY: the caller's promise, for both.
    let (file, tensor) = unsafe { (optional_path(file, what)?, optional_value(tensor, what)?) };
    match (file, tensor) {
        (None, None) => Ok(None),
        (Some(file), None) => Ok(Some(read(file, ffmpeg)?)),
        // SAFETY: as above.
        (None, Some(tensor)) => from_input(what, &unsafe { Input::new(tensor, what) }?, fps).map(Some),
        (Some(_), Some(_)) => Err(Failure::argument(format!("the {what} is given twice; expected a file or a tensor"))),
    }
}

/// One picture, as [`given`]; of a file, the first frame.
///
/// # Safety
/// The header's promise.
pub(crate) unsafe fn one(
    what: &str,
    file: *const c_char,
    tensor: *const v2l_tensor,
    ffmpeg: Option<&Path>,
) -> Result<Option<Frames>, Failure> {
    // SAFETY: the caller's promise.
    let Some(clip) = (unsafe { given((what, Clip::read_image), file, tensor, 0.0, ffmpeg) })? else { return Ok(None) };
    let frames = clip.into_frames()?;
    if !tensor.is_null() && frames.count() != 1 {
        let message = format!("the {what} has {} frames; expected one picture", frames.count());
        return Err(Failure::new(V2L_ERROR_TENSOR, message));
    }
    Ok(Some(frames))
}

fn from_input(what: &str, input: &Input<'_>, fps: f64) -> Result<Clip, Failure> {
    let view = input.view();
    match (view.dtype(), view.shape()) {
        (Dtype::U8, &[_, height, width, 3]) => {
            Ok(Clip::Frames(Frames::new(width, height, view.data().to_vec(), Some(fps))?))
        }
        (Dtype::F32, &[1, 3, _, _, _]) => {
            let pixels = five_axes(what, view.to_tensor())?;
            match pixels.iter().find(|pixel| !(-1.0..=1.0).contains(*pixel)) {
                None => Ok(Clip::Pixels(pixels)),
                Some(pixel) => Err(Failure::argument(format!(
                    "the {what} holds the value {pixel}; expected f32 in [-1, 1]: scale or clip it, or give it as u8"
                ))),
            }
        }
        (dtype, shape) => Err(Failure::new(
            V2L_ERROR_TENSOR,
            format!(
                "the {what} is {dtype} {shape:?}; expected u8 [frames, height, width, 3], or f32 [1, 3, frames, height, \
                 width] in [-1, 1]"
            ),
        )),
    }
}

/// An f32 tensor with five axes.
pub(crate) fn five_axes(what: &str, tensor: Tensor) -> Result<Array5<f32>, Failure> {
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let array = tensor.into_f32().and_then(|array| array.into_dimensionality::<Ix5>().ok());
    let wrong = || Failure::new(V2L_ERROR_TENSOR, format!("the {what} is {found}; expected f32 with five axes"));
    let array = array.ok_or_else(wrong)?;
    finite(what, array.iter())?;
    Ok(array)
}

/// Refuses numbers that nothing can be computed from.
pub(crate) fn finite<'a>(what: &str, mut numbers: impl Iterator<Item = &'a f32>) -> Result<(), Failure> {
    match numbers.find(|number| !number.is_finite()) {
        None => Ok(()),
        Some(bad) => Err(Failure::new(V2L_ERROR_NUMERIC, format!("the {what} holds {bad}; expected finite numbers"))),
    }
}
