//! Matrices that something reads besides their layer: tied embeddings, the matrix the other way round, weight norms, layers that
//! are called twice; and layers of the checkpoint that a graph lacks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, IxDyn};
use v2l_export::CompileOptions;
use v2l_graphs::{Attribute, Builder, DataType, Dim, Graph, Node, TensorType, Value, ValueInfo, encode_model};
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::Why;
use v2l_runtime::lora::adapter::{Adapter, AdapterFormat, LowRank, Update, write_adapter};
use v2l_runtime::lora::branch;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::checks::{noise, save, weight};
use crate::cli::events;
use crate::support::{WEIGHT_MODES, assert_close, f32s, ort_with, run};
use crate::swaps::adapter;
use crate::tools::{RawTensor, Scratch, args, command, run_ok, write};

const BAD_ADAPTER: i32 = 5;
/// Features of the square layer.
const SIDE: usize = 4;
const WORDS: usize = 6;

/// A graph over the matrix `fc.weight` `[out, in]`, given its values.
type Make = fn(&mut Builder, &Value);

/// The graph of `make` over this matrix.
fn graph(make: Make, shape: [usize; 2], values: &[f32]) -> Builder {
    let mut b = Builder::new("g");
    let w = weight(&mut b, "fc.weight", &shape, values);
    make(&mut b, &w);
    b
}

/// Tied, 2-D: the layer is a Gemm.
fn tied(b: &mut Builder, w: &Value) {
    let ids = b.input("ids", DataType::Int64, [Dim::from("n")]);
    let x = b.op("Gather", &[w, &ids]);
    let y = b.node("Gemm", &[&x, w]).attr("transB", 1i64).out();
    b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(WORDS)]);
}

/// Tied, 3-D: the layer is a MatMul behind a Transpose.
fn tied_stack(b: &mut Builder, w: &Value) {
    let ids = b.input("ids", DataType::Int64, [Dim::Fixed(1), Dim::from("n")]);
    let x = b.op("Gather", &[w, &ids]);
    let turned = b.transpose(w, &[1, 0]);
    let y = b.op("MatMul", &[&x, &turned]);
    b.output("y", &y, DataType::Float, [Dim::Fixed(1), Dim::from("n"), Dim::Fixed(WORDS)]);
}

fn square_input(b: &mut Builder) -> Value {
    b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(SIDE)])
}

fn square_output(b: &mut Builder, name: &str, value: &Value) {
    b.output(name, value, DataType::Float, [Dim::from("n"), Dim::Fixed(SIDE)]);
}

/// `h · W` before the layer, which is a Gemm.
fn both_ways(b: &mut Builder, w: &Value) {
    let x = square_input(b);
    let other = b.op("MatMul", &[&x, w]);
    let y = b.node("Gemm", &[&x, w]).attr("transB", 1i64).out();
    square_output(b, "y", &y);
    square_output(b, "other", &other);
}

/// `h · W` before the layer, which is a MatMul behind a Transpose.
fn both_ways_stack(b: &mut Builder, w: &Value) {
    let x = square_input(b);
    let other = b.op("MatMul", &[&x, w]);
    let turned = b.transpose(w, &[1, 0]);
    let y = b.op("MatMul", &[&x, &turned]);
    square_output(b, "y", &y);
    square_output(b, "other", &other);
}

/// `x · Wᵀ` divided by a norm of W, and another layer behind it.
fn normed(b: &mut Builder, w: &Value) {
    let x = square_input(b);
    let y = b.node("Gemm", &[&x, w]).attr("transB", 1i64).out();
    let squares = b.op("Mul", &[w, w]);
    let norm = b.op("ReduceSum", &[&squares]);
    let y = b.op("Div", &[&y, &norm]);
    let out = weight(b, "out.weight", &[SIDE, SIDE], &noise(9, SIDE * SIDE));
    let y = b.node("Gemm", &[&y, &out]).attr("transB", 1i64).out();
    square_output(b, "y", &y);
}

/// A layer that is called with a matrix and with a stack.
fn called_twice(b: &mut Builder, w: &Value) {
    let x = square_input(b);
    let y = b.node("Gemm", &[&x, w]).attr("transB", 1i64).out();
    let stack = b.unsqueeze(&y, &[0]);
    let turned = b.transpose(w, &[1, 0]);
    let y = b.op("MatMul", &[&stack, &turned]);
    b.output("y", &y, DataType::Float, [Dim::Fixed(1), Dim::from("n"), Dim::Fixed(SIDE)]);
}

