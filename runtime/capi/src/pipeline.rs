//! An engine directory: from a prompt, an image and adapters to a video.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use ndarray::ArrayD;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::generator::{Generator, Options, Video};
use v2l_runtime::io::raw::tensor_from_bytes;
use v2l_runtime::media::clip::check_destination;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::adapter::{v2l_adapter_report, v2l_weighted_adapter};
use crate::applied::{Applied, branch_report, fuse_report, replace};
use crate::callbacks::{Control, v2l_control};
use crate::engine::{Opening, Shared, v2l_engine, v2l_open_options};
use crate::failure::{Failure, guard};
use crate::frames::{self, finite, five_axes};
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, required};
use crate::log::{V2L_LOG_INFO, V2L_LOG_WARNING, log};
use crate::pointers::{Out, optional_text, optional_value, path, slice, text};
use crate::serial::Serial;
use crate::status::{V2L_ERROR_CANCELLED, V2L_ERROR_INTERNAL, V2L_ERROR_TENSOR, v2l_status};
use crate::tensor::{Input, v2l_tensor, v2l_tensors};

/// The engines of a directory, and everything between them.
pub struct v2l_pipeline {
    state: Serial<State>,
    options: Options,
}

impl Handle for v2l_pipeline {
    const KIND: Kind = Kind::Pipeline;
}

struct State {
    generator: Generator,
    applied: Applied,
}

impl State {
    /// Replaces the adapters; on an error all is as before.
    fn apply(&mut self, applied: Applied, control: &Control) -> Result<v2l_adapter_report, Failure> {
        if control.is_cancelled() {
            return Err(Failure::new(V2L_ERROR_CANCELLED, "cancelled"));
        }
        let cancelled = || control.is_cancelled();
        let done = self.generator.set_adapters_unless(&applied.borrowed(), Some(&cancelled))?;
        self.applied = applied;
        if done.fell_back {
            log(V2L_LOG_INFO, &format!("adapters are applied in low-rank branches: {}", done.reason));
        }
        if let Some(warning) = &done.warning {
            log(V2L_LOG_WARNING, warning);
        }
        Ok(match &done.fused {
            Some(fused) => fuse_report(fused),
            None => branch_report(done.slots),
        })
    }
}

/// Opens an engine directory. Reads its pipeline.json and tokenizer; engines are opened when they are needed. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_new(
    directory: *const c_char,
    options: *const v2l_open_options,
    pipeline: *mut *mut v2l_pipeline,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, folder, opening) =
            unsafe { (Out::handle(pipeline, "pipeline")?, path(directory, "directory")?, Opening::new(options)?) };
        let mut generator = Generator::open(folder, &opening.options)?;
        if opening.verify_hashes {
            generator.verify_hashes(None)?;
        }
        if generator.directory().has(TRANSFORMER) {
            // What the engine was not compiled for is refused now.
            generator.set_adapters(&[])?;
        }
        let state = Serial::new(State { generator, applied: Applied::default() });
        out.give(v2l_pipeline { state, options: opening.options });
        Ok(())
    })
}

/// Frees the pipeline. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_free(pipeline: *mut v2l_pipeline) {
    // SAFETY: the header's promise.
    unsafe { free(pipeline) }
}

/// The engine of a component ("transformer", "vae_decoder", …), to load adapters for its slots or to run its graphs; free it with
/// v2l_engine_free. Adapters of the pipeline do not change it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_engine(
    pipeline: *const v2l_pipeline,
    component: *const c_char,
    engine: *mut *mut v2l_engine,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, pipeline, component) =
            unsafe { (Out::handle(engine, "engine")?, required(pipeline, "pipeline")?, text(component, "component")?) };
        let engine = pipeline.state.lock()?.generator.directory().engine(component)?;
        out.give(v2l_engine(Arc::new(Shared::new(engine, pipeline.options.engines.clone()))));
        Ok(())
    })
}

