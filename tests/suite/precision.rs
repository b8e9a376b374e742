//! Graphs in several types: what a strongly typed graph computes, and what its float32 emulation does.

use half::{bf16, f16};
use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use v2l_calibration::{Executor, compare};
use v2l_export::OrtExecutor;
use v2l_graphs::{
    Builder, DataType, Dim, Initializer, Model, TensorData, Value, apply_precision, emulate_precision, matrix_types,
};
use v2l_runtime::tensor::Tensor;

const F32: DataType = DataType::Float;

/// Numbers between −1 and 1 that depend on `seed` alone.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / ((1u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| draw()).collect()
}

pub(crate) fn weight(b: &mut Builder, name: &str, shape: &[usize], scale: f32) -> Value {
    let seed = name.bytes().fold(7u64, |h, c| h.wrapping_mul(31).wrapping_add(u64::from(c)));
    let values = noise(seed, shape.iter().product());
    let bytes: Vec<u8> = values.iter().flat_map(|v| (v * scale).to_le_bytes()).collect();
    b.initializer(name, Initializer::weight(F32, shape, TensorData::raw(bytes)))
}

pub(crate) fn run(model: &Model, inputs: &[(&str, &Tensor)]) -> IndexMap<String, Tensor> {
    OrtExecutor::default().run(model, inputs).unwrap().into_iter().collect()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    OrtExecutor::floats(tensor).unwrap().into_owned()
}

/// Two blocks of linear layer, norm and gate.
fn model() -> Model {
    let mut b = Builder::new("g");
    let mut h = b.input("x", F32, [Dim::from("n"), Dim::Fixed(32)]);
    for block in 0..2 {
        h = b.scope(format!("blocks.{block}"), |b| {
            let (w, bias) = (format!("blocks.{block}.weight"), format!("blocks.{block}.bias"));
            let (w, bias) = (weight(b, &w, &[32, 32], 0.3), weight(b, &bias, &[32], 0.1));
            let linear = b.node("Gemm", &[&h, &w, &bias]).attr("transB", 1).out();
            let scale = weight(b, &format!("blocks.{block}.norm"), &[32], 1.0);
            let normal = v2l_graphs::blocks::rms_norm(b, &linear, &scale, 1e-6);
            let gate = v2l_graphs::blocks::silu(b, &normal);
            b.op("Add", &[&h, &gate])
        });
    }
    b.output("y", &h, F32, [Dim::from("n"), Dim::Fixed(32)]);
    let mut model = b.finish().unwrap();
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}

fn typed(mut model: Model, types: &[DataType]) -> Model {
    let storage = matrix_types(&[(&model, types)]);
    apply_precision(&mut model, types, &|name, _| storage.get(name).copied().unwrap_or(F32));
    model
}

fn emulated(model: Model, types: &[DataType]) -> Model {
    let mut model = typed(model, types);
    emulate_precision(&mut model);
    model
}

fn input(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), values).unwrap())
}

/// On the CPU, ONNX Runtime puts float16 nodes between casts to float32 and drops the pairs that meet, so that it rounds less
/// often than the graph says. Both must show the rounding of weights and inputs, of about 2^-12 each, and the emulation that
/// of 14 nodes in a row besides: at most a few times as much.
#[test]
fn emulation_in_float16_errs_as_the_typed_graph_and_by_its_own_roundings() {
    let model = model();
    let count = model.graph.nodes.len();
    let mixed: Vec<DataType> = (0..count).map(|at| if at % 3 == 0 { F32 } else { DataType::Float16 }).collect();
    let x = input(noise(1, 5 * 32), &[5, 32]);
    let reference = floats(&run(&model, &[("x", &x)])["y"]);
    for types in [vec![DataType::Float16; count], mixed] {
        let native = floats(&run(&typed(model.clone(), &types), &[("x", &x)])["y"]);
        let emulated = floats(&run(&emulated(model.clone(), &types), &[("x", &x)])["y"]);
        let (native, emulated) = (compare(&native, &reference).unwrap(), compare(&emulated, &reference).unwrap());
        println!("native {native}; emulated {emulated}");
        assert!(native.relative_l2 > 5e-5 && native.within(2e-3), "{native}");
        assert!(emulated.relative_l2 > 5e-5 && emulated.within(2e-3), "{emulated}");
    }
}

