//! `T5EncoderModel` and `UMT5EncoderModel` against transformers.

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::tools::{Scratch, tamper};

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

#[test]
fn encoder_with_position_biases_in_every_block_equals_transformers() {
    check_variant("umt5");
}

#[test]
fn embedding_of_an_encoder_may_stand_under_either_name_or_both() {
    for (name, copied) in
        [("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight", "shared.weight")]
    {
        for both in [false, true] {
            let scratch = Scratch::new();
            let model = scratch.copy(&fixtures().join("t5/umt5"), "model");
            tamper(&model.join("model.safetensors"), |tensors| {
                let found = tensors.remove(name).or_else(|| tensors.remove(copied)).unwrap();
                if both {
                    tensors.insert(copied.to_owned(), found.clone());
                }
                tensors.insert(name.to_owned(), found);
            });
            let built = Built::plain(&model);
            let path = &cases(&fixtures().join("t5/umt5"))[0];
            let case = Case::read(path);
            let graph = if case.inputs.contains_key("attention_mask") { "encode_masked" } else { "encode" };
            let outputs = run(&mut *built.session("text_encoder", graph, WEIGHT_MODES[0]), &case.inputs);
            assert_close(name, &f32s(&outputs["last_hidden_state"]), &case.output("last_hidden_state"), 1e-5);
        }
    }
}
