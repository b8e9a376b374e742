//! The graphs that engines hold for OpenVINO, on the real library, against golden files and ONNX Runtime. The library must be there
//! (`bin/setup --tests`).

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use v2l_export::targets::OpenVino;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_openvino::{Borrowed, CompileOptions as Compile, Core, Element, Model, Precision};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{Graph, OpenVinoGraph};
use v2l_runtime::engine::session::Port;
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::options::OrtWeights;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::precision::noise;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, run};
use crate::tools::{Scratch, args, command, output};

/// With low-rank branches, where the model can have any.
fn built(model: &str) -> Built {
    let lora_rank = model.starts_with("transformer/").then_some(4);
    let options = CompileOptions { target: Arc::new(OpenVino), lora_rank, ..CompileOptions::default() };
    Built::with(&fixtures().join(model), &ExportOptions::default(), &options)
}

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::Bf16 => Element::BF16,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        Dtype::Bool => Element::Bool,
        other => panic!("no test has {other}"),
    }
}

/// The tensor in the type of the port, as sessions convert it.
fn given(port: &Port, tensor: &Tensor) -> Borrowed {
    let tensor = match (port.dtype, tensor) {
        (Dtype::F32, tensor) if tensor.dtype() != Dtype::F32 => Tensor::F32(f32s(tensor)),
        (Dtype::I64, Tensor::I32(values)) => Tensor::I64(values.mapv(i64::from)),
        (Dtype::I64, Tensor::F32(values)) => Tensor::I64(values.mapv(|value| value as i64)),
        _ => tensor.clone(),
    };
    assert_eq!(tensor.dtype(), port.dtype, "{}", port.name);
    Borrowed::new(element(port.dtype), tensor.shape(), Arc::new(tensor_bytes(&tensor).into_owned())).unwrap()
}

fn form(graph: &Graph) -> &OpenVinoGraph {
    graph.files.openvino.as_ref().unwrap_or_else(|| panic!("{} has no form for OpenVINO", graph.name))
}

/// Runs one stored graph on what it takes of `values`, and adds what it gives.
fn run_part(engine: &Engine, part: &Graph, inputs: &[Port], values: &mut NamedTensors, precision: Precision) {
    let core = Core::open(None).unwrap_or_else(|error| panic!("{error}"));
    let form = form(part);
    let model = Model::from_onnx_bytes(&core, &engine.blob(&form.file).unwrap()).unwrap();
    let compiled = core.compile(&model, &Compile { precision, ..Compile::default() }).unwrap();
    let mut request = compiled.request().unwrap();
    for name in &form.weights {
        let weight = engine.weight(name).unwrap();
        let tensor = Borrowed::new(element(weight.dtype), weight.shape, Arc::new(weight.data)).unwrap();
        request.set_input(name, tensor).unwrap();
    }
    for port in inputs {
        request.set_input(&port.name, given(port, &values[&port.name])).unwrap();
    }
    request.run(&|| false).unwrap_or_else(|error| panic!("{}: {error}", part.name));
    for port in &part.outputs {
        let output = request.output(&port.name).unwrap();
        let tensor = tensor_from_bytes(port.dtype, output.shape(), output.bytes()).unwrap();
        values.insert(port.name.clone(), tensor);
    }
}

/// Runs a graph and its stages: timestep rows in float32, the rest in `precision`.
fn on_openvino(engine: &Engine, graph: &str, inputs: &NamedTensors, precision: Precision) -> NamedTensors {
    let graph = engine.graph(graph).unwrap();
    let mut values = inputs.clone();
    let stages = graph.stages.as_ref();
    if let Some(prologue) = stages.and_then(|stages| stages.prologue.as_ref()) {
        run_part(engine, prologue, &prologue.inputs, &mut values, precision);
    }
    if let Some(times) = stages.and_then(|stages| stages.times.as_ref()) {
        run_part(engine, &times.graph, &times.graph.inputs, &mut values, Precision::F32);
    }
    run_part(engine, graph, stages.map_or(&graph.inputs, |stages| &stages.inputs), &mut values, precision);
    graph.outputs.iter().map(|port| (port.name.clone(), values[&port.name].clone())).collect()
}

const TRANSFORMERS: [&str; 6] = ["rotary_t2v", "sincos_t2v", "learned_i2v", "fun_inp", "v15_t2v", "v15_i2v"];

#[test]
fn transformers_of_every_variant_equal_diffusers_on_openvino() {
    for variant in TRANSFORMERS {
        let folder = format!("transformer/{variant}");
        let engine = built(&folder).engine("transformer");
        for path in cases(&fixtures().join(&folder)) {
            let case = Case::read(&path);
            let what = format!("{variant} {}", case.name);
            let outputs = on_openvino(&engine, "step", &case.inputs, Precision::F32);
            assert_close(&what, &f32s(&outputs["sample"]), &case.output("sample"), 1e-5);
        }
    }
}

#[test]
fn bfloat16_step_over_timestep_rows_in_float32_stays_within_its_rounding() {
    let engine = built("transformer/rotary_t2v").engine("transformer");
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let outputs = on_openvino(&engine, "step", &case.inputs, Precision::BF16);
    assert_close("bf16", &f32s(&outputs["sample"]), &case.output("sample"), 2e-2);
}

