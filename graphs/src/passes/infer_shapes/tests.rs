//! Operator families, on graphs of a few nodes.

use super::*;
use crate::{Attribute, Builder, DataType, Extent, Initializer, TensorData, Value};

/// What `build` makes of the float inputs `x [batch, 4, height, width]`, `rows [tokens, 6]` and `t [frames]`: type and
/// extents of each value.
fn inferred(build: impl FnOnce(&mut Builder, [&Value; 3]) -> Vec<Value>) -> Vec<String> {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, ["batch".into(), Dim::Fixed(4), "height".into(), "width".into()]);
    let rows = b.input("rows", DataType::Float, ["tokens".into(), Dim::Fixed(6)]);
    let t = b.input("t", DataType::Float, ["frames"]);
    let values = build(&mut b, [&x, &rows, &t]);
    let mut model = b.finish().unwrap();
    infer_shapes(&mut model);
    values.iter().map(|v| shown(&model, v.name())).collect()
}

fn shown(model: &Model, name: &str) -> String {
    let Some(info) = model.graph.value_info.iter().find(|i| i.name == name) else { return "?".into() };
    let ty = info.ty.as_ref().unwrap();
    let dims: Vec<String> = ty.shape.iter().flatten().map(Dim::to_string).collect();
    format!("{} [{}]", ty.dtype, dims.join(", "))
}

fn one(build: impl FnOnce(&mut Builder, [&Value; 3]) -> Value) -> String {
    inferred(|b, inputs| vec![build(b, inputs)]).remove(0)
}

fn weight(b: &mut Builder, name: &str, shape: &[usize]) -> Value {
    let bytes = vec![0; 4 * shape.iter().product::<usize>()];
    b.initializer(name, Initializer::weight(DataType::Float, shape, TensorData::raw(bytes)))
}

#[test]
fn elementwise_operators_broadcast() {
    let shapes = inferred(|b, [x, rows, t]| {
        let half = b.float(0.5);
        let scaled = b.op("Mul", &[x, &half]);
        let column = b.unsqueeze(t, &[1]);
        let table = b.op("Add", &[&column, t]);
        let open = b.op("Add", &[rows, &column]);
        let compared = b.op("Greater", &[&scaled, x]);
        let chosen = b.op("Where", &[&compared, x, &half]);
        let wrong = b.op("Add", &[x, &"missing".into()]);
        vec![scaled, table, open, compared, chosen, wrong]
    });
    assert_eq!(shapes[0], "float32 [batch, 4, height, width]");
    assert_eq!(shapes[1], "float32 [frames, frames]");
    // One of the two is 1, or they are equal: the larger of both in either case.
    assert_eq!(shapes[2], "float32 [max(frames,tokens), 6]");
    assert_eq!(shapes[3], "bool [batch, 4, height, width]");
    assert_eq!(shapes[4], shapes[0]);
    assert_eq!(shapes[5], "?");
}

#[test]
fn extents_that_are_certainly_above_one_must_be_equal() {
    let got = one(|b, [_, rows, t]| {
        let (two, doubled) = (b.concat(&[rows, rows], 0), b.concat(&[t, t], 0));
        let doubled = b.unsqueeze(&doubled, &[1]);
        b.op("Mul", &[&two, &doubled])
    });
    assert_eq!(got, "float32 [2*tokens, 6]");
}

#[test]
fn products_and_convolutions() {
    let shapes = inferred(|b, [x, rows, t]| {
        let w = weight(b, "w", &[10, 6]);
        let gemm = b.node("Gemm", &[rows, &w]).attr("transB", 1).out();
        let across = b.transpose(x, &[0, 1, 3, 2]);
        let matmul = b.op("MatMul", &[x, &across]);
        let vector = b.op("MatMul", &[t, t]);
        let kernel = weight(b, "k", &[8, 4, 3, 3]);
        let conv = b.node("Conv", &[x, &kernel]).attr("pads", vec![0, 0, 1, 1]).attr("strides", vec![2, 2]).out();
        let wide = b.node("Conv", &[x, &kernel]).attr("dilations", vec![2, 3]).out();
        let same = b.node("Conv", &[x, &kernel]).attr("auto_pad", "SAME_UPPER").out();
        vec![gemm, matmul, vector, conv, wide, same]
    });
    assert_eq!(shapes[0], "float32 [tokens, 10]");
    assert_eq!(shapes[1], "float32 [batch, 4, height, height]");
    assert_eq!(shapes[2], "float32 []");
    assert_eq!(shapes[3], "float32 [batch, 8, height//2, width//2]");
    // Too small an image fails, but the expression could be negative for all that is known.
    assert_eq!(shapes[4], "float32 [batch, 8, unk__1, unk__2]");
    assert_eq!(shapes[5], "float32 [batch, 8, unk__3, unk__4]");
}

