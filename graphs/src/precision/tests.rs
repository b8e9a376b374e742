use super::*;
use half::f16;

use crate::{Attribute, Builder, DataType, Dim, Initializer, Model, TensorData, check};

const F32: DataType = DataType::Float;
const F16: DataType = DataType::Float16;
const BF16: DataType = DataType::Bfloat16;

fn weight(b: &mut Builder, name: &str, shape: &[usize]) -> crate::Value {
    let count: usize = shape.iter().product();
    let bytes: Vec<u8> = (0..count).flat_map(|i| (i as f32 / 7.0).to_le_bytes()).collect();
    b.initializer(name, Initializer::weight(F32, shape, TensorData::raw(bytes)))
}

/// Gemm, Sqrt, Transpose, Gemm.
fn model() -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(4)]);
    let (first, second) = (weight(&mut b, "first", &[4, 4]), weight(&mut b, "second", &[4, 4]));
    let bias = weight(&mut b, "bias", &[4]);
    let h = b.node("Gemm", &[&x, &first, &bias]).attr("transB", 1).out();
    let h = b.op("Sqrt", &[&h]);
    let two = b.float(2.0);
    let h = b.op("Mul", &[&h, &two]);
    let y = b.node("Gemm", &[&h, &second]).attr("transB", 1).out();
    b.output("y", &y, F32, [Dim::from("n"), Dim::Fixed(4)]);
    let mut model = b.finish().unwrap();
    crate::passes::infer_shapes(&mut model);
    model
}

fn applied(types: &[DataType]) -> Model {
    let mut model = model();
    let storage = matrix_types(&[(&model, types)]);
    apply_precision(&mut model, types, &|name, _| storage.get(name).copied().unwrap_or(F32));
    check::check(&model).unwrap();
    model
}

fn nodes(model: &Model) -> Vec<String> {
    let line = |n: &crate::Node| format!("{} = {}({})", n.outputs.join(", "), n.op_type, n.inputs.join(", "));
    model.graph.nodes.iter().map(line).collect()
}

#[test]
fn apply_precision_puts_one_cast_where_types_meet_and_none_before_matrices() {
    let model = applied(&[F16, F32, F32, BF16]);
    assert_eq!(
        nodes(&model),
        [
            "x.float16 = Cast(x)",
            "bias.float16 = Cast(bias)",
            "Gemm = Gemm(x.float16, first, bias.float16)",
            "Gemm.float32 = Cast(Gemm)",
            "Sqrt = Sqrt(Gemm.float32)",
            "Mul = Mul(Sqrt, constant_0)",
            "Mul.bfloat16 = Cast(Mul)",
            "y.bfloat16 = Gemm(Mul.bfloat16, second)",
            "y = Cast(y.bfloat16)",
        ]
    );
    let weights = &model.graph.initializers;
    assert_eq!((weights["first"].dtype, weights["second"].dtype, weights["bias"].dtype), (F16, BF16, F32));
    let recorded = |name: &str| {
        let info = model.graph.value_info.iter().find(|i| i.name == name).unwrap();
        info.ty.as_ref().unwrap().dtype
    };
    assert_eq!((recorded("Gemm"), recorded("Sqrt")), (F16, F32));
}

#[test]
fn count_casts_counts_what_apply_precision_inserts_behind_computed_values() {
    let model = model();
    for types in [[F32; 4], [F16; 4], [F16, F32, F32, BF16], [BF16, F16, BF16, F16], [F32, F16, F32, F32]] {
        let lowered = applied(&types);
        let casts = lowered.graph.nodes.iter().filter(|n| n.op_type == "Cast" && n.inputs[0] != "bias").count();
        assert_eq!(count_casts(&model.graph, &types), casts, "{types:?}");
    }
}

