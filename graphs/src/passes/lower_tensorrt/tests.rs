use super::*;
use crate::passes::{infer_shapes, sort_topologically};
use crate::{Builder, DataType, Dim, Value, blocks, check};

/// `x` `[batch, 4, frames]` and the int64 output `y` that `build` makes of its number of frames.
fn model(build: impl FnOnce(&mut Builder, &Value) -> Value) -> Model {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::Fixed(4), "frames".into()]);
    let frames = b.extent(&x, 2);
    let y = build(&mut b, &frames);
    b.output("y", &y, DataType::Int64, ["n"]);
    b.finish().unwrap()
}

/// `c·x − (x mod n)`.
fn difference(b: &mut Builder, x: &Value, c: i64, n: i64) -> Value {
    let (c, n) = (b.ints(&[c]), b.ints(&[n]));
    let (multiple, remainder) = (b.op("Mul", &[&c, x]), b.op("Mod", &[x, &n]));
    b.op("Sub", &[&multiple, &remainder])
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph.nodes.iter().map(|node| node.op_type.as_str()).collect()
}

/// What the output is for a number of frames, with ONNX's rules for integers.
fn value(model: &Model, frames: i64) -> i64 {
    let mut known: HashMap<&str, i64> = HashMap::new();
    for node in &model.graph.nodes {
        let input = |at: usize| {
            let name = &node.inputs[at][..];
            known
                .get(name)
                .copied()
                .unwrap_or_else(|| Links::new(&model.graph).constant(name).unwrap().indices().unwrap()[0])
        };
        let value = match node.op_type.as_str() {
            "Shape" => frames,
            "Add" => input(0) + input(1),
            "Sub" => input(0) - input(1),
            "Mul" => input(0) * input(1),
            "Div" => input(0) / input(1),
            "Mod" => input(0).rem_euclid(input(1)),
            other => panic!("{other}"),
        };
        known.insert(&node.outputs[0], value);
    }
    known["y"]
}

#[test]
fn difference_of_a_multiple_and_a_remainder_becomes_a_sum_of_the_same_value() {
    for (c, n) in [(2, 2), (3, 2), (1, 3), (4, 8), (0, 5)] {
        let before = model(|b, frames| difference(b, frames, c, n));
        let mut after = before.clone();
        assert_eq!(lower_for_tensorrt(&mut after), 1);
        // The remainder has no reader left.
        assert_eq!(ops(&after), ["Shape", "Mul", "Mod", "Sub", "Div", "Mul", "Add"]);
        for frames in 0..20 {
            assert_eq!(value(&after, frames), value(&before, frames), "{c}·{frames} − ({frames} mod {n})");
        }
        infer_shapes(&mut after);
        check::check(&after).unwrap();
        assert_eq!(sort_topologically(&mut after).unwrap(), 0);
        assert_eq!(lower_for_tensorrt(&mut after), 0);
    }
}

/// As PyTorch's exporters write it: the extent is a number without extents of its own.
#[test]
fn difference_of_numbers_without_extents_is_rewritten() {
    for pick in ["Squeeze", "Gather"] {
        let mut model = model(|b, frames| {
            let (zero, two) = (b.int(0), b.int(2));
            let number = if pick == "Squeeze" { b.op(pick, &[frames]) } else { b.op(pick, &[frames, &zero]) };
            let (doubled, remainder) = (b.op("Mul", &[&two, &number]), b.op("Mod", &[&number, &two]));
            let difference = b.op("Sub", &[&doubled, &remainder]);
            b.unsqueeze(&difference, &[0])
        });
        assert_eq!(lower_for_tensorrt(&mut model), 1, "{pick}");
        infer_shapes(&mut model);
        check::check(&model).unwrap();
    }
}

