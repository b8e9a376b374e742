use super::*;
use crate::blocks::{self, RotaryTables};
use crate::passes::parts::node;
use crate::passes::{Passes, infer_shapes, lower_for_ort, optimize, quantize_weights};
use crate::{Builder, TensorData, Value, check};

fn op_types(graph: &Graph) -> Vec<&str> {
    graph.nodes.iter().map(|node| &node.op_type[..]).collect()
}

fn weight(b: &mut Builder, name: &str, shape: &[usize]) -> Value {
    let bytes = vec![0; shape.iter().product::<usize>() * 4];
    b.initializer(name, Initializer::weight(DataType::Float, shape, TensorData::raw(bytes)))
}

/// `y = Gemm(x, w, b)` with these attributes.
fn gemm(attributes: &[(&str, Attribute)]) -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("S"), 4.into()]);
    let (w, bias) = (weight(&mut b, "w", &[3, 4]), weight(&mut b, "b", &[3]));
    let mut node = b.node("Gemm", &[&x, &w, &bias]);
    for (name, value) in attributes {
        node = node.attr(name, value.clone());
    }
    let y = node.out();
    b.output("y", &y, DataType::Float, [Dim::from("S"), 3.into()]);
    b.finish().unwrap()
}

#[test]
fn matrices_become_inputs_vectors_stay_and_linear_layers_are_products_and_sums() {
    let mut model = gemm(&[("transB", Attribute::Int(1))]);
    let done = lower_for_openvino(&mut model).unwrap();
    assert_eq!(done, LoweredForOpenVino { weights: vec!["w".into()], linear: 1, ..LoweredForOpenVino::default() });
    assert_eq!(op_types(&model.graph), ["Transpose", "MatMul", "Add"]);
    assert_eq!(model.graph.nodes[1].name, "Gemm");
    let inputs: Vec<&str> = model.graph.inputs.iter().map(|input| &input.name[..]).collect();
    assert_eq!(inputs, ["x", "w"]);
    let shape = model.graph.inputs[1].ty.as_ref().unwrap().shape.as_ref().unwrap();
    assert_eq!(shape[..], [Dim::Fixed(3), Dim::Fixed(4)]);
    assert!(model.graph.initializers.values().all(|value| !value.external));
    assert!(model.graph.initializers.contains_key("b"));
    check::check(&model).unwrap();
}

#[test]
fn factors_and_missing_biases_of_linear_layers_are_kept() {
    let factors = [("alpha", Attribute::Float(0.5)), ("beta", Attribute::Float(2.0)), ("transA", Attribute::Int(1))];
    let mut model = gemm(&factors);
    lower_for_openvino(&mut model).unwrap();
    let expected = ["Transpose", "MatMul", "CastLike", "Mul", "CastLike", "Mul", "Add"];
    assert_eq!(op_types(&model.graph), expected);
    check::check(&model).unwrap();
    let mut model = gemm(&[]);
    model.graph.nodes[0].inputs.truncate(2);
    lower_for_openvino(&mut model).unwrap();
    assert_eq!(op_types(&model.graph), ["MatMul", "Identity"]);
    check::check(&model).unwrap();
}

/// `y = LayerNormalization(x, scale, shift)`, `x` `[B, S, 8]`, the others of these extents.
fn layer_norm(scale: &[&str], axis: i64) -> Model {
    let dims = |extents: &[&str]| -> Vec<Dim> {
        extents.iter().map(|extent| extent.parse().map_or_else(|_| Dim::from(*extent), Dim::Fixed)).collect()
    };
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, dims(&["B", "S", "8"]));
    let [scale, shift] = ["scale", "shift"].map(|name| b.input(name, DataType::Float, dims(scale)));
    let y = b.node("LayerNormalization", &[&x, &scale, &shift]).attr("axis", axis).out();
    b.output("y", &y, DataType::Float, dims(&["B", "S", "8"]));
    b.finish().unwrap()
}

