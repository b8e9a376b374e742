use super::*;
use crate::blocks;
use crate::passes::optimize;
use crate::{Builder, DataType, Dim, Initializer, TensorData, Value};

/// `y = x · (linear(time) + setting) + project(text)`, and a text-shaped constant that is only repeated.
struct Parts {
    /// Extent of the timesteps.
    lead: Dim,
    /// Softmax over the rows of the timesteps, which keeps no row apart.
    mixed: bool,
}

fn build(parts: &Parts) -> Model {
    let mut b = Builder::new("step");
    let x = b.input("x", DataType::Float, [parts.lead.clone(), "tokens".into(), 4.into()]);
    let text = b.input("text", DataType::Float, [Dim::from("length"), 4.into()]);
    let time = b.input("time", DataType::Int64, [parts.lead.clone()]);
    let setting = b.input("setting", DataType::Float, [Dim::Fixed(1)]);
    let weight = |b: &mut Builder, name: &str| {
        b.initializer(name, Initializer::weight(DataType::Float, &[4, 4], TensorData::raw(vec![0; 64])))
    };
    let (w, v) = (weight(&mut b, "w"), weight(&mut b, "v"));
    let wave = blocks::timestep_sinusoid(&mut b, &time, 4, true, 0.0);
    let mut row = blocks::linear(&mut b, &wave, &w, None);
    row = b.op("Add", &[&row, &setting]);
    if parts.mixed {
        row = b.node("Softmax", &[&row]).attr("axis", 0).out();
    }
    let scale = b.unsqueeze(&row, &[1]);
    let scaled = b.op("Mul", &[&x, &scale]);
    let projected = blocks::linear(&mut b, &text, &v, None);
    let mean = b.node("ReduceMean", &[&projected]).attr("keepdims", 0).out();
    let tokens = b.extent(&x, 1);
    let shape = b.shape(&[(&tokens).into(), 4i64.into()]);
    let repeated: Value = b.op("Expand", &[&mean, &shape]);
    let y = b.op("Add", &[&scaled, &repeated]);
    b.output("y", &y, DataType::Float, [parts.lead.clone(), "tokens".into(), 4.into()]);
    let mut model = b.finish().unwrap();
    optimize(&mut model).unwrap();
    infer_shapes(&mut model);
    model
}

fn usual() -> Parts {
    Parts { lead: "batch".into(), mixed: false }
}

fn names(infos: &[ValueInfo]) -> Vec<&str> {
    infos.iter().map(|info| &info.name[..]).collect()
}

fn weights(model: &Model) -> Vec<&str> {
    model.graph.initializers.iter().filter(|(_, value)| value.external).map(|(name, _)| &name[..]).collect()
}

fn precomputed(parts: &Parts, off: &[Pass]) -> (Model, Precomputed) {
    let mut model = build(parts);
    let step = ["x", "time"].map(str::to_owned);
    let precomputed = precompute(&mut model, &step, &Passes::without(off.iter().copied()));
    for graph in
        std::iter::once(&model).chain(&precomputed.precompute).chain(precomputed.timestep_rows.iter().map(|t| &t.model))
    {
        crate::check::check(graph).unwrap();
    }
    (model, precomputed)
}

#[test]
fn precompute_parts_a_step_by_what_its_values_depend_on() {
    let (main, precomputed) = precomputed(&usual(), &[]);
    let (precompute, timestep_rows) = (precomputed.precompute.unwrap(), precomputed.timestep_rows.unwrap());
    assert_eq!((names(&precompute.graph.inputs), weights(&precompute)), (vec!["text"], vec!["v"]));
    assert_eq!(names(&timestep_rows.model.graph.inputs), ["time", "setting"]);
    assert_eq!((timestep_rows.rows, weights(&timestep_rows.model)), (vec!["time".to_owned()], vec!["w"]));
    // What only repeats or renames stays: Expand, Unsqueeze.
    assert_eq!(names(&precompute.graph.outputs), ["ReduceMean"]);
    assert_eq!(names(&timestep_rows.model.graph.outputs), ["Add"]);
    assert_eq!(names(&main.graph.inputs), ["x", "ReduceMean", "Add"]);
    assert!(weights(&main).is_empty());
    assert_eq!(names(&main.graph.outputs), ["y"]);
}

