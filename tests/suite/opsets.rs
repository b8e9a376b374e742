//! Models of later operator sets and IR versions than the vendored ONNX Runtime knows, and numbers that no model has.

use std::path::PathBuf;

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use v2l_graphs::passes::lower_opset;
use v2l_graphs::{Attribute, Builder, DataType, Dim, Model, Value, encode_model};
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::bad_input::refuse;
use crate::precision::{noise, run};
use crate::tools::{Scratch, args, command, run_ok};

const BAD_MODEL: i32 = 3;
const UNSUPPORTED: i32 = 4;

const F32: DataType = DataType::Float;

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values.to_vec()).unwrap()
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    floats(shape, &noise(seed, shape.iter().product()))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32().unwrap().iter().copied().collect()
}

fn element(tensor: &Tensor) -> DataType {
    match tensor {
        Tensor::F32(_) => F32,
        Tensor::F64(_) => DataType::Double,
        Tensor::I8(_) => DataType::Int8,
        Tensor::I32(_) => DataType::Int32,
        Tensor::I64(_) => DataType::Int64,
        Tensor::U8(_) => DataType::Uint8,
        Tensor::U32(_) => DataType::Uint32,
        Tensor::U64(_) => DataType::Uint64,
        other => panic!("{}", other.dtype()),
    }
}

/// One node of this operator set over `x0`, `x1`, …, and its outputs `y0`, `y1`, … of these types and ranks.
fn model(
    opset: i64,
    op_type: &str,
    attributes: &[(&str, Attribute)],
    inputs: &[Tensor],
    outputs: &[(DataType, usize)],
) -> Model {
    let mut b = Builder::new("g");
    let of =
        |(at, tensor): (usize, &Tensor)| b.input(&format!("x{at}"), element(tensor), tensor.shape().iter().copied());
    let inputs: Vec<Value> = inputs.iter().enumerate().map(of).collect();
    let mut node = b.node(op_type, &inputs.iter().collect::<Vec<_>>());
    for (name, value) in attributes {
        node = node.attr(name, value.clone());
    }
    let made = node.outs(outputs.len());
    for (at, (value, (dtype, rank))) in made.iter().zip(outputs).enumerate() {
        b.output(&format!("y{at}"), value, *dtype, (0..*rank).map(|axis| Dim::Symbol(format!("y{at}.{axis}"))));
    }
    let mut model = b.finish().unwrap();
    model.opsets.insert(String::new(), opset);
    model
}

fn results(model: &Model, inputs: &[Tensor]) -> IndexMap<String, Tensor> {
    let names: Vec<String> = (0..inputs.len()).map(|at| format!("x{at}")).collect();
    let given: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(inputs).collect();
    run(model, &given)
}

/// The model in its oldest form.
fn lowered(model: &Model) -> Model {
    let mut model = model.clone();
    let versions = lower_opset(&mut model).unwrap();
    assert_eq!(versions.late, []);
    model
}

fn int(name: &'static str, value: i64) -> (&'static str, Attribute) {
    (name, Attribute::Int(value))
}

fn text(name: &'static str, value: &str) -> (&'static str, Attribute) {
    (name, Attribute::from(value))
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0) || (found.is_nan() && expected.is_nan());
        assert!(near, "{what}: element {at}: {found}, expected {expected}");
    }
}

#[test]
fn older_forms_give_what_onnx_runtime_makes_of_the_newer_ones() {
    let x = random(1, &[2, 3, 4]);
    let bytes = Tensor::I8(ArrayD::from_shape_fn(IxDyn(&[2, 4]), |at| (at[0] * 40 + at[1] * 9) as i8));
    let scale = floats(&[], &[0.25]);
    for (opset, op_type, attributes, inputs, output) in [
        (24, "Swish", vec![], vec![x.clone()], (F32, 3)),
        (24, "Swish", vec![("alpha", Attribute::Float(1.5))], vec![x.clone()], (F32, 3)),
        (24, "Cast", vec![int("to", 3)], vec![x.clone()], (DataType::Int8, 3)),
        (24, "CastLike", vec![], vec![x.clone(), bytes.clone()], (DataType::Int8, 3)),
        (23, "DequantizeLinear", vec![int("output_dtype", 1)], vec![bytes.clone(), scale.clone()], (F32, 2)),
        (24, "DequantizeLinear", vec![], vec![bytes.clone(), scale.clone()], (F32, 2)),
        (23, "QuantizeLinear", vec![int("precision", 1)], vec![x.clone(), scale.clone()], (DataType::Uint8, 3)),
        (25, "QuantizeLinear", vec![int("output_dtype", 3)], vec![x.clone(), scale], (DataType::Int8, 3)),
        (25, "Squeeze", vec![], vec![random(2, &[1, 5])], (F32, 1)),
        (26, "Transpose", vec![], vec![x], (F32, 3)),
    ] {
        let model = model(opset, op_type, &attributes, &inputs, &[output]);
        let (newer, older) = (results(&model, &inputs), results(&lowered(&model), &inputs));
        match &newer["y0"] {
            Tensor::F32(_) => close(op_type, &values(&older["y0"]), &values(&newer["y0"])),
            other => assert_eq!(older["y0"], *other, "{op_type}"),
        }
    }
}

