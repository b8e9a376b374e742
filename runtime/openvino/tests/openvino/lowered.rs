//! What `lower_for_openvino` writes, on the real library: against arithmetic by hand, and against the same graph in ONNX's own operators.

use std::num::NonZero;
use std::sync::Arc;

use v2l_graphs::blocks::{self, RotaryTables};
use v2l_graphs::passes::{
    Passes, infer_shapes, lower_for_openvino, lower_for_ort, optimize, quantize_weights, restore_quantized,
};
use v2l_graphs::{
    Attribute, Builder, DataType, Dim, Initializer, Location, Model as Graph, TensorData, Value, encode_model,
};
use v2l_openvino::{Borrowed, CompileOptions, Element, Model, Request};

use crate::common::{bytes, core, f32s, noise, output, request};

fn encoded(graph: &Graph) -> Vec<u8> {
    encode_model(graph, &|_| None).unwrap()
}

fn run(request: &mut Request, inputs: &[(&str, Borrowed)]) -> Vec<f32> {
    for (name, tensor) in inputs {
        request.set_input(name, tensor.clone()).unwrap();
    }
    request.run(&|| false).unwrap();
    output(request, "y")
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let pairs = found.iter().zip(expected);
    let difference = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / square(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}

const HEADS: usize = 3;
const DIM: usize = 8;
const WIDTH: usize = HEADS * DIM;

/// Queries and keys that are rotated behind a text, and attention: `x` `[batch, tokens, 24]`.
fn attention() -> Graph {
    let mut b = Builder::new("attention");
    let rows = |tokens: &str| [Dim::from("batch"), Dim::from(tokens), WIDTH.into()];
    let x = b.input("x", DataType::Float, rows("tokens"));
    let mut table = |name| b.input(name, DataType::Float, [Dim::from("table_rows"), DIM.into()]);
    let (cos, sin) = (table("cos"), table("sin"));
    let text = b.input("text", DataType::Float, rows("text_length"));
    let text_length = b.extent(&text, 1);
    let tables = RotaryTables::new(&mut b, &cos, &sin, &text_length, DIM);
    let batch = b.extent(&x, 0);
    let half = b.float(0.5);
    let halved = b.op("Mul", &[&x, &half]);
    let mut heads = |rows: &Value, rotate: bool| {
        let split = blocks::split_heads(&mut b, rows, &batch, HEADS, DIM);
        let turned = b.transpose(&split, &[0, 2, 1, 3]);
        if rotate { blocks::rotate_interleaved(&mut b, &turned, &tables, DIM) } else { turned }
    };
    let (q, k, v) = (heads(&x, true), heads(&halved, true), heads(&x, false));
    let mixed = blocks::scaled_dot_product_attention(&mut b, &q, &k, &v, Some(0.5), None);
    let merged = blocks::merge_heads(&mut b, &mixed, HEADS, DIM);
    b.output("y", &merged, DataType::Float, [Dim::from("rows"), "tokens".into(), WIDTH.into()]);
    let mut model = b.finish().unwrap();
    optimize(&mut model).unwrap();
    infer_shapes(&mut model);
    model
}

/// Tables for `rows` tokens, one number for both of a pair, or one for each.
fn tables(rows: usize, paired: bool) -> [Borrowed; 2] {
    let angles = noise(rows * DIM, 9);
    let angle = |at: usize| if paired { angles[at - at % 2] } else { angles[at] } * 3.0;
    let table = |of: fn(f32) -> f32| -> Vec<f32> { (0..rows * DIM).map(|at| of(angle(at))).collect() };
    [table(f32::cos), table(f32::sin)].map(|table| f32s(&[rows, DIM], &table))
}

#[test]
fn rotation_and_attention_are_right_for_every_batch_and_every_table() {
    let plain = attention();
    let mut lowered = plain.clone();
    assert_eq!(lower_for_ort(&mut lowered, &Passes::default()).rotary, 2);
    let untouched = lowered.clone();
    assert_eq!(lower_for_openvino(&mut lowered).unwrap().rotary, 2);
    // Nothing is left to choose, in buffers of its own.
    let chosen = ["If", "RotaryEmbedding", "ReduceMin", "Equal"];
    assert!(lowered.graph.nodes.iter().all(|node| !chosen.contains(&&node.op_type[..])));
    let shared = lowered.graph.nodes.iter().filter(|node| node.outputs[0].ends_with("_pairs"));
    assert_eq!(shared.count(), 2, "both rotations read the same");
    let mut requests = [&plain, &lowered, &untouched].map(|graph| request(&encoded(graph), &CompileOptions::default()));
    for (batch, text, tokens, paired) in
        [(1, 3, 10, true), (2, 3, 10, true), (2, 0, 7, true), (1, 3, 10, false), (2, 4, 9, false)]
    {
        let [cos, sin] = tables(tokens - text, paired);
        let inputs = [
            ("x", f32s(&[batch, tokens, WIDTH], &noise(batch * tokens * WIDTH, 1))),
            ("text", f32s(&[batch, text, WIDTH], &noise(batch * text * WIDTH, 2))),
            ("cos", cos),
            ("sin", sin),
        ];
        let [plain, lowered, untouched] = requests.each_mut().map(|request| run(request, &inputs));
        let (error, trap) = (distance(&lowered, &plain), distance(&untouched, &plain));
        println!("batch {batch}, text {text}, paired {paired}: {error:.1e}; without the pass {trap:.1e}");
        assert!(error < 2e-6, "batch {batch}, text {text}, paired {paired}: {error}");
    }
}

#[test]
fn rotation_starts_at_the_position_that_it_is_given() {
    let graph = |each: bool| {
        let mut b = Builder::new("offset");
        let x = b.input("x", DataType::Float, [Dim::from("B"), "S".into(), WIDTH.into()]);
        let p = match each {
            true => b.input("p", DataType::Int64, [Dim::from("B"), "S".into()]),
            false => b.input("p", DataType::Int64, [1_usize]),
        };
        let table = |values: Vec<f32>| values;
        let angles = noise(16 * DIM / 2, 3);
        let cos = b.floats(&[16, DIM / 2], &table(angles.iter().map(|angle| angle.cos()).collect()));
        let sin = b.floats(&[16, DIM / 2], &table(angles.iter().map(|angle| angle.sin()).collect()));
        let y = b.node("RotaryEmbedding", &[&x, &p, &cos, &sin]).attr("num_heads", HEADS as i64);
        let y = y.attr("interleaved", 1_i64).out();
        b.output("y", &y, DataType::Float, [Dim::from("B"), "S".into(), WIDTH.into()]);
        let mut model = b.finish().unwrap();
        model.graph.nodes[0].domain = "com.microsoft".into();
        model.opsets.insert("com.microsoft".into(), 1);
        let lowered = lower_for_openvino(&mut model).unwrap();
        assert_eq!(lowered.rotary, usize::from(!each));
        request(&encoded(&model), &CompileOptions::default())
    };
    let ints = |shape: &[usize], values: &[i64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Borrowed::new(Element::I64, shape, Arc::new(bytes)).unwrap()
    };
    let x = f32s(&[2, 5, WIDTH], &noise(2 * 5 * WIDTH, 4));
    let (mut one, mut each) = (graph(false), graph(true));
    for offset in [0, 7] {
        let positions: Vec<i64> = (0..10).map(|at| offset + at % 5).collect();
        let expected = run(&mut each, &[("x", x.clone()), ("p", ints(&[2, 5], &positions))]);
        assert_eq!(run(&mut one, &[("x", x.clone()), ("p", ints(&[1], &[offset]))]), expected, "from {offset}");
    }
}

#[test]
fn layer_norms_with_a_scale_and_shift_for_each_sample_are_right() {
    let (batch, tokens) = (3, 5);
    let mut b = Builder::new("norm");
    let x = b.input("x", DataType::Float, [Dim::from("B"), "S".into(), WIDTH.into()]);
    let [scale, shift] =
        ["scale", "shift"].map(|name| b.input(name, DataType::Float, [Dim::from("B"), 1.into(), WIDTH.into()]));
    let y = b.node("LayerNormalization", &[&x, &scale, &shift]).attr("epsilon", Attribute::Float(1e-5)).out();
    b.output("y", &y, DataType::Float, [Dim::from("B"), "S".into(), WIDTH.into()]);
    let mut model = b.finish().unwrap();
    assert_eq!(lower_for_openvino(&mut model).unwrap().norms, 1);
    let (x, scale, shift) = (noise(batch * tokens * WIDTH, 1), noise(batch * WIDTH, 2), noise(batch * WIDTH, 3));
    let expected: Vec<f32> = x
        .chunks(WIDTH)
        .enumerate()
        .flat_map(|(row, values)| {
            let sample = row / tokens * WIDTH;
            let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / WIDTH as f64;
            let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let (scale, shift) = (&scale[sample..], &shift[sample..]);
            let normal = move |at: usize| (f64::from(values[at]) - mean) / (variance + 1e-5).sqrt();
            (0..WIDTH).map(move |at| (normal(at) * f64::from(scale[at]) + f64::from(shift[at])) as f32)
        })
        .collect();
    let per_sample = |values: &[f32]| f32s(&[batch, 1, WIDTH], values);
    let inputs =
        [("x", f32s(&[batch, tokens, WIDTH], &x)), ("scale", per_sample(&scale)), ("shift", per_sample(&shift))];
    let found = run(&mut request(&encoded(&model), &CompileOptions::default()), &inputs);
    let error = distance(&found, &expected);
    assert!(error < 1e-6, "{error}");
}

#[test]
fn linear_layers_of_every_form_are_right() {
    let (rows, inside, outside) = (7, 20, 12);
    let (x, w, c) = (noise(rows * inside, 1), noise(outside * inside, 2), noise(outside, 3));
    for (turned, alpha, beta) in
        [(1, None, None), (0, None, None), (1, Some(0.5), None), (0, Some(-2.0), Some(3.0)), (1, None, Some(0.25))]
    {
        let mut b = Builder::new("linear");
        let input = b.input("x", DataType::Float, [Dim::from("S"), inside.into()]);
        let shape = if turned == 1 { [outside, inside] } else { [inside, outside] };
        let data = |values: &[f32]| TensorData::raw(bytes(values));
        let weight = b.initializer("w", Initializer::weight(DataType::Float, &shape, data(&w)));
        let bias = b.initializer("c", Initializer::weight(DataType::Float, &[outside], data(&c)));
        let mut node = b.node("Gemm", &[&input, &weight, &bias]).attr("transB", turned);
        for (name, factor) in [("alpha", alpha), ("beta", beta)] {
            if let Some(factor) = factor {
                node = node.attr(name, Attribute::Float(factor));
            }
        }
        let y = node.out();
        b.output("y", &y, DataType::Float, [Dim::from("S"), outside.into()]);
        let mut model = b.finish().unwrap();
        let lowered = lower_for_openvino(&mut model).unwrap();
        assert_eq!((lowered.linear, &lowered.weights[..]), (1, &["w".to_owned()][..]));
        let at =
            |row: usize, column: usize| if turned == 1 { w[column * inside + row] } else { w[row * outside + column] };
        let expected: Vec<f32> = (0..rows * outside)
            .map(|index| {
                let (row, column) = (index / outside, index % outside);
                let sum: f64 = (0..inside).map(|k| f64::from(x[row * inside + k]) * f64::from(at(k, column))).sum();
                let (alpha, beta): (f32, f32) = (alpha.unwrap_or(1.0), beta.unwrap_or(1.0));
                (f64::from(alpha) * sum + f64::from(beta) * f64::from(c[column])) as f32
            })
            .collect();
        let inputs = [("x", f32s(&[rows, inside], &x)), ("w", f32s(&shape, &w))];
        let found = run(&mut request(&encoded(&model), &CompileOptions::default()), &inputs);
        let error = distance(&found, &expected);
        assert!(error < 1e-6, "{turned}, {alpha:?}, {beta:?}: {error}");
    }
}

/// Layers over matrices in 8 bits, of every block and of rows that end in a part of one.
#[test]
fn linear_layers_over_matrices_in_8_bits_are_right() {
    for (block, inside) in [(32, 96), (32, 100), (64, 64), (64, 130), (128, 256), (128, 200), (256, 512), (256, 300)] {
        for (rows, biased) in [(7, true), (1, false)] {
            let outside = 40;
            let (x, w, c) = (noise(rows * inside, 1), noise(outside * inside, 2), noise(outside, 3));
            let mut b = Builder::new("linear");
            let input = b.input("x", DataType::Float, [Dim::from("S"), inside.into()]);
            let data = |values: &[f32]| TensorData::raw(bytes(values));
            let weight = b.initializer("w", Initializer::weight(DataType::Float, &[outside, inside], data(&w)));
            let bias = b.initializer("c", Initializer::weight(DataType::Float, &[outside], data(&c)));
            let inputs = if biased { vec![&input, &weight, &bias] } else { vec![&input, &weight] };
            let y = b.node("Gemm", &inputs).attr("transB", 1).out();
            b.output("y", &y, DataType::Float, [Dim::from("S"), outside.into()]);
            let mut model = b.finish().unwrap();
            let (mut restored, names) = (model.clone(), ["w".to_owned()]);
            restore_quantized(&mut restored, &names, block);
            let w = restored.graph.initializers["w"].data.to_bytes().unwrap();
            let w: Vec<f32> = w.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
            assert_eq!(quantize_weights(&mut model, &names, block), 1);
            let held = model.graph.initializers.clone();
            let lowered = lower_for_openvino(&mut model).unwrap();
            assert_eq!(
                (lowered.weights.len(), &lowered.constants[..]),
                (0, &["w.int8", "w.int8_scales"].map(str::to_owned)[..])
            );
            let constants = lowered.constants.iter().map(|name| {
                let value = &held[name];
                let element = if value.dtype == DataType::Uint8 { Element::U8 } else { Element::F32 };
                let data = Arc::new(value.data.to_bytes().unwrap().to_vec());
                (&name[..], Borrowed::new(element, &value.shape, data).unwrap())
            });
            let constants: Vec<_> = constants.collect();
            let onnx =
                encode_model(&model, &|_| Some(Location { file: "weights".into(), offset: 0, length: 0 })).unwrap();
            let core = core();
            let read = Model::over_constants(&core, &onnx, &constants).unwrap();
            let expected: Vec<f32> = (0..rows * outside)
                .map(|index| {
                    let (row, column) = (index / outside, index % outside);
                    let product = |k: usize| f64::from(x[row * inside + k]) * f64::from(w[column * inside + k]);
                    let bias = if biased { f64::from(c[column]) } else { 0.0 };
                    ((0..inside).map(product).sum::<f64>() + bias) as f32
                })
                .collect();
            for (group, most) in [(None, 1e-6), (NonZero::new(32), 1e-2)] {
                let options = CompileOptions { dynamic_quantization: group, ..CompileOptions::default() };
                let mut request = core.compile(&read, &options).unwrap().request().unwrap();
                let found = run(&mut request, &[("x", f32s(&[rows, inside], &x))]);
                let error = distance(&found, &expected);
                println!("{block}, {inside}, {rows} rows, {group:?}: {error:.1e}");
                assert!(error < most, "{block}, {inside}, {rows} rows, {group:?}: {error}");
            }
        }
    }
}
