use super::*;
use crate::blocks;
use crate::passes::optimize;
use crate::{Builder, DataType, Initializer, TensorData, Value};

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

fn hoisted(parts: &Parts, off: &[Pass]) -> (Model, Hoisted) {
    let mut model = build(parts);
    let step = ["x", "time"].map(str::to_owned);
    let hoisted = hoist(&mut model, &step, &Passes::without(off.iter().copied()));
    for graph in std::iter::once(&model).chain(&hoisted.prologue).chain(hoisted.times.iter().map(|t| &t.model)) {
        crate::check::check(graph).unwrap();
    }
    (model, hoisted)
}

#[test]
fn hoist_parts_a_step_by_what_its_values_depend_on() {
    let (main, hoisted) = hoisted(&usual(), &[]);
    let (prologue, times) = (hoisted.prologue.unwrap(), hoisted.times.unwrap());
    assert_eq!((names(&prologue.graph.inputs), weights(&prologue)), (vec!["text"], vec!["v"]));
    assert_eq!(names(&times.model.graph.inputs), ["time", "setting"]);
    assert_eq!((times.rows, weights(&times.model)), (vec!["time".to_owned()], vec!["w"]));
    // What only repeats or renames stays: Expand, Unsqueeze.
    assert_eq!(names(&prologue.graph.outputs), ["ReduceMean"]);
    assert_eq!(names(&times.model.graph.outputs), ["Add"]);
    assert_eq!(names(&main.graph.inputs), ["x", "ReduceMean", "Add"]);
    assert!(weights(&main).is_empty());
    assert_eq!(names(&main.graph.outputs), ["y"]);
}

#[test]
fn hoist_leaves_rows_that_mix_and_what_is_switched_off_in_the_step() {
    let (main, found) = hoisted(&Parts { mixed: true, ..usual() }, &[]);
    // The softmax itself stays; what comes before it goes.
    assert!(main.graph.nodes.iter().any(|node| node.op_type == "Softmax"));
    assert_eq!(names(&found.times.unwrap().model.graph.outputs), ["Add"]);
    let (main, found) = hoisted(&usual(), &[Pass::TimestepTables, Pass::Prologue]);
    assert!(found.prologue.is_none() && found.times.is_none());
    assert_eq!(main.graph.nodes.len(), build(&usual()).graph.nodes.len());
    let (_, found) = hoisted(&usual(), &[Pass::Prologue]);
    assert!(found.prologue.is_none() && found.times.is_some());
}

#[test]
fn hoist_takes_timesteps_of_one_row_and_refuses_other_fixed_numbers() {
    let one = hoisted(&Parts { lead: 1.into(), ..usual() }, &[]).1.times.unwrap();
    // A vector as long as the timesteps may be one per sample, and is not added to columns then.
    assert_eq!((one.rows, names(&one.model.graph.outputs)), (vec!["time".to_owned()], vec!["Gemm"]));
    assert!(hoisted(&Parts { lead: 2.into(), ..usual() }, &[]).1.times.is_none());
}

#[test]
fn hoist_without_a_step_input_changes_nothing() {
    let mut model = build(&usual());
    let found = hoist(&mut model, &["other".to_owned()], &Passes::default());
    assert!(found.prologue.is_none() && found.times.is_none());
}

#[test]
fn hoist_leaves_what_is_random_and_what_depends_on_it_in_the_step() {
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
        let prologue = hoist(&mut model, &["x".to_owned()], &Passes::default()).prologue.unwrap();
        let crosses = if random { "MatMul" } else { "Add" };
        assert_eq!(names(&prologue.graph.outputs), [crosses], "{op} of {inputs}");
        assert_eq!(model.graph.nodes.iter().filter(|n| n.op_type == op).count(), usize::from(random));
    }
}
