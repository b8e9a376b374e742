//! A reference, or named tensors, become an adapter.

use std::ffi::c_char;
use std::sync::Arc;

use v2l_runtime::generator::{PredictOptions, ReferenceOptions};
use v2l_runtime::media::clip::Clip;
use v2l_runtime::pipeline::config::{LatentChoice, PixelRange, ReferenceFrames, ReferenceResize};
use v2l_runtime::predict::Source;
use v2l_runtime::tensor::NamedTensors;

use crate::adapter::{AdapterObject, v2l_adapter};
use crate::callbacks::{Control, v2l_control};
use crate::engine::unknown;
use crate::failure::{Failure, guard};
use crate::frames;
use crate::growing::{self, growing};
use crate::handles::required;
use crate::pointers::{Out, optional_text, value};
use crate::predictor::v2l_predictor;
use crate::status::v2l_status;
use crate::tensor::{named_inputs, v2l_tensor};

/// Range of a reference's pixels, as the checkpoint was trained on.
pub type v2l_reference_range = i32;
/// As the engine directory says.
pub const V2L_RANGE_DEFAULT: v2l_reference_range = 0;
/// [0, 1].
pub const V2L_RANGE_UNIT: v2l_reference_range = 1;
/// [-1, 1].
pub const V2L_RANGE_SIGNED: v2l_reference_range = 2;

/// How a reference is brought to the size of the video.
pub type v2l_reference_resize = i32;
/// As the engine directory says.
pub const V2L_RESIZE_DEFAULT: v2l_reference_resize = 0;
/// Stretched.
pub const V2L_RESIZE_STRETCH: v2l_reference_resize = 1;
/// Scaled until it covers the size, then cropped around the middle.
pub const V2L_RESIZE_COVER_CROP: v2l_reference_resize = 2;
/// As it is.
pub const V2L_RESIZE_NONE: v2l_reference_resize = 3;

/// Which latent of a reference the predictor gets.
pub type v2l_reference_latent = i32;
/// As the engine directory says.
pub const V2L_LATENT_DEFAULT: v2l_reference_latent = 0;
/// The mean of the encoder's distribution.
pub const V2L_LATENT_MEAN: v2l_reference_latent = 1;
/// A sample of it, drawn from the seed.
pub const V2L_LATENT_SAMPLE: v2l_reference_latent = 2;

/// What to predict from: a reference, which is either a file or a tensor, or named tensors, as the predictor reads. Start from
/// v2l_reference_init.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_reference {
    /// sizeof(v2l_reference).
    pub size: usize,
    /// A video (by ffmpeg), an image, a folder of images, or a safetensors file with `pixels`; or NULL.
    pub file: *const c_char,
    /// u8 [frames, height, width, 3] in RGB, or f32 [1, 3, frames, height, width] in [-1, 1], which is neither resized nor cut; or NULL.
    pub frames: *const v2l_tensor,
    /// Frames per second of `frames`; 0: not known.
    pub fps: f64,
    /// Size that the reference is brought to, that of the video to generate; 0: the engine directory's, or that of `image`.
    pub width: u32,
    /// As `width`.
    pub height: u32,
    /// Seed of the latent, where it is drawn.
    pub seed: u64,
    /// V2L_RANGE_…
    pub range: v2l_reference_range,
    /// V2L_RESIZE_…
    pub resize: v2l_reference_resize,
    /// V2L_LATENT_…
    pub latent: v2l_reference_latent,
    /// So many frames from the first; 0: as the engine directory says; -1: all.
    pub frame_count: i32,
    /// The first frame of the video to generate, which says its size where `width` and `height` are 0 and the model takes it from the
    /// image: a file; or NULL.
    pub image_file: *const c_char,
    /// As `image_file`: u8 [1, height, width, 3] in RGB or f32 [1, 3, 1, height, width] in [-1, 1]; or NULL.
    pub image: *const v2l_tensor,
    /// Named tensors, `tensor_count` of them, for predictors that read such: exactly those that the map of v2l_predictor_new_mapped reads; or
    /// NULL.
    pub tensors: *const v2l_tensor,
    /// Number of `tensors`.
    pub tensor_count: usize,
    /// The prompt, for predictors that read one; or NULL. In its place `tensors` may hold embeddings: `text_hidden` f32 [1, n, width] and,
    /// where there is one, `text_attention_mask` [1, n].
    pub prompt: *const c_char,
}

