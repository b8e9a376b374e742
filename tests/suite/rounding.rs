//! Rounding that a graph from elsewhere asks for: the engine rounds as ONNX Runtime does on the untouched file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use v2l_export::CompileOptions;
use v2l_export::check::CheckOptions;
use v2l_graphs::{Attribute, Builder, DataType, Dim, Initializer, TensorData, Value, encode_model};
use v2l_runtime::engine::Engine;
use v2l_runtime::ort_backend::{Interface, OpenOptions, OrtEngine, OrtSession};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::precision::noise;
use crate::support::{WEIGHT_MODES, assert_close, f32s, run};
use crate::tools::Scratch;

const F32: DataType = DataType::Float;
const F16: DataType = DataType::Float16;
const BF16: DataType = DataType::Bfloat16;

/// Engine against ONNX Runtime on the file.
const TOLERANCE: f64 = 1e-6;

fn save(scratch: &Scratch, b: Builder) -> PathBuf {
    scratch.write("model.onnx", encode_model(&b.finish().unwrap(), &|_| None).unwrap())
}

fn inline(b: &mut Builder, name: &str, dtype: DataType, shape: &[usize], values: &[f32]) -> Value {
    let raw = TensorData::raw(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let bytes = raw.converted(F32, dtype).to_bytes().unwrap().to_vec();
    b.initializer(name, Initializer::inline(dtype, shape, bytes))
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Tensor {
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), values).unwrap())
}

/// The engine of a file, checked as thoroughly as `--verify` does.
fn compiled(model: &Path) -> Arc<Engine> {
    let path = model.with_extension("engine");
    let check = Some(CheckOptions { thorough: true, ..CheckOptions::default() });
    let options = CompileOptions { check, ..CompileOptions::default() };
    let report = v2l_export::compile(model, &path, &options, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert!(!report.engines[0].checks.done.is_empty());
    Arc::new(Engine::open(&path).unwrap())
}

/// Fails unless every output of the engine is what ONNX Runtime gives on the file, and returns the file's.
fn assert_engine_equals_file(model: &Path, inputs: &NamedTensors) -> NamedTensors {
    let engine = compiled(model);
    let graph = &engine.manifest().graphs[0];
    let (inputs_of, outputs_of) = (graph.inputs.clone(), graph.outputs.clone());
    let interface = Interface { name: "file".into(), inputs: inputs_of, outputs: outputs_of };
    let mut file = OrtSession::from_file(interface, model, &OpenOptions::default()).unwrap();
    let expected = run(&mut file, inputs);
    for weights in WEIGHT_MODES {
        let mut opened = OrtEngine::open(Arc::clone(&engine), &OpenOptions { weights, ..Default::default() }).unwrap();
        let found = run(&mut opened.session(&graph.name).unwrap(), inputs);
        for (name, expected) in &expected {
            assert_close(&format!("{name} {weights:?}"), &f32s(&found[name]), &f32s(expected), TOLERANCE);
        }
    }
    expected
}

#[test]
fn timestep_through_bfloat16_is_rounded_as_the_file_asks() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let t = b.input("t", F32, [Dim::from("n")]);
    let narrow = b.cast(&t, BF16);
    let wide = b.cast(&narrow, F32);
    let y = b.op("Cos", &[&wide]);
    b.output("y", &y, F32, [Dim::from("n")]);
    let inputs = [("t".to_owned(), tensor(&[3], vec![999.0, 1.0, 257.0]))].into_iter().collect();
    let y = f32s(&assert_engine_equals_file(&save(&scratch, b), &inputs)["y"]);
    // bfloat16 has no 999: 1000 is next.
    assert!((y[0] - 1000f32.cos()).abs() < 1e-4, "{y}");
}

/// Roundings of values, weights, constants and integers, in 16 bits of either kind, around a linear layer.
fn many(scratch: &Scratch) -> (PathBuf, NamedTensors) {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    let steps = b.input("steps", DataType::Int64, [Dim::from("n")]);
    let w = inline(&mut b, "layer.weight", F32, &[32, 32], &noise(3, 1024));
    let w = b.cast(&w, BF16);
    let w = b.cast(&w, F32);
    let h = b.op("MatMul", &[&x, &w]);
    let rounded = b.cast(&h, F16);
    let again = b.cast(&rounded, BF16);
    let h = b.cast(&again, F32);
    let small = b.float(1.001);
    let small = b.cast(&small, BF16);
    let small = b.cast(&small, F32);
    let h = b.op("Mul", &[&h, &small]);
    let counted = b.cast(&steps, BF16);
    let counted = b.cast(&counted, F32);
    let counted = b.unsqueeze(&counted, &[1]);
    let h = b.op("Add", &[&h, &counted]);
    // Of a table so low that float16 has no number for it, only an infinity.
    let least = inline(&mut b, "mask", F32, &[2, 32], &[[f32::MIN; 32], [0.0; 32]].concat());
    let least = b.cast(&least, F16);
    let least = b.cast(&least, F32);
    let row = b.slice(&least, 0, 1i64.into(), 2i64.into());
    let h = b.op("Add", &[&h, &row]);
    let infinite = b.op("IsInf", &[&least]);
    let infinite = b.cast(&infinite, F32);
    let sum = b.node("ReduceSum", &[&infinite]).attr("keepdims", 0).out();
    let like = inline(&mut b, "like", BF16, &[1], &[1.0]);
    let last = b.op("CastLike", &[&h, &like]);
    let last = b.cast(&last, F32);
    let y = b.op("Sin", &[&last]);
    b.output("y", &y, F32, [Dim::from("n"), Dim::Fixed(32)]);
    b.output("infinite", &sum, F32, [0usize; 0]);
    let inputs = [
        ("x".to_owned(), tensor(&[3, 32], noise(5, 96))),
        ("steps".to_owned(), Tensor::I64(ArrayD::from_shape_vec(IxDyn(&[3]), vec![999, 257, 3]).unwrap())),
    ];
    (save(scratch, b), inputs.into_iter().collect())
}

#[test]
fn roundings_of_values_weights_constants_and_integers_are_those_of_the_file() {
    let scratch = Scratch::new();
    let (model, inputs) = many(&scratch);
    let found = assert_engine_equals_file(&model, &inputs);
    assert_eq!(f32s(&found["infinite"])[[]], 32.0);
}

#[test]
fn rounding_inside_the_branches_of_an_if_is_that_of_the_file() {
    let scratch = Scratch::new();
    let body = |to: DataType| {
        let mut b = Builder::new("body");
        let narrow = b.cast(&Value::from("Add"), to);
        let wide = b.cast(&narrow, F32);
        let y = b.op("Sin", &[&wide]);
        b.output("inner", &y, F32, [Dim::from("n")]);
        Attribute::Graph(Box::new(b.finish().unwrap().graph))
    };
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n")]);
    let flag = b.input("flag", DataType::Bool, [0usize; 0]);
    let hundred = b.float(100.0);
    b.op("Add", &[&x, &hundred]);
    let y = b.node("If", &[&flag]).attr("then_branch", body(BF16)).attr("else_branch", body(F16)).out();
    b.output("y", &y, F32, [Dim::from("n")]);
    let model = save(&scratch, b);
    for flag in [true, false] {
        let flag = Tensor::Bool(ArrayD::from_elem(IxDyn(&[]), flag));
        let inputs = [("x".to_owned(), tensor(&[5], noise(1, 5))), ("flag".to_owned(), flag)];
        assert_engine_equals_file(&model, &inputs.into_iter().collect());
    }
}
