//! Types that a graph from elsewhere asks for: the engine rounds as ONNX Runtime does on the untouched file, and narrows nothing
//! that it is not asked to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use v2l_export::CompileOptions;
use v2l_export::check::CheckOptions;
use v2l_graphs::{
    Attribute, Builder, DataType, Dim, Initializer, TensorData, TensorType, Value, ValueInfo, encode_model,
};
use v2l_runtime::backends::Interface;
use v2l_runtime::backends::onnxruntime::{OrtEngine, OrtSession};
use v2l_runtime::engine::Engine;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::bad_input::refuse;
use crate::precision::noise;
use crate::support::{WEIGHT_MODES, assert_close, f32s, run};
use crate::tools::{Scratch, args, command, run_ok};

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

#[test]
fn pairs_of_quantisation_are_computed_as_the_file_does_however_weights_are_held() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    let zero = b.initializer("zero", Initializer::inline(DataType::Uint8, &[], vec![128]));
    let none = b.initializer("none", Initializer::inline(DataType::Int8, &[], vec![0]));
    let scale = b.float(0.013);
    let values = noise(3, 1024).iter().map(|v| (v * 127.0) as i8 as u8).collect();
    let w = b.initializer("layer.weight", Initializer::inline(DataType::Int8, &[32, 32], values));
    let w = b.op("DequantizeLinear", &[&w, &scale, &none]);
    let mut h = x;
    for _ in 0..3 {
        let pair = |b: &mut Builder, value: &Value| {
            let small = b.op("QuantizeLinear", &[value, &scale, &zero]);
            b.op("DequantizeLinear", &[&small, &scale, &zero])
        };
        let given = pair(&mut b, &h);
        let product = b.op("MatMul", &[&given, &w]);
        let sum = pair(&mut b, &product);
        h = b.op("Add", &[&sum, &given]);
    }
    b.output("y", &h, F32, [Dim::from("n"), Dim::Fixed(32)]);
    let inputs = [("x".to_owned(), tensor(&[64, 32], noise(5, 2048)))].into_iter().collect();
    assert_engine_equals_file(&save(&scratch, b), &inputs);
}

#[test]
fn float64_constants_of_any_size_compute_as_in_the_file() {
    let scratch = Scratch::new();
    let doubles = |b: &mut Builder, name: &str, shape: &[usize], seed: u64| {
        let values = noise(seed, shape.iter().product());
        let bytes = values.iter().flat_map(|v| (f64::from(*v) / 3.0).to_le_bytes()).collect();
        b.initializer(name, Initializer::inline(DataType::Double, shape, bytes))
    };
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    let frequencies = doubles(&mut b, "frequencies", &[1024, 32], 1);
    let w = doubles(&mut b, "layer.weight", &[32, 32], 2);
    let wide = b.cast(&x, DataType::Double);
    let product = b.op("MatMul", &[&wide, &w]);
    let row = b.slice(&frequencies, 0, 7i64.into(), 8i64.into());
    let angles = b.op("Mul", &[&product, &row]);
    let h = b.cast(&angles, F32);
    let table = b.cast(&frequencies, F32);
    let row = b.slice(&table, 0, 9i64.into(), 10i64.into());
    let y = b.op("Add", &[&h, &row]);
    b.output("y", &y, F32, [Dim::from("n"), Dim::Fixed(32)]);
    let inputs = [("x".to_owned(), tensor(&[3, 32], noise(5, 96)))].into_iter().collect();
    assert_engine_equals_file(&save(&scratch, b), &inputs);
}

#[test]
fn where_on_booleans_broadcasts_as_onnx_says() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let [c, x, y] = [("c", vec![2usize, 1]), ("x", vec![1, 3]), ("y", vec![3])]
        .map(|(name, shape)| b.input(name, DataType::Bool, shape));
    let chosen = b.op("Where", &[&c, &x, &y]);
    let z = b.cast(&chosen, F32);
    b.output("z", &z, F32, [2usize, 3]);
    let engine = compiled(&save(&scratch, b));
    let bools =
        |shape: &[usize], bits: &[bool]| Tensor::Bool(ArrayD::from_shape_vec(IxDyn(shape), bits.to_vec()).unwrap());
    let (x, y) = ([true, false, true], [false, false, true]);
    let inputs: NamedTensors = [
        ("c".to_owned(), bools(&[2, 1], &[true, false])),
        ("x".to_owned(), bools(&[1, 3], &x)),
        ("y".to_owned(), bools(&[3], &y)),
    ]
    .into_iter()
    .collect();
    let mut opened = OrtEngine::open(engine, &OpenOptions::default()).unwrap();
    let found = f32s(&run(&mut opened.session("model").unwrap(), &inputs)["z"]);
    let expected: Vec<f32> = x.iter().chain(&y).map(|&bit| f32::from(u8::from(bit))).collect();
    assert_eq!(found.into_iter().collect::<Vec<f32>>(), expected);
}