fn compile(scratch: &Scratch, name: &str, b: Builder, lora_rank: Option<usize>) -> Arc<Engine> {
    let onnx = save(scratch, "model.onnx", b);
    let file = scratch.path(&format!("{name}.engine"));
    let options = CompileOptions { lora_rank, ..Default::default() };
    v2l_export::compile(&onnx, &file, &options, &mut |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
    Arc::new(Engine::open(&file).unwrap())
}

fn inputs(lookup: bool, stack: bool) -> NamedTensors {
    if lookup {
        let shape: &[usize] = if stack { &[1, 3] } else { &[3] };
        let ids = ArrayD::from_shape_vec(IxDyn(shape), vec![4i64, 0, 4]).unwrap();
        return NamedTensors::from([("ids".to_owned(), Tensor::I64(ids))]);
    }
    NamedTensors::from([("x".to_owned(), Tensor::from_f32(&[3, SIDE], noise(5, 3 * SIDE)).unwrap())])
}

/// Outputs of the graph itself, fused with each way to hold weights, and of its branches.
fn outputs(compiled: &Arc<Engine>, adapters: &[(&Adapter, f32)], inputs: &NamedTensors) -> Vec<(String, NamedTensors)> {
    let mut found = Vec::new();
    for weights in WEIGHT_MODES {
        let options = OpenOptions { weights, ..Default::default() };
        let mut engine = ort_with(compiled.clone(), &options, adapters);
        found.push((format!("{weights:?}"), run(&mut engine.session("model").unwrap(), inputs)));
    }
    if let Some(graph) = compiled.manifest().graph("model.branch") {
        let mut given = inputs.clone();
        given.extend(branch::inputs(compiled, graph, adapters).unwrap());
        let mut engine = OrtEngine::open(compiled.clone(), &OpenOptions::default()).unwrap();
        found.push(("branches".to_owned(), run(&mut engine.session("model.branch").unwrap(), &given)));
    }
    found
}

/// `W + s · up · down`, row-major.
fn updated(values: &[f32], update: &Update, strength: f32) -> Vec<f32> {
    let update = update.to_low_rank();
    let delta = update.up.dot(&update.down) * (update.scale() * strength);
    values.iter().zip(&delta).map(|(w, d)| w + d).collect()
}

/// Compiles the graph with and without branches, and compares it with an adapter on `fc` with the graph over `after`, given the
/// graph's values and the update.
fn adapted(make: Make, shape: [usize; 2], inputs: &NamedTensors, expected_of: fn(&str) -> bool) -> Arc<Engine> {
    let values = noise(3, shape[0] * shape[1]);
    let scratch = Scratch::new();
    let mut last = None;
    for lora_rank in [None, Some(4)] {
        let compiled = compile(&scratch, "model", graph(make, shape, &values), lora_rank);
        let slots = &compiled.manifest().slots;
        let slot = slots.iter().find(|slot| slot.name == "fc").unwrap();
        assert_eq!([slot.out_features, slot.in_features], shape);
        let adapter = adapter("a", std::iter::repeat_n(slot, 3), 2, 7);
        let moved = updated(&values, &adapter.layers["fc"], 2.0);
        let other = compile(&Scratch::new(), "other", graph(make, shape, &moved), None);
        let plain = &outputs(&other, &[], inputs)[0].1;
        let base = &outputs(&compiled, &[], inputs)[0].1;
        for (how, found) in outputs(&compiled, &[(&adapter, 2.0)], inputs) {
            for (name, value) in &found {
                let expected = if expected_of(name) { plain } else { base };
                assert_close(&format!("{how} {name}"), &f32s(value), &f32s(&expected[name]), 1e-5);
            }
        }
        assert_ne!(plain, base);
        last = Some(compiled);
    }
    // The folder goes, the map of the file stays.
    last.unwrap()
}

#[test]
fn tied_embedding_is_a_slot_of_which_an_update_changes_lookup_and_product() {
    for (make, stack) in [(tied as Make, false), (tied_stack, true)] {
        let compiled = adapted(make, [WORDS, SIDE], &inputs(true, stack), |_| true);
        let manifest = compiled.manifest();
        assert_eq!(manifest.slots.len(), 1);
        assert_eq!(manifest.slots[0].lookups.len(), 1, "{:?}", manifest.slots[0]);
        // The matrix is there once.
        let matrices = manifest.tensors.values().filter(|t| t.shape.iter().product::<usize>() == WORDS * SIDE);
        assert_eq!(matrices.filter(|t| t.dtype.is_float()).count(), 1, "{stack}");
    }
}

#[test]
fn tied_embedding_is_said_by_compile_and_inspect() {
    let scratch = Scratch::new();
    let onnx = save(&scratch, "m.onnx", graph(tied, [WORDS, SIDE], &noise(3, WORDS * SIDE)));
    let engine = scratch.path("m.engine");
    let said = run_ok("compile", args![&onnx, "-o", &engine, "--explain"]).stdout;
    assert!(said.contains("slot fc: rows of its matrix are looked up, too (a tied embedding); an update changes both"));
    for file in [&onnx, &engine] {
        let said = run_ok("inspect", args![file]).stdout;
        assert!(said.contains("its rows looked up by Gather: an update changes both"), "{said}");
        let events = events(&run_ok("inspect", args![file, "--json"]).stdout);
        let slot = events.iter().find(|(event, _)| event == "slot").unwrap();
        assert_eq!(slot.1["lookups"], serde_json::json!(["Gather"]));
    }
}

#[test]
fn adapter_reaches_the_layer_and_not_the_product_with_its_transpose() {
    for make in [both_ways as Make, both_ways_stack] {
        let compiled = adapted(make, [SIDE, SIDE], &inputs(false, false), |name| name == "y");
        assert_eq!(compiled.manifest().slots.len(), 1);
    }
    let scratch = Scratch::new();
    let onnx = save(&scratch, "m.onnx", graph(both_ways, [SIDE, SIDE], &noise(3, SIDE * SIDE)));
    let said = run_ok("compile", args![&onnx, "-o", scratch.path("m.engine")]).stderr;
    assert!(
        said.contains("is that of layer `fc`, and it does not take it as the layer does; it is not a slot"),
        "{said}"
    );
}

/// The same with the checkpoint's content to go by.
#[test]
fn layer_owns_its_matrix_where_a_checkpoint_names_it() {
    let (scratch, values) = (Scratch::new(), noise(3, SIDE * SIDE));
    let checkpoint = checkpoint(&scratch, &[("fc.weight", [SIDE, SIDE], values.clone())]);
    for make in [both_ways as Make, both_ways_stack] {
        let onnx = save(&scratch, "model.onnx", graph(make, [SIDE, SIDE], &values));
        let path = scratch.path("model.engine");
        let options = CompileOptions { weights: Some(checkpoint.clone()), ..Default::default() };
        let report = v2l_export::compile(&onnx, &path, &options, &mut |_| {}).unwrap();
        let named = report.engines[0].named.as_ref().unwrap();
        assert_eq!((named.ambiguous.len(), named.ambiguous[0].candidates.as_slice()), (1, &["fc".to_owned()][..]));
        let compiled = Arc::new(Engine::open(&path).unwrap());
        let slot = &compiled.manifest().slots[0];
        let adapter = adapter("a", std::iter::repeat_n(slot, 3), 2, 7);
        let other = graph(make, [SIDE, SIDE], &updated(&values, &adapter.layers["fc"], 1.0));
        let other = compile(&Scratch::new(), "other", other, None);
        let (given, base) = (inputs(false, false), outputs(&compiled, &[], &inputs(false, false)));
        let expected = &outputs(&other, &[], &given)[0].1["y"];
        for (how, found) in outputs(&compiled, &[(&adapter, 1.0)], &given) {
            assert_close(&how, &f32s(&found["y"]), &f32s(expected), 1e-5);
            assert_close(&how, &f32s(&found["other"]), &f32s(&base[0].1["other"]), 1e-6);
        }
    }
}

#[test]
fn layer_whose_norm_is_taken_compiles_is_no_slot_and_adapters_are_told_why() {
    let scratch = Scratch::new();
    let values = noise(3, SIDE * SIDE);
    for lora_rank in [None, Some(4)] {
        let compiled = compile(&scratch, "m", graph(normed, [SIDE, SIDE], &values), lora_rank);
        let manifest = compiled.manifest();
        let names: Vec<&str> = manifest.slots.iter().map(|slot| &slot.name[..]).collect();
        assert_eq!(names, ["out"]);
        assert_eq!((&manifest.absent[0].layer.name[..], manifest.absent[0].why), ("fc", Why::Shared));
    }
    let engine = scratch.path("m.engine");
    let onnx = scratch.path("model.onnx");
    let said = run_ok("compile", args![&onnx, "-o", &engine]).stderr;
    assert!(said.contains("layer `fc` is not a slot: node `Mul` (Mul) reads its matrix, too"), "{said}");
    for file in [&onnx, &engine] {
        assert!(run_ok("inspect", args![file]).stdout.contains("fc  is not a slot: `Mul` (Mul) reads its matrix"));
    }
    let update = LowRank { down: Array2::ones((1, SIDE)), up: Array2::ones((SIDE, 1)), alpha: 1.0 };
    let lora = Adapter { name: "l".into(), layers: [("fc".to_owned(), update.into())].into_iter().collect() };
    let file = scratch.path("l.safetensors");
    write_adapter(&file, &lora, AdapterFormat::Comfy).unwrap();
    let refused = command("inspect", args![&file, "--engine", &engine, "--json"]);
    let said = crate::tools::output(refused);
    assert_eq!(said.code, BAD_ADAPTER);
    assert!(said.stdout.contains("layer `fc` is not a slot: `Mul` (Mul) reads its matrix"), "{}", said.stdout);
}

#[test]
fn layer_called_with_a_matrix_and_a_stack_is_one_slot_for_both_calls() {
    let compiled = adapted(called_twice, [SIDE, SIDE], &inputs(false, false), |_| true);
    assert_eq!(compiled.manifest().slots.len(), 1);
    let matrices = compiled.manifest().tensors.values().filter(|t| t.shape == [SIDE, SIDE]);
    assert_eq!(matrices.count(), 1);
}

/// As PyTorch's exporter writes a layer that is called twice: a transposed copy for each call, at nodes of equal scope.
#[test]
fn layer_stored_once_for_each_call_keeps_its_name() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = square_input(&mut b);
    let values = noise(3, SIDE * SIDE);
    let first = weight(&mut b, "val_1", &[SIDE, SIDE], &values);
    let y = b.op("MatMul", &[&x, &first]);
    let again = weight(&mut b, "val_2", &[SIDE, SIDE], &values);
    let y = b.op("MatMul", &[&y, &again]);
    let unlike = weight(&mut b, "val_3", &[SIDE, SIDE], &noise(4, SIDE * SIDE));
    let y = b.op("MatMul", &[&y, &unlike]);
    square_output(&mut b, "y", &y);
    let mut model = b.finish().unwrap();
    let scopes = ["'', 'block', 'block.fc', 'linear'", "'', 'block', 'block.fc', 'linear_1'", "'', 'other', 'matmul'"];
    for (node, scopes) in model.graph.nodes.iter_mut().filter(|n| n.op_type == "MatMul").zip(scopes) {
        node.metadata.insert("pkg.torch.onnx.name_scopes".into(), format!("[{scopes}]"));
    }
    let onnx = scratch.write("m.onnx", encode_model(&model, &|_| None).unwrap());
    let path = scratch.path("m.engine");
    v2l_export::compile(&onnx, &path, &CompileOptions::default(), &mut |_| {}).unwrap();
    let engine = Engine::open(&path).unwrap();
    let names: Vec<&str> = engine.manifest().slots.iter().map(|slot| &slot.name[..]).collect();
    assert_eq!(names, ["block.fc", "other"]);
    assert!(!engine.manifest().tensors.contains_key("val_2"));
}