#[test]
fn differences_of_values_made_of_extents_are_rewritten_each_under_names_of_its_own() {
    let before = model(|b, frames| {
        let doubled = difference(b, frames, 2, 2);
        let three = b.ints(&[3]);
        let sum = b.op("Add", &[frames, &three]);
        let thrice = difference(b, &sum, 3, 4);
        b.op("Mul", &[&doubled, &thrice])
    });
    let mut after = before.clone();
    assert_eq!(lower_for_tensorrt(&mut after), 2);
    let names: HashSet<&String> = after.graph.nodes.iter().flat_map(|node| &node.outputs).collect();
    assert_eq!(names.len(), after.graph.nodes.len());
    assert_eq!(
        (1..9).map(|n| value(&after, n)).collect::<Vec<_>>(),
        (1..9).map(|n| value(&before, n)).collect::<Vec<_>>()
    );
}

#[test]
fn what_may_be_negative_or_only_looks_alike_is_left_alone() {
    let untouched = |what: &str, build: &dyn Fn(&mut Builder, &Value) -> Value| {
        let mut model = model(build);
        let before = ops(&model).join(" ");
        assert_eq!(lower_for_tensorrt(&mut model), 0, "{what}");
        assert_eq!(ops(&model).join(" "), before, "{what}");
    };
    untouched("a difference, which may be negative", &|b, frames| {
        let nine = b.ints(&[9]);
        let rest = b.op("Sub", &[frames, &nine]);
        difference(b, &rest, 2, 2)
    });
    untouched("an extent times a negative number", &|b, frames| {
        let minus = b.ints(&[-1]);
        let turned = b.op("Mul", &[frames, &minus]);
        difference(b, &turned, 2, 2)
    });
    untouched("a negative divisor", &|b, frames| difference(b, frames, 2, -2));
    untouched("a remainder of something else", &|b, frames| {
        let two = b.ints(&[2]);
        let (doubled, next) = (b.op("Mul", &[frames, &two]), b.op("Add", &[frames, &two]));
        let remainder = b.op("Mod", &[&next, &two]);
        b.op("Sub", &[&doubled, &remainder])
    });
    untouched("a divisor that is no constant", &|b, frames| {
        let two = b.ints(&[2]);
        let (doubled, remainder) = (b.op("Mul", &[frames, &two]), b.op("Mod", &[frames, frames]));
        b.op("Sub", &[&doubled, &remainder])
    });
    // TensorRT-RTX knows its bounds.
    untouched("a remainder taken from its own dividend", &|b, frames| {
        let two = b.ints(&[2]);
        let remainder = b.op("Mod", &[frames, &two]);
        b.op("Sub", &[frames, &remainder])
    });
}

#[test]
fn doubling_of_frames_but_for_an_odd_first_is_rewritten_and_stays_a_sound_graph() {
    let mut b = Builder::new("g");
    let shape = ["batch", "channels", "frames", "height", "width"].map(Dim::from);
    let x = b.input("x", DataType::Float, shape);
    let twice = blocks::repeat_frames(&mut b, &x, true);
    let y = blocks::double_space(&mut b, &twice);
    b.output("y", &y, DataType::Float, ["b", "c", "t", "h", "w"]);
    let mut model = b.finish().unwrap();
    assert_eq!(lower_for_tensorrt(&mut model), 1);
    infer_shapes(&mut model);
    check::check(&model).unwrap();
}

#[test]
fn zero_in_a_computed_shape_is_an_extent_unless_a_constant_is_one() {
    let reshaped = |constants: &[i64]| {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::Fixed(4), "frames".into()]);
        let frames = b.extent(&x, 2);
        let constants = b.ints(constants);
        let shape = b.concat(&[&frames, &constants], 0);
        let y = b.op("Reshape", &[&x, &shape]);
        let fixed = b.ints(&[0, -1]);
        let z = b.op("Reshape", &[&y, &fixed]);
        b.output("z", &z, DataType::Float, [Dim::Unknown, Dim::Unknown]);
        let mut model = b.finish().unwrap();
        lower_for_tensorrt(&mut model);
        let reshapes = model.graph.nodes.iter().filter(|node| node.op_type == "Reshape");
        reshapes.map(|node| node.int("allowzero").unwrap_or(0)).collect::<Vec<_>>()
    };
    assert_eq!(reshaped(&[4, -1]), [1, 0]);
    assert_eq!(reshaped(&[0, -1]), [0, 0], "the batch is copied");
}
