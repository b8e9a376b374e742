//! `WanTransformer3DModel` in all its forms against diffusers.

use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};

/// The f32 noise floor of these models against f64 is up to 1e-6 (in the cases' metadata).
const TOLERANCE: f64 = 1e-5;

fn check_variant(variant: &str) {
    let folder = fixtures().join("wan/transformer").join(variant);
    let model = random_weights::made(&folder);
    let built = Built::plain(model.root());
    for mode in WEIGHT_MODES {
        let mut session = built.session("transformer", "step", mode);
        for path in cases(&folder) {
            let case = Case::read(&path);
            let outputs = run(&mut *session, &case.inputs);
            let what = format!("{variant} {} {mode:?}", case.name);
            assert_close(&what, &f32s(&outputs["sample"]), &case.output("sample"), TOLERANCE);
        }
    }
}

#[test]
fn text_to_video_equals_diffusers() {
    check_variant("t2v");
}

#[test]
fn image_to_video_with_image_embeddings_equals_diffusers() {
    check_variant("i2v_2_1");
}

#[test]
fn first_and_last_frame_equals_diffusers() {
    check_variant("flf2v");
}

#[test]
fn image_to_video_without_image_embeddings_equals_diffusers() {
    check_variant("i2v_2_2");
}

#[test]
fn timestep_for_each_token_equals_diffusers() {
    check_variant("ti2v");
}

#[test]
fn model_without_cross_norm_and_with_other_patches_equals_diffusers() {
    check_variant("no_cross_norm");
}