/// `x·w + table` over a weight in 16 bits and an f32 table of positions, both of more than a kilobyte.
fn with_table(scratch: &Scratch, layer: DataType) -> PathBuf {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    let w = inline(&mut b, "layer.weight", layer, &[32, 32], &noise(3, 1024));
    let w = if layer == F32 { w } else { b.cast(&w, F32) };
    let table = inline(&mut b, "positions", F32, &[16, 32], &noise(4, 512));
    let h = b.op("MatMul", &[&x, &w]);
    let count = b.extent(&x, 0);
    let rows = b.slice(&table, 0, 0i64.into(), (&count).into());
    let y = b.op("Add", &[&h, &rows]);
    b.output("y", &y, F32, [Dim::from("n"), Dim::Fixed(32)]);
    save(scratch, b)
}

#[test]
fn storage_follows_the_linear_layers_and_tables_keep_f32() {
    let scratch = Scratch::new();
    for (layer, storage, expected) in [
        (BF16, None, Dtype::Bf16),
        (F16, Some(Dtype::F32), Dtype::F32),
        (F32, Some(Dtype::F16), Dtype::F16),
        (F32, None, Dtype::F32),
    ] {
        let (model, path) = (with_table(&scratch, layer), scratch.path("m.engine"));
        let options = CompileOptions { storage, check: Some(CheckOptions::default()), ..CompileOptions::default() };
        let report = v2l_export::compile(&model, &path, &options, &mut |_| {}).unwrap();
        let engine = Engine::open(&path).unwrap();
        let stored = |name: &str| engine.weight(name).unwrap().dtype;
        assert_eq!((stored("layer.weight"), stored("positions")), (expected, Dtype::F32), "{layer} {storage:?}");
        assert_eq!(report.engines[0].storage, expected);
        let slots = &engine.manifest().slots;
        assert_eq!(slots.iter().map(|slot| &slot.name[..]).collect::<Vec<_>>(), ["layer"]);
    }
}

#[test]
fn weight_in_16_bits_that_is_an_output_too_is_handed_out_as_it_is() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    let w = inline(&mut b, "w", BF16, &[32, 32], &noise(3, 1024));
    let scale = inline(&mut b, "scale", F16, &[1024], &noise(4, 1024));
    let wide = b.cast(&w, F32);
    let y = b.op("MatMul", &[&x, &wide]);
    b.output("y", &y, F32, [Dim::from("n"), Dim::Fixed(32)]);
    let mut graph = b.finish().unwrap();
    for (value, dtype, shape) in [(&w, BF16, vec![32usize, 32]), (&scale, F16, vec![1024])] {
        let ty = TensorType { dtype, shape: Some(shape.into_iter().map(Dim::Fixed).collect()) };
        graph.graph.outputs.push(ValueInfo { name: value.name().to_owned(), ty: Some(ty) });
    }
    let model = scratch.write("model.onnx", encode_model(&graph, &|_| None).unwrap());
    let mut inputs = NamedTensors::new();
    inputs.insert("x".to_owned(), tensor(&[3, 32], noise(5, 96)));
    for flags in [&[][..], &["--precision", "fp16"], &["--precision", "bf16"], &["--int8"]] {
        let engine = scratch.path("m.engine");
        let mut all = args![&model, "-o", &engine, "--verify"].to_vec();
        all.extend(flags.iter().map(OsString::from));
        run_ok("compile", &all);
        for weights in WEIGHT_MODES {
            let options = OpenOptions { weights, ..Default::default() };
            let mut opened = OrtEngine::open(Arc::new(Engine::open(&engine).unwrap()), &options).unwrap();
            let found = run(&mut opened.session("model").unwrap(), &inputs);
            let exact = |seed: u64, count: usize, round: fn(f32) -> f32| -> Vec<f32> {
                noise(seed, count).into_iter().map(round).collect()
            };
            let flat = |name: &str| f32s(&found[name]).into_iter().collect::<Vec<f32>>();
            assert_eq!(flat("w"), exact(3, 1024, |v| half::bf16::from_f32(v).to_f32()), "{flags:?} {weights:?}");
            assert_eq!(flat("scale"), exact(4, 1024, |v| half::f16::from_f32(v).to_f32()), "{flags:?} {weights:?}");
        }
    }
}