/// Replaces the pipeline's adapters by `count` others, each with its strength; none is the base model. A transaction: on any failure the
/// pipeline is as it was. `control` may be NULL; so may `report`, else `report->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_set_adapters(
    pipeline: *const v2l_pipeline,
    adapters: *const v2l_weighted_adapter,
    count: usize,
    control: *const v2l_control,
    report: *mut v2l_adapter_report,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        unsafe {
            let pipeline = required(pipeline, "pipeline")?;
            replace(adapters, count, control, report, |applied, control| pipeline.state.lock()?.apply(applied, control))
        }
    })
}

/// A video to generate. Start from v2l_generate_options_init, which leaves everything to the engine directory's defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_generate_options {
    /// sizeof(v2l_generate_options).
    pub size: usize,
    /// What to show; NULL: nothing in particular.
    pub prompt: *const c_char,
    /// What not to show; NULL: the default. Unused without guidance.
    pub negative_prompt: *const c_char,
    /// The first frame: a file; or NULL.
    pub image_file: *const c_char,
    /// The first frame: u8 [1, height, width, 3] in RGB or f32 [1, 3, 1, height, width] in [-1, 1]; or NULL.
    pub image: *const v2l_tensor,
    /// f32 with five axes, in the order of the model's latents, instead of noise drawn from the seed; or NULL.
    pub initial_noise: *const v2l_tensor,
    /// The adapters to generate with, `adapter_count` of them: as v2l_pipeline_set_adapters, before the work and in one with it, so that no
    /// other thread's call comes between. Costs nothing if they are the pipeline's already. NULL: those of the pipeline.
    pub adapters: *const v2l_weighted_adapter,
    /// Number of adapters; 0 and `adapters` not NULL is the base model.
    pub adapter_count: usize,
    /// Width in pixels; 0: the default.
    pub width: u32,
    /// Height in pixels; 0: the default.
    pub height: u32,
    /// Frames; 0: the default.
    pub num_frames: u32,
    /// Sampler steps; 0: the default.
    pub num_inference_steps: u32,
    /// Guidance; 1 or less: none, and half the work. NaN: the default.
    pub guidance_scale: f64,
    /// Frames per second; 0: the default.
    pub fps: f64,
    /// Standard deviation of the noise on the image. NaN: the default.
    pub noise_aug_strength: f64,
    /// Seed of every draw; counts if `has_seed`.
    pub seed: u64,
    /// Not 0: `seed` counts; 0: the default seed.
    pub has_seed: i32,
    /// 0.
    pub reserved: i32,
    /// Since 1.1. The scheduler, by v2l's name of it or by diffusers' class; NULL: the model's own.
    pub scheduler: *const c_char,
    /// Since 1.1. The shift of the scheduler's noise levels, for models of flow matching. NaN: the scheduler's own.
    pub shift: f64,
    /// Since 1.1. Guidance of the second of two transformers; it counts if the first is above 1. NaN: guidance_scale if that is given,
    /// else the default.
    pub guidance_scale_2: f64,
    /// Since 1.1. The last frame, for models that end at an image: a file; or NULL.
    pub last_image_file: *const c_char,
    /// Since 1.1. The last frame, as `image`; or NULL.
    pub last_image: *const v2l_tensor,
    /// Since 1.1. f32 [1, tokens, width] in place of the prompt's embeddings; or NULL.
    pub prompt_embeds: *const v2l_tensor,
    /// Since 1.1. The same for the negative prompt, which counts with guidance; or NULL.
    pub negative_prompt_embeds: *const v2l_tensor,
    /// Since 1.1. Where the second of two transformers takes over, as a part of the noise levels, 0 to 1. NaN: the model's own.
    pub boundary_ratio: f64,
    /// Since 1.1. Names of the model's controls that are on, `control_count` of them; or NULL.
    pub control_names: *const *const c_char,
    /// Since 1.1. Their numbers, as many.
    pub control_values: *const f32,
    /// Since 1.1. Number of controls that are on.
    pub control_count: usize,
    /// Since 1.1. Length in seconds, which counts if `num_frames` is 0: the number of frames nearest to it that the model can make. NaN: the
    /// default.
    pub seconds: f64,
}

