//! Every type of number from a file to an engine, through a run, and into a file; and made inputs, which stay small where a graph
//! grows with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use v2l_export::CompileOptions;
use v2l_export::check::{CheckOptions, Checks, Unchecked};
use v2l_graphs::{Attribute, Builder, DataType, Dim, Graph, Initializer, Node, TensorType, ValueInfo, encode_model};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::options::{OpenOptions, RunLimits};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::bad_input::refuse;
use crate::tools::{Scratch, args, command, output, run_ok};

const USAGE: i32 = 2;
const UNSUPPORTED: i32 = 4;

const TYPES: [(Dtype, DataType); 13] = [
    (Dtype::F32, DataType::Float),
    (Dtype::F16, DataType::Float16),
    (Dtype::Bf16, DataType::Bfloat16),
    (Dtype::I64, DataType::Int64),
    (Dtype::I32, DataType::Int32),
    (Dtype::U8, DataType::Uint8),
    (Dtype::Bool, DataType::Bool),
    (Dtype::F64, DataType::Double),
    (Dtype::I8, DataType::Int8),
    (Dtype::I16, DataType::Int16),
    (Dtype::U16, DataType::Uint16),
    (Dtype::U32, DataType::Uint32),
    (Dtype::U64, DataType::Uint64),
];

fn save(scratch: &Scratch, b: Builder) -> PathBuf {
    scratch.write("model.onnx", encode_model(&b.finish().unwrap(), &|_| None).unwrap())
}

/// Six elements whose bytes use the whole range of the type.
fn values(dtype: Dtype) -> Tensor {
    let bytes = (0..6 * dtype.size()).map(|i| match dtype {
        Dtype::Bool => (i % 2) as u8,
        // Neither NaN nor infinite.
        Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64 => (i * 5) as u8,
        _ => (i * 83 + 129) as u8,
    });
    tensor_from_bytes(dtype, &[2, 3], &bytes.collect::<Vec<u8>>()).unwrap()
}

#[test]
fn tensors_of_every_type_pass_through_engine_and_files_unchanged() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    for (dtype, element) in TYPES {
        let x = b.input(&format!("x.{dtype}"), element, [Dim::Fixed(2), Dim::Fixed(3)]);
        let y = b.transpose(&x, &[1, 0]);
        b.output(&format!("y.{dtype}"), &y, element, [Dim::Fixed(3), Dim::Fixed(2)]);
    }
    let (engine, results) = (scratch.path("model.engine"), scratch.path("out.safetensors"));
    run_ok("compile", args![save(&scratch, b), "-o", &engine, "--verify"]);
    let given: NamedTensors = TYPES.iter().map(|(dtype, _)| (format!("x.{dtype}"), values(*dtype))).collect();
    let inputs = scratch.path("in.safetensors");
    write_tensors(&inputs, &given, &IndexMap::new()).unwrap();
    run_ok("run", args!["--engine", &engine, "--inputs", inputs, "--outputs", &results]);
    let found = read_tensors(&results).unwrap();
    let inspected = run_ok("inspect", args![&engine]).stdout;
    for (dtype, _) in TYPES {
        let (x, y) = (&given[&format!("x.{dtype}")], &found[&format!("y.{dtype}")]);
        // Graphs take and give 16-bit floats as f32.
        let (x, expected) = match dtype {
            Dtype::F16 | Dtype::Bf16 => (Tensor::F32(x.to_f32().unwrap()), Dtype::F32),
            _ => (x.clone(), dtype),
        };
        assert_eq!((y.dtype(), y.shape()), (expected, &[3, 2][..]));
        let (size, from, to) = (expected.size(), tensor_bytes(&x).into_owned(), tensor_bytes(y).into_owned());
        for (row, column) in (0..2).flat_map(|row| (0..3).map(move |column| (row, column))) {
            let element = |bytes: &[u8], at: usize| bytes[at * size..(at + 1) * size].to_vec();
            assert_eq!(element(&from, row * 3 + column), element(&to, column * 2 + row), "{dtype}");
        }
        assert!(inspected.contains(&format!("y.{dtype}: {expected} [3, 2]")), "{dtype}: {inspected}");
    }
}

#[test]
fn input_without_elements_is_refused_as_unsupported() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("n")]);
    let y = b.op("Exp", &[&x]);
    b.output("y", &y, DataType::Float, [Dim::from("n")]);
    let (engine, inputs) = (scratch.path("model.engine"), scratch.path("in.safetensors"));
    run_ok("compile", args![save(&scratch, b), "-o", &engine]);
    let empty = Tensor::from_f32(&[0], Vec::new()).unwrap();
    write_tensors(&inputs, &[("x".to_owned(), empty)].into_iter().collect(), &IndexMap::new()).unwrap();
    let run =
        command("run", args!["--engine", engine, "--inputs", inputs, "--outputs", scratch.path("out.safetensors")]);
    let message = refuse(&scratch, run, UNSUPPORTED);
    assert!(message.contains("`x`") && message.contains("n of at least 1"), "{message}");
}