#[test]
fn reshape_follows_computed_extents_zero_and_minus_one() {
    let shapes = inferred(|b, [x, ..]| {
        let (batch, height) = (b.extent(x, 0), b.extent(x, 2));
        let rows = b.reshape(x, &[(-1i64).into(), 2i64.into()]);
        let back = b.reshape(&rows, &[Extent::from(&batch), (-1i64).into(), Extent::from(&height)]);
        let copied = b.reshape(&back, &[0i64.into(), 2i64.into(), (-1i64).into()]);
        let flat = b.node("Flatten", &[x]).attr("axis", 2).out();
        let joined = b.concat(&[&back, &back], 1);
        let merged = b.reshape(&joined, &[(-1i64).into(), Extent::from(&height)]);
        let split = b.reshape(&merged, &[Extent::from(&batch), (-1i64).into(), Extent::from(&height)]);
        let seven = b.reshape(x, &[7i64.into(), (-1i64).into()]);
        vec![rows, back, copied, flat, split, seven]
    });
    assert_eq!(shapes[0], "float32 [2*batch*height*width, 2]");
    assert_eq!(shapes[1], "float32 [batch, 4*width, height]");
    assert_eq!(shapes[2], "float32 [batch, 2, 2*height*width]");
    assert_eq!(shapes[3], "float32 [4*batch, height*width]");
    assert_eq!(shapes[4], "float32 [batch, 8*width, height]");
    assert_eq!(shapes[5], "float32 [7, unk__1]");
}

#[test]
fn joining_splitting_slicing_and_gathering() {
    let shapes = inferred(|b, [x, rows, t]| {
        let joined = b.concat(&[rows, rows, rows], 1);
        let parts = b.split(&joined, -1, 4);
        let (tokens, frames) = (b.extent(rows, 0), b.extent(t, 0));
        let column = b.unsqueeze(t, &[1]);
        let width = b.ints(&[1, 6]);
        let wide = b.op("Expand", &[&column, &width]);
        let long = b.concat(&[rows, &wide], 0);
        let sizes = b.concat(&[&tokens, &frames], 0);
        let back = b.node("Split", &[&long, &sizes]).attr("axis", 0).outs(2);
        let head = b.slice(&long, 0, 0i64.into(), 2i64.into());
        let tail = b.slice(&long, 0, (-2i64).into(), i64::MAX.into());
        let middle = b.slice(&long, 0, 1i64.into(), (-1i64).into());
        let open = b.slice(t, 0, 3i64.into(), i64::MAX.into());
        let index = b.ints(&[0, 2, 2]);
        let picked = b.gather(x, &index, 1);
        let zero = b.int(0);
        let dropped = b.gather(x, &zero, 1);
        vec![parts[0].clone(), long, back[0].clone(), back[1].clone(), head, tail, middle, open, picked, dropped]
    });
    assert_eq!(shapes[0], "float32 [tokens, 5]");
    assert_eq!(shapes[1], "float32 [tokens+frames, 6]");
    assert_eq!(shapes[2], "float32 [tokens, 6]");
    assert_eq!(shapes[3], "float32 [frames, 6]");
    assert_eq!(shapes[4], "float32 [2, 6]");
    assert_eq!(shapes[5], "float32 [2, 6]");
    assert_eq!(shapes[6], "float32 [tokens+frames-2, 6]");
    assert!(shapes[7].starts_with("float32 ["), "{}", shapes[7]);
    assert_eq!(shapes[8], "float32 [batch, 3, height, width]");
    assert_eq!(shapes[9], "float32 [batch, height, width]");
}

#[test]
fn reductions_and_ranks() {
    let shapes = inferred(|b, [x, ..]| {
        let axes = b.ints(&[-1, 1]);
        let kept = b.op("ReduceMean", &[x, &axes]);
        let gone = b.node("ReduceSum", &[x, &axes]).attr("keepdims", 0).out();
        let all = b.node("ReduceMax", &[x]).attr("keepdims", 0).out();
        let largest = b.node("ArgMax", &[x]).attr("axis", 1).out();
        let squeezed = b.squeeze(&kept, &[1, 3]);
        let shape = b.op("Shape", &[x]);
        let scales = b.floats(&[4], &[1.0, 1.0, 2.0, 0.5]);
        let resized = b.node("Resize", &[x, &"".into(), &scales]).attr("mode", "nearest").out();
        let pads = b.ints(&[0, 0, 1, 0, 0, 0, 2, -1]);
        let padded = b.op("Pad", &[x, &pads]);
        vec![kept, gone, all, largest, squeezed, shape, resized, padded]
    });
    assert_eq!(shapes[0], "float32 [batch, 1, height, 1]");
    assert_eq!(shapes[1], "float32 [batch, height]");
    assert_eq!(shapes[2], "float32 []");
    assert_eq!(shapes[3], "int64 [batch, 1, height, width]");
    assert_eq!(shapes[4], "float32 [batch, height]");
    assert_eq!(shapes[5], "int64 [4]");
    assert_eq!(shapes[6], "float32 [batch, 4, 2*height, width//2]");
    assert_eq!(shapes[7], "float32 [batch, 4, height+3, width-1]");
}

