//! What a request comes to, before anything is loaded for it.

use std::ffi::{CString, c_char};

use v2l_runtime::generator::Generator;

use crate::engine::{Opening, v2l_open_options};
use crate::failure::{Failure, guard};
use crate::handles::{Handle, Kind, free, required};
use crate::pipeline::{Asked, v2l_generate_options};
use crate::pointers::{Out, path};
use crate::status::{V2L_ERROR_INTERNAL, v2l_status};

/// Text that the library owns. Since 1.1.
pub struct v2l_text(CString);

impl Handle for v2l_text {
    const KIND: Kind = Kind::Text;
}

/// What v2l_pipeline_generate would make of `request` over this engine directory, or the failure that it would end with, as far as neither
/// depends on memory or on weights: reads pipeline.json and the request's images, and loads nothing. Adapters do not count. `options` and
/// `request` may be NULL. Since 1.1.
///
/// `resolved` is JSON: an object with `width`, `height`, `num_frames`, `num_inference_steps`, `guidance_scale`, `fps`, `seed` and the other
/// members of v2l_generate_options that the model has, with every default filled in; `seconds`, the length of the video; `own`, an object
/// with `width`, `height` and `num_frames` of a request that says nothing; `predicts_from`, a list of what the predictor reads
/// (`reference`, `prompt`, `tensors`) or null; and `warnings`, what the video will not have of what is asked for.
/// Later versions may add members.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_request_resolve(
    directory: *const c_char,
    options: *const v2l_open_options,
    request: *const v2l_generate_options,
    resolved: *mut *mut v2l_text,
) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for all of these.
        let (out, folder, opening) =
            unsafe { (Out::handle(resolved, "resolved")?, path(directory, "directory")?, Opening::new(options)?) };
        // SAFETY: as above.
        let asked = unsafe { Asked::new(request, opening.options.ffmpeg.as_deref()) }?;
        let found = Generator::without_text(folder, &opening.options)?.resolve(&asked.request)?;
        let json = found.to_json().ok().and_then(|json| CString::new(json).ok());
        out.give(v2l_text(json.ok_or_else(|| Failure::new(V2L_ERROR_INTERNAL, "what was resolved is no JSON"))?));
        Ok(())
    })
}

/// The text, in UTF-8 and with NUL at its end; it lives as long as the handle. Since 1.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_text_get(text: *const v2l_text, value: *mut *const c_char) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise, for both.
        let (out, text) = unsafe { (Out::new(value, "value")?, required(text, "text")?) };
        out.set(text.0.as_ptr());
        Ok(())
    })
}

/// Frees the text. NULL does nothing. Since 1.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_text_free(text: *mut v2l_text) {
    // SAFETY: the header's promise.
    unsafe { free(text) }
}

#[cfg(test)]
#[cfg(feature = "wan")]
mod tests {
    use std::ffi::CStr;
    use std::ptr;

    use serde_json::{Value, json};

    use super::*;
    use crate::status::{V2L_ERROR_INVALID_ARGUMENT, V2L_OK};
    use crate::v2l_last_error;

    /// What a request comes to over a model of text to video with sides in steps of 16, or the message of its refusal.
    fn resolved(change: impl FnOnce(&mut v2l_generate_options)) -> Result<Value, String> {
        let folder = tempfile::tempdir().unwrap();
        let described = json!({
            "format": "v2l-pipeline",
            "version": 1,
            "family": "wan",
            "components": {},
            "transformer": {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "max_text_seq_length": 8, "conditioning": "text"},
            "vae": {
                "z_dim": 16, "latents_mean": vec![0.0; 16], "latents_std": vec![1.0; 16], "scale_factor_temporal": 4,
                "scale_factor_spatial": 8
            },
            "defaults": {"width": 64, "height": 32},
            "scheduler": {"config": {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": true}},
        });
        std::fs::write(folder.path().join("pipeline.json"), described.to_string()).unwrap();
        let name = CString::new(folder.path().to_str().unwrap()).unwrap();
        let mut request: v2l_generate_options = crate::growing::Growing::initial();
        change(&mut request);
        let (mut text, mut value) = (ptr::null_mut(), ptr::null());
        // SAFETY: pointers to what lives until the call returns; the text is freed once.
        unsafe {
            let status = v2l_request_resolve(name.as_ptr(), ptr::null(), &request, &mut text);
            if status != V2L_OK {
                assert_eq!(status, V2L_ERROR_INVALID_ARGUMENT);
                assert!(text.is_null());
                return Err(CStr::from_ptr(v2l_last_error()).to_str().unwrap().to_owned());
            }
            assert_eq!(v2l_text_get(text, &mut value), V2L_OK);
            let found = serde_json::from_slice(CStr::from_ptr(value).to_bytes()).unwrap();
            v2l_text_free(text);
            Ok(found)
        }
    }

    #[test]
    fn resolve_fills_in_what_the_model_decides_and_opens_no_engine() {
        let found = resolved(|request| (request.seconds, request.fps) = (1.0, 8.0)).unwrap();
        let own = json!({"width": 64, "height": 32, "num_frames": 49});
        assert_eq!((&found["width"], &found["height"], &found["num_frames"]), (&json!(64), &json!(32), &json!(9)));
        assert_eq!((&found["own"], &found["seconds"], &found["warnings"]), (&own, &json!(1.125), &json!([])));
    }

    #[test]
    fn resolve_refuses_what_generate_refuses() {
        for (change, expected) in [
            ((|request| request.num_frames = 6) as fn(&mut v2l_generate_options), "the number of frames is 6"),
            (|request| (request.width, request.height) = (50, 34), "do not divide by 16"),
            (|request| request.guidance_scale_2 = 3.0, "one transformer"),
            (|request| request.boundary_ratio = 0.5, "one transformer"),
            (|request| request.noise_aug_strength = 0.1, "trained without noise"),
            (|request| request.fps = 1e-30, "the frame rate"),
            (|request| request.seconds = -1.0, "the length in seconds is -1"),
            (|request| request.num_inference_steps = 100_000, "inference steps"),
            (|request| request.scheduler = c"nonsense".as_ptr(), "there is no scheduler `nonsense`"),
            (|request| request.shift = 0.0, "expected more than 0"),
        ] {
            let message = resolved(change).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