growing!(
    v2l_generate_options,
    Self {
        size: size_of::<Self>(),
        prompt: std::ptr::null(),
        negative_prompt: std::ptr::null(),
        image_file: std::ptr::null(),
        image: std::ptr::null(),
        initial_noise: std::ptr::null(),
        adapters: std::ptr::null(),
        adapter_count: 0,
        width: 0,
        height: 0,
        num_frames: 0,
        num_inference_steps: 0,
        guidance_scale: f64::NAN,
        fps: 0.0,
        noise_aug_strength: f64::NAN,
        seed: 0,
        has_seed: 0,
        reserved: 0,
        scheduler: std::ptr::null(),
        shift: f64::NAN,
        guidance_scale_2: f64::NAN,
        last_image_file: std::ptr::null(),
        last_image: std::ptr::null(),
        prompt_embeds: std::ptr::null(),
        negative_prompt_embeds: std::ptr::null(),
        boundary_ratio: f64::NAN,
        control_names: std::ptr::null(),
        control_values: std::ptr::null(),
        control_count: 0,
        seconds: f64::NAN,
    },
    grown at scheduler,
    grown at boundary_ratio,
    grown at seconds
);

/// Fills in the defaults; `size` is sizeof(v2l_generate_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_generate_options_init(options: *mut v2l_generate_options, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(options, size) })
}

/// What a call to generate asks for.
pub(crate) struct Asked {
    pub(crate) request: Request,
    applied: Option<Applied>,
}

impl Asked {
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn new(options: *const v2l_generate_options, ffmpeg: Option<&Path>) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let given = unsafe { growing::read(options) }?;
        growing::unused(given.reserved)?;
        // SAFETY: as above, for all of these.
        let (prompt, negative_prompt, scheduler, applied) = unsafe {
            (
                optional_text(given.prompt, "prompt")?,
                optional_text(given.negative_prompt, "negative_prompt")?,
                optional_text(given.scheduler, "scheduler")?,
                Applied::given(given.adapters, given.adapter_count)?,
            )
        };
        // SAFETY: as above.
        let (image, last_image, noise, prompt_embeds, negative_prompt_embeds) = unsafe {
            (
                frames::one("image", given.image_file, given.image, ffmpeg)?,
                frames::one("last image", given.last_image_file, given.last_image, ffmpeg)?,
                copied(given.initial_noise, "initial_noise")?,
                floats(given.prompt_embeds, "prompt_embeds")?,
                floats(given.negative_prompt_embeds, "negative_prompt_embeds")?,
            )
        };
        // SAFETY: as above, for all of these.
        let controls = unsafe {
            let names = slice(given.control_names, given.control_count, "control_names")?;
            let values = slice(given.control_values, given.control_count, "control_values")?;
            let one = |(&name, &value): (&*const c_char, &f32)| Ok((text(name, "control_names")?.to_owned(), value));
            names.iter().zip(values).map(one).collect::<Result<Vec<_>, Failure>>()?
        };
        let count = |count: u32| (count > 0).then_some(count as usize);
        let number = |number: f64| (!number.is_nan()).then_some(number);
        let request = Request {
            prompt: prompt.unwrap_or_default().to_owned(),
            negative_prompt: negative_prompt.map(str::to_owned),
            image,
            last_image,
            width: count(given.width),
            height: count(given.height),
            num_frames: count(given.num_frames),
            seconds: number(given.seconds),
            num_inference_steps: count(given.num_inference_steps),
            scheduler: scheduler.map(str::to_owned),
            shift: number(given.shift),
            guidance_scale: number(given.guidance_scale),
            guidance_scale_2: number(given.guidance_scale_2),
            boundary_ratio: number(given.boundary_ratio),
            controls,
            fps: (given.fps != 0.0).then_some(given.fps),
            seed: (given.has_seed != 0).then_some(given.seed),
            noise_aug_strength: number(given.noise_aug_strength),
            initial_noise: noise.map(|noise| five_axes("initial noise", noise)).transpose()?,
            prompt_embeds,
            negative_prompt_embeds,
            ..Request::default()
        };
        Ok(Self { request, applied })
    }

    fn carry_out(self, pipeline: &v2l_pipeline, control: &Control) -> Result<Video, Failure> {
        let mut state = pipeline.state.lock()?;
        // Nothing is changed for a request that cannot be carried out.
        state.generator.resolve(&self.request)?;
        if let Some(applied) = self.applied.filter(|applied| *applied != state.applied) {
            state.apply(applied, control)?;
        }
        Ok(state.generator.generate_with(&self.request, &mut &*control)?)
    }
}