/// The exporter stored the transpose that the layer takes beside the table that is looked up.
fn tied_copy(b: &mut Builder, w: &Value) {
    let ids = b.input("ids", DataType::Int64, [Dim::from("n")]);
    let x = b.op("Gather", &[w, &ids]);
    let values = noise(3, WORDS * SIDE);
    let turned: Vec<f32> = (0..SIDE * WORDS).map(|i| values[i % WORDS * SIDE + i / WORDS]).collect();
    let copy = weight(b, "onnx::MatMul_9", &[SIDE, WORDS], &turned);
    let y = b.op("MatMul", &[&x, &copy]);
    b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(WORDS)]);
}

#[test]
fn tied_embedding_of_which_the_exporter_stored_the_transpose_is_one_matrix() {
    let compiled = compile(&Scratch::new(), "m", graph(tied_copy, [WORDS, SIDE], &noise(3, WORDS * SIDE)), None);
    let manifest = compiled.manifest();
    assert_eq!((manifest.slots.len(), manifest.slots[0].lookups.len()), (1, 1));
    assert_eq!(manifest.slots[0].tensor, "onnx::MatMul_9");
    assert!(!manifest.tensors.contains_key("fc.weight"));
}

fn checkpoint(scratch: &Scratch, tensors: &[(&str, [usize; 2], Vec<f32>)]) -> PathBuf {
    let raw = |(name, shape, values): &(&str, [usize; 2], Vec<f32>)| {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        ((*name).to_owned(), RawTensor { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), data })
    };
    let path = scratch.path("checkpoint.safetensors");
    write(&path, &tensors.iter().map(raw).collect::<BTreeMap<_, _>>(), None);
    path
}