#[test]
fn threads_beyond_any_machine_are_a_usage_error() {
    for threads in ["18446744073709551615", "1025", "-1"] {
        let threads = format!("--threads={threads}");
        let run = output(command("run", args!["--engine", "e", "--inputs", "i", "--outputs", "o", threads]));
        assert_eq!(run.code, USAGE, "{}", run.stderr);
        assert!(run.stderr.contains("expected 1 to 1024"), "{}", run.stderr);
    }
}

/// `x` `[1, 1, 4, 4]`, resized to extents that are given.
fn resized(scratch: &Scratch) -> PathBuf {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [1, 1, 4, 4].map(Dim::Fixed));
    let sizes = b.input("sizes", DataType::Int64, [Dim::Fixed(4)]);
    let none = "".into();
    let y = b.node("Resize", &[&x, &none, &none, &sizes]).attr("mode", "nearest").out();
    b.output("y", &y, DataType::Float, ["n", "c", "h", "w"].map(Dim::from));
    save(scratch, b)
}

#[test]
fn made_extents_are_small_and_the_graph_is_checked() {
    let scratch = Scratch::new();
    let start = Instant::now();
    let run = run_ok("compile", args![resized(&scratch), "-o", scratch.path("model.engine"), "--verify"]);
    assert!(run.stdout.contains("random") && start.elapsed() < Duration::from_secs(60), "{}", run.stdout);
}

/// A graph whose result has 10^12 elements on made inputs, or one that doubles `x` 10^15 times.
fn endless(scratch: &Scratch, kind: &str) -> PathBuf {
    let mut b = Builder::new("g");
    if kind == "memory" {
        let size = b.input("size", DataType::Int64, [Dim::Fixed(3)]);
        let much = b.int(5000);
        let size = b.op("Mul", &[&size, &much]);
        let y = b.op("ConstantOfShape", &[&size]);
        b.output("y", &y, DataType::Float, ["a", "b", "c"].map(Dim::from));
        return save(scratch, b);
    }
    let x = b.input("x", DataType::Float, [Dim::Fixed(2)]);
    let count = b.initializer("count", Initializer::inline(DataType::Int64, &[], 10i64.pow(15).to_le_bytes().to_vec()));
    let info = |name: &str, dtype: DataType, shape: &[usize]| {
        let shape = Some(shape.iter().copied().map(Dim::Fixed).collect());
        ValueInfo { name: name.to_owned(), ty: Some(TensorType { dtype, shape }) }
    };
    let node = |op_type: &str, inputs: &[&str], output: &str| Node {
        op_type: op_type.to_owned(),
        inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        ..Node::default()
    };
    let body = Graph {
        name: "body".to_owned(),
        inputs: vec![
            info("i", DataType::Int64, &[]),
            info("go", DataType::Bool, &[]),
            info("carried", DataType::Float, &[2]),
        ],
        outputs: vec![info("on", DataType::Bool, &[]), info("sum", DataType::Float, &[2])],
        nodes: vec![node("Identity", &["go"], "on"), node("Add", &["carried", "carried"], "sum")],
        ..Graph::default()
    };
    let go = b.initializer("go_on", Initializer::inline(DataType::Bool, &[], vec![1]));
    let y = b.node("Loop", &[&count, &go, &x]).attr("body", Attribute::Graph(Box::new(body))).out();
    b.output("y", &y, DataType::Float, [Dim::Fixed(2)]);
    save(scratch, b)
}

fn checked(scratch: &Scratch, kind: &str, limits: Option<RunLimits>, thorough: bool) -> Result<Checks, String> {
    let model = endless(scratch, kind);
    let check = Some(CheckOptions { limits, thorough, ..CheckOptions::default() });
    let options = CompileOptions { check, ..CompileOptions::default() };
    let report = v2l_export::compile(&model, &scratch.path("model.engine"), &options, &mut |_| {});
    report.map(|mut report| report.engines.remove(0).checks).map_err(|e| e.to_string())
}

#[test]
fn check_that_takes_too_long_stops_says_so_and_fails_only_if_it_was_asked_for() {
    let scratch = Scratch::new();
    let limits = Some(RunLimits { time: Duration::from_secs(1), memory: 1 << 30 });
    let checks = checked(&scratch, "time", limits, false).unwrap();
    let [Unchecked { graph, reason, .. }] = &checks.skipped[..] else { panic!("{:?}", checks.skipped) };
    assert!(graph == "model" && reason.contains("stopped after 1 seconds"), "{reason}");
    let refused = checked(&scratch, "time", limits, true).unwrap_err();
    assert!(refused.contains("could not be checked") && refused.contains("stopped after 1 seconds"), "{refused}");
}

