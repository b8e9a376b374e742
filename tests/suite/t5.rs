//! `T5EncoderModel` against transformers.

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};

fn check_variant(variant: &str) {
    let folder = fixtures().join("t5").join(variant);
    let built = Built::plain(&folder);
    for mode in WEIGHT_MODES {
        let mut plain = built.session("text_encoder", "encode", mode);
        let mut masked = built.session("text_encoder", "encode_masked", mode);
        for path in cases(&folder) {
            let case = Case::read(&path);
            let session = if case.inputs.contains_key("attention_mask") { &mut masked } else { &mut plain };
            let outputs = run(&mut **session, &case.inputs);
            let (actual, expected) = (f32s(&outputs["last_hidden_state"]), case.output("last_hidden_state"));
            assert_close(&format!("{variant} {} {mode:?}", case.name), &actual, &expected, 1e-5);
        }
    }
}

#[test]
fn gated_gelu_encoder_equals_transformers_with_and_without_mask() {
    check_variant("gated_gelu");
}

#[test]
fn relu_encoder_equals_transformers_with_and_without_mask() {
    check_variant("relu");
}
