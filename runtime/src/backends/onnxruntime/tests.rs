//! Needs ONNX Runtime; `bin/setup` fetches it. Without it these tests say so and pass nothing off as tested.

use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};

use super::*;
use crate::engine::Engine;
use crate::engine::session::Session;
use crate::io::raw;
use crate::io::weights::read_tensors;
use crate::lora::adapter::{Adapter, LowRank};
use crate::options::{OpenOptions, OrtWeights};
use crate::tensor::{Dtype, NamedTensors, Tensor};
use crate::testing::engines::{LINEARS, fixture, part, write_tiny};

/// An engine of the fixture's graph over `weights`, stored as they are, and the folder that keeps it.
pub(in crate::backends) fn engine(weights: &NamedTensors, storage: Dtype) -> (Arc<Engine>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.engine");
    write_tiny(&path, weights, storage);
    (Arc::new(Engine::open(&path).unwrap()), dir)
}

fn zeros(weights: &NamedTensors) -> NamedTensors {
    let zero = |t: &Tensor| raw::tensor_from_bytes(t.dtype(), t.shape(), &vec![0; t.len() * t.dtype().size()]).unwrap();
    weights.iter().map(|(name, t)| (name.clone(), zero(t))).collect()
}

pub(in crate::backends) fn options(weights: OrtWeights) -> OpenOptions {
    OpenOptions { weights, threads: Some(1), ..OpenOptions::default() }
}

pub(in crate::backends) fn run(session: &mut OrtSession, inputs: &NamedTensors) -> NamedTensors {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (&name[..], t)).collect();
    session.run(&inputs).unwrap()
}

pub(in crate::backends) fn assert_close(got: &NamedTensors, expected: &NamedTensors, what: &str) {
    for (name, expected) in expected {
        let (got, expected) = (got[name].to_f32().unwrap(), expected.to_f32().unwrap());
        assert_eq!(got.shape(), expected.shape());
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= 2e-6 * largest, "{what}: {name}: error {error} of {largest}");
    }
}

pub(in crate::backends) const CASES: [(Dtype, OrtWeights); 6] = [
    (Dtype::F32, OrtWeights::F32),
    (Dtype::F32, OrtWeights::Stored),
    (Dtype::F16, OrtWeights::F32),
    (Dtype::F16, OrtWeights::Stored),
    (Dtype::Bf16, OrtWeights::F32),
    (Dtype::Bf16, OrtWeights::Stored),
];

#[test]
fn ort_engine_with_every_weight_overridden_equals_a_graph_that_embeds_them() {
    for (storage, mode) in CASES {
        let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
        let noise = part(&case, "weight.");
        let (engine, _dir) = engine(&zeros(&noise), storage);
        let mut ort = OrtEngine::open(engine, &options(mode)).unwrap();
        let bytes = |t: &Tensor| match (mode, t.to_f32()) {
            (OrtWeights::F32, Some(a)) => raw::vec_into_bytes(a.into_raw_vec_and_offset().0),
            _ => bytes::Bytes::copy_from_slice(&raw::tensor_bytes(t)),
        };
        let overrides: IndexMap<_, _> = noise.iter().map(|(name, t)| (name.clone(), bytes(t))).collect();
        ort.set_overrides(overrides).unwrap();
        let mut session = ort.session("step").unwrap();
        let outputs = run(&mut session, &part(&case, "input."));
        assert_close(&outputs, &part(&case, "output."), &format!("{storage} {mode:?}"));
    }
}

#[test]
fn ort_engine_over_pristine_weights_equals_a_graph_that_embeds_them() {
    for (storage, mode) in CASES {
        let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
        let (engine, _dir) = engine(&part(&case, "weight."), storage);
        let mut ort = OrtEngine::open(engine, &options(mode)).unwrap();
        let mut session = ort.session("step").unwrap();
        drop(ort);
        let outputs = run(&mut session, &part(&case, "input."));
        assert_close(&outputs, &part(&case, "output."), &format!("{storage} {mode:?}"));
    }
}

