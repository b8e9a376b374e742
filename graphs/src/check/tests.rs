use super::*;
use crate::{Builder, Dim, TensorData, Value};

fn linear(b: &mut Builder) -> (Value, Value) {
    let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(4)]);
    let w = b.initializer("w", Initializer::weight(DataType::Float, &[8, 4], TensorData::raw(vec![0; 128])));
    let y = b.node("Gemm", &[&x, &w]).attr("transB", 1).out();
    b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(8)]);
    (x, w)
}

fn model() -> Model {
    let mut b = Builder::new("g");
    linear(&mut b);
    b.finish().unwrap()
}

fn findings(model: &Model) -> Vec<CheckError> {
    check(model).unwrap_err()
}

/// Findings about a model with one more node over `x`, `w` and the constant `ints`.
fn with_node(op: &str, inputs: &[&str], outputs: &[&str]) -> Vec<CheckError> {
    let mut model = model();
    model.graph.initializers.insert("ints".into(), Initializer::inline(DataType::Int64, &[1], vec![0; 8]));
    model.graph.nodes.push(Node {
        name: "extra".into(),
        op_type: op.into(),
        inputs: inputs.iter().map(|s| (*s).to_owned()).collect(),
        outputs: outputs.iter().map(|s| (*s).to_owned()).collect(),
        ..Node::default()
    });
    check(&model).err().unwrap_or_default()
}

#[test]
fn sound_model_has_no_findings() {
    assert_eq!(check(&model()), Ok(()));
}

#[test]
fn undefined_input_is_found_with_the_closest_name() {
    let mut model = model();
    let w = model.graph.initializers.shift_remove("w").unwrap();
    model.graph.initializers.insert("blocks.0.attn.to_q.weight".into(), w);
    model.graph.nodes[0].inputs[1] = "blocks.0.attn1.to_q.weight".into();
    let [CheckError::Undefined { node, closest: Some(closest), .. }] = &findings(&model)[..] else { panic!() };
    assert_eq!((node.as_str(), closest.as_str()), ("Gemm", "blocks.0.attn.to_q.weight"));
}

#[test]
fn second_definition_is_found_with_both_places() {
    let [CheckError::DefinedTwice { value, first, second, .. }] = &with_node("Relu", &["x"], &["y"])[..] else {
        panic!()
    };
    assert_eq!((value.as_str(), first.as_str(), second.as_str()), ("y", "node `Gemm`", "node `extra`"));
    assert!(matches!(&with_node("Relu", &["x"], &["w"])[..], [CheckError::DefinedTwice { .. }]));
}

#[test]
fn repeated_graph_input_and_output_are_found() {
    let mut model = model();
    model.graph.inputs.push(model.graph.inputs[0].clone());
    model.graph.outputs.push(model.graph.outputs[0].clone());
    assert!(matches!(&findings(&model)[..], [CheckError::DefinedTwice { .. }, CheckError::OutputTwice { .. }]));
}

#[test]
fn reader_before_its_producer_is_found() {
    let mut model = model();
    let early = Node {
        name: "early".into(),
        op_type: "Relu".into(),
        inputs: vec!["y".into()],
        outputs: vec!["z".into()],
        ..Node::default()
    };
    model.graph.nodes.insert(0, early);
    assert!(matches!(&findings(&model)[..], [CheckError::NotSorted { producer, .. }] if producer == "Gemm"));
}

#[test]
fn cycle_is_found() {
    let found = with_node("Relu", &["loop"], &["loop"]);
    assert!(found.iter().any(|f| matches!(f, CheckError::Cycle { nodes, .. } if *nodes == ["extra"])), "{found:?}");
}

#[test]
fn output_without_producer_is_found() {
    let mut model = model();
    model.graph.nodes.clear();
    assert!(matches!(&findings(&model)[..], [CheckError::OutputNotProduced { value, .. }] if value == "y"));
}

#[test]
fn tensor_of_wrong_or_overflowing_length_is_found() {
    let mut model = model();
    model.graph.initializers["w"].shape = vec![8, 5];
    assert!(matches!(findings(&model)[0], CheckError::TensorLength { expected: Some(160), found: 128, .. }));
    model.graph.initializers["w"].shape = vec![usize::MAX, 5];
    assert!(matches!(findings(&model)[0], CheckError::TensorLength { expected: None, .. }));
}

