//! Optimisation passes keep what a model computes, each alone and all together.

use ndarray::{ArrayD, Axis, IxDyn};
use v2l_export::{CompileOptions, ExportOptions, Pass, Passes};
use v2l_graphs::passes::{infer_shapes, lower_for_ort, quantizable, quantize_weights};
use v2l_graphs::{Attribute, Builder, DataType, Dim, Initializer, Model, TensorType, Value, ValueInfo, encode_model};
use v2l_runtime::tensor::Tensor;

use crate::precision::{self, noise, weight};
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run};
use crate::tools::{Scratch, args, command, output};

/// The rewrites sum in another order; one rounding is 6e-8, and these models carry it through a few layers.
const TOLERANCE: f64 = 1e-6;

fn built(variant: &str, off: impl IntoIterator<Item = Pass>) -> Built {
    let options = CompileOptions { passes: Passes::without(off), ..CompileOptions::default() };
    Built::with(&fixtures().join("transformer").join(variant), &ExportOptions::default(), &options)
}

#[test]
fn passes_all_and_each_alone_equal_none_on_every_transformer() {
    for variant in ["rotary_t2v", "sincos_t2v", "fun_inp", "v15_i2v"] {
        let none = built(variant, Pass::ALL);
        let alone = [Pass::Rotary, Pass::Attention, Pass::ModulatedNorm, Pass::Precompute, Pass::TimestepRows]
            .map(|pass| (pass.name(), built(variant, Pass::ALL.into_iter().filter(|&other| other != pass))));
        let all = ("all", built(variant, []));
        for mode in WEIGHT_MODES {
            let mut plain = none.session("transformer", "step", mode);
            let mut sessions: Vec<_> =
                alone.iter().chain([&all]).map(|(name, b)| (name, b.session("transformer", "step", mode))).collect();
            for path in cases(&fixtures().join("transformer").join(variant)) {
                let case = Case::read(&path);
                let expected = f32s(&run(&mut *plain, &case.inputs)["sample"]);
                for (name, session) in &mut sessions {
                    let found = f32s(&run(&mut **session, &case.inputs)["sample"]);
                    assert_close(&format!("{variant} {} {name} {mode:?}", case.name), &found, &expected, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn rotary_pass_with_two_tables_a_pair_equals_no_pass_and_keeps_refusing_tables_of_other_lengths() {
    let variants = [built("rotary_t2v", []), built("rotary_t2v", [Pass::Rotary])];
    let mut case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let usual = f32s(&run(&mut *variants[0].session("transformer", "step", WEIGHT_MODES[0]), &case.inputs)["sample"]);
    for (name, factor) in [("image_rotary_emb_cos", 0.5), ("image_rotary_emb_sin", -0.25)] {
        let mut table = case.input(name);
        for mut row in table.axis_iter_mut(Axis(1)).skip(1).step_by(2) {
            row *= factor;
        }
        case.inputs.insert(name.to_owned(), Tensor::F32(table));
    }
    for mode in WEIGHT_MODES {
        let [found, expected] = variants
            .each_ref()
            .map(|b| f32s(&run(&mut *b.session("transformer", "step", mode), &case.inputs)["sample"]));
        assert_ne!(expected, usual, "the tables count");
        assert_close(&format!("{mode:?}"), &found, &expected, TOLERANCE);
    }
    let longer = |table: &Tensor| {
        let table = f32s(table);
        Tensor::F32(ndarray::concatenate(Axis(0), &[table.view(), table.view()]).unwrap())
    };
    for name in ["image_rotary_emb_cos", "image_rotary_emb_sin"] {
        let table = longer(&case.inputs[name]);
        case.inputs.insert(name.to_owned(), table);
    }
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    for b in &variants {
        assert!(b.session("transformer", "step", WEIGHT_MODES[0]).run(&inputs).is_err());
    }
}

const F32: DataType = DataType::Float;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(shape), noise(seed, shape.iter().product())).unwrap())
}

fn result(model: &Model, inputs: &[(&str, &Tensor)]) -> ArrayD<f32> {
    f32s(&precision::run(model, inputs)["y"])
}

/// How a rotation is written.
struct Rotation {
    tokens: usize,
    /// Rows of cos₀, cos₁, sin₀ and sin₁.
    rows: [usize; 4],
    /// Of the pairs.
    shape: [i64; 5],
    opset: i64,
    /// Operands of Mul and Add the other way round.
    swapped: bool,
}

impl Rotation {
    const USUAL: Self = Self { tokens: 3, rows: [3; 4], shape: [0, 0, 0, 2, 2], opset: 22, swapped: false };
    const TABLES: [&str; 4] = ["cos0", "cos1", "sin0", "sin1"];

    /// Of `x` `[2, tokens, 2, 4]`.
    fn model(&self) -> Model {
        let mut b = Builder::new("g");
        let x = b.input("x", F32, [2, self.tokens, 2, 4]);
        let mut tables = Self::TABLES.iter().zip(self.rows).map(|(name, rows)| b.input(name, F32, [rows, 2, 1]));
        let [cos0, cos1, sin0, sin1] = [(); 4].map(|()| tables.next().unwrap());
        drop(tables);
        let turned = b.transpose(&x, &[0, 2, 1, 3]);
        let pairs = b.reshape(&turned, &self.shape.map(Into::into));
        let sizes = b.ints(&[1, 1]);
        let halves = b.node("Split", &[&pairs, &sizes]).attr("axis", 4).outs(2);
        let either = |b: &mut Builder, op: &str, x: &Value, y: &Value| match self.swapped {
            true => b.op(op, &[y, x]),
            false => b.op(op, &[x, y]),
        };
        let mut product = |half: usize, table: &Value| either(&mut b, "Mul", &halves[half], table);
        let terms = [product(0, &cos0), product(1, &sin0), product(1, &cos1), product(0, &sin1)];
        let even = b.op("Sub", &[&terms[0], &terms[1]]);
        let odd = either(&mut b, "Add", &terms[2], &terms[3]);
        let joined = b.concat(&[&even, &odd], -1);
        let y = b.reshape(&joined, &[2i64, 2, -1, 4].map(Into::into));
        b.output("y", &y, F32, [Dim::Fixed(2), 2.into(), "rows".into(), 4.into()]);
        let mut model = b.finish().unwrap();
        model.opsets.insert(String::new(), self.opset);
        infer_shapes(&mut model);
        model
    }
}

#[test]
fn rotary_pass_is_right_in_both_branches_for_every_layout_that_it_takes() {
    let usual = || Rotation::USUAL;
    for (layout, one_table) in [
        (usual(), true),
        (Rotation { opset: 15, ..usual() }, true),
        (Rotation { swapped: true, ..usual() }, true),
        (Rotation { shape: [2, 2, 3, 2, 2], ..usual() }, true),
        (Rotation { shape: [0, 0, -1, 2, 2], ..usual() }, true),
        (Rotation { rows: [3, 3, 1, 1], ..usual() }, false),
        (Rotation { rows: [3, 1, 3, 3], ..usual() }, false),
        (Rotation { rows: [1; 4], ..usual() }, false),
        (Rotation { tokens: 1, rows: [1; 4], ..usual() }, true),
        (Rotation { tokens: 1, rows: [1, 5, 5, 1], ..usual() }, false),
    ] {
        let plain = layout.model();
        let mut lowered = plain.clone();
        assert_eq!(lower_for_ort(&mut lowered, &Passes::default()).rotary, 1);
        let chosen = "y/tables/equal";
        let ty = Some(TensorType { dtype: DataType::Bool, shape: None });
        lowered.graph.outputs.push(ValueInfo { name: chosen.into(), ty });
        let x = random(1, &[2, layout.tokens, 2, 4]);
        for equal in [true, false] {
            // One row of numbers for all tokens, so that a table of one row equals one of many.
            let table = |at: usize| match equal {
                true => {
                    let row = f32s(&random(2 + at as u64 / 2, &[1, 2, 1]));
                    Tensor::F32(ndarray::concatenate(Axis(0), &vec![row.view(); layout.rows[at]]).unwrap())
                }
                false => random(2 + at as u64, &[layout.rows[at], 2, 1]),
            };
            let tables = [0, 1, 2, 3].map(table);
            let mut inputs = vec![("x", &x)];
            inputs.extend(Rotation::TABLES.into_iter().zip(&tables));
            let what = format!("{:?} {:?} equal {equal}", layout.rows, layout.shape);
            let found = precision::run(&lowered, &inputs);
            let Tensor::Bool(one) = &found[chosen] else { panic!("no truth value") };
            assert!(one.iter().all(|&one| one == (equal && one_table)), "{what}");
            assert_close(&what, &f32s(&found["y"]), &result(&plain, &inputs), TOLERANCE);
        }
    }
}

#[test]
fn attention_of_an_older_operator_set_keeps_its_softmax() {
    for (opset, axis) in [(11, None), (11, Some(-1)), (12, Some(3)), (13, None)] {
        let mut b = Builder::new("g");
        let names = ["q", "k", "v"];
        let [q, k, v] = names.map(|name| b.input(name, F32, [2usize, 2, 3, 4]));
        let turned = b.transpose(&k, &[0, 1, 3, 2]);
        let logits = b.op("MatMul", &[&q, &turned]);
        let softmax = b.node("Softmax", &[&logits]);
        let weights = axis.into_iter().fold(softmax, |node, axis: i64| node.attr("axis", axis)).out();
        let mixed = b.op("MatMul", &[&weights, &v]);
        let y = b.transpose(&mixed, &[0, 2, 1, 3]);
        b.output("y", &y, F32, [2usize, 3, 2, 4]);
        let mut model = b.finish().unwrap();
        model.opsets.insert(String::new(), opset);
        infer_shapes(&mut model);
        let mut lowered = model.clone();
        let done = lower_for_ort(&mut lowered, &Passes::default());
        assert_eq!(done.attention, usize::from(opset >= 13 || axis.is_some()));
        let tensors = [1, 2, 3].map(|seed| random(seed, &[2, 2, 3, 4]));
        let inputs: Vec<(&str, &Tensor)> = names.into_iter().zip(&tensors).collect();
        let what = format!("operator set {opset}, axis {axis:?}");
        assert_close(&what, &result(&lowered, &inputs), &result(&model, &inputs), TOLERANCE);
    }
}

#[test]
fn eight_bit_layers_take_a_bias_of_any_shape() {
    let x = random(1, &[2, 32]);
    for shape in [&[4][..], &[], &[1], &[1, 1], &[1, 4], &[2, 1], &[2, 4]] {
        let mut b = Builder::new("g");
        let input = b.input("x", F32, [2usize, 32]);
        let (w, bias) = (weight(&mut b, "w", &[32, 4], 1.0), weight(&mut b, "bias", shape, 1.0));
        let y = b.op("Gemm", &[&input, &w, &bias]);
        b.output("y", &y, F32, [2usize, 4]);
        let plain = b.finish().unwrap();
        let mut int8 = plain.clone();
        assert_eq!(quantize_weights(&mut int8, &quantizable(&plain.graph, 32), 32), 1);
        assert_close(&format!("{shape:?}"), &result(&int8, &[("x", &x)]), &result(&plain, &[("x", &x)]), 0.02);
    }
}

#[test]
fn half_precision_bodies_compile_and_run_in_every_mode() {
    let f16 = DataType::Float16;
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", f16, [Dim::from("n"), 32.into()]);
    let flag = b.input("flag", DataType::Bool, [0usize; 0]);
    weight(&mut b, "w", &[32, 32], 0.2);
    let wide = b.cast(&x, F32);
    let body = |op: &str| {
        let mut b = Builder::new(op);
        let product = b.scope(op, |b| b.op("MatMul", &[&x, &"w".into()]));
        let narrow = b.scope(op, |b| b.cast(&wide, f16));
        let own = b.initializer(&format!("{op}.w"), Initializer::inline(f16, &[32, 32], vec![0x30; 2048]));
        let narrow = b.scope(op, |b| b.op("MatMul", &[&narrow, &own]));
        let sum = b.scope(op, |b| b.op("Add", &[&product, &narrow]));
        let made = b.scope(op, |b| b.op(op, &[&sum]));
        b.output(&format!("{op}_y"), &made, f16, [Dim::from("n"), 32.into()]);
        Attribute::Graph(Box::new(b.finish().unwrap().graph))
    };
    let (then, other) = (body("Relu"), body("Neg"));
    let y = b.node("If", &[&flag]).attr("then_branch", then).attr("else_branch", other).out();
    b.output("y", &y, f16, [Dim::from("n"), 32.into()]);
    let mut model = b.finish().unwrap();
    let w = &mut model.graph.initializers["w"];
    (w.data, w.dtype, w.external) = (w.data.clone().converted(F32, f16), f16, false);
    let file = scratch.write("body.onnx", encode_model(&model, &|_| None).unwrap());
    let compiled = output(command("compile", args![file, "-o", scratch.path("body.engine"), "--json"]));
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    assert!(compiled.stdout.contains("\"check\""), "{}", compiled.stdout);
}

#[test]
fn weights_that_have_no_stored_form_are_a_bad_model() {
    let scratch = Scratch::new();
    for at in [0, 1023] {
        let mut b = Builder::new("g");
        let x = b.input("x", F32, [Dim::from("n"), 32.into()]);
        let mut values = noise(1, 1024);
        values[at] = f32::NAN;
        let w = b.floats(&[32, 32], &values);
        let y = b.op("MatMul", &[&x, &w]);
        b.output("y", &y, F32, [Dim::from("n"), 32.into()]);
        let file = scratch.write("nan.onnx", encode_model(&b.finish().unwrap(), &|_| None).unwrap());
        let refused =
            output(command("compile", args![file, "-o", scratch.path("nan.engine"), "--int8=32", "--no-verify"]));
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        assert!(refused.stderr.contains("weight `constant_0.int8"), "{}", refused.stderr);
        assert!(!scratch.path("nan.engine").exists());
    }
}
