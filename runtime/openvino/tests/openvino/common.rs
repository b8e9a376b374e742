//! Small graphs, and OpenVINO to run them on.

use std::sync::Arc;

use v2l_graphs::{Builder, DataType, encode_model};
use v2l_openvino::{Borrowed, CompileOptions, Core, Element, Model, Request};

/// OpenVINO; these tests fail without it, and the message says how to come by it.
pub(crate) fn core() -> Core {
    Core::open(None).unwrap_or_else(|error| panic!("{error}"))
}

/// The bytes of a graph that holds all its data.
pub(crate) fn onnx(builder: Builder) -> Vec<u8> {
    encode_model(&builder.finish().unwrap(), &|_| None).unwrap()
}

pub(crate) fn request(onnx: &[u8], options: &CompileOptions) -> Request {
    let core = core();
    let model = Model::from_onnx_bytes(&core, onnx).unwrap();
    core.compile(&model, options).unwrap().request().unwrap()
}

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn f32s(shape: &[usize], values: &[f32]) -> Borrowed {
    Borrowed::new(Element::F32, shape, Arc::new(bytes(values))).unwrap()
}

/// Numbers between -1 and 1 that look random and are the same in every run.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn output(request: &Request, name: &str) -> Vec<f32> {
    let output = request.output(name).unwrap();
    assert_eq!(output.element(), Element::F32);
    output.bytes().chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

/// `y [S, out] = x [S, in] · wᵀ + b` as Transpose, MatMul and Add; `w` `[out, in]` and `b` are inputs, and S is free.
pub(crate) fn linear(inside: usize, outside: usize) -> Vec<u8> {
    let mut builder = Builder::new("linear");
    let x = builder.input("x", DataType::Float, ["S".into(), v2l_graphs::Dim::Fixed(inside)]);
    let w = builder.input("w", DataType::Float, [outside, inside]);
    let b = builder.input("b", DataType::Float, [outside]);
    let turned = builder.transpose(&w, &[1, 0]);
    let product = builder.op("MatMul", &[&x, &turned]);
    let sum = builder.op("Add", &[&product, &b]);
    builder.output("y", &sum, DataType::Float, ["S".into(), v2l_graphs::Dim::Fixed(outside)]);
    onnx(builder)
}

/// `y = x · x · … · x`, `steps` products of `[size, size]`: a run of seconds.
pub(crate) fn long(size: usize, steps: usize) -> Vec<u8> {
    let mut builder = Builder::new("long");
    let x = builder.input("x", DataType::Float, [size, size]);
    let mut y = x.clone();
    for _ in 0..steps {
        y = builder.op("MatMul", &[&y, &x]);
    }
    builder.output("y", &y, DataType::Float, [size, size]);
    onnx(builder)
}
