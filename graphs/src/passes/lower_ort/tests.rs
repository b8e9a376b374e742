use super::*;
use crate::blocks::{self, RotaryTables};
use crate::passes::{Pass, Passes, optimize, sort_topologically};
use crate::{Attribute, Builder, DataType, Dim};

const HEADS: usize = 3;
const DIM: usize = 4;

/// Modulated norm, rotated queries and keys, attention: `[batch, tokens, 12]` in and out; `spoil` changes one thing.
fn block(spoil: &str) -> Model {
    let mut b = Builder::new("g");
    let width = HEADS * DIM;
    let rows = |tokens: &str| [Dim::from("batch"), Dim::from(tokens), width.into()];
    let x = b.input("x", DataType::Float, rows("tokens"));
    let per_token = if spoil == "scale per token" { Dim::from("tokens") } else { 1.into() };
    let scale = b.input("scale", DataType::Float, [Dim::from("batch"), per_token, width.into()]);
    let shift = b.input("shift", DataType::Float, [Dim::from("batch"), 1.into(), width.into()]);
    let text = b.input("text", DataType::Float, rows("text_length"));
    let mut table = |name| b.input(name, DataType::Float, [Dim::from("table_rows"), DIM.into()]);
    let (cos, sin) = (table("cos"), table("sin"));
    let gamma = b.floats(&[width], &vec![1.5; width]);
    let normal = blocks::layer_norm(&mut b, &x, &gamma, Some(&gamma), 1e-5);
    let modulated = blocks::modulate(&mut b, &normal, &scale, &shift);
    let text_length = b.extent(&text, 1);
    let tables = RotaryTables::new(&mut b, &cos, &sin, &text_length, DIM);
    let batch = b.extent(&x, 0);
    let heads = |b: &mut Builder, rotate: bool| {
        let split = blocks::split_heads(b, &modulated, &batch, HEADS, DIM);
        let turned = b.transpose(&split, &[0, 2, 1, 3]);
        if rotate { blocks::rotate_interleaved(b, &turned, &tables, DIM) } else { turned }
    };
    let (q, k, v) = (heads(&mut b, true), heads(&mut b, true), heads(&mut b, false));
    let bias = (spoil == "bias").then(|| b.floats(&[1, 1, 1, 1], &[0.5]));
    let mixed = blocks::scaled_dot_product_attention(&mut b, &q, &k, &v, Some(0.5), bias.as_ref());
    let merged = blocks::merge_heads(&mut b, &mixed, HEADS, DIM);
    b.output("y", &merged, DataType::Float, [Dim::from("rows"), width.into()]);
    let mut model = b.finish().unwrap();
    if spoil == "pairs" {
        for even in model.graph.nodes.iter_mut().filter(|n| n.op_type == "Sub") {
            even.inputs.reverse();
        }
    }
    optimize(&mut model).unwrap();
    infer_shapes(&mut model);
    model
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes.iter().filter(|n| n.op_type == op).count()
}

#[test]
fn lowered_block_is_one_operator_each_and_stays_a_sound_graph() {
    let mut model = block("");
    let done = lower_for_ort(&mut model, &Passes::default());
    // Equal queries and keys are computed once.
    assert_eq!(done, Lowered { rotary: 1, attention: 1, modulated_norm: 1 });
    for gone in ["Softmax", "MatMul", "Sub"] {
        assert_eq!(count(&model, gone), 0, "{gone}");
    }
    assert_eq!((count(&model, "MultiHeadAttention"), count(&model, "If")), (1, 1));
    crate::check::check(&model).unwrap();
    assert_eq!(sort_topologically(&mut model).unwrap(), 0);
    let attention = model.graph.nodes.iter().find(|n| n.op_type == "MultiHeadAttention").unwrap();
    assert!(matches!(attention.attributes["scale"], Attribute::Float(0.5)));
    let shape = |name: &str| {
        let info = model.graph.value_info.iter().find(|v| v.name == name).unwrap();
        info.ty.as_ref().unwrap().shape.clone().unwrap()
    };
    let mixed = shape(&attention.outputs[0]);
    assert_eq!((&mixed[0], &mixed[2]), (&Dim::from("batch"), &Dim::Fixed(HEADS * DIM)));
    assert_eq!(lower_for_ort(&mut model, &Passes::default()), Lowered::default());
}