/// Attention keeps operator set 23: only later additions that are not used go.
#[test]
fn attention_of_operator_set_24_gives_the_bits_of_that_of_23() {
    let inputs = [random(1, &[1, 2, 4, 8]), random(2, &[1, 2, 4, 8]), random(3, &[1, 2, 4, 8])];
    let newer = model(24, "Attention", &[int("is_causal", 1)], &inputs, &[(F32, 4)]);
    let mut older = newer.clone();
    assert_eq!(lower_opset(&mut older).unwrap().opset, 23);
    assert_eq!(results(&older, &inputs), results(&newer, &inputs));
}

#[test]
fn floored_remainders_of_floats_are_those_of_python() {
    let inf = f32::INFINITY;
    let a = [7.5, -7.5, 7.5, -7.5, 6.0, -6.0, 0.0, 5.0, -5.0, inf, 5.0, f32::NAN];
    let b = [2.0, 2.0, -2.0, -2.0, 3.0, 3.0, -3.0, inf, inf, 2.0, 0.0, 2.0];
    let expected = [1.5, 0.5, -0.5, -1.5, 0.0, 0.0, -0.0, 5.0, inf, f32::NAN, f32::NAN, f32::NAN];
    let inputs = [floats(&[12], &a), floats(&[12], &b)];
    let found = values(&results(&lowered(&model(28, "Mod", &[], &inputs, &[(F32, 1)])), &inputs)["y0"]);
    for (found, expected) in found.iter().zip(expected) {
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "{found}, expected {expected}");
    }
}

#[test]
fn shifts_by_any_amount_are_those_of_arithmetic() {
    let of = |x: Tensor, amount: Tensor, direction: &str| {
        let inputs = [x, amount];
        let element = element(&inputs[0]);
        let model = model(28, "BitShift", &[text("direction", direction)], &inputs, &[(element, 1)]);
        results(&lowered(&model), &inputs)["y0"].clone()
    };
    let signed = |values: &[i8]| Tensor::I8(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap());
    let x = signed(&[-128, -3, 5, 127, -1, 100, 1, -1]);
    let amount = signed(&[1, 1, 1, 3, 7, 8, -1, 100]);
    assert_eq!(of(x.clone(), amount.clone(), "RIGHT"), signed(&[-64, -2, 2, 15, -1, 0, 0, -1]));
    assert_eq!(of(x, amount, "LEFT"), signed(&[0, -6, 10, -8, -128, 0, 0, 0]));
    let wide = |values: &[u64]| Tensor::U64(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap());
    let x = wide(&[u64::MAX, 1 << 63, 6, 6]);
    let amount = wide(&[1, 63, 64, u64::MAX]);
    assert_eq!(of(x.clone(), amount.clone(), "RIGHT"), wide(&[u64::MAX >> 1, 1, 0, 0]));
    assert_eq!(of(x, amount, "LEFT"), wide(&[u64::MAX - 1, 0, 0, 0]));
    let small = |values: &[u32]| Tensor::U32(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap());
    assert_eq!(of(small(&[u32::MAX, 8]), small(&[4, 32]), "LEFT"), small(&[u32::MAX << 4, 0]));
}

#[test]
fn space_to_depth_by_columns_puts_blocks_behind_the_depth() {
    let (channels, height, width) = (3, 4, 6);
    let inputs = [random(5, &[2, channels, height, width])];
    let attributes = [int("blocksize", 2), text("mode", "CRD")];
    let found = results(&lowered(&model(28, "SpaceToDepth", &attributes, &inputs, &[(F32, 4)])), &inputs);
    let (x, y) = (inputs[0].to_f32().unwrap(), found["y0"].to_f32().unwrap());
    assert_eq!(y.shape(), [2, channels * 4, height / 2, width / 2]);
    for (at, value) in y.indexed_iter() {
        let (channel, row, column) = (at[1] / 4, at[1] % 4 / 2, at[1] % 2);
        assert_eq!(*value, x[[at[0], channel, at[2] * 2 + row, at[3] * 2 + column]]);
    }
}

