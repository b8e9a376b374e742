use v2l_graphs::{Builder, Model};

use super::*;

fn model() -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [4usize]);
    let shape = b.op("Shape", &[&x]);
    let y = b.scope("block.0", |b| {
        let x = b.op("Sigmoid", &[&x]);
        b.node("CumSum", &[&x, &shape]).out()
    });
    let y = b.op("Relu", &[&y]);
    b.output("y", &y, DataType::Float, [4usize]);
    b.finish().unwrap()
}

fn exception(precision: Precision, why: &str) -> Exception {
    Exception { precision, why: why.to_owned() }
}

fn plan() -> PrecisionPlan {
    let exceptions = IndexMap::from([
        (
            "block.0/Sigmoid".to_owned(),
            exception(Precision::Bf16, "overflows fp16: gives `h`, largest magnitude 1.200e5"),
        ),
        ("block.0/CumSum".to_owned(), exception(Precision::Fp32, "no 16-bit form is known")),
    ]);
    let fingerprint = fingerprint(&model().graph);
    let graph = GraphPlan { name: "step".to_owned(), fingerprint, default: Precision::Fp16, exceptions };
    let other = GraphPlan {
        name: "a \"b\" c".to_owned(),
        fingerprint: "blake3:00".to_owned(),
        default: Precision::Bf16,
        exceptions: IndexMap::from([("Add -> a b".to_owned(), exception(Precision::Fp32, ""))]),
    };
    PrecisionPlan { graphs: vec![graph, other] }
}

#[test]
fn plan_text_is_readable_and_comes_back_equal() {
    let text = plan().to_text();
    insta::assert_snapshot!(text);
    assert_eq!(PrecisionPlan::parse("p.plan", &text).unwrap(), plan());
    let commented = text.replace("\nbf16", "\n# by hand\n\n  bf16");
    assert_eq!(PrecisionPlan::parse("p.plan", &commented).unwrap(), plan());
}

#[test]
fn plan_gives_each_node_its_type() {
    let plan = plan();
    let types = plan.graph("p.plan", "step").unwrap().types("p.plan", &model().graph).unwrap();
    use DataType::{Bfloat16, Float, Float16};
    assert_eq!(types, [Float, Bfloat16, Float, Float16]);
}

#[test]
fn plan_with_a_wrong_line_is_refused_with_file_line_and_way_out() {
    let text = plan().to_text();
    let message = |text: &str| PrecisionPlan::parse("p.plan", text).unwrap_err().to_string();
    for (from, to, line, expected) in [
        (
            "v2l precision plan 1",
            "v2l precision plan 2",
            1,
            "expected `v2l precision plan 1`, found `v2l precision plan 2`",
        ),
        ("bf16 \"block.0/Sigmoid\"", "fp8 \"block.0/Sigmoid\"", 4, "expected fp16, bf16, fp32 or graph as first word"),
        ("bf16 \"block.0/Sigmoid\"", "bf16 block.0/Sigmoid", 4, "a name in double quotes"),
        (" fp16\n", " fp17\n", 3, "`graph \"NAME\" blake3:FINGERPRINT fp16|bf16|fp32`"),
        ("block.0/CumSum", "block.0/Sigmoid", 5, "node `block.0/Sigmoid` has a line already, line 4"),
        ("a \\\"b\\\" c", "step", 7, "graph `step` has a line already, line 3"),
    ] {
        let found = message(&text.replacen(from, to, 1));
        assert!(found.starts_with(&format!("p.plan:{line}: ")) && found.contains(expected), "{found}");
    }
    assert!(message("v2l precision plan 1\nfp16 \"a\" b").contains("a `graph` line before the first node"));
    assert!(message("").contains("found ``"));
}

#[test]
fn plan_for_another_model_is_refused() {
    let plan = plan();
    let graph = plan.graph("p.plan", "step").unwrap();
    let mut other = model();
    other.graph.nodes[1].op_type = "Tanh".to_owned();
    let found = graph.types("p.plan", &other.graph).unwrap_err().to_string();
    assert!(found.contains("made for another model") && found.contains(&fingerprint(&other.graph)), "{found}");
    let found = plan.graph("p.plan", "rest").unwrap_err().to_string();
    assert!(found.contains("no plan for graph `rest`; expected one among `step`"), "{found}");
}

#[test]
fn plan_of_a_node_that_is_missing_or_unsuitable_is_refused() {
    let mut plan = plan().graphs.remove(0);
    plan.exceptions.insert("block.0/Sigmoids".to_owned(), exception(Precision::Fp32, ""));
    let found = plan.types("p.plan", &model().graph).unwrap_err().to_string();
    assert!(found.contains("no node `block.0/Sigmoids`; the closest is `block.0/Sigmoid`"), "{found}");
    plan.exceptions.shift_remove("block.0/Sigmoids");
    plan.exceptions.insert("block.0/CumSum".to_owned(), exception(Precision::Bf16, ""));
    let found = plan.types("p.plan", &model().graph).unwrap_err().to_string();
    assert!(found.contains("node `block.0/CumSum`: expected fp32, found bf16: CumSum stays in float32"), "{found}");
}

#[test]
fn fingerprint_depends_on_structure_and_not_on_weights() {
    use v2l_graphs::{Initializer, TensorData};
    let with = |shape: &[usize], byte: u8| {
        let mut model = model();
        let bytes = vec![byte; shape.iter().product::<usize>() * 4];
        let value = Initializer::weight(DataType::Float, shape, TensorData::raw(bytes));
        model.graph.initializers.insert("w".to_owned(), value);
        fingerprint(&model.graph)
    };
    assert_eq!(with(&[2, 3], 0), with(&[2, 3], 1));
    assert_ne!(with(&[2, 3], 0), with(&[3, 2], 0));
}