/// One addition, multiplication or square root in float32 and a rounding to a type of half as many bits gives what that type
/// itself would: `half` says the same, bit for bit.
#[test]
fn emulation_of_elementwise_nodes_equals_arithmetic_in_the_type() {
    let mut b = Builder::new("g");
    let (x, y) = (b.input("x", F32, [Dim::from("n")]), b.input("y", F32, [Dim::from("n")]));
    let product = b.op("Mul", &[&x, &y]);
    let sum = b.op("Add", &[&product, &x]);
    let root = b.op("Abs", &[&sum]);
    let root = b.op("Sqrt", &[&root]);
    let z = b.op("Sub", &[&root, &y]);
    b.output("z", &z, F32, [Dim::from("n")]);
    let model = b.finish().unwrap();
    let (x, y) = (noise(5, 4000), noise(6, 4000));
    let inputs = [("x", &input(x.clone(), &[4000])), ("y", &input(y.clone(), &[4000]))];
    let found = |dtype| floats(&run(&emulated(model.clone(), &[dtype; 5]), &inputs)["z"]);
    let in_f16 = x.iter().zip(&y).map(|(&x, &y)| {
        let (x, y) = (f16::from_f32(x), f16::from_f32(y));
        let sum = x * y + x;
        (f16::from_f32(sum.to_f32().abs().sqrt()) - y).to_f32()
    });
    assert_eq!(found(DataType::Float16), in_f16.collect::<Vec<f32>>());
    let in_bf16 = x.iter().zip(&y).map(|(&x, &y)| {
        let (x, y) = (bf16::from_f32(x), bf16::from_f32(y));
        let sum = x * y + x;
        (bf16::from_f32(sum.to_f32().abs().sqrt()) - y).to_f32()
    });
    assert_eq!(found(DataType::Bfloat16), in_bf16.collect::<Vec<f32>>());
}

#[test]
fn emulation_in_bfloat16_runs_where_the_typed_graph_does_not() {
    let model = model();
    let types = vec![DataType::Bfloat16; model.graph.nodes.len()];
    let x = input(noise(1, 5 * 32), &[5, 32]);
    assert!(OrtExecutor::default().run(&typed(model.clone(), &types), &[("x", &x)]).is_err());
    let reference = floats(&run(&model, &[("x", &x)])["y"]);
    let error = compare(&floats(&run(&emulated(model, &types), &[("x", &x)])["y"]), &reference).unwrap();
    println!("{error}");
    assert!(error.relative_l2 > 1e-3 && error.within(3e-2), "{error}");
}

#[test]
fn emulation_rounds_as_the_types_do_and_overflows_exactly_where_they_do() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n")]);
    let y = b.op("Neg", &[&x]);
    b.output("y", &y, F32, [Dim::from("n")]);
    let model = b.finish().unwrap();
    let mut values = vec![65504.0f32, 65519.99, 65520.0, 7e4, -65520.0, 1e-7, 3e-8, 2.9e-8, 1e-45, 3.39e38, f32::MAX];
    values.extend([0.0, f32::INFINITY, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
    values.extend(noise(3, 1000));
    let x = input(values.clone(), &[values.len()]);
    for (dtype, round) in [
        (DataType::Float16, &(|v: f32| f16::from_f32(v).to_f32()) as &dyn Fn(f32) -> f32),
        (DataType::Bfloat16, &|v: f32| bf16::from_f32(v).to_f32()),
    ] {
        let found = floats(&run(&emulated(model.clone(), &[dtype]), &[("x", &x)])["y"]);
        let expected: Vec<f32> = values.iter().map(|v| -round(*v)).collect();
        assert_eq!(found, expected, "{dtype}");
    }
}
