use v2l_graphs::{Builder, Dim, Initializer, Value};

use super::*;

const F32: DataType = DataType::Float;

fn weight(b: &mut Builder, name: &str, value: f32) -> Value {
    let bytes: Vec<u8> = [value; 16].iter().flat_map(|v| v.to_le_bytes()).collect();
    b.initializer(name, Initializer::weight(F32, &[4, 4], TensorData::raw(bytes)))
}

/// Three linear layers with something cheap in between.
fn model() -> Model {
    let mut b = Builder::new("g");
    let mut h = b.input("x", F32, [Dim::from("n"), Dim::Fixed(4)]);
    for block in 0..3 {
        let w = weight(&mut b, &format!("blocks.{block}.weight"), 1.0);
        h = b.scope(format!("blocks.{block}"), |b| {
            let h = b.node("Gemm", &[&h, &w]).attr("transB", 1).out();
            b.op("Tanh", &[&h])
        });
    }
    b.output("y", &h, F32, [Dim::from("n"), Dim::Fixed(4)]);
    let mut model = b.finish().unwrap();
    v2l_graphs::passes::infer_shapes(&mut model);
    model
}

fn ranges(largest: f32) -> Ranges {
    let mut ranges = Ranges::default();
    ranges.begin("a.safetensors with adapters at strength 0");
    ranges.observe("blocks.1/Gemm", &[1.0]);
    ranges.begin("a.safetensors with adapters at strength 1");
    ranges.observe("blocks.1/Gemm", &[-largest]);
    ranges
}

fn planned(request: Request, ranges: Option<&Ranges>) -> GraphPlan {
    plan_graph("step", &model(), request, ranges, PlanOptions::default())
}

#[test]
fn plan_keeps_what_overflows_out_of_float16_and_says_where_it_was_seen() {
    let plan = planned(Request::Fp16, Some(&ranges(1e5)));
    let names: Vec<&str> = plan.exceptions.keys().map(String::as_str).collect();
    assert_eq!(names, ["blocks.1/Gemm", "blocks.1/Tanh"]);
    assert_eq!(
        plan.exceptions["blocks.1/Gemm"].why,
        "overflows fp16: gives `blocks.1/Gemm`, largest magnitude 1.000e5 (limit 65504) with a.safetensors with adapters at \
         strength 1"
    );
    assert!(plan.exceptions.values().all(|exception| exception.precision == Precision::Fp32));
}

#[test]
fn plan_in_mixed_precision_uses_bfloat16_where_float16_does_not_fit() {
    let plan = planned(Request::Mixed, Some(&ranges(1e5)));
    assert_eq!(plan.default, Precision::Fp16);
    assert!(
        plan.exceptions.len() == 2 && plan.exceptions.values().all(|exception| exception.precision == Precision::Bf16)
    );
    let plan = planned(Request::Mixed, Some(&ranges(2e38)));
    assert!(plan.exceptions.values().all(|exception| exception.precision == Precision::Fp32));
}

#[test]
fn plan_leaves_headroom_of_two() {
    assert!(planned(Request::Fp16, Some(&ranges(32_752.0))).exceptions.is_empty());
    let close = planned(Request::Fp16, Some(&ranges(32_753.0)));
    assert!(close.exceptions["blocks.1/Gemm"].why.contains("limit 65504, of which 1/2 is used at most"));
    assert!(planned(Request::Bf16, Some(&ranges(1e5))).exceptions.is_empty());
}

#[test]
fn plan_puts_what_is_not_finite_into_float32() {
    for request in [Request::Fp16, Request::Mixed, Request::Bf16] {
        let plan = planned(request, Some(&ranges(f32::INFINITY)));
        let exception = &plan.exceptions["blocks.1/Gemm"];
        assert!(
            exception.precision == Precision::Fp32 && exception.why.contains("not finite in float32"),
            "{}",
            exception.why
        );
    }
}

#[test]
fn plan_keeps_a_weight_that_does_not_fit_out_of_float16() {
    let mut model = model();
    let mut b = Builder::new("other");
    weight(&mut b, "w", 7e4);
    model.graph.initializers["blocks.2.weight"] = b.finish().unwrap().graph.initializers["w"].clone();
    let mut ranges = Ranges::default();
    observe_weights(&mut ranges, &model).unwrap();
    let plan = plan_graph("step", &model, Request::Fp16, Some(&ranges), PlanOptions::default());
    assert!(plan.exceptions["blocks.2/Gemm"].why.contains("reads `blocks.2.weight`, largest magnitude 7.000e4"));
    assert!(!plan.exceptions.contains_key("blocks.1/Gemm"));
}

#[test]
fn plan_in_float32_has_no_exception() {
    let plan = planned(Request::Fp32, Some(&ranges(1e5)));
    assert!(plan.default == Precision::Fp32 && plan.exceptions.is_empty());
}