#[test]
fn branches_with_factors_of_any_rank_equal_onnx_runtime() {
    let built = built("transformer/rotary_t2v");
    let engine = built.engine("transformer");
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    for rank in [1, 3] {
        let mut inputs = case.inputs.clone();
        for (seed, slot) in engine.manifest().slots.iter().enumerate() {
            let factor = |shape: [usize; 2], seed: usize| {
                let values = noise(seed as u64, shape[0] * shape[1]).into_iter().map(|value| value * 0.1).collect();
                Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap())
            };
            inputs.insert(format!("{}.lora_down", slot.name), factor([rank, slot.in_features], seed));
            inputs.insert(format!("{}.lora_up", slot.name), factor([slot.out_features, rank], 1000 + seed));
        }
        let expected = run(&mut *built.session("transformer", "step.side", OrtWeights::Widened), &inputs);
        let found = on_openvino(&engine, "step.side", &inputs, Precision::F32);
        assert_close(&format!("rank {rank}"), &f32s(&found["sample"]), &f32s(&expected["sample"]), 1e-5);
    }
}

/// Both graphs of one half of an autoencoder, the second on the caches of the first, against ONNX Runtime.
fn check_chunks(built: &Built, component: &str, input: &str, [first, rest]: [[usize; 5]; 2]) {
    let engine = built.engine(component);
    let mut inputs = NamedTensors::new();
    for (graph, shape) in [("first", first), ("rest", rest)] {
        let values = noise(shape[2] as u64, shape.iter().product());
        inputs.insert(input.to_owned(), Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()));
        let expected = run(&mut *built.session(component, graph, OrtWeights::Widened), &inputs);
        let found = on_openvino(&engine, graph, &inputs, Precision::F32);
        assert!(expected.len() > 1 && found.len() == expected.len(), "{component} {graph}");
        for (name, tensor) in &expected {
            assert_close(&format!("{component} {graph} {name}"), &f32s(&found[name]), &f32s(tensor), 1e-4);
        }
        let caches =
            expected.into_iter().filter_map(|(name, cache)| Some((name.strip_prefix("next_")?.to_owned(), cache)));
        inputs = caches.collect();
    }
}

#[test]
fn autoencoder_and_its_caches_equal_onnx_runtime() {
    let built = built("vae/tiny");
    check_chunks(&built, "vae_encoder", "x", [[1, 3, 9, 16, 24], [1, 3, 8, 16, 24]]);
    check_chunks(&built, "vae_decoder", "z", [[1, 16, 3, 4, 6], [1, 16, 2, 4, 6]]);
}

#[test]
fn text_encoders_equal_transformers_on_openvino() {
    for variant in ["gated_gelu", "relu", "umt5"] {
        let folder = format!("t5/{variant}");
        let engine = built(&folder).engine("text_encoder");
        for path in cases(&fixtures().join(&folder)) {
            let case = Case::read(&path);
            let graph = if case.inputs.contains_key("attention_mask") { "encode_masked" } else { "encode" };
            let outputs = on_openvino(&engine, graph, &case.inputs, Precision::F32);
            let expected = case.output("last_hidden_state");
            assert_close(&format!("{variant} {}", case.name), &f32s(&outputs["last_hidden_state"]), &expected, 1e-5);
        }
    }
}

#[test]
fn engines_for_openvino_share_their_weights_with_the_onnx_forms_and_grow_by_graphs_alone() {
    let folder = fixtures().join("transformer/fun_inp");
    let (with, without) = (built("transformer/fun_inp"), {
        let options = CompileOptions { lora_rank: Some(4), ..CompileOptions::default() };
        Built::with(&folder, &ExportOptions::default(), &options)
    });
    let (with, without) = (with.engine("transformer"), without.engine("transformer"));
    let is_weight = |name: &&String| !name.starts_with("v2l/");
    let weights = |engine: &Engine| -> Vec<(String, _)> {
        let all = engine.manifest().tensors.iter();
        all.filter(|(name, _)| is_weight(name)).map(|(name, record)| (name.clone(), record.clone())).collect()
    };
    assert!(weights(&with) == weights(&without));
    let mut vectors = 0;
    for graph in with.manifest().graphs.iter().flat_map(Graph::parts) {
        let form = form(graph);
        // Every weight is an input or lies in the graph.
        for name in &graph.weights {
            let axes = with.weight(name).unwrap().shape.len();
            assert_eq!(form.weights.contains(name), axes >= 2, "{} {name}", graph.name);
            vectors += usize::from(axes < 2);
        }
        assert!(form.weights.iter().all(|name| graph.weights.contains(name)), "{}", graph.name);
    }
    assert!(vectors > 0, "the model has vectors");
}

#[test]
fn matrices_in_8_bits_are_refused_for_openvino() {
    let scratch = Scratch::new();
    let model = scratch.write("x.onnx", "");
    let run = output(command("compile", args![&model, "-o", scratch.path("x"), "--backend", "openvino", "--int8"]));
    assert!(run.code != 0 && run.stderr.contains("8 bits on openvino"), "{} {}", run.code, run.stderr);
}