#[test]
fn precompute_leaves_rows_that_mix_and_what_is_switched_off_in_the_step() {
    let (main, found) = precomputed(&Parts { mixed: true, ..usual() }, &[]);
    // The softmax itself stays; what comes before it goes.
    assert!(main.graph.nodes.iter().any(|node| node.op_type == "Softmax"));
    assert_eq!(names(&found.timestep_rows.unwrap().model.graph.outputs), ["Add"]);
    let (main, found) = precomputed(&usual(), &[Pass::TimestepRows, Pass::Precompute]);
    assert!(found.precompute.is_none() && found.timestep_rows.is_none());
    assert_eq!(main.graph.nodes.len(), build(&usual()).graph.nodes.len());
    let (_, found) = precomputed(&usual(), &[Pass::Precompute]);
    assert!(found.precompute.is_none() && found.timestep_rows.is_some());
}

#[test]
fn precompute_takes_timesteps_of_one_row_and_refuses_other_fixed_numbers() {
    let one = precomputed(&Parts { lead: 1.into(), ..usual() }, &[]).1.timestep_rows.unwrap();
    // A vector as long as the timesteps may be one per sample, and is not added to columns then.
    assert_eq!((one.rows, names(&one.model.graph.outputs)), (vec!["time".to_owned()], vec!["Gemm"]));
    assert!(precomputed(&Parts { lead: 2.into(), ..usual() }, &[]).1.timestep_rows.is_none());
}

#[test]
fn precompute_without_a_step_input_changes_nothing() {
    let mut model = build(&usual());
    let found = precompute(&mut model, &["other".to_owned()], &Passes::default());
    assert!(found.precompute.is_none() && found.timestep_rows.is_none());
}

#[test]
fn precompute_leaves_what_is_random_and_what_depends_on_it_in_the_step() {
    for (op, inputs, random) in [("RandomNormalLike", 1, true), ("Dropout", 3, true), ("Dropout", 1, false)] {
        let mut b = Builder::new("step");
        let x = b.input("x", DataType::Float, [Dim::from("n"), 4.into()]);
        let text = b.input("text", DataType::Float, [Dim::from("n"), 4.into()]);
        let w = Initializer::weight(DataType::Float, &[4, 4], TensorData::raw(vec![0; 64]));
        let w = b.initializer("w", w);
        let projected = b.op("MatMul", &[&text, &w]);
        let training = b.initializer("training", Initializer::inline(DataType::Bool, &[], vec![1]));
        let ratio = b.float(0.5);
        let noise = b.node(op, &[&projected, &ratio, &training][..inputs]).attr("seed", 1.0f32).out();
        let noisy = b.op("Add", &[&projected, &noise]);
        let y = b.op("Add", &[&x, &noisy]);
        b.output("y", &y, DataType::Float, [Dim::from("n"), 4.into()]);
        let mut model = b.finish().unwrap();
        for value in ["RandomNormalLike", "Dropout"] {
            let ty = Some(TensorType { dtype: DataType::Float, shape: Some(vec!["n".into(), 4.into()]) });
            model.graph.value_info.push(ValueInfo { name: value.into(), ty });
        }
        infer_shapes(&mut model);
        let precompute = precompute(&mut model, &["x".to_owned()], &Passes::default()).precompute.unwrap();
        let crosses = if random { "MatMul" } else { "Add" };
        assert_eq!(names(&precompute.graph.outputs), [crosses], "{op} of {inputs}");
        assert_eq!(model.graph.nodes.iter().filter(|n| n.op_type == op).count(), usize::from(random));
    }
}