#[test]
fn scales_of_several_axes_are_taken_out_of_layer_norms() {
    for axis in [-1, 2] {
        let mut model = layer_norm(&["B", "1", "8"], axis);
        assert_eq!(lower_for_openvino(&mut model).unwrap().norms, 1);
        assert_eq!(op_types(&model.graph), ["CastLike", "LayerNormalization", "Mul", "Add"]);
        assert_eq!(model.graph.nodes[1].int("axis"), Some(axis));
        check::check(&model).unwrap();
    }
    let mut model = layer_norm(&["B", "1", "8"], -1);
    model.graph.nodes[0].inputs.truncate(2);
    lower_for_openvino(&mut model).unwrap();
    assert_eq!(op_types(&model.graph), ["CastLike", "LayerNormalization", "Mul"]);
    let mut model = layer_norm(&["8"], -1);
    assert_eq!(lower_for_openvino(&mut model).unwrap().norms, 0);
    assert_eq!(op_types(&model.graph), ["LayerNormalization"]);
    let error = lower_for_openvino(&mut layer_norm(&["B", "S", "8"], 1)).unwrap_err();
    assert!(error.reason.contains("scales of one axis only"), "{error}");
}

#[test]
fn shift_of_several_axes_is_taken_out_though_the_scale_has_one() {
    let mut model = layer_norm(&["B", "1", "8"], -1);
    model.graph.inputs[1] = layer_norm(&["8"], -1).graph.inputs[1].clone();
    assert_eq!(lower_for_openvino(&mut model).unwrap().norms, 1);
    assert_eq!(op_types(&model.graph), ["CastLike", "LayerNormalization", "Mul", "Add"]);
    check::check(&model).unwrap();
}

#[test]
fn what_takes_a_newer_operator_set_is_refused_in_an_old_one() {
    let old = |mut model: Model| {
        model.opsets.insert(String::new(), 14);
        lower_for_openvino(&mut model).map(|_| ()).map_err(|error| error.reason)
    };
    assert_eq!(old(gemm(&[("alpha", Attribute::Float(1.0))])), Ok(()));
    for model in [gemm(&[("alpha", Attribute::Float(0.5))]), gemm(&[("beta", Attribute::Float(2.0))])] {
        assert!(old(model).unwrap_err().contains("opset 15"));
    }
    assert!(old(rotation(3, Some(1))).unwrap_err().contains("opset 15"));
    assert_eq!(old(rotation(3, Some(2))), Ok(()));
}

/// A rotation of `x` of this many axes by positions of this many.
fn rotation(x: usize, positions: Option<usize>) -> Model {
    let mut b = Builder::new("g");
    let axes = |count: usize| (0..count).map(|axis| Dim::Symbol(format!("a{axis}"))).collect::<Vec<_>>();
    let x_value = b.input("x", DataType::Float, axes(x));
    let p = b.input("p", DataType::Int64, axes(positions.unwrap_or(0)));
    let (cos, sin) = (b.floats(&[2, 2], &[1.0; 4]), b.floats(&[2, 2], &[0.0; 4]));
    let y = b.node("RotaryEmbedding", &[&x_value, &p, &cos, &sin]).attr("num_heads", 1_i64).out();
    b.output("y", &y, DataType::Float, axes(x));
    let mut model = b.finish().unwrap();
    CONTRIB.clone_into(&mut model.graph.nodes[0].domain);
    model.opsets.insert(CONTRIB.to_owned(), 1);
    if positions.is_none() {
        model.graph.inputs[1].ty = None;
    }
    model
}

#[test]
fn rotations_from_one_position_are_given_that_of_every_token() {
    for (x, axis) in [(3, 1), (4, 2)] {
        for positions in [0, 1] {
            let mut model = rotation(x, Some(positions));
            assert_eq!(lower_for_openvino(&mut model).unwrap().rotary, 1);
            let nodes = &model.graph.nodes;
            assert_eq!(nodes[1].int("start"), Some(axis));
            let last = nodes.last().unwrap();
            assert_eq!((&last.op_type[..], &last.inputs[1]), ("RotaryEmbedding", &nodes[nodes.len() - 2].outputs[0]));
            check::check(&model).unwrap();
        }
    }
    let mut model = rotation(3, Some(2));
    assert_eq!(lower_for_openvino(&mut model).unwrap().rotary, 0);
    assert_eq!(op_types(&model.graph), ["RotaryEmbedding"]);
}

