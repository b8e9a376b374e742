//! Weights reach ONNX Runtime as overrides only. Here every weight is overridden with noise, and the result must be that of
//! a plain ONNX graph which embeds the noise, for every storage type and every way to hold weights.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use half::{bf16, f16};
use indexmap::IndexMap;
use v2l_graphs::{Initializer, ReadOptions, TensorData, encode_model, raise_precision, read_model};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::io::library;
use v2l_runtime::options::{OpenOptions, WeightMode};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};

/// Noise of the size of `count` weights, already rounded to `dtype` so that storing it loses nothing.
fn noise(name: &str, count: usize, dtype: Dtype) -> Vec<f32> {
    let mut state =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.8;
            match dtype {
                Dtype::F16 => f16::from_f32(value).to_f32(),
                Dtype::Bf16 => bf16::from_f32(value).to_f32(),
                _ => value,
            }
        })
        .collect()
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Bytes {
    let mut out = Vec::new();
    for v in values {
        match dtype {
            Dtype::F16 => out.extend(f16::from_f32(*v).to_le_bytes()),
            Dtype::Bf16 => out.extend(bf16::from_f32(*v).to_le_bytes()),
            _ => out.extend(v.to_le_bytes()),
        }
    }
    out.into()
}

/// Noise for every weight of an engine.
fn noise_for(engine: &Engine) -> IndexMap<String, (Dtype, Vec<f32>)> {
    let weights = engine.manifest().tensors.iter().filter(|(name, _)| !name.starts_with("v2l/"));
    weights
        .map(|(name, record)| {
            let count = record.shape.iter().product();
            (name.clone(), (record.dtype, noise(name, count, record.dtype)))
        })
        .collect()
}

/// The bundle's graph in f32 with the noise inside, run by ONNX Runtime as anyone would.
fn embedded(
    graph: &Path,
    noise: &IndexMap<String, (Dtype, Vec<f32>)>,
    inputs: &NamedTensors,
) -> HashMap<String, Tensor> {
    let mut model = read_model(graph, &ReadOptions::default()).unwrap();
    raise_precision(&mut model);
    for (name, (_, values)) in noise {
        let Some(weight) = model.graph.initializers.get_mut(name) else { continue };
        let data = TensorData::raw(bytes_of(values, Dtype::F32));
        *weight = Initializer { data, external: false, ..weight.clone() };
    }
    assert!(model.graph.initializers.values().all(|w| !w.external), "every weight is embedded");
    let bytes = encode_model(&model, &|_| None).unwrap();
    let environment = library::onnxruntime(None).unwrap();
    let mut session = ort::session::Session::builder(&environment).unwrap().commit_from_memory(&bytes).unwrap();
    let inputs: Vec<(String, ort::value::DynValue)> = inputs
        .iter()
        .map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            let value = match tensor {
                Tensor::I64(a) => {
                    ort::value::Tensor::from_array((shape, a.iter().copied().collect::<Vec<_>>())).unwrap().into_dyn()
                }
                other => ort::value::Tensor::from_array((shape, f32s(other).iter().copied().collect::<Vec<_>>()))
                    .unwrap()
                    .into_dyn(),
            };
            (name.clone(), value)
        })
        .collect();
    let outputs = session.run(inputs).unwrap();
    outputs
        .iter()
        .map(|(name, value)| {
            let (shape, data) = value.try_extract_tensor::<f32>().unwrap();
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            (name.to_owned(), Tensor::from_f32(&shape, data.to_vec()).unwrap())
        })
        .collect()
}

fn check(folder: &Path, component: &str, graph: &str, inputs: &NamedTensors) {
    for storage in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let built = Built::new(folder, &Default::default(), Some(storage));
        let engine = built.engine(component);
        let noise = noise_for(&engine);
        let slots = &engine.manifest().slots;
        assert!(slots.iter().all(|s| noise.contains_key(&s.tensor)), "every slot is overridden");
        let onnx = built.bundle().join(format!("{component}/{graph}.onnx"));
        let expected = embedded(&onnx, &noise, inputs);
        for weights in WEIGHT_MODES {
            let mut backend = OrtEngine::open(engine.clone(), &OpenOptions { weights, ..Default::default() }).unwrap();
            let pristine = run(&mut backend.session(graph).unwrap(), inputs);
            let in_f32 = backend.report().mode == WeightMode::F32;
            let overrides = noise.iter().map(|(name, (dtype, values))| {
                (name.clone(), bytes_of(values, if in_f32 { Dtype::F32 } else { *dtype }))
            });
            backend.set_overrides(overrides.collect()).unwrap();
            let overridden = run(&mut backend.session(graph).unwrap(), inputs);
            for (name, expected) in &expected {
                let what = format!("{component}/{graph} {storage} {weights:?}: {name}");
                assert_close(&what, &f32s(&overridden[name]), &f32s(expected), 1e-5);
                // The cache of the first convolution is the input itself.
                if name != "next_conv_cache.conv_in" {
                    assert_ne!(overridden[name], pristine[name], "{what}: the noise changes the output");
                }
            }
        }
    }
}

#[test]
fn transformer_overridden_with_noise_equals_the_embedding_graph() {
    for variant in ["fun_inp", "learned_i2v", "v15_i2v"] {
        let folder = fixtures().join("transformer").join(variant);
        check(&folder, "transformer", "step", &Case::read(&cases(&folder)[0]).inputs);
    }
}

#[test]
fn text_encoder_overridden_with_noise_equals_the_embedding_graph() {
    let folder = fixtures().join("t5/gated_gelu");
    let case = Case::read(&folder.join("case_s33_padded.safetensors"));
    check(&folder, "text_encoder", "encode_masked", &case.inputs);
}

#[test]
fn vae_overridden_with_noise_equals_the_embedding_graph() {
    let folder = fixtures().join("vae/tiny");
    check(&folder, "vae_encoder", "first", &Case::read(&folder.join("case_encode_batch2.safetensors")).inputs);
    check(&folder, "vae_decoder", "first", &Case::read(&folder.join("case_decode_t3.safetensors")).inputs);
}
