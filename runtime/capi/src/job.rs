//! Requests as JSON with inputs beside it, and the jobs that are made of them.

use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use v2l_runtime::generator::{Job, Video};
use v2l_runtime::io::raw::tensor_from_bytes;
use v2l_runtime::media::clip::check_destination;
use v2l_runtime::pipeline::Prepared;
use v2l_runtime::request::fields::InputValue;
use v2l_runtime::request::{Request, RequestError};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::adapter::v2l_weighted_adapter;
use crate::applied::Applied;
use crate::callbacks::{Control, v2l_control};
use crate::failure::{Failure, guard};
use crate::frames;
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, required};
use crate::pipeline::{PipelineObject, v2l_pipeline};
use crate::pointers::{Out, optional_path, optional_text, optional_value, path, slice, text};
use crate::serial::Serial;
use crate::status::{V2L_ERROR_INTERNAL, V2L_ERROR_TENSOR, v2l_status};
use crate::tensor::{Input, v2l_tensor, v2l_tensors};
use crate::texts::c_json;

/// A picture or tensor that stands beside a request's JSON: one of the "inputs" of v2l_pipeline_schema. It has a file or a tensor.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_input {
    /// "image", "last_image", "initial_noise", "prompt_embeds", …
    pub name: *const c_char,
    /// A file with a picture; or NULL.
    pub file: *const c_char,
    /// A picture, u8 [1, height, width, 3] in RGB or f32 [1, 3, 1, height, width] in [-1, 1]; or numbers in f32; or NULL.
    pub tensor: *const v2l_tensor,
}

/// What a video is to be. All zero but `size`: everything is as the engine directory says.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_request {
    /// sizeof(v2l_request).
    pub size: usize,
    /// A JSON object, whose names are those of v2l_pipeline_schema: {"prompt": "a paper boat", "num_frames": 17, "seed": 7}. What is absent
    /// or null is as the engine directory says. NULL: {}.
    pub json: *const c_char,
    /// Pictures and tensors, `input_count` of them; or NULL.
    pub inputs: *const v2l_input,
    /// Number of inputs.
    pub input_count: usize,
    /// The adapters to generate with, `adapter_count` of them: as v2l_pipeline_set_adapters, before the work and in one with it, so that no
    /// other thread's call comes between. Costs nothing if they are the pipeline's already. NULL: those of the pipeline.
    pub adapters: *const v2l_weighted_adapter,
    /// Number of adapters; 0 and `adapters` not NULL is the base model.
    pub adapter_count: usize,
}

growing!(
    v2l_request,
    Self {
        size: size_of::<Self>(),
        json: std::ptr::null(),
        inputs: std::ptr::null(),
        input_count: 0,
        adapters: std::ptr::null(),
        adapter_count: 0,
    }
);

/// The request.
///
/// # Safety
/// The header's promise.
unsafe fn request_of(given: &v2l_request, ffmpeg: Option<&Path>) -> Result<Request, Failure> {
    // SAFETY: the caller's promise, for both.
    let (json, inputs) =
        unsafe { (optional_text(given.json, "json")?, slice(given.inputs, given.input_count, "inputs")?) };
    let mut request = json.map(Request::from_json).transpose()?.unwrap_or_default();
    let mut seen = HashSet::new();
    for input in inputs {
        // SAFETY: as above.
        let name = unsafe { text(input.name, "inputs.name") }?;
        if !seen.insert(name) {
            return Err(RequestError::Twice { name: name.to_owned() }.into());
        }
        // SAFETY: as above.
        let value = unsafe { value_of(name, input, ffmpeg) }?;
        request.set_input(name, value).map_err(|error| match error {
            RequestError::Input { .. } => Failure { status: V2L_ERROR_TENSOR, ..error.into() },
            error => error.into(),
        })?;
    }
    Ok(request)
}

/// What an input is given as.
///
/// # Safety
/// The header's promise.
unsafe fn value_of(name: &str, input: &v2l_input, ffmpeg: Option<&Path>) -> Result<InputValue, Failure> {
    let known = Request::INPUTS.iter().find(|known| known.name == name);
    let known = known.ok_or_else(|| Request::unknown_input(name))?;
    let absent = || Failure::argument(format!("the input `{name}` has neither file nor tensor; expected one of them"));
    if known.is_picture {
        // SAFETY: the caller's promise.
        let frames = unsafe { frames::one(known.title, input.file, input.tensor, ffmpeg) }?;
        return frames.map(InputValue::Frames).ok_or_else(absent);
    }
    // SAFETY: as above, for both.
    let (file, tensor) = unsafe { (optional_path(input.file, "inputs.file")?, optional_value(input.tensor, name)?) };
    if file.is_some() {
        return Err(Failure::argument(format!("the input `{name}` is a file; expected a tensor")));
    }
    // SAFETY: as above.
    let input = unsafe { Input::new(tensor.ok_or_else(absent)?, name) }?;
    Ok(InputValue::Tensor(input.view().to_tensor()))
}

/// A request that a pipeline can carry out, with every question answered. It may run several times.
pub struct v2l_job {
    pipeline: Arc<PipelineObject>,
    prepared: Serial<Prepared>,
    applied: Option<Applied>,
    resolved: OnceLock<CString>,
}