/// True if rows of `make`'s result are proven to be apart, in a step of one row for each of `lead` timesteps. It is
/// given what depends on them, `[lead, 4]`, and a setting of 4 numbers, `[1, 4]`.
fn is_apart(lead: &str, make: impl Fn(&mut Builder, &Value, &Value) -> Value) -> bool {
    let mut b = Builder::new("step");
    let time = b.input("time", DataType::Float, [Dim::from(lead)]);
    let setting = b.input("setting", DataType::Float, [Dim::from("width")]);
    let column = b.unsqueeze(&time, &[1]);
    let four = b.floats(&[4], &[1.0, 2.0, 3.0, 4.0]);
    let row = b.op("Mul", &[&column, &four]);
    let same = b.unsqueeze(&setting, &[0]);
    let same = b.op("Mul", &[&same, &four]);
    let made = make(&mut b, &row, &same);
    let mut model = b.finish().unwrap();
    infer_shapes(&mut model);
    let step = ["time".to_owned()];
    let kinds = Kinds::new(&model.graph, &step);
    let (lead, rows) = kinds.rows(&model.graph, &step).unwrap();
    let marked = rows::independent(&model.graph, &kinds, &rows, &lead);
    let at = model.graph.nodes.iter().position(|node| node.outputs.contains(&made.name().to_owned())).unwrap();
    marked[at]
}

/// What a case makes of a row and of what is the same for all, as [`is_apart`] gives them.
type Make = fn(&mut Builder, &Value, &Value) -> Value;

/// `op` with a list of numbers as its second input, for example axes.
fn over(b: &mut Builder, op: &str, x: &Value, numbers: &[i64]) -> Value {
    let numbers = b.ints(numbers);
    b.op(op, &[x, &numbers])
}

fn along(b: &mut Builder, op: &str, inputs: &[&Value], axis: i64) -> Value {
    b.node(op, inputs).attr("axis", axis).out()
}

/// `[lead, 1, 4]`.
fn deep(b: &mut Builder, row: &Value) -> Value {
    b.unsqueeze(row, &[1])
}

const MIXING: [(&str, Make); 18] = [
    ("mean of rows", |b, row, _| over(b, "ReduceMean", row, &[0])),
    ("mean of all", |b, row, _| b.op("ReduceMean", &[row])),
    ("what a mean of rows is subtracted from", |b, row, _| {
        let mean = over(b, "ReduceMean", row, &[0]);
        b.op("Sub", &[row, &mean])
    }),
    ("largest row", |b, row, _| over(b, "ReduceMax", row, &[-2])),
    ("rows by rows", |b, row, _| {
        let turned = b.transpose(row, &[1, 0]);
        b.op("MatMul", &[row, &turned])
    }),
    ("columns by rows", |b, row, _| {
        let turned = b.transpose(row, &[1, 0]);
        b.op("MatMul", &[&turned, row])
    }),
    ("sum of rows", |b, row, same| {
        let turned = b.transpose(same, &[1, 0]);
        let gram = b.op("MatMul", &[&turned, same]);
        let sum = over(b, "ReduceSum", row, &[0]);
        let scaled = b.op("MatMul", &[&sum, &gram]);
        b.op("Add", &[row, &scaled])
    }),
    ("bias of rows", |b, row, same| {
        let (first, turned) = (over(b, "ReduceSum", row, &[1]), b.transpose(same, &[1, 0]));
        let line = b.reshape(&first, &[1i64, -1].map(Into::into));
        let product = b.op("MatMul", &[&turned, &line]);
        b.op("Gemm", &[row, &turned, &product])
    }),
    ("softmax of rows", |b, row, _| along(b, "Softmax", &[row], 0)),
    ("sum so far", |b, row, _| {
        let axis = b.int(0);
        b.op("CumSum", &[row, &axis])
    }),
    ("norm over rows", |b, row, same| along(b, "LayerNormalization", &[row, same], 0)),
    ("row against every row", |b, row, _| {
        let deep = deep(b, row);
        b.op("Sub", &[&deep, row])
    }),
    ("setting as long as there are rows", |b, row, _| {
        let column = b.unsqueeze(&"setting".into(), &[1]);
        b.op("Mul", &[row, &column])
    }),
    ("how many rows there are", |b, row, _| {
        let count = b.extent(row, 0);
        let count = b.cast(&count, DataType::Float);
        b.op("Div", &[row, &count])
    }),
    ("number of each row", |b, row, _| {
        let count = b.extent(row, 0);
        let count = b.squeeze(&count, &[0]);
        let number = b.range(&count);
        let number = b.cast(&number, DataType::Float);
        let column = b.unsqueeze(&number, &[1]);
        b.op("Add", &[row, &column])
    }),
    ("triangle", |b, row, _| b.op("Trilu", &[row])),
    ("largest row's number", |b, row, _| along(b, "ArgMax", &[row], 0)),
    ("unknown operator", |b, row, _| b.op("Det", &[row])),
];