#[test]
fn ort_engine_with_an_adapter_equals_weights_that_hold_it() {
    for (storage, mode) in CASES {
        let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
        let weights = part(&case, "weight.");
        let layer = |&(name, out, inner): &(&str, usize, usize)| {
            let down = ndarray::Array2::from_shape_fn((2, inner), |(r, i)| ((r + i) % 3) as f32 - 1.0);
            let up = ndarray::Array2::from_shape_fn((out, 2), |(o, r)| ((o * 2 + r) % 5) as f32 * 0.1);
            (name.to_owned(), LowRank { down, up, alpha: 2.0 }.into())
        };
        let adapter = Arc::new(Adapter { name: "a".into(), layers: LINEARS.iter().map(layer).collect() });

        // The reference: the weights fused beforehand, in what the mode computes with.
        let (pristine, _dir) = engine(&weights, storage);
        let target = if mode == OrtWeights::F32 {
            crate::lora::fuse::FuseTarget::F32
        } else {
            crate::lora::fuse::FuseTarget::Storage
        };
        let fused = crate::lora::fuse::fuse(&pristine, &[(&adapter, 0.5)], target).unwrap();
        let mut reference = OrtEngine::open(Arc::clone(&pristine), &options(mode)).unwrap();
        reference.set_overrides(fused.weights).unwrap();
        let expected = run(&mut reference.session("step").unwrap(), &part(&case, "input."));

        let mut ort = OrtEngine::open(Arc::clone(&pristine), &options(mode)).unwrap();
        ort.set_adapters(&[(adapter, 0.5)], None).unwrap();
        assert_eq!(ort.report().fused.slots.len(), LINEARS.len());
        let outputs = run(&mut ort.session("step").unwrap(), &part(&case, "input."));
        assert_eq!(outputs, expected);
        let base = run(
            &mut OrtEngine::open(pristine, &options(mode)).unwrap().session("step").unwrap(),
            &part(&case, "input."),
        );
        assert_close(&base, &part(&case, "output."), "the base comes back");
        assert_ne!(outputs["tokens_out"], base["tokens_out"]);
        assert_eq!(outputs["video_out"], base["video_out"]);
    }
}

#[test]
fn ort_session_stays_usable_after_a_wrong_input() {
    let case = read_tensors(fixture("f32.safetensors")).unwrap();
    let (engine, _dir) = engine(&part(&case, "weight."), Dtype::F32);
    let mut ort = OrtEngine::open(engine, &OpenOptions::default()).unwrap();
    assert!(ort.report().reason.contains("memory"), "{}", ort.report().reason);
    let mut session = ort.session("step").unwrap();
    let mut inputs = part(&case, "input.");
    let good = inputs.clone();
    inputs.insert("ids".into(), Tensor::I64(ArrayD::from_elem(IxDyn(&[3]), 99)));
    let wrong: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (&name[..], t)).collect();
    // 99 is no row of the embedding: only ONNX Runtime sees that.
    let error = session.run(&wrong).unwrap_err().to_string();
    assert!(error.starts_with("ort: "), "{error}");
    assert_close(&run(&mut session, &good), &part(&case, "output."), "after an error");
}

#[test]
fn ort_engine_refuses_an_override_of_the_wrong_length() {
    let case = read_tensors(fixture("bf16.safetensors")).unwrap();
    let (engine, _dir) = engine(&part(&case, "weight."), Dtype::Bf16);
    let mut ort = OrtEngine::open(engine, &options(OrtWeights::F32)).unwrap();
    let short = IndexMap::from([("scale".to_owned(), bytes::Bytes::from_static(&[0; 32]))]);
    let error = ort.set_overrides(short).unwrap_err().to_string();
    assert_eq!(error, "override of `scale`: expected 64 bytes, found 32");
    let error = ort.session("precompute").unwrap_err().to_string();
    assert!(error.contains("has no graph `precompute`; it has step"), "{error}");
}
