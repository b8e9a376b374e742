//! `CogVideoXTransformer3DModel` in all its variants against diffusers.

use half::f16;
use v2l_export::ExportOptions;
use v2l_runtime::tensor::Dtype;

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::tools::{RawTensor, Scratch, tamper};

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

/// The same numbers, stored in 32 and in 16 bits: whatever the exporter computes itself, such as the position table, may not
/// depend on how the weights are stored.
#[test]
fn tables_of_the_exporter_are_f32_whatever_the_checkpoint_stores() {
    for variant in ["sincos_t2v", "learned_i2v"] {
        let scratch = Scratch::new();
        let folder = fixtures().join("transformer").join(variant);
        let [wide, narrow] = ["wide", "narrow"].map(|name| scratch.copy(&folder, name));
        let values = |t: &RawTensor| -> Vec<f16> {
            t.data.chunks_exact(4).map(|b| f16::from_f32(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        };
        tamper(&wide.join("diffusion_pytorch_model.safetensors"), |tensors| {
            for t in tensors.values_mut() {
                t.data = values(t).into_iter().flat_map(|v| v.to_f32().to_le_bytes()).collect();
            }
        });
        tamper(&narrow.join("diffusion_pytorch_model.safetensors"), |tensors| {
            for t in tensors.values_mut() {
                t.data = values(t).into_iter().flat_map(f16::to_le_bytes).collect();
                t.dtype = safetensors::Dtype::F16;
            }
        });
        let [wide, narrow] = [wide, narrow].map(|folder| {
            [None, Some(Dtype::F32)].map(|storage| Built::new(&folder, &ExportOptions::default(), storage))
        });
        for path in cases(&folder) {
            let case = Case::read(&path);
            let found = |built: &Built, mode| {
                f32s(&run(&mut *built.session("transformer", "step", mode), &case.inputs)["sample"])
            };
            for mode in WEIGHT_MODES {
                let expected = found(&wide[0], mode);
                for built in &narrow {
                    assert_close(&format!("{variant} {} {mode:?}", case.name), &found(built, mode), &expected, 1e-6);
                }
            }
        }
    }
}
