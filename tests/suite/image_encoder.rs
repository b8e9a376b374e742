//! `CLIPVisionModel` and `CLIPVisionModelWithProjection` against transformers.

use safetensors::Dtype;
use v2l_export::{ExportError, ExportOptions};

use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::tools::{RawTensor, tamper};

/// The models' f32 noise floor against f64 is about 1e-7 (in the cases' metadata).
const TOLERANCE: f64 = 1e-5;

fn check_variant(variant: &str) {
    let folder = fixtures().join("wan/image_encoder").join(variant);
    let model = random_weights::made(&folder);
    let built = Built::plain(model.root());
    for mode in WEIGHT_MODES {
        let mut session = built.session("image_encoder", "encode", mode);
        for path in cases(&folder) {
            let case = Case::read(&path);
            let outputs = run(&mut *session, &case.inputs);
            let what = format!("{variant} {} {mode:?}", case.name);
            assert_close(&what, &f32s(&outputs["hidden_states"]), &case.output("hidden_states"), TOLERANCE);
        }
    }
    // Neither the last layer nor what is behind it.
    assert_eq!(built.engine("image_encoder").manifest().slots.len(), 2 * 6);
}

#[test]
fn clip_vision_model_equals_transformers() {
    check_variant("plain");
}

#[test]
fn clip_vision_model_with_projection_equals_transformers() {
    check_variant("projected");
}

#[test]
fn every_parameter_is_accounted_for() {
    let model = random_weights::made(&fixtures().join("wan/image_encoder/plain"));
    let file = model.path("model.safetensors");
    let export =
        |name: &str| v2l_export::export(model.root(), &model.path(name), &ExportOptions::default(), &mut |_| {});
    // Older files have the numbers of the positions.
    let positions = RawTensor { dtype: Dtype::I64, shape: vec![1, 26], data: vec![0; 8 * 26] };
    tamper(&file, |tensors| {
        tensors.insert("vision_model.embeddings.position_ids".into(), positions);
    });
    export("with_positions").unwrap();
    tamper(&file, |tensors| {
        tensors.insert("visual_projection.weight".into(), RawTensor::f32s(&[8, 12], 0.0));
    });
    let error = export("surplus").unwrap_err();
    assert!(
        matches!(&error, ExportError::SurplusTensors { names, .. } if names == "`visual_projection.weight`"),
        "{error}"
    );
    tamper(&file, |tensors| {
        tensors.remove("visual_projection.weight");
        tensors.remove("vision_model.encoder.layers.1.mlp.fc1.bias");
    });
    let error = export("missing").unwrap_err();
    assert!(
        matches!(&error, ExportError::MissingTensor { name, .. } if name == "vision_model.encoder.layers.1.mlp.fc1.bias"),
        "{error}"
    );
}