const COMPUTING: [(&str, Make); 14] = [
    ("mean of columns", |b, row, _| over(b, "ReduceMean", row, &[-1])),
    ("largest column's number", |b, row, _| along(b, "ArgMax", &[row], 1)),
    ("sum", |b, row, same| b.op("Add", &[same, row])),
    ("choice", |b, row, same| {
        let positive = b.op("Greater", &[row, same]);
        b.op("Where", &[&positive, row, same])
    }),
    ("bounds", |b, row, _| {
        let zero = b.float(0.0);
        b.op("Clip", &[row, &zero])
    }),
    ("product with what is the same", |b, row, same| {
        let turned = b.transpose(same, &[1, 0]);
        b.op("MatMul", &[row, &turned])
    }),
    ("product of a row's matrices", |b, row, _| {
        let deep = deep(b, row);
        let turned = b.transpose(&deep, &[0, 2, 1]);
        b.op("MatMul", &[&turned, &deep])
    }),
    ("what is the same, by a row's matrices", |b, row, same| {
        let (deep, turned) = (deep(b, row), b.transpose(same, &[1, 0]));
        b.op("MatMul", &[&turned, &deep])
    }),
    ("layer with a bias", |b, row, same| {
        let turned = b.transpose(same, &[1, 0]);
        let one = b.float(1.0);
        b.op("Gemm", &[row, &turned, &one])
    }),
    ("softmax", |b, row, _| along(b, "Softmax", &[row], -1)),
    ("sum so far", |b, row, _| {
        let axis = b.int(-1);
        b.op("CumSum", &[row, &axis])
    }),
    ("norm with a row's own scale", |b, row, _| along(b, "LayerNormalization", &[row, row], 1)),
    ("norm of groups", |b, row, _| {
        let (deep, scale) = (deep(b, row), b.floats(&[1], &[1.0]));
        b.node("GroupNormalization", &[&deep, &scale, &scale]).attr("num_groups", 1).out()
    }),
    ("convolution", |b, row, _| {
        let (deep, kernel) = (deep(b, row), b.floats(&[2, 1, 3], &[1.0; 6]));
        b.op("Conv", &[&deep, &kernel])
    }),
];

#[test]
fn rows_of_operators_that_compute_are_apart_unless_they_mix() {
    for (what, make) in MIXING {
        assert!(!is_apart("batch", make), "{what}");
    }
    for (what, make) in COMPUTING {
        assert!(is_apart("batch", make), "{what}");
    }
}

const MOVING_ACROSS: [(&str, Make); 18] = [
    ("one row", |b, row, _| over(b, "Reshape", row, &[1, -1])),
    ("rows of two", |b, row, _| over(b, "Reshape", row, &[-1, 2])),
    ("pairs of rows", |b, row, _| over(b, "Reshape", row, &[-1, 8])),
    ("counted rows", |b, row, _| {
        let shape = b.op("Shape", &[row]);
        b.op("Reshape", &[row, &shape])
    }),
    ("flat", |b, row, _| along(b, "Flatten", &[row], 0)),
    ("flat, counted from the end", |b, row, _| along(b, "Flatten", &[row], -2)),
    ("columns", |b, row, _| b.op("Transpose", &[row])),
    ("rows behind a new axis", |b, row, _| b.unsqueeze(row, &[0])),
    ("without any axis of one", |b, row, _| {
        let one = over(b, "ReduceSum", row, &[1]);
        b.op("Squeeze", &[&one])
    }),
    ("first rows", |b, row, _| b.slice(row, 0, 0i64.into(), 1i64.into())),
    ("rows in turn", |b, row, _| {
        let first = b.ints(&[0]);
        b.gather(row, &first, 0)
    }),
    ("columns by each row", |b, row, same| {
        let numbers = along(b, "ArgMax", &[row], 1);
        b.gather(same, &numbers, 1)
    }),
    ("rows among rows", |b, row, _| along(b, "Concat", &[row, row], 0)),
    ("a row more", |b, row, _| over(b, "Pad", row, &[0, 0, 1, 0])),
    ("rows twice", |b, row, _| over(b, "Tile", row, &[2, 1])),
    ("rows behind more axes", |b, row, _| over(b, "Expand", row, &[3, 1, 4])),
    ("as many as there are", |b, row, same| {
        let shape = b.op("Shape", &[row]);
        b.op("Expand", &[same, &shape])
    }),
    ("zeros for each", |b, row, _| {
        let shape = b.op("Shape", &[row]);
        let zeros = b.op("ConstantOfShape", &[&shape]);
        b.op("Add", &[&zeros, row])
    }),
];