fn lora(scratch: &Scratch, layers: &[(&str, usize, usize)]) -> PathBuf {
    let update = |&(name, out, into): &(&str, usize, usize)| {
        let update = LowRank { down: Array2::ones((1, into)), up: Array2::ones((out, 1)), alpha: 1.0 };
        (name.to_owned(), update.into())
    };
    let adapter = Adapter { name: "l".into(), layers: layers.iter().map(update).collect() };
    let path = scratch.path("l.safetensors");
    write_adapter(&path, &adapter, AdapterFormat::Diffusers).unwrap();
    path
}

#[test]
fn keys_of_layers_that_the_exporter_left_out_have_no_effect_and_are_no_error_with_weights() {
    let (scratch, values) = (Scratch::new(), noise(3, SIDE * SIDE));
    let onnx = save(&scratch, "m.onnx", graph(both_ways, [SIDE, SIDE], &values));
    let extra = ("to_add_out.weight", [SIDE, SIDE + 1], noise(8, SIDE * (SIDE + 1)));
    let weights = checkpoint(&scratch, &[("fc.weight", [SIDE, SIDE], values), extra]);
    let (engine, file) =
        (scratch.path("m.engine"), lora(&scratch, &[("fc", SIDE, SIDE), ("to_add_out", SIDE, SIDE + 1)]));
    let inspect = args![&file, "--engine", &engine];
    let plain = run_ok("compile", args![&onnx, "-o", &engine]);
    assert!(!plain.stderr.contains("checkpoint"), "{}", plain.stderr);
    refuse_inspect(inspect);
    let said = run_ok("compile", args![&onnx, "-o", &engine, "--weights", &weights, "--explain"]);
    assert!(said.stderr.contains(
        "of the checkpoint: 1 that the exporter left out or computed, so that updates of them have no effect"
    ));
    assert!(said.stdout.contains("not in a product: to_add_out.weight  left out by the exporter"), "{}", said.stdout);
    let said = run_ok("inspect", inspect).stdout;
    assert!(said.contains("without effect on this graph"), "{said}");
    // Said by a run, too, which is no failure.
    let x = scratch.path("x.safetensors");
    v2l_runtime::io::weights::write_tensors(&x, &inputs(false, false), &Default::default()).unwrap();
    let run = args!["--engine", &engine, "--inputs", &x, "--outputs", scratch.path("y.safetensors"), "--lora", &file];
    let said = run_ok("run", run).stderr;
    assert!(said.contains("2 of its keys change nothing") && said.contains("without effect on this graph"), "{said}");
}

