use super::*;
use crate::onnx::{FunctionProto, NodeProto, OperatorSetIdProto};
use crate::{Attribute, DataType, Dim, NEWEST_IR_VERSION, TensorType, ValueInfo};

fn typed(name: &str, dtype: DataType) -> ValueInfo {
    ValueInfo {
        name: name.to_owned(),
        ty: Some(TensorType { dtype, shape: Some(vec![Dim::Fixed(4), Dim::Fixed(1), Dim::Fixed(3)]) }),
    }
}

fn node(op_type: &str, inputs: usize, attributes: &[(&str, Attribute)]) -> Node {
    let names: Vec<String> = (0..inputs).map(|at| format!("x{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Node { name: "it".to_owned(), ..crate::passes::parts::node(op_type, &names, "y", attributes) }
}

/// A model of one node over inputs `x0`, `x1`, … of these types.
fn model(opset: i64, node: Node, types: &[DataType]) -> Model {
    let inputs = types.iter().enumerate().map(|(at, dtype)| typed(&format!("x{at}"), *dtype)).collect();
    let outputs = vec![ValueInfo { name: "y".to_owned(), ty: None }];
    let graph = Graph { name: "g".to_owned(), inputs, outputs, nodes: vec![node], ..Graph::default() };
    Model { ir_version: NEWEST_IR_VERSION, opsets: [(String::new(), opset)].into(), graph, ..Model::default() }
}

fn operators(graph: &Graph) -> Vec<&str> {
    graph.nodes.iter().map(|node| node.op_type.as_str()).filter(|op| *op != "Constant").collect()
}

const F32: DataType = DataType::Float;
const F64: DataType = DataType::Double;
const I8: DataType = DataType::Int8;

#[test]
fn nodes_go_to_the_oldest_operator_set_that_says_the_same() {
    let int = |name: &'static str, value: i64| vec![(name, Attribute::Int(value))];
    let text = |name: &'static str, value: &str| vec![(name, Attribute::from(value))];
    for (opset, op_type, types, attributes, expected) in [
        (28, "Relu", &[F32][..], vec![], 22),
        (28, "Identity", &[F32], vec![], 22),
        (28, "ReduceLogSum", &[F32], vec![], 22),
        (28, "Cast", &[F32], int("to", 7), 22),
        (24, "Cast", &[F32], [int("to", 1), text("round_mode", "up")].concat(), 22),
        (28, "Cast", &[F32], int("to", 23), 23),
        (28, "Cast", &[F32], int("to", 24), 24),
        (28, "Cast", &[F32], int("to", 26), 25),
        (28, "Cast", &[F32], int("to", 27), 28),
        (28, "CastLike", &[F32, I8], text("round_mode", "nearest"), 22),
        (28, "QuantizeLinear", &[F32, F32], int("precision", 1), 22),
        (28, "QuantizeLinear", &[F32, F32], int("precision", 11), 23),
        (28, "QuantizeLinear", &[DataType::Int32, F32], vec![], 23),
        (28, "QuantizeLinear", &[F32, F32], int("output_dtype", 25), 25),
        (28, "DequantizeLinear", &[I8, F32], int("output_dtype", 1), 22),
        (28, "DequantizeLinear", &[I8, F32], int("output_dtype", 11), 23),
        (28, "Attention", &[F32; 3], int("left_window_size", -1), 23),
        (28, "Attention", &[F32; 3], int("left_window_size", 2), 25),
        (24, "Attention", &[F32; 7], vec![], 24),
        (24, "Attention", &[F32; 4], vec![], 24),
        (28, "RMSNormalization", &[F32; 2], vec![], 23),
        (28, "TensorScatter", &[F32; 2], vec![], 24),
        (28, "CumProd", &[F32, DataType::Int64], vec![], 26),
        (28, "Range", &[F32; 3], int("stash_type", 1), 22),
        (28, "Celu", &[F32], vec![], 22),
        (28, "Celu", &[F64], vec![], 28),
        (28, "Mod", &[F32; 2], int("fmod", 1), 22),
        (28, "Mod", &[I8; 2], vec![], 22),
        (28, "SpaceToDepth", &[F32], [int("blocksize", 2), text("mode", "DCR")].concat(), 22),
        (28, "SpaceToDepth", &[F32], [int("blocksize", 2), text("mode", "RCD")].concat(), 28),
        (28, "LinearAttention", &[F64; 3], vec![], 27),
        (23, "Relu", &[F32], vec![], 22),
        (22, "Relu", &[F32], vec![], 22),
        (17, "Relu", &[F32], vec![], 17),
    ] {
        let mut model = model(opset, node(op_type, types.len(), &attributes), types);
        let versions = lower_opset(&mut model).unwrap();
        let what = format!("{op_type} {attributes:?} of {types:?}, operator set {opset}");
        assert_eq!((versions.opset, model.opset()), (expected, Some(expected)), "{what}");
        assert_eq!(operators(&model.graph), [op_type], "{what}");
        assert_eq!(model.graph.nodes[0].name, "it");
        let asked: Vec<(&str, i64)> = versions.late.iter().map(|late| (&late.op_type[..], late.opset)).collect();
        assert_eq!(asked, if expected > 22 { vec![(op_type, expected)] } else { vec![] }, "{what}");
        let again = lower_opset(&mut model).unwrap();
        assert_eq!((again.opset, again.ir_version, again.is_lowered), (expected, versions.ir_version, false), "{what}");
    }
}

#[test]
fn attention_with_a_mask_is_older_only_if_the_mask_is_known_to_have_every_key() {
    // One key of each input: the fourth is the mask, the fifth the keys before.
    for (inputs, columns, expected) in [
        (4, Dim::Fixed(1), 23),
        (4, Dim::Fixed(3), 24),
        (4, Dim::Unknown, 24),
        (6, Dim::Fixed(2), 23),
        (6, Dim::Fixed(1), 24),
    ] {
        let mut model = model(24, node("Attention", inputs, &[]), &vec![F32; inputs]);
        let shape = Some(vec![Dim::Fixed(1), columns.clone()]);
        model.graph.inputs[3].ty = Some(TensorType { dtype: F32, shape });
        assert_eq!(lower_opset(&mut model).unwrap().opset, expected, "{inputs} inputs, {columns:?}");
    }
}

#[test]
fn nodes_without_an_older_form_become_others_that_have_one() {
    let int = |name: &'static str, value: i64| (name, Attribute::Int(value));
    let heads = [int("q_num_heads", 4), int("kv_num_heads", 2)];
    for (op_type, types, attributes, expected) in [
        ("Swish", &[F32][..], vec![], &["Sigmoid", "Mul"][..]),
        ("Swish", &[F64], vec![("alpha", Attribute::Float(2.0))], &["Mul", "Sigmoid", "Mul"]),
        ("SwiGLU", &[F32; 2], vec![], &["Sigmoid", "Mul", "Mul"]),
        ("Mod", &[F64; 2], vec![], &["Mod", "Sign", "Sign", "Mul", "Less", "Add", "Where", "Abs", "Mul"]),
        (
            "SpaceToDepth",
            &[F32],
            vec![int("blocksize", 2), ("mode", Attribute::from("CRD"))],
            &["SpaceToDepth", "Transpose", "Reshape", "Transpose", "Reshape", "Transpose"],
        ),
        (
            "CausalConvWithState",
            &[F32; 4],
            vec![("activation", Attribute::from("silu"))],
            &["Shape", "Sub", "Concat", "Conv", "Sigmoid", "Mul", "Shape", "Sub", "Slice"],
        ),
        ("LinearAttention", &[F32; 6], heads.to_vec(), &["Scan"]),
        ("BitShift", &[I8; 2], vec![("direction", Attribute::from("RIGHT"))], &["BitShift"]),
    ] {
        let mut model = model(28, node(op_type, types.len(), &attributes), types);
        let versions = lower_opset(&mut model).unwrap();
        assert_eq!((versions.opset, versions.ir_version, versions.late), (22, 10, vec![]), "{op_type}");
        let found = operators(&model.graph);
        if expected.len() == 1 {
            assert!(found.len() > 9 && found.contains(&expected[0]), "{op_type}: {found:?}");
        } else {
            assert_eq!(found, expected, "{op_type}");
        }
        let last = model.graph.nodes.iter().find(|node| node.outputs[0] == "y").unwrap();
        assert_eq!(last.name, "it");
        crate::passes::sort_topologically(&mut model).unwrap();
        crate::check::check(&model).unwrap();
    }
}

#[test]
fn types_that_are_not_known_keep_what_depends_on_them() {
    for (op_type, attributes) in
        [("BitShift", vec![("direction", Attribute::from("LEFT"))]), ("Mod", vec![]), ("LinearAttention", vec![])]
    {
        let mut model = model(28, node(op_type, 3, &attributes), &[]);
        let versions = lower_opset(&mut model).unwrap();
        assert_eq!(versions.opset, if op_type == "LinearAttention" { 27 } else { 28 }, "{op_type}");
        assert_eq!(versions.late[0].node, "it");
    }
}

#[test]
fn bodies_are_lowered_and_count() {
    let body = |node: Node| {
        let outputs = vec![ValueInfo { name: "y".to_owned(), ty: None }];
        Attribute::Graph(Box::new(Graph { nodes: vec![node], outputs, ..Graph::default() }))
    };
    for (inner, expected) in [(node("Swish", 1, &[]), 22), (node("CumProd", 2, &[]), 26)] {
        let branches = [("then_branch", body(inner.clone())), ("else_branch", body(inner))];
        let outer = Node { outputs: vec!["z".to_owned()], ..node("If", 1, &branches) };
        let mut model = model(28, outer, &[DataType::Bool, F32]);
        let versions = lower_opset(&mut model).unwrap();
        assert_eq!(versions.opset, expected);
        let Some(Attribute::Graph(body)) = model.graph.nodes[0].attributes.get("else_branch") else { panic!("a body") };
        assert!(!operators(body).contains(&"Swish"));
        assert_eq!(versions.late.len(), usize::from(expected > 22));
    }
}

/// A function of one node.
fn function(op_type: &str, opset: i64) -> Function {
    let text = |words: &str| Some(words.to_owned());
    let node =
        NodeProto { input: vec!["a".into()], output: vec!["b".into()], op_type: text(op_type), ..NodeProto::default() };
    let import = OperatorSetIdProto { domain: text(""), version: Some(opset) };
    Function(FunctionProto {
        name: text("F"),
        domain: text("acme"),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![node],
        opset_import: vec![import],
        ..FunctionProto::default()
    })
}

#[test]
fn functions_are_lowered_from_their_own_operator_sets() {
    for (op_type, opset, expected, nodes) in
        [("Swish", 28, 22, 2), ("Relu", 28, 22, 1), ("TensorScatter", 27, 24, 1), ("Relu", 18, 18, 1)]
    {
        let call = Node { domain: "acme".to_owned(), ..node("F", 1, &[]) };
        let mut model = model(18, call, &[F32]);
        model.functions = vec![function(op_type, opset)];
        let versions = lower_opset(&mut model).unwrap();
        let proto = &model.functions[0].0;
        assert_eq!((proto.opset_import[0].version(), proto.node.len()), (expected, nodes), "{op_type}");
        assert_eq!((model.opset(), versions.opset), (Some(18), expected.max(18)));
        assert_eq!(proto.node.last().unwrap().output, ["b"]);
    }
}

#[test]
fn ir_version_is_the_lowest_that_the_content_needs() {
    let cast = |to: i64| node("Cast", 1, &[("to", Attribute::Int(to))]);
    for (given, opset, node, expected) in [
        (14, 22, cast(1), 10),
        (14, 28, cast(1), 10),
        (14, 28, cast(23), 11),
        (14, 28, cast(24), 12),
        (14, 28, cast(25), 13),
        (14, 28, cast(28), 14),
        (10, 22, cast(1), 10),
        (7, 13, cast(1), 7),
        (3, 9, cast(1), 4),
    ] {
        let mut model = model(opset, node, &[F32]);
        model.ir_version = given;
        let versions = lower_opset(&mut model).unwrap();
        assert_eq!((versions.ir_version, model.ir_version), (expected, expected), "{given}, {opset}");
        assert_eq!(versions.is_lowered, given > expected || opset > versions.opset);
    }
}