#[test]
fn gated_units_multiply_swish_with_the_other_half() {
    let inputs = [random(6, &[3, 4]), random(7, &[3, 4])];
    let attributes = [("alpha", Attribute::Float(0.5))];
    let found = results(&lowered(&model(28, "SwiGLU", &attributes, &inputs, &[(F32, 2)])), &inputs);
    let pairs = values(&inputs[0]).into_iter().zip(values(&inputs[1]));
    let expected: Vec<f32> = pairs.map(|(a, b)| a / (1.0 + (-0.5 * a).exp()) * b).collect();
    close("SwiGLU", &values(&found["y0"]), &expected);
}

#[test]
fn causal_convolution_goes_over_the_state_and_gives_the_next_one() {
    let (channels, length, kernel) = (3, 5, 3);
    let [x, weight, bias] =
        [random(8, &[2, channels, length]), random(9, &[channels, 1, kernel]), random(10, &[channels])];
    let state = random(11, &[2, channels, kernel - 1]);
    for (inputs, active) in [(vec![x.clone(), weight.clone()], false), (vec![x, weight, bias, state], true)] {
        let attributes = if active { vec![text("activation", "silu")] } else { vec![] };
        let model = model(27, "CausalConvWithState", &attributes, &inputs, &[(F32, 3), (F32, 3)]);
        let found = results(&lowered(&model), &inputs);
        let arrays: Vec<ArrayD<f32>> = inputs.iter().map(|input| input.to_f32().unwrap()).collect();
        let before = |batch: usize, channel: usize, at: usize| match at.checked_sub(kernel - 1) {
            Some(at) => arrays[0][[batch, channel, at]],
            None => arrays.get(3).map_or(0.0, |state| state[[batch, channel, at]]),
        };
        let (mut results, mut kept) = (Vec::new(), Vec::new());
        for (batch, channel) in (0..2).flat_map(|batch| (0..channels).map(move |channel| (batch, channel))) {
            for at in 0..length {
                let sum: f32 = (0..kernel).map(|k| arrays[1][[channel, 0, k]] * before(batch, channel, at + k)).sum();
                let sum = sum + arrays.get(2).map_or(0.0, |bias| bias[[channel]]);
                results.push(if active { sum / (1.0 + (-sum).exp()) } else { sum });
            }
            kept.extend((length..length + kernel - 1).map(|at| before(batch, channel, at)));
        }
        close("convolution", &values(&found["y0"]), &results);
        close("state", &values(&found["y1"]), &kept);
    }
}

#[test]
fn linear_attention_is_its_recurrence_for_every_rule() {
    let (tokens, queries, keys, depth, width) = (4, 4, 2, 3, 5);
    let [q, k, v] = [
        random(12, &[1, tokens, queries * depth]),
        random(13, &[1, tokens, keys * depth]),
        random(14, &[1, tokens, keys * width]),
    ];
    let (state, decay, rate) =
        (random(15, &[1, keys, depth, width]), random(16, &[1, tokens, keys]), random(17, &[1, tokens, keys]));
    let inputs = [q, k, v, state, decay, rate];
    let [q, k, v, state, decay, rate] = inputs.clone().map(|input| input.to_f32().unwrap());
    for rule in ["linear", "gated", "delta", "gated_delta"] {
        let attributes =
            [int("q_num_heads", queries as i64), int("kv_num_heads", keys as i64), text("update_rule", rule)];
        let model = model(27, "LinearAttention", &attributes, &inputs, &[(F32, 3), (F32, 4)]);
        let found = results(&lowered(&model), &inputs);
        let (decays, corrects) = (rule.starts_with("gated"), rule.ends_with("delta"));
        let (mut s, mut expected) = (state.clone(), Vec::new());
        for t in 0..tokens {
            for h in 0..keys {
                let told =
                    |s: &ArrayD<f32>, j: usize| (0..depth).map(|i| s[[0, h, i, j]] * k[[0, t, h * depth + i]]).sum();
                if decays {
                    for (i, j) in (0..depth).flat_map(|i| (0..width).map(move |j| (i, j))) {
                        s[[0, h, i, j]] *= decay[[0, t, h]].exp();
                    }
                }
                let added: Vec<f32> = (0..width)
                    .map(|j| {
                        let value = v[[0, t, h * width + j]];
                        let told: f32 = told(&s, j);
                        if corrects { rate[[0, t, h]] * (value - told) } else { value }
                    })
                    .collect();
                for (i, j) in (0..depth).flat_map(|i| (0..width).map(move |j| (i, j))) {
                    s[[0, h, i, j]] += k[[0, t, h * depth + i]] * added[j];
                }
            }
            for h in 0..queries {
                let of = h / (queries / keys);
                expected.extend((0..width).map(|j| {
                    let sum: f32 = (0..depth).map(|i| q[[0, t, h * depth + i]] * s[[0, of, i, j]]).sum();
                    sum / (depth as f32).sqrt()
                }));
            }
        }
        close(rule, &values(&found["y0"]), &expected);
        close(rule, &values(&found["y1"]), &s.iter().copied().collect::<Vec<_>>());
    }
}