#[track_caller]
fn refuse_inspect(args: &[std::ffi::OsString]) {
    let run = crate::tools::output(command("inspect", args));
    assert_eq!(run.code, BAD_ADAPTER, "{}", run.stdout);
}

/// What the exporter changed is in the graph under another content, and may have an effect.
#[test]
fn keys_of_layers_that_the_exporter_may_have_changed_stay_errors() {
    let (scratch, values) = (Scratch::new(), noise(3, SIDE * SIDE));
    let mut b = graph(both_ways, [SIDE, SIDE], &values);
    let x = b.input("z", DataType::Float, [Dim::from("n"), Dim::Fixed(SIDE)]);
    let scaled = weight(&mut b, "val_7", &[SIDE, SIDE], &noise(8, SIDE * SIDE));
    let y = b.op("MatMul", &[&x, &scaled]);
    square_output(&mut b, "scaled", &y);
    let onnx = save(&scratch, "m.onnx", b);
    let changed = ("gone.weight", [SIDE, SIDE], noise(12, SIDE * SIDE));
    let weights = checkpoint(&scratch, &[("fc.weight", [SIDE, SIDE], values), changed]);
    let engine = scratch.path("m.engine");
    run_ok("compile", args![&onnx, "-o", &engine, "--weights", &weights]);
    let file = lora(&scratch, &[("fc", SIDE, SIDE), ("gone", SIDE, SIDE)]);
    refuse_inspect(args![&file, "--engine", &engine]);
}