#[test]
fn sparse_initializer_is_an_unsupported_feature_that_is_named() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let y = b.op("Neg", &[&x]);
    b.output("y", &y, F32, [4usize]);
    let mut bytes = encode_model(&b.finish().unwrap(), &|_| None).unwrap();
    // Protobuf merges a second ModelProto.graph (7) into the first: sparse_initializer (15), its values (1), their name (8).
    bytes.extend(*b"\x3a\x07\x7a\x05\x0a\x03\x42\x01w");
    let model = scratch.write("model.onnx", bytes);
    let message = refuse(&scratch, command("compile", args![&model, "-o", scratch.path("m.engine")]), 4);
    assert!(message.contains("tensor `w`: a sparse initializer"), "{message}");
}

/// Norms whose sums a pass takes in another order, each rounded to bfloat16 behind it, and a product that spreads the steps.
fn restless(scratch: &Scratch) -> PathBuf {
    let mut b = Builder::new("g");
    let mut h = b.input("x", F32, [Dim::from("n"), Dim::Fixed(64), Dim::Fixed(128)]);
    let gamma = inline(&mut b, "gamma", F32, &[128], &noise(99, 128));
    let scale = b.input("scale", F32, [Dim::from("n"), Dim::Fixed(1), Dim::Fixed(128)]);
    let shift = b.input("shift", F32, [Dim::from("n"), Dim::Fixed(1), Dim::Fixed(128)]);
    for layer in 0..12u64 {
        let normal = b.node("LayerNormalization", &[&h, &gamma]).attr("axis", -1).out();
        let product = b.op("Mul", &[&normal, &scale]);
        let sum = b.op("Add", &[&product, &shift]);
        let narrow = b.cast(&sum, BF16);
        let wide = b.cast(&narrow, F32);
        let w = inline(&mut b, &format!("layers.{layer}.weight"), F32, &[128, 128], &noise(layer, 16384));
        h = b.op("MatMul", &[&wide, &w]);
    }
    b.output("y", &h, F32, [Dim::from("n"), Dim::Fixed(64), Dim::Fixed(128)]);
    save(scratch, b)
}

#[test]
fn check_of_a_model_that_rounds_allows_for_steps_of_its_rounding() {
    let scratch = Scratch::new();
    let model = restless(&scratch);
    let run = run_ok("compile", args![&model, "-o", scratch.path("m.engine"), "--verify", "--json"]);
    let events = run.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let checks: Vec<_> = events.filter(|event| event["event"] == "check").collect();
    assert!(!checks.is_empty());
    for check in &checks {
        // More than a model that does not round may differ by, and far less than bfloat16's 8 bits would have it.
        let distance = check["outputs"][0]["error"]["relative_l2"].as_f64().unwrap();
        assert!(check["passed"] == true && (1e-4..2e-3).contains(&distance), "{check}");
    }
}

#[test]
fn model_that_rounds_compiles_by_every_precision_plan_and_with_branches() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let mut h = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    for (layer, to) in [BF16, F16, BF16].into_iter().enumerate() {
        let w = inline(&mut b, &format!("layers.{layer}.weight"), BF16, &[32, 32], &noise(layer as u64, 1024));
        let narrow = b.cast(&h, BF16);
        let product = b.op("MatMul", &[&narrow, &w]);
        let wide = b.cast(&product, F32);
        let bent = b.op("Tanh", &[&wide]);
        let narrow = b.cast(&bent, to);
        h = b.cast(&narrow, F32);
    }
    b.output("y", &h, F32, [Dim::from("n"), Dim::Fixed(32)]);
    let model = save(&scratch, b);
    for flags in [
        &["--precision", "fp16"][..],
        &["--precision", "bf16"],
        &["--precision", "mixed"],
        &["--precision", "fp16", "--accuracy-target", "1e-2"],
        &["--lora-rank", "4"],
    ] {
        let all: Vec<OsString> = args![&model, "-o", scratch.path("m.engine"), "--verify"].to_vec();
        run_ok("compile", &[all, flags.iter().map(OsString::from).collect()].concat());
    }
}
