use v2l_graphs::{Builder, Dim, Initializer, Model, TensorData, Value};

use super::*;

const F32: DataType = DataType::Float;

fn weight(b: &mut Builder, name: &str, shape: &[usize]) -> Value {
    let bytes = vec![0; shape.iter().product::<usize>() * 4];
    b.initializer(name, Initializer::weight(F32, shape, TensorData::raw(bytes)))
}

/// Operator and rule of each node, in order.
fn found(model: &Model) -> Vec<(&str, Option<Rule>)> {
    model.graph.nodes.iter().map(|n| n.op_type.as_str()).zip(kept_in_fp32(&model.graph)).collect()
}

fn finish(mut b: Builder, y: &Value) -> Model {
    b.output("y", y, F32, [Dim::from("n"), Dim::Fixed(8)]);
    let mut model = b.finish().unwrap();
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}

fn kept(model: &Model, rule: Rule) -> Vec<&str> {
    found(model).into_iter().filter(|(_, r)| *r == Some(rule)).map(|(op, _)| op).collect()
}

#[test]
fn rms_norm_that_nobody_marked_is_kept_in_fp32_up_to_its_division() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(8)]);
    let scale = weight(&mut b, "scale", &[8]);
    let x = b.op("Sigmoid", &[&x]);
    let y = v2l_graphs::blocks::rms_norm(&mut b, &x, &scale, 1e-6);
    let model = finish(b, &y);
    assert_eq!(kept(&model, Rule::NormStatistics), ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]);
    assert_eq!(found(&model).iter().filter(|(_, rule)| rule.is_none()).count(), 2);
}

#[test]
fn layer_norm_in_pieces_is_kept_in_fp32_from_its_mean_on() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(8)]);
    let axes = b.ints(&[-1]);
    let mean = b.op("ReduceMean", &[&x, &axes]);
    let centred = b.op("Sub", &[&x, &mean]);
    let two = b.float(2.0);
    let square = b.op("Pow", &[&centred, &two]);
    let variance = b.op("ReduceMean", &[&square, &axes]);
    let epsilon = b.float(1e-5);
    let shifted = b.op("Add", &[&variance, &epsilon]);
    let root = b.op("Sqrt", &[&shifted]);
    let normal = b.op("Div", &[&centred, &root]);
    let scale = weight(&mut b, "scale", &[8]);
    let y = b.op("Mul", &[&normal, &scale]);
    let model = finish(b, &y);
    let norm = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div"];
    assert_eq!(kept(&model, Rule::NormStatistics), norm);
}

#[test]
fn timestep_sinusoid_is_kept_in_fp32_from_the_timestep_to_the_linear_layer() {
    let mut b = Builder::new("g");
    let t = b.input("t", F32, [Dim::from("n")]);
    let t = b.unsqueeze(&t, &[1]);
    let frequencies = b.floats(&[1, 4], &[1.0, 0.1, 0.01, 0.001]);
    let angles = b.op("Mul", &[&t, &frequencies]);
    let (sin, cos) = (b.op("Sin", &[&angles]), b.op("Cos", &[&angles]));
    let both = b.concat(&[&cos, &sin], -1);
    let w = weight(&mut b, "w", &[8, 8]);
    let y = b.node("Gemm", &[&both, &w]).attr("transB", 1).out();
    let model = finish(b, &y);
    assert_eq!(kept(&model, Rule::TimestepSinusoid), ["Unsqueeze", "Mul", "Sin", "Cos"]);
    assert_eq!(found(&model)[5], ("Gemm", None));
}

#[test]
fn rotation_of_halves_by_given_tables_is_kept_in_fp32_and_modulation_is_none() {
    let mut b = Builder::new("g");
    let table = [Dim::from("n"), Dim::Fixed(8)];
    let (x, cos) = (b.input("x", F32, table.clone()), b.input("cos", F32, table.clone()));
    let (sin, shift) = (b.input("sin", F32, table.clone()), b.input("shift", F32, table));
    let w = weight(&mut b, "w", &[8, 8]);
    let q = b.op("MatMul", &[&x, &w]);
    let halves = b.split(&q, -1, 2);
    let turned = b.op("Neg", &[&halves[1]]);
    let turned = b.concat(&[&turned, &halves[0]], -1);
    let (kept_part, turned_part) = (b.op("Mul", &[&q, &cos]), b.op("Mul", &[&turned, &sin]));
    let rotated = b.op("Add", &[&kept_part, &turned_part]);
    let modulated = v2l_graphs::blocks::modulate(&mut b, &rotated, &cos, &shift);
    let model = finish(b, &modulated);
    assert_eq!(kept(&model, Rule::RotaryEmbedding), ["Mul", "Mul", "Add"]);
    assert_eq!(found(&model).iter().filter(|(_, rule)| rule.is_none()).count(), 7);
}

#[test]
fn marked_nodes_and_unknown_operators_stay_in_float32() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(8)]);
    let marked = b.in_fp32(|b| b.op("Sigmoid", &[&x]));
    let free = b.op("Sigmoid", &[&marked]);
    let sum = b.node("CumSum", &[&free]).out();
    let model = finish(b, &sum);
    let expected = [("Sigmoid", Some(Rule::Marked)), ("Sigmoid", None), ("CumSum", Some(Rule::NoSixteenBitForm))];
    assert_eq!(found(&model), expected);
}

#[test]
fn plain_sum_is_a_large_reduction_alone() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(8)]);
    let e = b.op("Exp", &[&x]);
    let axes = b.ints(&[-1]);
    let sum = b.op("ReduceSum", &[&e, &axes]);
    let y = b.op("Div", &[&e, &sum]);
    let model = finish(b, &y);
    assert_eq!(found(&model), [("Exp", None), ("ReduceSum", Some(Rule::LargeReduction)), ("Div", None)]);
}