#[test]
fn adapter_for_a_model_in_a_wrapper_is_found_and_for_lost_names_weights_is_named() {
    let scratch = Scratch::new();
    let wrapped = |names: [&str; 2]| {
        let mut b = Builder::new("g");
        let mut x = square_input(&mut b);
        for (seed, name) in (1..).zip(names) {
            let w = weight(&mut b, name, &[SIDE, SIDE], &noise(seed, SIDE * SIDE));
            x = b.node("Gemm", &[&x, &w]).attr("transB", 1i64).out();
        }
        square_output(&mut b, "y", &x);
        let engine = scratch.path("m.engine");
        run_ok("compile", args![save(&scratch, "m.onnx", b), "-o", &engine]);
        engine
    };
    let file = lora(&scratch, &[("blocks.0.fc", SIDE, SIDE), ("out", SIDE, SIDE)]);
    let engine = wrapped(["model.blocks.0.fc.weight", "model.out.weight"]);
    let said = run_ok("inspect", args![&file, "--engine", &engine]).stdout;
    assert!(said.contains("4 keys applied to 2 of 2 slots"), "{said}");
    let engine = wrapped(["onnx::MatMul_7", "onnx::MatMul_9"]);
    let run = crate::tools::output(command("inspect", args![&file, "--engine", &engine]));
    assert_eq!(run.code, BAD_ADAPTER);
    assert!(run.stderr.contains("compile it with `v2l-compile --weights CHECKPOINT`"), "{}", run.stderr);
}

/// A Loop whose body doubles its value until a trip count, or until a condition fails.
fn looped(scratch: &Scratch, left_out: usize) -> PathBuf {
    let mut b = Builder::new("g");
    let x = square_input(&mut b);
    let count = b.int(3);
    let condition = b.input("go", DataType::Bool, Vec::<Dim>::new());
    let y = b.node("Loop", &[&count, &condition, &x]).out();
    square_output(&mut b, "y", &y);
    let mut model = b.finish().unwrap();
    let node = model.graph.nodes.iter_mut().find(|n| n.op_type == "Loop").unwrap();
    node.inputs[left_out].clear();
    let value = |name: &str, dtype, shape: Vec<Dim>| ValueInfo {
        name: name.into(),
        ty: Some(TensorType { dtype, shape: Some(shape) }),
    };
    let op = |op_type: &str, inputs: &[&str], output: &str| Node {
        name: output.into(),
        op_type: op_type.into(),
        inputs: inputs.iter().map(|&i| i.into()).collect(),
        outputs: vec![output.into()],
        ..Node::default()
    };
    let mut body = Graph {
        name: "body".into(),
        inputs: vec![
            value("at", DataType::Int64, vec![]),
            value("was", DataType::Bool, vec![]),
            value("v", DataType::Float, vec![Dim::from("n"), Dim::Fixed(SIDE)]),
        ],
        outputs: vec![
            value("goes", DataType::Bool, vec![]),
            value("doubled", DataType::Float, vec![Dim::from("n"), Dim::Fixed(SIDE)]),
        ],
        ..Graph::default()
    };
    let two = v2l_graphs::Initializer::inline(DataType::Int64, &[], 2i64.to_le_bytes().to_vec());
    body.initializers.insert("two".into(), two);
    // Goes on while fewer than three rounds are done.
    body.nodes = vec![op("Less", &["at", "two"], "goes"), op("Add", &["v", "v"], "doubled")];
    node.attributes.insert("body".into(), Attribute::Graph(Box::new(body)));
    scratch.write("loop.onnx", encode_model(&model, &|_| None).unwrap())
}