#[test]
fn save_casts_moves_a_chain_between_exceptions_and_never_adds_one() {
    let model = model();
    // Between two float32 products, the chain is cheaper in float32, though no single node of it is.
    let mut types = [F32, F16, F16, F32];
    assert_eq!(save_casts(&model.graph, &mut types, &[false, true, true, false]), 2);
    assert_eq!(types, [F32; 4]);
    let mut rest = 7u64;
    for _ in 0..500 {
        let mut draw = |n: u64| {
            rest = rest.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rest >> 33) % n
        };
        let mut types = [(); 4].map(|()| [F32, F16, BF16][draw(3) as usize]);
        let movable = [(); 4].map(|()| draw(2) == 0);
        let (old, before) = (types, count_casts(&model.graph, &types));
        let saved = save_casts(&model.graph, &mut types, &movable);
        assert_eq!(count_casts(&model.graph, &types) + saved, before);
        let kept = |i: usize| types[i] == old[i] || (movable[i] && types[i] == F32);
        assert!((0..4).all(kept), "{old:?} {types:?}");
    }
}

#[test]
fn emulate_precision_rounds_behind_each_16_bit_node_and_keeps_names() {
    let mut model = applied(&[F16, F32, F32, BF16]);
    emulate_precision(&mut model);
    check::check(&model).unwrap();
    let types = value_types(&model.graph);
    for name in ["x.float16", "Gemm", "Gemm.float32", "Sqrt", "Mul", "y"] {
        assert_eq!(types[name], F32, "{name}");
    }
    let lines = nodes(&model);
    for line in [
        "Gemm.exact = Gemm(x.float16, first, bias.float16)",
        "Gemm.float16 = Cast(Gemm.exact)",
        "Gemm = Cast(Gemm.float16)",
        "Gemm.float32 = Identity(Gemm)",
        "Sqrt = Sqrt(Gemm.float32)",
        "x.float16.float16 = Cast(x.float16.exact)",
        "y = Identity(y.bfloat16)",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} is not in {lines:#?}");
    }
    let mut names: Vec<&String> = model.graph.nodes.iter().map(|n| &n.name).collect();
    names.sort();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    let first = &model.graph.initializers["first"];
    assert_eq!(first.dtype, F32);
    let bytes = first.data.to_bytes().unwrap();
    let third = f32::from_le_bytes(bytes[12..16].try_into().unwrap());
    assert_eq!(third, f16::from_f32(3.0 / 7.0).to_f32(), "weights are rounded as they are stored");
}

#[test]
fn matrix_that_two_types_read_keeps_the_type_of_the_source() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize, 4]);
    let w = weight(&mut b, "w", &[4, 4]);
    let (one, two) = (b.op("MatMul", &[&x, &w]), b.op("MatMul", &[&x, &w]));
    let y = b.op("Add", &[&one, &two]);
    b.output("y", &y, F32, [4usize, 4]);
    let model = b.finish().unwrap();
    let ty = |types: &[DataType]| matrix_types(&[(&model, types)])["w"];
    assert_eq!(ty(&[F16, F16, F32]), F16);
    assert_eq!(ty(&[F16, BF16, F32]), F32);
    assert_eq!(ty(&[F16, F32, F32]), F32);
    assert_eq!(matrix_types(&[(&model, &[F16; 3]), (&model, &[BF16; 3])])["w"], F32);
}

#[test]
fn freedom_keeps_unknown_operators_and_comparisons_in_float32() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let odd = b.op("NoSuchOperator", &[&x]);
    let made = b.op("Add", &[&odd, &x]);
    let shape = b.op("Shape", &[&x]);
    let zero = b.float(0.0);
    let less = b.op("Less", &[&x, &zero]);
    let chosen = b.op("Where", &[&less, &x, &zero]);
    let integer = b.cast(&x, DataType::Int64);
    for (name, value) in [("a", &made), ("b", &shape), ("c", &chosen), ("d", &integer)] {
        b.output(name, value, F32, [4usize]);
    }
    let model = b.finish().unwrap();
    let found = freedom(&model.graph);
    use Freedom::{Any, Float32, Typeless};
    assert_eq!(found, [Float32, Float32, Typeless, Float32, Any, Float32]);
}

