//! Videos and images, from files or from the caller's memory.

use std::ffi::c_char;
use std::path::Path;

use ndarray::{Array5, Ix5};
use v2l_runtime::media::clip::Clip;
use v2l_runtime::media::video::Frames;
use v2l_runtime::tensor::{Dtype, Tensor};

use crate::failure::Failure;
use crate::pointers::{optional, optional_path};
use crate::status::V2L_ERROR_TENSOR;
use crate::tensor::{Input, v2l_tensor};

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
) -> Result<Option<Clip>, Failure> {
    // SAFETY: the caller's promise, for both.
    let (file, tensor) = unsafe { (optional_path(file, what)?, optional(tensor, what)?) };
    match (file, tensor) {
        (None, None) => Ok(None),
        (Some(file), None) => Ok(Some(Clip::read(file, ffmpeg)?)),
        // SAFETY: as above.
        (None, Some(tensor)) => from_input(what, &unsafe { Input::new(tensor, what) }?, fps).map(Some),
        (Some(_), Some(_)) => Err(Failure::argument(format!("the {what} is given twice; expected a file or a tensor"))),
    }
}

fn from_input(what: &str, input: &Input<'_>, fps: f64) -> Result<Clip, Failure> {
    let view = input.view();
    match (view.dtype(), view.shape()) {
        (Dtype::U8, &[_, height, width, 3]) => {
            Ok(Clip::Frames(Frames::new(width, height, view.data().to_vec(), Some(fps))?))
        }
        (Dtype::F32, &[1, 3, _, _, _]) => Ok(Clip::Pixels(five_axes(what, view.to_tensor())?)),
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
    array.ok_or_else(|| Failure::new(V2L_ERROR_TENSOR, format!("the {what} is {found}; expected f32 with five axes")))
}