const MOVING_WITHIN: [(&str, Make); 15] = [
    ("copied extent", |b, row, _| over(b, "Reshape", row, &[0, 2, -1])),
    ("inferred extent", |b, row, _| over(b, "Reshape", row, &[-1, 2, 2])),
    ("flat", |b, row, _| {
        let deep = deep(b, row);
        b.op("Flatten", &[&deep])
    }),
    ("matrices turned", |b, row, _| {
        let deep = deep(b, row);
        b.transpose(&deep, &[0, 2, 1])
    }),
    ("axis behind", |b, row, _| b.unsqueeze(row, &[-1])),
    ("axis gone", |b, row, _| {
        let deep = deep(b, row);
        b.squeeze(&deep, &[-2])
    }),
    ("some columns", |b, row, _| b.slice(row, 1, 0i64.into(), 2i64.into())),
    ("one column", |b, row, _| {
        let first = b.int(0);
        b.gather(row, &first, 1)
    }),
    ("of a table", |b, row, _| {
        let (table, numbers) = (b.floats(&[4, 2], &[0.5; 8]), along(b, "ArgMax", &[row], 1));
        b.gather(&table, &numbers, 0)
    }),
    ("of the row itself", |b, row, _| {
        let numbers = along(b, "ArgMax", &[row], 1);
        along(b, "GatherElements", &[row, &numbers], 1)
    }),
    ("side by side", |b, row, _| along(b, "Concat", &[row, row], -1)),
    ("halves", |b, row, _| b.split(row, 1, 2).remove(1)),
    ("a column more", |b, row, _| over(b, "Pad", row, &[0, 0, 0, 1])),
    ("columns twice", |b, row, _| over(b, "Tile", row, &[1, 2])),
    ("more axes", |b, row, _| {
        let deep = deep(b, row);
        over(b, "Expand", &deep, &[1, 3, 4])
    }),
];

#[test]
fn rows_of_operators_that_move_elements_are_apart_unless_they_move_across_rows() {
    for (what, make) in MOVING_ACROSS {
        assert!(!is_apart("batch", make), "{what}");
    }
    for (what, make) in MOVING_WITHIN {
        assert!(is_apart("batch", make), "{what}");
    }
}

#[test]
fn rows_are_mixed_where_a_setting_is_as_long_as_there_are_rows() {
    // By name: a value that has as many elements as there are rows has more of them than a precomputed graph has rows.
    let add: Make = |b, row, _| {
        let table = b.op("ConstantOfShape", &[&"count".into()]);
        b.op("Add", &[row, &table])
    };
    let mut b = Builder::new("step");
    let time = b.input("time", DataType::Float, [Dim::from("batch")]);
    b.input("count", DataType::Int64, [Dim::Fixed(2)]);
    let column = b.unsqueeze(&time, &[1]);
    let four = b.floats(&[4], &[1.0; 4]);
    let row = b.op("Mul", &[&column, &four]);
    let made = add(&mut b, &row, &row);
    let mut model = b.finish().unwrap();
    let shape = |dims: [Dim; 2]| Some(TensorType { dtype: DataType::Float, shape: Some(dims.to_vec()) });
    model.graph.value_info.push(ValueInfo { name: "ConstantOfShape".into(), ty: shape(["batch".into(), 4.into()]) });
    infer_shapes(&mut model);
    let kinds = Kinds::new(&model.graph, &["time".to_owned()]);
    let marked = rows::independent(&model.graph, &kinds, &["time".to_owned()], &"batch".into());
    let at = model.graph.nodes.iter().position(|node| node.outputs[0] == made.name()).unwrap();
    assert!(!marked[at] && marked[at - 2], "{marked:?}");
}