/// `y = 2 · (If(flag, SwiGLU(x, x), Swish(x)) + x)`, of the newest operator set and IR version.
fn newest() -> Model {
    let mut branch = Builder::new("gated");
    let gated = branch.op("SwiGLU", &[&Value::from("x"), &Value::from("x")]);
    branch.output("gated", &gated, F32, [2usize, 4]);
    let mut other = Builder::new("plain");
    let plain = other.op("Swish", &[&Value::from("x")]);
    other.output("plain", &plain, F32, [2usize, 4]);
    let body = |b: Builder| Attribute::Graph(Box::new(b.finish().unwrap().graph));
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [2usize, 4]);
    let flag = b.input("flag", DataType::Bool, [0usize; 0]);
    let chosen = b.node("If", &[&flag]).attr("then_branch", body(branch)).attr("else_branch", body(other)).out();
    let typed = b.op("Add", &[&chosen, &x]);
    let two = b.float(2.0);
    let y = b.op("Mul", &[&typed, &two]);
    b.output("y", &y, F32, [2usize, 4]);
    let mut model = b.finish().unwrap();
    (model.ir_version, model.opsets[""]) = (14, 28);
    model
}

fn save(scratch: &Scratch, model: &Model) -> PathBuf {
    scratch.write("m.onnx", encode_model(model, &|_| None).unwrap())
}

#[test]
fn model_of_the_newest_ir_version_and_operator_set_compiles_and_runs() {
    let scratch = Scratch::new();
    let (engine, inputs, results) =
        (scratch.path("m.engine"), scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    run_ok("compile", args![save(&scratch, &newest()), "-o", &engine, "--verify"]);
    for flag in [true, false] {
        let x = random(3, &[2, 4]);
        let given =
            [("x".to_owned(), x.clone()), ("flag".to_owned(), Tensor::Bool(ArrayD::from_elem(IxDyn(&[]), flag)))];
        write_tensors(&inputs, &given.into_iter().collect::<NamedTensors>(), &IndexMap::new()).unwrap();
        run_ok("run", args!["--engine", &engine, "--inputs", &inputs, "--outputs", &results]);
        let swish = |x: f32| x / (1.0 + (-x).exp());
        let one = |x: &f32| 2.0 * (x + if flag { swish(*x) * x } else { swish(*x) });
        let expected: Vec<f32> = values(&x).iter().map(one).collect();
        close("y", &values(&read_tensors(&results).unwrap()["y"]), &expected);
    }
    let inspected = run_ok("inspect", args![&scratch.path("m.onnx")]).stdout;
    assert!(inspected.contains("28"), "{inspected}");
}

/// A field of bytes, fewer than 128 of them, of a protobuf message; a number is one byte.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let key = number << 3 | 2;
    let key = if key < 128 { vec![key as u8] } else { vec![key as u8 & 127 | 128, (key >> 7) as u8] };
    [key, vec![bytes.len() as u8], bytes.to_vec()].concat()
}

