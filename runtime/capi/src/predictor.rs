//! The predictor of an engine directory: a reference becomes an adapter.

use std::ffi::c_char;
use std::path::PathBuf;

use v2l_runtime::adapter::LightLora;
use v2l_runtime::engine::manifest::Slot;
use v2l_runtime::engine_directory::{EngineDirectory, HYPERNETWORK, TRANSFORMER};
use v2l_runtime::pipeline::{
    LatentChoice, Pipeline, PipelineConfig, PixelRange, Reference, ReferenceConfig, ReferenceFrames, ReferenceResize,
};
use v2l_runtime::predictor::Predictor;
use v2l_runtime::tensor::Tensor;
use v2l_runtime::vae::ENCODER;

use std::sync::Arc;

use crate::adapter::{Loaded, Prediction, v2l_adapter};
use crate::callbacks::{Control, v2l_control};
use crate::engine::{Opening, unknown, v2l_open_options};
use crate::failure::{Failure, free, guard};
use crate::frames::Clip;
use crate::growing::{self, growing};
use crate::pipeline::verify_hashes;
use crate::pointers::{Out, path, required};
use crate::serial::Serial;
use crate::status::v2l_status;
use crate::tensor::v2l_tensor;

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

/// The autoencoder and the hypernetwork of an engine directory.
pub struct v2l_predictor {
    state: Serial<State>,
    ffmpeg: Option<PathBuf>,
}

struct State {
    directory: EngineDirectory,
    pipeline: Pipeline,
    predictor: Predictor,
}

impl v2l_predictor {
    /// Expands tokens from a file, for a model with these slots.
    pub(crate) fn expand(&self, light: &LightLora, slots: &[Slot]) -> Result<Loaded, Failure> {
        let mut state = self.state.lock()?;
        state.predictor.check_backbone(slots)?;
        let adapter = state.predictor.expand_light(light)?;
        let engine = state.directory.engine(HYPERNETWORK)?;
        Ok(Loaded::predicted(adapter, Prediction { tokens: light.clone(), engine }, slots.len()))
    }
}

/// Opens the predictor of an engine directory. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_new(
    directory: *const c_char,
    options: *const v2l_open_options,
    predictor: *mut *mut v2l_predictor,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, folder, opening) =
            unsafe { (Out::handle(predictor, "predictor")?, path(directory, "directory")?, Opening::new(options)?) };
        let mut directory = EngineDirectory::open(folder, opening.backend.clone())?;
        if opening.verify_hashes {
            verify_hashes(&mut directory, &[ENCODER, HYPERNETWORK])?;
        }
        let pipeline = Pipeline::new(directory.config().clone(), None)?;
        let predictor = Predictor::open(directory.engine(HYPERNETWORK)?, &opening.backend)?;
        if directory.has(TRANSFORMER) {
            predictor.check_backbone(&directory.engine(TRANSFORMER)?.manifest().slots)?;
        }
        let state = Serial::new(State { directory, pipeline, predictor });
        out.give(v2l_predictor { state, ffmpeg: opening.ffmpeg });
        Ok(())
    })
}

/// Frees the predictor; adapters stay. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_predictor_free(predictor: *mut v2l_predictor) {
    // SAFETY: the header's promise.
    unsafe { free(predictor) }
}

/// What to predict from. The reference is either a file or a tensor. Start from v2l_reference_init.
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
    /// Size that the reference is brought to, that of the video to generate; 0: the engine directory's.
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
    }
);

/// Fills in the defaults; `size` is sizeof(v2l_reference).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_reference_init(reference: *mut v2l_reference, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(reference, size) })
}

/// Predicts an adapter from a reference. `control` may be NULL. The same reference gives the same adapter.
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
        let given = unsafe { growing::read(required(reference, "reference")?) }?;
        let ffmpeg = predictor.ffmpeg.as_deref();
        // SAFETY: as above.
        let clip = unsafe { Clip::given("reference", given.file, given.frames, given.fps, ffmpeg) }?;
        let clip = clip.ok_or_else(|| Failure::argument("`file` and `frames` are NULL; expected a reference"))?;
        let mut state = predictor.state.lock()?;
        let State { directory, pipeline, predictor } = &mut *state;
        let knobs = knobs(&given, pipeline.config().reference)?;
        let size = size(&given, pipeline.config())?;
        let reference = match &clip {
            Clip::Frames(frames) => Reference::Frames(frames),
            Clip::Pixels(pixels) => Reference::Pixels(pixels),
        };
        let latents =
            pipeline.reference_latents(directory, reference, size, Some(&knobs), given.seed, &mut &control)?;
        let tokens = predictor.predict(&Tensor::from(latents.into_dyn()))?;
        let expanded = predictor.expand(&tokens)?;
        let prediction = Prediction { tokens: predictor.light(tokens), engine: directory.engine(HYPERNETWORK)? };
        let slots_total = match directory.has(TRANSFORMER) {
            true => directory.engine(TRANSFORMER)?.manifest().slots.len(),
            false => expanded.layers.len(),
        };
        out.give(v2l_adapter(Arc::new(Loaded::predicted(expanded, prediction, slots_total))));
        Ok(())
    })
}

/// How the reference is prepared.
fn knobs(given: &v2l_reference, mut knobs: ReferenceConfig) -> Result<ReferenceConfig, Failure> {
    knobs.range = match given.range {
        V2L_RANGE_DEFAULT => knobs.range,
        V2L_RANGE_UNIT => PixelRange::Unit,
        V2L_RANGE_SIGNED => PixelRange::Signed,
        other => return Err(unknown("range", other, "V2L_RANGE_…")),
    };
    knobs.resize = match given.resize {
        V2L_RESIZE_DEFAULT => knobs.resize,
        V2L_RESIZE_STRETCH => ReferenceResize::Stretch,
        V2L_RESIZE_COVER_CROP => ReferenceResize::CoverCrop,
        V2L_RESIZE_NONE => ReferenceResize::None,
        other => return Err(unknown("resize", other, "V2L_RESIZE_…")),
    };
    knobs.latent = match given.latent {
        V2L_LATENT_DEFAULT => knobs.latent,
        V2L_LATENT_MEAN => LatentChoice::Mean,
        V2L_LATENT_SAMPLE => LatentChoice::Sample,
        other => return Err(unknown("latent", other, "V2L_LATENT_…")),
    };
    knobs.frames = match given.frame_count {
        0 => knobs.frames,
        -1 => ReferenceFrames::All,
        count => ReferenceFrames::FirstN(usize::try_from(count).map_err(|_| {
            Failure::argument(format!("`frame_count` is {count}; expected 0, -1 or a number of frames"))
        })?),
    };
    Ok(knobs)
}

/// Width and height that frames are brought to.
fn size(given: &v2l_reference, config: &PipelineConfig) -> Result<(usize, usize), Failure> {
    let (defaults, vae) = (&config.defaults, config.vae.as_ref());
    let side = |asked: u32, default: Option<usize>, sample: Option<usize>| match asked {
        0 => default.or(sample),
        asked => Some(asked as usize),
    };
    let width = side(given.width, defaults.width, vae.map(|vae| vae.sample_width));
    let height = side(given.height, defaults.height, vae.map(|vae| vae.sample_height));
    width
        .zip(height)
        .ok_or_else(|| Failure::argument("`width` or `height` is 0, and the engine directory has no default"))
}