#[test]
fn domain_without_opset_is_found_once() {
    let mut model = model();
    for name in ["a", "b"] {
        let mut node = model.graph.nodes[0].clone();
        node.domain = "com.example".into();
        node.outputs = vec![name.into()];
        model.graph.nodes.push(node);
    }
    assert!(matches!(&findings(&model)[..], [CheckError::NoOpset { domain, .. }] if domain == "com.example"));
}

#[test]
fn wrong_arity_and_left_out_input_are_found() {
    assert!(matches!(with_node("Add", &["x"], &["z"])[..], [CheckError::Arity { expected: (2, 2), found: 1, .. }]));
    assert!(matches!(with_node("Relu", &["x"], &["z", "v"])[..], [CheckError::Arity { what: "outputs", .. }]));
    assert!(matches!(with_node("Add", &["x", ""], &["z"])[..], [CheckError::InputLeftOut { index: 1, .. }]));
}

#[test]
fn missing_attribute_is_found() {
    let found = with_node("Cast", &["x"], &["z"]);
    assert!(matches!(&found[..], [CheckError::Attribute { expected, .. }] if expected == "attribute `to`"));
    assert!(matches!(with_node("Constant", &[], &["z"])[..], [CheckError::Attribute { .. }]));
}

#[test]
fn mixed_operand_types_are_found_with_both_names() {
    let found = with_node("Add", &["x", "ints"], &["z"]);
    assert_eq!(
        found[0].to_string(),
        "node `extra` (Add): `x` is float32 and `ints` is int64; expected one type, insert a Cast"
    );
}

#[test]
fn types_are_followed_through_nodes() {
    let mut b = Builder::new("g");
    let (x, _) = linear(&mut b);
    let half = b.cast(&x, DataType::Float16);
    let half = b.op("Relu", &[&half]);
    let z = b.op("Add", &[&half, &x]);
    b.output("z", &z, DataType::Float16, ["n"]);
    let model = b.finish().unwrap();
    assert!(matches!(&findings(&model)[..], [CheckError::MixedTypes { first, .. }] if first == "Relu"));
}

#[test]
fn weight_of_wrong_rank_is_found() {
    assert!(
        matches!(&with_node("Conv", &["x", "w"], &["z"])[..], [CheckError::WeightRank { weight, .. }] if weight == "w")
    );
}

#[test]
fn body_reads_earlier_values_only() {
    let body = |reads: &str| {
        let mut b = Builder::new("body");
        let y = b.op("Relu", &[&reads.into()]);
        b.output("inner", &y, DataType::Float, ["n"]);
        b.finish().unwrap().graph
    };
    let with_body = |reads: &str| {
        let mut model = model();
        let node = &mut model.graph.nodes[0];
        node.attributes.insert("body".into(), Attribute::Graph(Box::new(body(reads))));
        check(&model)
    };
    assert_eq!(with_body("x"), Ok(()));
    assert!(with_body("y").is_err());
}

#[test]
fn findings_are_capped() {
    let mut model = model();
    for i in 0..200 {
        let inputs = vec![format!("missing{i}")];
        model.graph.nodes.push(Node {
            op_type: "Relu".into(),
            inputs,
            outputs: vec![format!("o{i}")],
            ..Node::default()
        });
    }
    assert_eq!(findings(&model).len(), MAX_FINDINGS);
}

#[test]
fn slots_that_no_linear_node_reads_directly_are_found() {
    let mut b = Builder::new("g");
    let (x, _) = linear(&mut b);
    for name in ["between", "unused.weight"] {
        b.initializer(name, Initializer::weight(DataType::Float, &[8, 4], TensorData::raw(vec![0; 128])));
    }
    let t = b.transpose(&"between".into(), &[1, 0]);
    b.op("MatMul", &[&x, &t]);
    let graph = b.finish().unwrap().graph;
    assert_eq!(check_slots(&graph, &["w"]), Ok(()));
    let found = check_slots(&graph, &["w", "between", "unused.weight", "unused.weights"]).unwrap_err();
    assert_eq!(
        found,
        [
            SlotError::Indirect { name: "between".into(), node: "Transpose".into(), op_type: "Transpose".into() },
            SlotError::Unused { name: "unused.weight".into() },
            SlotError::Missing { name: "unused.weights".into(), closest: Some("unused.weight".into()) },
        ]
    );
}