#[test]
fn rotation_in_the_body_of_an_if_is_found_by_the_ranks_around_it() {
    let mut model = rotation(3, Some(1));
    let inner = std::mem::take(&mut model.graph.nodes);
    let output = inner[0].outputs[0].clone();
    let outputs = vec![ValueInfo { name: output.clone(), ty: None }];
    let body = |nodes| Attribute::Graph(Box::new(Graph { outputs: outputs.clone(), nodes, ..Graph::default() }));
    let attributes = [("then_branch", body(inner.clone())), ("else_branch", body(inner))];
    model.graph.nodes = vec![node("If", &["p"], "chosen", &attributes)];
    model.graph.outputs[0].name = "chosen".into();
    assert_eq!(lower_for_openvino(&mut model).unwrap().rotary, 2);
    let bodies: Vec<&Graph> = crate::walk::bodies(&model.graph.nodes[0]).collect();
    assert!(bodies.iter().all(|body| op_types(body).contains(&"Expand")));
    let names: HashSet<&String> = bodies.iter().flat_map(|body| &body.nodes).flat_map(|node| &node.outputs).collect();
    let count: usize = bodies.iter().map(|body| body.nodes.len()).sum();
    assert_eq!(names.len() + 1, count, "only the node's own output is in both");
}

#[test]
fn what_openvino_lacks_or_computes_wrongly_is_refused_by_name() {
    let refused = |model: &mut Model| lower_for_openvino(model).unwrap_err();
    for op in LACKING {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [4_usize]);
        let y = b.op(op, &[&x]);
        b.output("y", &y, DataType::Float, [4_usize]);
        let mut model = b.finish().unwrap();
        assert!(lower_for_openvino(&mut model.clone()).is_ok(), "only in that domain");
        CONTRIB.clone_into(&mut model.graph.nodes[0].domain);
        assert_eq!(refused(&mut model).to_string(), format!("node `{op}` ({op}): OpenVINO has no such operator"));
    }
    assert!(refused(&mut rotation(3, None)).reason.contains("one position for all tokens"));
    assert!(refused(&mut rotation(2, Some(1))).reason.contains("one position for all tokens"));
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [4_usize]);
    let w = b.input("w", DataType::Uint8, [3_usize, 1, 32]);
    let y = b.op("MatMulNBits", &[&x, &w]);
    b.output("y", &y, DataType::Float, [3_usize]);
    let mut model = b.finish().unwrap();
    CONTRIB.clone_into(&mut model.graph.nodes[0].domain);
    assert!(refused(&mut model).reason.contains("constant only"));
}

#[test]
fn matrices_in_8_bits_and_their_scales_stay_constants_whose_data_lie_elsewhere() {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [2_usize, 64]);
    let (w, bias) = (weight(&mut b, "w", &[32, 64]), weight(&mut b, "bias", &[32]));
    let (other, y) = (weight(&mut b, "other", &[32, 32]), b.node("Gemm", &[&x, &w, &bias]).attr("transB", 1).out());
    let y = b.op("MatMul", &[&y, &other]);
    b.output("y", &y, DataType::Float, [2_usize, 32]);
    let mut model = b.finish().unwrap();
    assert_eq!(quantize_weights(&mut model, &["w".to_owned()], 32), 1);
    // Also where the layer lies in the body of another.
    let layer = model.graph.nodes.remove(0);
    let outputs = vec![ValueInfo { name: layer.outputs[0].clone(), ty: None }];
    let body = || {
        Attribute::Graph(Box::new(Graph { outputs: outputs.clone(), nodes: vec![layer.clone()], ..Graph::default() }))
    };
    let branches = [("then_branch", body()), ("else_branch", body())];
    let (mut outside, mut inside) = (model.clone(), model);
    outside.graph.nodes.insert(0, layer.clone());
    inside.graph.nodes.insert(0, node("If", &["p"], &layer.outputs[0], &branches));
    for mut model in [outside, inside] {
        let done = lower_for_openvino(&mut model).unwrap();
        assert_eq!(
            (&done.weights[..], &done.constants[..]),
            (&["other".to_owned()][..], &["w.int8", "w.int8_scales"].map(str::to_owned)[..])
        );
        let lie_outside = model.graph.initializers.iter().filter(|(_, value)| value.external);
        assert_eq!(lie_outside.map(|(name, _)| name).collect::<Vec<_>>(), ["w.int8", "w.int8_scales"]);
    }
}