impl Handle for v2l_job {
    const KIND: Kind = Kind::Job;
}

impl v2l_job {
    /// The job at work, with its adapters set.
    fn work<T>(
        &self,
        control: &Control,
        work: impl FnOnce(&mut Job<'_>) -> Result<T, v2l_runtime::Error>,
    ) -> Result<T, Failure> {
        let mut state = self.pipeline.state.lock()?;
        if let Some(applied) = self.applied.as_ref().filter(|applied| **applied != state.applied) {
            state.apply(applied.clone(), control)?;
        }
        let mut prepared = self.prepared.lock()?;
        Ok(work(&mut state.generator.resume(&mut prepared))?)
    }
}

/// Makes a job of a request, or fails as the job would, as far as neither depends on memory or on weights: loads nothing. `request` may be
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_job_new(
    pipeline: *const v2l_pipeline,
    request: *const v2l_request,
    job: *mut *mut v2l_job,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, pipeline, given) =
            unsafe { (Out::handle(job, "job")?, &required(pipeline, "pipeline")?.0, growing::read(request)?) };
        // SAFETY: as above, for both.
        let (request, applied) = unsafe {
            (
                request_of(&given, pipeline.options.ffmpeg.as_deref())?,
                Applied::given(given.adapters, given.adapter_count)?,
            )
        };
        let prepared = pipeline.state.lock()?.generator.prepared(request)?;
        let (pipeline, prepared) = (Arc::clone(pipeline), Serial::new(prepared));
        out.give(v2l_job { pipeline, prepared, applied, resolved: OnceLock::new() });
        Ok(())
    })
}

/// Frees the job. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_job_free(job: *mut v2l_job) {
    // SAFETY: the header's promise.
    unsafe { free(job) }
}

/// What the job's request comes to: JSON, which lives as long as the job. An object with `width`, `height`, `num_frames`,
/// `num_inference_steps`, `guidance_scale`, `fps`, `seed` and the other names of the request, with every default filled in; `seconds`, the
/// length of the video; `own`, an object with `width`, `height` and `num_frames` of a request that says nothing; `predicts_from`, a list of
/// what the predictor reads (`reference`, `prompt`, `tensors`) or null; and `warnings`, what the video will not have of what is asked for.
/// Later versions may add names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_job_resolved(job: *const v2l_job, json: *mut *const c_char) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (out, job) = unsafe { (Out::new(json, "json")?, required(job, "job")?) };
        let resolved = match job.resolved.get() {
            Some(resolved) => resolved,
            None => {
                let mut state = job.pipeline.state.lock()?;
                let mut prepared = job.prepared.lock()?;
                let summary = state.generator.resume(&mut prepared).summary()?;
                let json = summary.to_json().map_err(|error| Failure::new(V2L_ERROR_INTERNAL, error.to_string()))?;
                job.resolved.get_or_init(|| c_json(json))
            }
        };
        out.set(resolved.as_ptr());
        Ok(())
    })
}

/// Makes the video: `results` holds `frames` u8 [frames, height, width, 3] in RGB and `latents` f32 with five axes in the model's order.
/// `control` may be NULL. The same request on the same machine gives the same bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_job_run(
    job: *const v2l_job,
    control: *const v2l_control,
    results: *mut *mut v2l_tensors,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (out, job, control) =
            unsafe { (Out::handle(results, "results")?, required(job, "job")?, Control::new(control)?) };
        let Video { frames, latents, .. } = job.work(&control, |job| job.run(&mut &control))?;
        let shape = [frames.count(), frames.height(), frames.width(), 3];
        let frames = tensor_from_bytes(Dtype::U8, &shape, frames.data())
            .ok_or_else(|| Failure::new(V2L_ERROR_INTERNAL, "frames of another size than they say"))?;
        let latents = Tensor::F32(latents.into_dyn());
        out.give(NamedTensors::from([("frames".to_owned(), frames), ("latents".to_owned(), latents)]).into());
        Ok(())
    })
}