#[test]
fn loop_without_a_trip_count_or_a_condition_compiles_and_runs() {
    let x: NamedTensors = inputs(false, false);
    for left_out in [0, 1] {
        let scratch = Scratch::new();
        let onnx = looped(&scratch, left_out);
        let engine = scratch.path("loop.engine");
        run_ok("compile", args![&onnx, "-o", &engine]);
        let mut given = x.clone();
        let manifest = Engine::open(&engine).unwrap().manifest().clone();
        if manifest.graph("loop").unwrap().inputs.iter().any(|port| port.name == "go") {
            given.insert("go".into(), Tensor::Bool(ArrayD::from_elem(IxDyn(&[]), true)));
        }
        let mut ort = OrtEngine::open(Arc::new(Engine::open(&engine).unwrap()), &OpenOptions::default()).unwrap();
        let found = f32s(&run(&mut ort.session("loop").unwrap(), &given)["y"]);
        assert_close("loop", &found, &(f32s(&x["x"]) * 8.0), 1e-6);
    }
}

/// A field of bytes, fewer than 128 of them, of a protobuf message.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let key = number << 3 | 2;
    let key = if key < 128 { vec![key as u8] } else { vec![key as u8 & 127 | 128, (key >> 7) as u8] };
    [key, vec![bytes.len() as u8], bytes.to_vec()].concat()
}

/// `f(x, f(2, 3))`, where `f` is a function `Add` in `domain` that subtracts.
fn with_function(scratch: &Scratch, domain: &str) -> PathBuf {
    let mut b = Builder::new("g");
    let x = square_input(&mut b);
    // Of constants, so that a pass could compute the sum.
    let (two, three) = (b.float(2.0), b.float(3.0));
    let inner = b.op("Add", &[&two, &three]);
    let y = b.op("Add", &[&x, &inner]);
    square_output(&mut b, "y", &y);
    let mut model = b.finish().unwrap();
    model.graph.nodes.iter_mut().for_each(|node| node.domain = domain.into());
    model.opsets.insert(domain.into(), if domain.is_empty() { v2l_graphs::OPSET } else { 1 });
    let node = [field(1, b"a"), field(1, b"b"), field(2, b"c"), field(4, b"Sub")].concat();
    let opset = [field(1, b""), vec![2 << 3, v2l_graphs::OPSET as u8]].concat();
    let named = [field(1, b"Add"), field(4, b"a"), field(4, b"b"), field(5, b"c")].concat();
    let function = [named, field(7, &node), field(9, &opset), field(10, domain.as_bytes())].concat();
    // What follows a message adds to it.
    let bytes = [encode_model(&model, &|_| None).unwrap(), field(25, &function)].concat();
    scratch.write("m.onnx", bytes)
}

#[test]
fn function_under_the_name_of_an_operator_is_what_its_callers_compute_or_is_refused() {
    let scratch = Scratch::new();
    let (onnx, engine) = (with_function(&scratch, "acme"), scratch.path("m.engine"));
    run_ok("compile", args![&onnx, "-o", &engine, "--verify"]);
    let given = inputs(false, false);
    let mut ort = OrtEngine::open(Arc::new(Engine::open(&engine).unwrap()), &OpenOptions::default()).unwrap();
    let found = f32s(&run(&mut ort.session("m").unwrap(), &given)["y"]);
    assert_close("m", &found, &(f32s(&given["x"]) + 1.0), 1e-6);
    // Runtimes differ on which of both is meant.
    let onnx = with_function(&scratch, "");
    let run = crate::tools::output(command("compile", args![&onnx, "-o", scratch.path("m.engine")]));
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stderr.contains("function `Add`") && run.stderr.contains("inline_local_functions"), "{}", run.stderr);
}
