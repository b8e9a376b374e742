//! The transformer's golden cases on an NVIDIA GPU, by both backends. A test that did not run says so, and why.

use std::sync::Arc;

use v2l_export::precision::{PrecisionOptions, Request};
use v2l_export::trt::builder::BuildError;
use v2l_export::trt::{Capability, Flavour};
use v2l_export::{CompileOptions, ExportError, ExportOptions, PlanBuilder, TensorRtOptions};
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::onnxruntime::{OrtOptions, Provider};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::ShapeRange;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::NamedTensors;

use crate::random_weights;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run, skipped};

/// In float32, whose sums a GPU takes in another order, with functions of its own.
const TOLERANCE: f64 = 1e-4;

const VARIANTS: [&str; 6] = ["rotary_t2v", "sincos_t2v", "learned_i2v", "fun_inp", "v15_t2v", "v15_i2v"];

/// What the first GPU can do; without one, or a way to it, says past the harness that `test` did not run.
fn card(test: &str) -> Option<Capability> {
    match v2l_cuda::attach(0) {
        Ok((info, ..)) => Some(Capability { major: info.capability.0, minor: info.capability.1 }),
        Err(error) => {
            skipped(test, &error.to_string());
            None
        }
    }
}

fn check(what: &str, case: &Case, outputs: &NamedTensors) {
    assert_close(&format!("{what} {}", case.name), &f32s(&outputs["sample"]), &case.output("sample"), TOLERANCE);
}

#[test]
fn transformer_on_the_cuda_provider_equals_diffusers() {
    let test = "transformer_on_the_cuda_provider_equals_diffusers";
    let Some(_) = card(test) else { return };
    for variant in VARIANTS {
        let folder = fixtures().join("transformer").join(variant);
        let built = Built::plain(&folder);
        for weights in WEIGHT_MODES {
            let provider = Provider::Cuda { device: 0 };
            let open = OpenOptions {
                weights,
                ort: OrtOptions { provider, ..OrtOptions::default() },
                ..OpenOptions::default()
            };
            let mut engine = match OpenEngine::open(built.engine("transformer"), &open) {
                Ok(engine) => engine,
                // There is a GPU: what is missing are ONNX Runtime's or CUDA's libraries.
                Err(error) => return skipped(test, &error.to_string()),
            };
            let mut session = engine.session("step").unwrap();
            for path in cases(&folder) {
                let case = Case::read(&path);
                let outputs = run(&mut *session, &case.inputs);
                check(&format!("{variant} {weights:?}"), &case, &outputs);
            }
        }
    }
}

#[test]
fn transformer_on_tensorrt_rtx_equals_diffusers() {
    let test = "transformer_on_tensorrt_rtx_equals_diffusers";
    let Some(capability) = card(test) else { return };
    for variant in VARIANTS {
        let folder = fixtures().join("transformer").join(variant);
        let built = tempfile::tempdir().unwrap();
        let bundle = built.path().join("bundle");
        let model = random_weights::made(&folder);
        v2l_export::export(model.root(), &bundle, &ExportOptions::default(), &mut |_| {}).unwrap();
        for path in cases(&folder) {
            let case = Case::read(&path);
            let file = built.path().join(format!("{}.engine", case.name));
            match v2l_export::compile(
                &bundle.join("transformer/step.onnx"),
                &file,
                &options(&case, capability),
                &mut |_| {},
            ) {
                Ok(_) => {}
                Err(ExportError::TensorRtLibrary(error)) => return skipped(test, &error.to_string()),
                Err(error @ ExportError::TensorRt { source: BuildError::Capability { .. }, .. }) => {
                    return skipped(test, &error.to_string());
                }
                Err(error) => panic!("{error}"),
            }
            let open = OpenOptions { weights: OrtWeights::Stored, ..OpenOptions::default() };
            let mut engine = OpenEngine::open(Arc::new(Engine::open(&file).unwrap()), &open).unwrap();
            let outputs = run(&mut *engine.session("step").unwrap(), &case.inputs);
            check(variant, &case, &outputs);
        }
    }
}

/// In float32, for the case's shapes alone, verified when the weights are set.
fn options(case: &Case, capability: Capability) -> CompileOptions {
    let range = |shape: &[usize]| ShapeRange { min: shape.to_vec(), opt: shape.to_vec(), max: shape.to_vec() };
    CompileOptions {
        precision: PrecisionOptions { request: Some(Request::Fp32), rules_only: true, ..PrecisionOptions::default() },
        profiles: vec![case.inputs.iter().map(|(name, tensor)| (name.clone(), range(tensor.shape()))).collect()],
        target: Arc::new(TensorRtOptions {
            flavour: Flavour::Rtx,
            library: None,
            capabilities: vec![capability],
            plain: false,
            builder: PlanBuilder::InProcess,
            timing_cache: None,
        }),
        check: Some(v2l_export::check::CheckOptions::default()),
        ..CompileOptions::default()
    }
}