#[test]
fn extents_are_followed_through_integer_arithmetic() {
    let shapes = inferred(|b, [x, _, t]| {
        let frames = b.extent(t, 0);
        let (one, two) = (b.ints(&[1]), b.ints(&[2]));
        let odd = b.op("Mod", &[&frames, &two]);
        let doubled = b.op("Mul", &[&frames, &two]);
        let count = b.op("Sub", &[&doubled, &odd]);
        let range = b.range(&count);
        let half = b.op("Div", &[&doubled, &two]);
        let ones = b.op("ConstantOfShape", &[&half]);
        let less = b.op("Sub", &[&frames, &two]);
        let clamped = b.op("Max", &[&less, &one]);
        let cut = b.op("ConstantOfShape", &[&clamped]);
        let shape = b.op("Shape", &[x]);
        let space = b.slice(&shape, 0, 2i64.into(), 4i64.into());
        let table = b.op("ConstantOfShape", &[&space]);
        vec![range, ones, cut, table]
    });
    assert_eq!(shapes[0], "int64 [2*frames-(frames%2)]");
    assert_eq!(shapes[1], "float32 [frames]");
    assert_eq!(shapes[2], "float32 [max(1,frames-2)]");
    assert_eq!(shapes[3], "float32 [height, width]");
}

#[test]
fn record_tells_what_operators_do_not() {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, ["n"]);
    let custom = b.op("Mystery", &[&x]);
    let found = b.op("NonZero", &[&x]);
    let y = b.op("Relu", &[&custom]);
    let z = b.op("Relu", &[&y]);
    b.output("z", &z, DataType::Float, ["m"]);
    let mut model = b.finish().unwrap();
    assert_eq!(infer_shapes(&mut model), 3);
    assert!(model.graph.value_info.is_empty());
    let record = |name: &Value, dims: &[Dim]| ValueInfo {
        name: name.name().to_owned(),
        ty: Some(TensorType { dtype: DataType::Float, shape: Some(dims.to_vec()) }),
    };
    model.graph.value_info = vec![record(&custom, &["n".into(), 3.into(), Dim::Unknown]), record(&y, &[9.into()])];
    assert_eq!(infer_shapes(&mut model), 1);
    assert_eq!(shown(&model, custom.name()), "float32 [n, 3, unk__1]");
    assert_eq!(shown(&model, y.name()), "float32 [n, 3, unk__1]");
    assert_eq!(shown(&model, found.name()), "?");
    assert_eq!(model.graph.outputs[0].ty.as_ref().unwrap().shape, Some(vec!["m".into()]));
    let before = model.graph.value_info.clone();
    assert_eq!(infer_shapes(&mut model), 1);
    assert_eq!(model.graph.value_info, before);
}

#[test]
fn hostile_graphs_are_left_open() {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, ["n".into(), Dim::Fixed(usize::MAX), "".into()]);
    let numbers = b.ints(&[i64::MIN, i64::MAX, -7]);
    let far = b.int(i64::MIN);
    let y = b.op("Reshape", &[&x, &numbers]);
    for op in ["Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "ReduceSum", "Pad", "Slice", "Split", "Gather"] {
        b.op(op, &[&x, &numbers]);
        b.op(op, &[&x, &numbers, &numbers, &numbers, &numbers]);
        b.op(op, &[]);
    }
    for op in ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Neg", "Concat", "Range", "ConstantOfShape", "Conv"] {
        b.op(op, &[&numbers, &far]);
        b.op(op, &[&far, &far, &far]);
        b.op(op, &[]);
        let odd = b.node(op, &[&x, &x]).attr("axis", i64::MIN).attr("strides", vec![0]).attr("pads", vec![i64::MAX]);
        odd.attr("kernel_shape", vec![i64::MIN, 3]).out();
    }
    b.op("MatMul", &[&numbers, &far]);
    b.op("Gemm", &[&numbers, &far]);
    b.output("y", &y, DataType::Float, ["m"]);
    let mut model = b.finish().unwrap();
    model.graph.nodes[0].attributes.insert("allowzero".into(), Attribute::Float(1.0));
    infer_shapes(&mut model);
}
