//! Needs ONNX Runtime; `bin/setup` fetches it. Without it these tests say so and pass nothing off as tested.

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};

use super::*;
use crate::adapter::{Adapter, LowRank};
use crate::engine::manifest::{Graph, GraphFiles, Slot};
use crate::engine::{Engine, testing};
use crate::raw;
use crate::session::{Dim, Port, Session};
use crate::tensor::{Dtype, NamedTensors, Tensor};
use crate::weights::read_tensors;

pub(super) const LINEARS: [(&str, usize, usize); 5] =
    [("up", 24, 16), ("down", 16, 24), ("to_q", 16, 16), ("to_k", 16, 16), ("to_v", 16, 16)];

pub(super) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ort_overrides").join(name)
}

pub(super) fn part(case: &NamedTensors, prefix: &str) -> NamedTensors {
    case.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
}

fn port(name: &str, dtype: Dtype, shape: &[&str]) -> Port {
    let dim = |s: &&str| s.parse().map_or_else(|_| Dim::Symbol((*s).to_owned()), Dim::Fixed);
    Port { name: name.into(), dtype, shape: shape.iter().map(dim).collect() }
}

/// An engine of the fixture's graph over `weights`, stored as they are, and the folder that keeps it.
pub(super) fn engine(weights: &NamedTensors, storage: Dtype) -> (Arc<Engine>, tempfile::TempDir) {
    let mut tensors = weights.clone();
    let mut blob = |name: &str, file: &str| {
        let bytes = std::fs::read(fixture(file)).unwrap();
        let name = format!("v2l/graphs/step/{name}.onnx");
        tensors.insert(name.clone(), Tensor::U8(ArrayD::from_shape_vec(IxDyn(&[bytes.len()]), bytes).unwrap()));
        name
    };
    let widened = blob("widened", "widened.onnx");
    let lazy = (storage != Dtype::F32).then(|| blob("lazy", &format!("lazy_{storage}.onnx")));
    let graph = Graph {
        name: "step".into(),
        backend: "ort".into(),
        precision: "fp32".into(),
        inputs: vec![
            port("ids", Dtype::I64, &["tokens"]),
            port("image", Dtype::F32, &["batch", "8", "height", "width"]),
            port("video", Dtype::F32, &["batch", "8", "frames", "height", "width"]),
        ],
        outputs: vec![
            port("tokens_out", Dtype::F32, &["1", "tokens", "16"]),
            port("image_out", Dtype::F32, &["batch", "16", "height", "width"]),
            port("video_out", Dtype::F32, &["batch", "16", "frames", "height", "width"]),
        ],
        weights: weights.keys().cloned().collect(),
        files: GraphFiles { widened, lazy, typed: None, plans: Vec::new() },
        profiles: vec![],
        lora_rank: None,
        stages: None,
    };
    let slot =
        |&(name, out_features, in_features): &(&str, usize, usize)| Slot::linear(name, out_features, in_features);
    let manifest = testing::manifest(&tensors, storage, vec![graph], LINEARS.iter().map(slot).collect());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.engine");
    testing::write(&path, &tensors, &manifest);
    (Arc::new(Engine::open(&path).unwrap()), dir)
}

fn zeros(weights: &NamedTensors) -> NamedTensors {
    let zero = |t: &Tensor| raw::tensor_from_bytes(t.dtype(), t.shape(), &vec![0; t.len() * t.dtype().size()]).unwrap();
    weights.iter().map(|(name, t)| (name.clone(), zero(t))).collect()
}

pub(super) fn options(weights: OrtWeights) -> OpenOptions {
    OpenOptions { weights, threads: Some(1), ..OpenOptions::default() }
}

pub(super) fn run(session: &mut OrtSession, inputs: &NamedTensors) -> NamedTensors {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (&name[..], t)).collect();
    session.run(&inputs).unwrap()
}

pub(super) fn assert_close(got: &NamedTensors, expected: &NamedTensors, what: &str) {
    for (name, expected) in expected {
        let (got, expected) = (got[name].to_f32().unwrap(), expected.to_f32().unwrap());
        assert_eq!(got.shape(), expected.shape());
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = got.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= 2e-6 * largest, "{what}: {name}: error {error} of {largest}");
    }
}

pub(super) const CASES: [(Dtype, OrtWeights); 6] = [
    (Dtype::F32, OrtWeights::Widened),
    (Dtype::F32, OrtWeights::Lazy),
    (Dtype::F16, OrtWeights::Widened),
    (Dtype::F16, OrtWeights::Lazy),
    (Dtype::Bf16, OrtWeights::Widened),
    (Dtype::Bf16, OrtWeights::Lazy),
];

#[test]
fn ort_engine_with_every_weight_overridden_equals_a_graph_that_embeds_them() {
    for (storage, mode) in CASES {
        let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
        let noise = part(&case, "weight.");
        let (engine, _dir) = engine(&zeros(&noise), storage);
        let mut ort = OrtEngine::open(engine, &options(mode)).unwrap();
        let bytes = |t: &Tensor| match (mode, t.to_f32()) {
            (OrtWeights::Widened, Some(a)) => raw::vec_into_bytes(a.into_raw_vec_and_offset().0),
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
            (name.to_owned(), LowRank { down, up, alpha: 2.0 })
        };
        let adapter = Adapter { name: "a".into(), layers: LINEARS.iter().map(layer).collect() };

        // The reference: the weights fused beforehand, in what the mode computes with.
        let (pristine, _dir) = engine(&weights, storage);
        let target =
            if mode == OrtWeights::Widened { crate::fuse::FuseTarget::F32 } else { crate::fuse::FuseTarget::Storage };
        let fused = crate::fuse::fuse(&pristine, &[(&adapter, 0.5)], target).unwrap();
        let mut reference = OrtEngine::open(Arc::clone(&pristine), &options(mode)).unwrap();
        reference.set_overrides(fused.weights).unwrap();
        let expected = run(&mut reference.session("step").unwrap(), &part(&case, "input."));

        let with = OpenOptions { adapters: vec![(adapter, 0.5)], ..options(mode) };
        let mut ort = OrtEngine::open(Arc::clone(&pristine), &with).unwrap();
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
    let mut ort = OrtEngine::open(engine, &options(OrtWeights::Widened)).unwrap();
    let short = IndexMap::from([("scale".to_owned(), bytes::Bytes::from_static(&[0; 32]))]);
    let error = ort.set_overrides(short).unwrap_err().to_string();
    assert_eq!(error, "override of `scale`: expected 64 bytes, found 32");
    let error = ort.session("prologue").unwrap_err().to_string();
    assert!(error.contains("has no graph `prologue`; it has step"), "{error}");
}