#[test]
fn function_of_the_newest_operator_set_is_lowered_from_its_own_import() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [2usize, 4]);
    let called = b.op("Gate", &[&x]);
    let y = b.op("Add", &[&called, &x]);
    b.output("y", &y, F32, [2usize, 4]);
    let mut model = b.finish().unwrap();
    model.graph.nodes[0].domain = "acme".into();
    model.opsets.insert("acme".into(), 1);
    model.ir_version = 14;
    let node = [field(1, b"a"), field(2, b"b"), field(4, b"Swish")].concat();
    let opset = [field(1, b""), vec![2 << 3, 28]].concat();
    let named = [field(1, b"Gate"), field(4, b"a"), field(5, b"b")].concat();
    let function = [named, field(7, &node), field(9, &opset), field(10, b"acme")].concat();
    let onnx = scratch.write("m.onnx", [encode_model(&model, &|_| None).unwrap(), field(25, &function)].concat());
    let (engine, inputs, results) =
        (scratch.path("m.engine"), scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    run_ok("compile", args![&onnx, "-o", &engine, "--verify"]);
    let x = random(4, &[2, 4]);
    write_tensors(&inputs, &[("x".to_owned(), x.clone())].into_iter().collect(), &IndexMap::new()).unwrap();
    run_ok("run", args!["--engine", &engine, "--inputs", &inputs, "--outputs", &results]);
    let expected: Vec<f32> = values(&x).iter().map(|x| x / (1.0 + (-x).exp()) + x).collect();
    close("y", &values(&read_tensors(&results).unwrap()["y"]), &expected);
}

#[test]
fn node_that_no_older_operator_set_says_is_refused_by_name_and_version() {
    let scratch = Scratch::new();
    let inputs = [Tensor::F64(ArrayD::zeros(IxDyn(&[3])))];
    for (opset, op_type, version) in [(28, "Celu", 28), (27, "LinearAttention", 27)] {
        let inputs = if op_type == "Celu" { inputs.to_vec() } else { vec![inputs[0].clone(); 3] };
        let mut model = model(opset, op_type, &[], &inputs, &[(DataType::Double, 1)]);
        model.ir_version = 14;
        let message = refuse(
            &scratch,
            command("compile", args![save(&scratch, &model), "-o", scratch.path("m.engine")]),
            UNSUPPORTED,
        );
        let named = format!("{op_type} as operator set {version} has it is not supported: this is ONNX Runtime 1.31");
        assert!(message.contains(&named) && message.contains("V2L_ORT_LIB"), "{message}");
        std::fs::remove_file(scratch.path("m.onnx")).unwrap();
    }
}

#[test]
fn versions_that_no_model_has_are_refused_by_number() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", F32, [2usize]);
    let y = b.op("Relu", &[&x]);
    b.output("y", &y, F32, [2usize]);
    let plain = b.finish().unwrap();
    let opset = |domain: &str, version: i64| {
        let mut model = plain.clone();
        model.opsets.insert(domain.to_owned(), version);
        encode_model(&model, &|_| None).unwrap()
    };
    let ir = |version: i64| encode_model(&Model { ir_version: version, ..plain.clone() }, &|_| None).unwrap();
    // What follows a message adds to it: a second import of ONNX's own domain.
    let twice = |version: u8| [opset("", 22), field(8, &[field(1, b""), vec![2 << 3, version]].concat())].concat();
    for (bytes, exit, words) in [
        (ir(0), BAD_MODEL, "names no IR version"),
        (ir(-1), BAD_MODEL, "IR version -1"),
        (ir(15), UNSUPPORTED, "IR version 15"),
        (ir(1 << 62), UNSUPPORTED, "IR version 4611686018427387904"),
        (opset("", 0), BAD_MODEL, "operator set 0 of domain `ai.onnx`"),
        (opset("", -1), BAD_MODEL, "operator set -1"),
        (opset("", 29), UNSUPPORTED, "operator set 29 of domain `ai.onnx`"),
        (opset("", 1 << 62), UNSUPPORTED, "operator set 4611686018427387904"),
        (opset("ai.onnx.ml", 6), UNSUPPORTED, "operator set 6 of domain `ai.onnx.ml`"),
        (opset("acme", 0), BAD_MODEL, "operator set 0 of domain `acme`"),
        (twice(18), BAD_MODEL, "operator sets 22 and 18 of domain `ai.onnx`"),
        (
            encode_model(&Model { opsets: IndexMap::new(), ..plain.clone() }, &|_| None).unwrap(),
            BAD_MODEL,
            "imports no operator set",
        ),
    ] {
        let onnx = scratch.write("m.onnx", bytes);
        let message = refuse(&scratch, command("compile", args![onnx, "-o", scratch.path("m.engine")]), exit);
        assert!(message.contains(words), "{message}");
    }
    // One import said twice, and a domain that nothing uses, are in nobody's way.
    for bytes in [twice(22), opset("acme", 7), opset("acme", 1 << 40), ir(14), ir(3)] {
        let (onnx, engine) = (scratch.write("m.onnx", bytes), scratch.path("m.engine"));
        run_ok("compile", args![onnx, "-o", &engine, "--verify"]);
        std::fs::remove_file(engine).unwrap();
    }
}