#[test]
fn check_that_takes_too_much_memory_stops_and_says_so() {
    let scratch = Scratch::new();
    let run = run_ok("compile", args![endless(&scratch, "memory"), "-o", scratch.path("model.engine")]);
    assert!(run.stderr.contains("graph `model` was not checked"), "{}", run.stderr);
    assert!(run.stderr.contains("a run would take more than"), "{}", run.stderr);
    assert!(scratch.path("model.engine").is_file());
}

#[test]
fn engine_that_runs_within_limits_is_stopped_at_them() {
    let limits = Some(RunLimits { time: Duration::from_secs(1), memory: 1 << 30 });
    let extents = tensor_from_bytes(Dtype::I64, &[3], &[2i64, 2, 2].map(i64::to_le_bytes).concat()).unwrap();
    let numbers = Tensor::from_f32(&[2], vec![1.0, 2.0]).unwrap();
    for (kind, name, input, said) in
        [("time", "x", numbers, "stopped after 1 seconds"), ("memory", "size", extents, "a run would take more than")]
    {
        let scratch = Scratch::new();
        let (model, path) = (endless(&scratch, kind), scratch.path("model.engine"));
        v2l_export::compile(&model, &path, &CompileOptions::default(), &mut |_| {}).unwrap();
        let engine = Arc::new(Engine::open(&path).unwrap());
        let mut opened = OrtEngine::open(engine, &OpenOptions { limits, ..OpenOptions::default() }).unwrap();
        let error = opened.session("model").unwrap().run(&[(name, &input)]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// A graph of a step: `timestep` in `wanted`, doubled.
fn doubled(scratch: &Scratch, wanted: DataType) -> PathBuf {
    let mut b = Builder::new("step");
    let t = b.input("timestep", wanted, [Dim::from("batch")]);
    let y = b.op("Add", &[&t, &t]);
    b.output("y", &y, wanted, [Dim::from("batch")]);
    let engine = scratch.path(&format!("{wanted}.engine"));
    run_ok("compile", args![save(scratch, b), "-o", &engine]);
    engine
}

#[test]
fn timesteps_of_another_type_are_taken_where_no_number_is_lost_and_else_named() {
    let scratch = Scratch::new();
    let (inputs, results) = (scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    let numbers = |dtype: Dtype, first: f64| {
        let values = ndarray::ArrayD::from_shape_vec(ndarray::IxDyn(&[2]), vec![first, 3.0]).unwrap();
        Tensor::F64(values).view().unwrap().exactly(dtype).unwrap()
    };
    let floats = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64];
    let wholes = [Dtype::I64, Dtype::I32, Dtype::I16, Dtype::U64, Dtype::U32];
    for (wanted, element) in [
        (Dtype::F32, DataType::Float),
        (Dtype::F64, DataType::Double),
        (Dtype::I64, DataType::Int64),
        (Dtype::I32, DataType::Int32),
    ] {
        let engine = doubled(&scratch, element);
        let args = args!["--engine", &engine, "--inputs", &inputs, "--outputs", &results];
        for given in floats.into_iter().chain(wholes) {
            let tensors: NamedTensors = [("timestep".to_owned(), numbers(given, 96.0))].into_iter().collect();
            write_tensors(&inputs, &tensors, &IndexMap::new()).unwrap();
            run_ok("run", args);
            let found = &read_tensors(&results).unwrap()["y"];
            let expected = Tensor::F64(ndarray::arr1(&[192.0, 6.0]).into_dyn());
            assert_eq!(*found, expected.view().unwrap().exactly(wanted).unwrap(), "{given} for {wanted}");
            std::fs::remove_file(&results).unwrap();
        }
        let lost = match wanted {
            Dtype::F32 => (numbers(Dtype::I64, 16_777_217.0), "16777217 at [0], which f32 does not hold"),
            Dtype::F64 => (Tensor::I64(ndarray::arr1(&[i64::MAX]).into_dyn()), "9223372036854775807 at [0]"),
            _ => (numbers(Dtype::F32, 999.5), "999.5 at [0], which i"),
        };
        let tensors: NamedTensors = [("timestep".to_owned(), lost.0)].into_iter().collect();
        write_tensors(&inputs, &tensors, &IndexMap::new()).unwrap();
        let message = refuse(&scratch, command("run", args), USAGE);
        assert!(message.contains("`timestep`") && message.contains(lost.1), "{message}");
    }
}