#[test]
fn constants_in_blocks_are_refused_along_every_axis_but_the_first() {
    let model = |axis: Option<i64>, block: i64, constant: bool| {
        let mut b = Builder::new("g");
        let shape = [4_usize, 4];
        let x = if constant { b.floats(&shape, &[0.0; 16]) } else { b.input("x", DataType::Int8, shape) };
        let scale = b.floats(&[2, 4], &[1.0; 8]);
        let mut node = b.node("DequantizeLinear", &[&x, &scale]).attr("block_size", block);
        if let Some(axis) = axis {
            node = node.attr("axis", axis);
        }
        let y = node.out();
        b.output("y", &y, DataType::Float, shape);
        b.finish().unwrap()
    };
    for (axis, block, constant, taken) in [
        (None, 2, true, false),
        (Some(1), 2, true, false),
        (Some(-1), 2, true, false),
        (Some(0), 2, true, true),
        (Some(-2), 2, true, true),
        (Some(1), 0, true, true),
        (Some(1), 2, false, true),
    ] {
        let lowered = lower_for_openvino(&mut model(axis, block, constant));
        assert_eq!(lowered.is_ok(), taken, "{axis:?}, {block}, {constant}: {lowered:?}");
    }
}

/// A rotation of two heads of this width by two tables, as it is written for ONNX Runtime.
fn rotated_by_tables(dim: usize) -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("batch"), "tokens".into(), (2 * dim).into()]);
    let mut table = |name| b.input(name, DataType::Float, [Dim::from("rows"), dim.into()]);
    let (cos, sin) = (table("cos"), table("sin"));
    let (batch, length) = (b.extent(&x, 0), b.ints(&[0]));
    let tables = RotaryTables::new(&mut b, &cos, &sin, &length, dim);
    let split = blocks::split_heads(&mut b, &x, &batch, 2, dim);
    let turned = b.transpose(&split, &[0, 2, 1, 3]);
    let rotated = blocks::rotate_interleaved(&mut b, &turned, &tables, dim);
    let y = blocks::merge_heads(&mut b, &rotated, 2, dim);
    b.output("y", &y, DataType::Float, [Dim::from("batch"), "tokens".into(), (2 * dim).into()]);
    let mut model = b.finish().unwrap();
    optimize(&mut model).unwrap();
    infer_shapes(&mut model);
    assert_eq!(lower_for_ort(&mut model, &Passes::default()).rotary, 1);
    model
}

#[test]
fn rotations_lose_their_choice_if_it_is_the_one_that_was_made_for_onnx_runtime() {
    let choices = |model: &Model| model.graph.nodes.iter().filter(|node| node.op_type == "If").count();
    let lowered = |model: &mut Model| {
        lower_for_openvino(model).unwrap();
        choices(model)
    };
    let mut ours = rotated_by_tables(8);
    assert_eq!((choices(&ours), lowered(&mut ours)), (1, 0));
    check::check(&ours).unwrap();
    // Its matrix would be larger than all else.
    assert_eq!(lowered(&mut rotated_by_tables(2048)), 1);
    let spoil: [fn(&mut Node); 6] = [
        // Of a stranger, who may choose by anything.
        |choice| choice.outputs[0] = "theirs".to_owned(),
        |choice| body(choice, "then_branch").nodes.clear(),
        |choice| body(choice, "then_branch").nodes.last_mut().unwrap().op_type = "Identity".to_owned(),
        |choice| *attribute(body(choice, "then_branch"), "num_heads") = Attribute::Int(0),
        // Of an odd width.
        |choice| *attribute(body(choice, "then_branch"), "num_heads") = Attribute::Int(16),
        |choice| body(choice, "else_branch").nodes.iter_mut().for_each(|node| node.inputs.truncate(1)),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let mut model = rotated_by_tables(8);
        let choice = model.graph.nodes.iter_mut().find(|node| node.op_type == "If").unwrap();
        spoil(choice);
        assert!(rotation::find(choice).is_none(), "{number}");
    }
}

fn body<'a>(node: &'a mut Node, name: &str) -> &'a mut Graph {
    match node.attributes.get_mut(name).unwrap() {
        Attribute::Graph(body) => body,
        other => panic!("{other:?}"),
    }
}

fn attribute<'a>(body: &'a mut Graph, name: &str) -> &'a mut Attribute {
    body.nodes.last_mut().unwrap().attributes.get_mut(name).unwrap()
}