growing!(
    v2l_reference,
    Self {
        size: size_of::<Self>(),
        file: std::ptr::null(),
        frames: std::ptr::null(),
        fps: 0.0,
        width: 0,
        height: 0,
        seed: 43,
        range: V2L_RANGE_DEFAULT,
        resize: V2L_RESIZE_DEFAULT,
        latent: V2L_LATENT_DEFAULT,
        frame_count: 0,
        image_file: std::ptr::null(),
        image: std::ptr::null(),
        tensors: std::ptr::null(),
        tensor_count: 0,
        prompt: std::ptr::null(),
    }
);

/// Fills in the defaults; `size` is sizeof(v2l_reference).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_reference_init(reference: *mut v2l_reference, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(reference, size) })
}

/// Predicts an adapter from a reference, or from named tensors. `control` may be NULL. The same reference gives the same adapter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_predict(
    predictor: *const v2l_predictor,
    reference: *const v2l_reference,
    control: *const v2l_control,
    adapter: *mut *mut v2l_adapter,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, predictor, control) =
            unsafe { (Out::handle(adapter, "adapter")?, required(predictor, "predictor")?, Control::new(control)?) };
        // SAFETY: as above.
        let given = unsafe { growing::read(value(reference, "reference")?) }?;
        let ffmpeg = predictor.ffmpeg.as_deref();
        // SAFETY: as above.
        let (clip, image, tensors, prompt) = unsafe {
            (
                frames::given(("reference", Clip::read), given.file, given.frames, given.fps, ffmpeg)?,
                frames::one("image", given.image_file, given.image, ffmpeg)?,
                tensors(&given)?,
                optional_text(given.prompt, "prompt")?,
            )
        };
        if clip.is_none() && tensors.is_none() && prompt.is_none() {
            return Err(Failure::argument("`file`, `frames`, `tensors` and `prompt` are NULL; expected a reference"));
        }
        let count = |count: u32| (count > 0).then_some(count as usize);
        let asked = PredictOptions {
            width: count(given.width),
            height: count(given.height),
            image: image.as_ref(),
            seed: Some(given.seed),
            reference: preparation(&given)?,
        };
        let source = Source { reference: clip.as_ref(), prompt, tensors: tensors.as_ref(), ..Source::default() };
        let (prediction, slots_total) = predictor.state.lock()?.predict(&source, &asked, &control)?;
        out.give(v2l_adapter(Arc::new(AdapterObject::predicted(prediction, slots_total))));
        Ok(())
    })
}

/// Copies of the named tensors, if there are any.
///
/// # Safety
/// The header's promise.
unsafe fn tensors(given: &v2l_reference) -> Result<Option<NamedTensors>, Failure> {
    if given.tensors.is_null() && given.tensor_count == 0 {
        return Ok(None);
    }
    let mut tensors = NamedTensors::new();
    // SAFETY: the caller's promise.
    for (name, input) in unsafe { named_inputs(given.tensors, given.tensor_count) }? {
        if tensors.insert(name.to_owned(), input.view().to_tensor()).is_some() {
            return Err(Failure::argument(format!("tensor `{name}` is given twice; expected each name once")));
        }
    }
    Ok(Some(tensors))
}

/// How the reference is prepared.
fn preparation(given: &v2l_reference) -> Result<ReferenceOptions, Failure> {
    let range = match given.range {
        V2L_RANGE_DEFAULT => None,
        V2L_RANGE_UNIT => Some(PixelRange::Unit),
        V2L_RANGE_SIGNED => Some(PixelRange::Signed),
        other => return Err(unknown("range", other, "V2L_RANGE_…")),
    };
    let resize = match given.resize {
        V2L_RESIZE_DEFAULT => None,
        V2L_RESIZE_STRETCH => Some(ReferenceResize::Stretch),
        V2L_RESIZE_COVER_CROP => Some(ReferenceResize::CoverCrop),
        V2L_RESIZE_NONE => Some(ReferenceResize::None),
        other => return Err(unknown("resize", other, "V2L_RESIZE_…")),
    };
    let latent = match given.latent {
        V2L_LATENT_DEFAULT => None,
        V2L_LATENT_MEAN => Some(LatentChoice::Mean),
        V2L_LATENT_SAMPLE => Some(LatentChoice::Sample),
        other => return Err(unknown("latent", other, "V2L_LATENT_…")),
    };
    let frames = match given.frame_count {
        0 => None,
        -1 => Some(ReferenceFrames::All),
        count => Some(ReferenceFrames::FirstN(usize::try_from(count).map_err(|_| {
            Failure::argument(format!("`frame_count` is {count}; expected 0, -1 or a number of frames"))
        })?)),
    };
    Ok(ReferenceOptions { range, frames, resize, latent })
}