/// A copy of a caller's tensor, unless it is NULL.
///
/// # Safety
/// The header's promise.
unsafe fn copied(tensor: *const v2l_tensor, name: &str) -> Result<Option<Tensor>, Failure> {
    // SAFETY: the caller's promise, for both.
    let input = unsafe { optional_value(tensor, name)?.map(|tensor| Input::new(tensor, name)) }.transpose()?;
    Ok(input.map(|input| input.view().to_tensor()))
}

/// A copy of a caller's f32 tensor, unless it is NULL.
///
/// # Safety
/// The header's promise.
unsafe fn floats(tensor: *const v2l_tensor, name: &str) -> Result<Option<ArrayD<f32>>, Failure> {
    // SAFETY: the caller's promise.
    let Some(tensor) = (unsafe { copied(tensor, name) })? else { return Ok(None) };
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    let wrong = || Failure::new(V2L_ERROR_TENSOR, format!("{name} is {found}; expected f32 [1, tokens, width]"));
    let array = tensor.into_f32().ok_or_else(wrong)?;
    finite(name, array.iter())?;
    Ok(Some(array))
}

/// Generates a video: `results` holds `frames` u8 [frames, height, width, 3] in RGB and `latents` f32 with five axes in the model's order. `options` and
/// `control` may be NULL. The same request on the same machine gives the same bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_generate(
    pipeline: *const v2l_pipeline,
    options: *const v2l_generate_options,
    control: *const v2l_control,
    results: *mut *mut v2l_tensors,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, pipeline, control) =
            unsafe { (Out::handle(results, "results")?, required(pipeline, "pipeline")?, Control::new(control)?) };
        // SAFETY: as above.
        let asked = unsafe { Asked::new(options, pipeline.options.ffmpeg.as_deref()) }?;
        let Video { frames, latents, .. } = asked.carry_out(pipeline, &control)?;
        let shape = [frames.count(), frames.height(), frames.width(), 3];
        let frames = tensor_from_bytes(Dtype::U8, &shape, frames.data())
            .ok_or_else(|| Failure::new(V2L_ERROR_INTERNAL, "frames of another size than they say"))?;
        let latents = Tensor::F32(latents.into_dyn());
        out.give(NamedTensors::from([("frames".to_owned(), frames), ("latents".to_owned(), latents)]).into());
        Ok(())
    })
}

/// Generates a video into `file`: .mp4, .mov, .mkv, .webm or .gif by ffmpeg, a folder of PNG files (a path that ends in /), or .safetensors
/// with `pixels` f32 [1, 3, frames, height, width] in [-1, 1]. It appears whole or not at all; what is there is replaced. `options` and `control` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_pipeline_generate_file(
    pipeline: *const v2l_pipeline,
    options: *const v2l_generate_options,
    control: *const v2l_control,
    file: *const c_char,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (pipeline, control, file) =
            unsafe { (required(pipeline, "pipeline")?, Control::new(control)?, path(file, "file")?) };
        // SAFETY: as above.
        let asked = unsafe { Asked::new(options, pipeline.options.ffmpeg.as_deref()) }?;
        check_destination(file, pipeline.options.ffmpeg.as_deref())?;
        Ok(asked.carry_out(pipeline, &control)?.save(file)?)
    })
}
