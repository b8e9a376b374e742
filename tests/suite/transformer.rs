//! `CogVideoXTransformer3DModel` in all its variants against diffusers.

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};

/// The f32 noise floor of these models against f64 is up to 6.4e-6 (in the cases' metadata).
const TOLERANCE: f64 = 1e-5;

fn check_variant(variant: &str) {
    let folder = fixtures().join("transformer").join(variant);
    let built = Built::plain(&folder);
    for mode in WEIGHT_MODES {
        let mut session = built.session("transformer", "step", mode);
        for path in cases(&folder) {
            let case = Case::read(&path);
            let outputs = run(&mut *session, &case.inputs);
            assert_close(
                &format!("{variant} {} {mode:?}", case.name),
                &f32s(&outputs["sample"]),
                &case.output("sample"),
                TOLERANCE,
            );
        }
    }
}

#[test]
fn rotary_text_to_video_from_shards_equals_diffusers() {
    check_variant("rotary_t2v");
}

#[test]
fn sincos_text_to_video_equals_diffusers_at_every_size() {
    check_variant("sincos_t2v");
}

#[test]
fn learned_positions_image_to_video_equals_diffusers() {
    check_variant("learned_i2v");
}

#[test]
fn fun_inpaint_from_bf16_equals_diffusers() {
    check_variant("fun_inp");
}

#[test]
fn version_1_5_text_to_video_equals_diffusers() {
    check_variant("v15_t2v");
}

#[test]
fn version_1_5_image_to_video_from_fp16_equals_diffusers() {
    check_variant("v15_i2v");
}