#[test]
fn node_labels_are_unique_where_names_are_not() {
    let mut model = model();
    for node in &mut model.graph.nodes[..2] {
        node.name = "same".into();
    }
    model.graph.nodes[2].name.clear();
    assert_eq!(node_labels(&model.graph), ["Gemm -> Gemm", "Sqrt -> Sqrt", "Mul -> Mul", "Gemm_1"]);
}

/// `y = If(flag) Relu(c · w) else −c`, `c` a float16 cast of the float32 input `x`, all of it in float16 but `x`.
fn branching() -> Model {
    let body = |b: Builder| b.finish().unwrap().graph;
    let (c, w) = (crate::Value::from("Cast"), crate::Value::from("w"));
    let mut b = Builder::new("then");
    let half = b.initializer("half", Initializer::inline(F16, &[], f16::from_f32(0.5).to_le_bytes().to_vec()));
    let product = b.op("MatMul", &[&c, &w]);
    let scaled = b.op("Mul", &[&product, &half]);
    let back = b.scope("then", |b| {
        let rounded = b.cast(&scaled, BF16);
        b.cast(&rounded, F16)
    });
    let then = b.op("Relu", &[&back]);
    b.output("then_y", &then, F16, [Dim::from("n"), Dim::Fixed(4)]);
    let then = body(b);
    let mut b = Builder::new("else");
    let other = b.op("Neg", &[&c]);
    b.output("else_y", &other, F16, [Dim::from("n"), Dim::Fixed(4)]);
    let other = body(b);
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [Dim::from("n"), Dim::Fixed(4)]);
    let flag = b.input("flag", DataType::Bool, [0usize; 0]);
    let data = TensorData::raw(vec![0; 32]);
    b.initializer("w", Initializer::weight(F16, &[4, 4], data));
    b.cast(&x, F16);
    let graph = |graph| Attribute::Graph(Box::new(graph));
    let y = b.node("If", &[&flag]).attr("then_branch", graph(then)).attr("else_branch", graph(other)).out();
    b.output("y", &y, F16, [Dim::from("n"), Dim::Fixed(4)]);
    b.finish().unwrap()
}

/// The model as v2l's exporter marks its own.
fn own(mut model: Model) -> Model {
    model.metadata.insert("v2l.component".into(), "transformer".into());
    model
}

#[test]
fn raise_precision_reaches_into_bodies_and_renames_what_they_capture() {
    let mut model = own(branching());
    assert!(uses_narrow_floats(&model.graph));
    raise_precision(&mut model);
    assert!(!uses_narrow_floats(&model.graph));
    check::check(&model).unwrap();
    assert_eq!(model.graph.nodes.len(), 1, "the cast is gone");
    let body = |name: &str| match &model.graph.nodes[0].attributes[name] {
        Attribute::Graph(body) => (**body).clone(),
        other => panic!("{other:?}"),
    };
    let lines: Vec<String> = ["then_branch", "else_branch"]
        .iter()
        .flat_map(|name| body(name).nodes)
        .map(|n| format!("{}({})", n.op_type, n.inputs.join(", ")))
        .collect();
    // A body does not know the types of what it captures: one cast, to the type that is there, stays.
    assert_eq!(lines, ["MatMul(x, w)", "Mul(MatMul, half)", "Cast(Mul)", "Relu(then/Cast)", "Neg(x)"]);
    assert_eq!(body("then_branch").initializers["half"].dtype, F32);
}

#[test]
fn raise_precision_keeps_what_bodies_read_of_an_output_that_was_cast() {
    let mut b = Builder::new("body");
    let inner = b.op("Neg", &[&"Relu".into()]);
    b.output("inner", &inner, F32, [4usize]);
    let body = b.finish().unwrap().graph;
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let flag = b.input("flag", DataType::Bool, [0usize; 0]);
    let made = b.op("Relu", &[&x]);
    let cast = b.cast(&made, F16);
    b.output("y", &cast, F16, [4usize]);
    let graph = || Attribute::Graph(Box::new(body.clone()));
    let z = b.node("If", &[&flag]).attr("then_branch", graph()).attr("else_branch", graph()).out();
    b.output("z", &z, F32, [4usize]);
    let mut model = own(b.finish().unwrap());
    raise_precision(&mut model);
    assert_eq!(nodes(&model), ["y = Relu(x)", "z = If(flag)"]);
    check::check(&model).unwrap();
}