/// Makes the video as `file`: .mp4, .mov, .mkv, .webm or .gif by ffmpeg, a folder of PNG files (a path that ends in /), or .safetensors
/// with `pixels` f32 [1, 3, frames, height, width] in [-1, 1]. It appears whole or not at all; what is there is replaced. `control` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_job_save(
    job: *const v2l_job,
    control: *const v2l_control,
    file: *const c_char,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all three.
        let (job, control, file) = unsafe { (required(job, "job")?, Control::new(control)?, path(file, "file")?) };
        check_destination(file, job.pipeline.options.ffmpeg.as_deref())?;
        Ok(job.work(&control, |job| job.run(&mut &control))?.save(file)?)
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr;

    use serde_json::{Value, json};

    use super::*;
    use crate::pipeline::{v2l_pipeline_free, v2l_pipeline_new, v2l_pipeline_schema};
    use crate::status::{V2L_ERROR_INVALID_ARGUMENT, V2L_OK};
    use crate::{v2l_last_error, v2l_last_error_field};

    /// A pipeline of a model of text to video with sides in steps of 16, and nothing but its `pipeline.json`.
    struct Opened(*mut v2l_pipeline);

    impl Drop for Opened {
        fn drop(&mut self) {
            // SAFETY: it is freed once.
            unsafe { v2l_pipeline_free(self.0) }
        }
    }

    fn opened() -> Opened {
        let folder = tempfile::tempdir().unwrap();
        let described = json!({
            "format": "v2l-pipeline",
            "version": 1,
            "family": "wan",
            "components": {},
            "transformer": {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "max_text_seq_length": 8, "rope_max_seq_len": 1024, "conditioning": "text"},
            "vae": {
                "z_dim": 16, "latents_mean": vec![0.0; 16], "latents_std": vec![1.0; 16], "scale_factor_temporal": 4,
                "scale_factor_spatial": 8
            },
            "defaults": {"width": 64, "height": 32},
            "scheduler": {"config": {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": true}},
        });
        std::fs::write(folder.path().join("pipeline.json"), described.to_string()).unwrap();
        let name = CString::new(folder.path().to_str().unwrap()).unwrap();
        let mut pipeline = ptr::null_mut();
        // SAFETY: pointers to what lives until the call returns.
        assert_eq!(unsafe { v2l_pipeline_new(name.as_ptr(), ptr::null(), &mut pipeline) }, V2L_OK);
        Opened(pipeline)
    }

    /// What a request comes to, or the message of its refusal and the field that it is about.
    fn resolved(pipeline: &Opened, request: &Value) -> Result<Value, (String, String)> {
        let text = CString::new(request.to_string()).unwrap();
        let request = v2l_request { json: text.as_ptr(), ..growing::Growing::initial() };
        let (mut job, mut json) = (ptr::null_mut(), ptr::null());
        // SAFETY: as above; the job is freed once.
        unsafe {
            let status = v2l_job_new(pipeline.0, &request, &mut job);
            if status != V2L_OK {
                assert_eq!(status, V2L_ERROR_INVALID_ARGUMENT);
                assert!(job.is_null());
                let said = [v2l_last_error(), v2l_last_error_field()];
                let [message, field] = said.map(|text| CStr::from_ptr(text).to_str().unwrap().to_owned());
                return Err((message, field));
            }
            assert_eq!(v2l_job_resolved(job, &mut json), V2L_OK);
            let found = serde_json::from_slice(CStr::from_ptr(json).to_bytes()).unwrap();
            v2l_job_free(job);
            Ok(found)
        }
    }

    #[test]
    fn job_fills_in_what_the_model_decides_and_opens_no_engine() {
        let found = resolved(&opened(), &json!({ "seconds": 1, "fps": 8 })).unwrap();
        let own = json!({"width": 64, "height": 32, "num_frames": 49});
        assert_eq!((&found["width"], &found["height"], &found["num_frames"]), (&json!(64), &json!(32), &json!(9)));
        assert_eq!((&found["own"], &found["seconds"], &found["warnings"]), (&own, &json!(1.125), &json!([])));
    }

    #[test]
    fn job_refuses_what_cannot_be_carried_out_and_says_the_field() {
        let pipeline = opened();
        for (request, expected, field) in [
            (json!({ "num_frames": 6 }), "the number of frames is 6", "num_frames"),
            (json!({ "width": 50, "height": 34 }), "do not divide by 16", "width"),
            (json!({ "guidance_scale_2": 3 }), "one transformer", "guidance_scale_2"),
            (json!({ "boundary_ratio": 0.5 }), "one transformer", "boundary_ratio"),
            (json!({ "noise_aug_strength": 0.1 }), "trained without noise", "noise_aug_strength"),
            (json!({ "fps": 1e-30 }), "the frame rate", "fps"),
            (json!({ "seconds": -1 }), "the length in seconds is -1", "seconds"),
            (json!({ "num_inference_steps": 100_000 }), "inference steps", "num_inference_steps"),
            (json!({ "scheduler": "nonsense" }), "there is no scheduler `nonsense`", "scheduler"),
            (json!({ "shift": 0 }), "expected more than 0", "shift"),
        ] {
            let (message, found) = resolved(&pipeline, &request).unwrap_err();
            assert!(message.contains(expected) && found == field, "{message}: {found}");
        }
    }

    #[test]
    fn schema_has_the_fields_of_the_model_with_its_defaults() {
        let (pipeline, mut json) = (opened(), ptr::null());
        // SAFETY: the text lives as long as the pipeline.
        let schema: Value = unsafe {
            assert_eq!(v2l_pipeline_schema(pipeline.0, &mut json), V2L_OK);
            serde_json::from_slice(CStr::from_ptr(json).to_bytes()).unwrap()
        };
        let fields = &schema["properties"];
        assert_eq!((&fields["width"]["default"], &fields["shift"]["type"]), (&json!(64), &json!("number")));
        for absent in ["boundary_ratio", "guidance_scale_2", "noise_aug_strength", "controls"] {
            assert!(fields.get(absent).is_none(), "{absent}");
        }
        assert!(schema["inputs"].get("image").is_none() && schema["inputs"].get("initial_noise").is_some());
    }
}