#[test]
fn lowering_leaves_alone_what_only_looks_alike() {
    let lowered = |spoil| lower_for_ort(&mut block(spoil), &Passes::default());
    let all = Lowered { rotary: 1, attention: 1, modulated_norm: 1 };
    assert_eq!(lowered("bias"), Lowered { attention: 0, ..all });
    assert_eq!(lowered("scale per token"), Lowered { modulated_norm: 0, ..all });
    assert_eq!(lowered("pairs"), Lowered { rotary: 0, ..all });
}

#[test]
fn lowering_takes_the_axis_that_an_older_operator_set_takes() {
    for (opset, axis, attention) in
        [(13, None, 1), (12, None, 0), (12, Some(3), 1), (12, Some(-1), 1), (13, Some(1), 0)]
    {
        let mut model = block("");
        model.opsets.insert(String::new(), opset);
        let softmax = model.graph.nodes.iter_mut().find(|n| n.op_type == "Softmax").unwrap();
        softmax.attributes.clear();
        softmax.attributes.extend(axis.map(|axis: i64| ("axis".to_owned(), axis.into())));
        let done = lower_for_ort(&mut model, &Passes::default());
        assert_eq!((done.attention, done.rotary), (attention, 0), "operator set {opset}, {axis:?}");
    }
}

/// `[2, 3, 2, 4]` turned, its pairs by `shape`, rotated by tables with these rows.
fn rotation(shape: [i64; 5], rows: [usize; 4], dtype: DataType) -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", dtype, [2usize, 3, 2, 4]);
    let turned = b.transpose(&x, &[0, 2, 1, 3]);
    let [cos0, cos1, sin0, sin1] = [0, 1, 2, 3].map(|i| b.input(&format!("t{i}"), dtype, [rows[i], 2, 1]));
    let pairs = b.reshape(&turned, &shape.map(Into::into));
    let halves = b.split(&pairs, -1, 2);
    let product = |b: &mut Builder, half: usize, table| b.op("Mul", &[&halves[half], table]);
    let (a, c) = (product(&mut b, 0, &cos0), product(&mut b, 1, &sin0));
    let even = b.op("Sub", &[&a, &c]);
    let (a, c) = (product(&mut b, 1, &cos1), product(&mut b, 0, &sin1));
    let odd = b.op("Add", &[&a, &c]);
    let joined = b.concat(&[&even, &odd], -1);
    let y = b.reshape(&joined, &[2i64, 2, 3, 4].map(Into::into));
    b.output("y", &y, dtype, [2usize, 2, 3, 4]);
    let mut model = b.finish().unwrap();
    infer_shapes(&mut model);
    model
}

#[test]
fn rotation_is_one_of_heads_and_tokens_and_of_float32_only() {
    let f32 = DataType::Float;
    for (shape, rows, dtype, rotary) in [
        ([2, 2, 3, 2, 2], [3; 4], f32, 1),
        ([0, 0, -1, 2, 2], [3; 4], f32, 1),
        ([2, 2, 3, 2, 2], [3, 3, 1, 1], f32, 1),
        ([2, 1, 6, 2, 2], [6; 4], f32, 0),
        ([1, 4, 3, 2, 2], [3; 4], f32, 0),
        ([2, 3, 2, 2, 2], [2; 4], f32, 0),
        ([2, 2, 3, 2, 2], [3; 4], DataType::Double, 0),
    ] {
        let mut model = rotation(shape, rows, dtype);
        assert_eq!(lower_for_ort(&mut model, &Passes::default()).rotary, rotary, "{shape:?} {dtype}");
        crate::check::check(&model).unwrap();
    }
    let mut old = rotation([2, 2, 3, 2, 2], [3; 4], f32);
    old.opsets.insert(String::new(), 14);
    assert_eq!(lower_for_ort(&mut old, &Passes::default()).rotary, 0);
}

#[test]
fn lowering_makes_no_rewrite_that_is_switched_off() {
    let off = [Pass::Rotary, Pass::Attention, Pass::ModulatedNorm];
    let mut model = block("");
    let before = format!("{:?}", model.graph.nodes);
    assert_eq!(lower_for_ort(&mut model, &Passes::without(off)), Lowered::default());
    assert_eq!(format!("{:?}", model.graph.nodes), before);
    assert!(!model.opsets.contains_key(CONTRIB));
}