#[test]
fn raise_precision_of_a_model_from_elsewhere_keeps_the_rounding_that_it_asks_for() {
    let mut model = branching();
    raise_precision(&mut model);
    check::check(&model).unwrap();
    assert_eq!(nodes(&model), ["Cast.rounded = Cast(x)", "Cast = Cast(Cast.rounded)", "y = If(flag)"]);
    let Attribute::Graph(body) = &model.graph.nodes[2].attributes["then_branch"] else { panic!() };
    let lines: Vec<String> = body.nodes.iter().map(|n| format!("{}({})", n.op_type, n.inputs.join(", "))).collect();
    assert_eq!(
        lines,
        [
            "MatMul(Cast, w)",
            "Mul(MatMul, half)",
            "Cast(Mul)",
            "Cast(then/Cast.rounded)",
            "Cast(then/Cast)",
            "Cast(then/Cast_1.rounded)",
            "Relu(then/Cast_1)"
        ]
    );
}

#[test]
fn raise_precision_rounds_where_a_cast_loses_something_and_nowhere_else() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let half = b.input("half", F16, [4usize]);
    let steps = b.input("steps", DataType::Int64, [4usize]);
    let bytes = b.input("bytes", DataType::Uint8, [4usize]);
    let wide = b.input("wide", DataType::Double, [4usize]);
    for (name, value, to) in [
        ("rounded", &x, BF16),
        ("again", &half, BF16),
        ("counted", &steps, F16),
        ("narrowed", &wide, F16),
        ("small", &bytes, BF16),
        ("same", &half, F16),
        ("widened", &half, F32),
    ] {
        let made = b.cast(value, to);
        let made = b.op("Neg", &[&made]);
        b.output(name, &made, to, [4usize]);
    }
    let like = b.op("CastLike", &[&x, &half]);
    b.output("like", &like, F16, [4usize]);
    let mut model = b.finish().unwrap();
    raise_precision(&mut model);
    check::check(&model).unwrap();
    let types = value_types(&model.graph);
    let rounded: Vec<&str> = model
        .graph
        .nodes
        .iter()
        .filter(|n| n.op_type == "Cast" && types[&n.outputs[0]].size() == 2)
        .map(|n| &n.inputs[0][..])
        .collect();
    assert_eq!(rounded, ["x", "half", "steps", "wide", "x"]);
    assert!(model.graph.outputs.iter().all(|o| types[&o.name] == F32));
}

#[test]
fn cast_to_16_bits_computes_in_float32_whatever_the_plan() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let narrow = b.cast(&x, BF16);
    let wide = b.cast(&narrow, F32);
    let y = b.op("Neg", &[&wide]);
    b.output("y", &y, F32, [4usize]);
    let mut model = b.finish().unwrap();
    assert_eq!(freedom(&model.graph), [Freedom::Float32, Freedom::Any, Freedom::Any]);
    apply_precision(&mut model, &[F32, F16, F16], &|_, _| F32);
    check::check(&model).unwrap();
    assert_eq!(nodes(&model)[..2], ["Cast = Cast(x)", "Cast_1 = Cast(Cast)"]);
    assert_eq!(value_types(&model.graph)["Cast_1"], F16);
}

#[test]
fn casts_and_moves_are_no_arithmetic_in_16_bits() {
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [4usize]);
    let narrow = b.cast(&x, BF16);
    let moved = b.reshape(&narrow, &[2i64.into(), 2i64.into()]);
    let wide = b.cast(&moved, F32);
    b.output("y", &wide, F32, [2usize, 2]);
    let model = b.finish().unwrap();
    assert!(uses_narrow_floats(&model.graph) && !computes_in_16_bits(&model.graph));
    assert!(computes_in_16_bits(&branching().graph));
}
