//! The numeric check of `v2l-compile`, its bisection, and optimisation profiles, through the real binaries.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use v2l_graphs::{Builder, DataType, Dim, Initializer, Value, encode_model};

use crate::bad_input::refuse;
use crate::random_weights;
use crate::support::fixtures;
use crate::tools::{RawTensor, Scratch, args, command, output, run_ok, write};

const USAGE: i32 = 2;
const NUMERIC: i32 = 7;

/// Values that look random, in [-1, 1).
pub(crate) fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn weight(b: &mut Builder, name: &str, shape: &[usize], values: &[f32]) -> Value {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    b.initializer(name, Initializer::inline(DataType::Float, shape, bytes))
}

pub(crate) fn save(scratch: &Scratch, name: &str, b: Builder) -> PathBuf {
    scratch.write(name, encode_model(&b.finish().unwrap(), &|_| None).unwrap())
}

/// `[batch, n]` → `[batch, 16]` through layers that rounding weights hardly changes, but for `cancel`, which takes nearly
/// equal products from each other.
fn cancelling(scratch: &Scratch) -> PathBuf {
    let mut b = Builder::new("g");
    let mut x = b.input("x", DataType::Float, [Dim::from("batch"), Dim::Fixed(16)]);
    for layer in 0..6u32 {
        let scope = if layer == 3 { "cancel".to_owned() } else { format!("layers.{layer}") };
        x = b.scope(scope.clone(), |b| {
            let values = noise(layer, 256);
            let w = weight(b, &format!("{scope}.weight"), &[16, 16], &values);
            let y = b.op("MatMul", &[&x, &w]);
            if layer != 3 {
                return b.op("Tanh", &[&y]);
            }
            let close: Vec<f32> = values.iter().map(|v| v * 1.0001).collect();
            let w = weight(b, "cancel.close", &[16, 16], &close);
            let z = b.op("MatMul", &[&x, &w]);
            let difference = b.op("Sub", &[&z, &y]);
            let scale = b.float(1e4);
            b.op("Mul", &[&difference, &scale])
        });
    }
    b.output("y", &x, DataType::Float, [Dim::from("batch"), Dim::Fixed(16)]);
    save(scratch, "model.onnx", b)
}

fn events(stdout: &str, name: &str) -> Vec<Json> {
    let lines = stdout.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    lines.filter(|event| event["event"] == name).collect()
}

#[test]
fn verify_reports_every_output_of_every_graph_in_both_weight_modes() {
    let scratch = Scratch::new();
    let (bundle, engines) = (scratch.path("bundle"), scratch.path("engines"));
    run_ok("export", args![fixtures().join("adapter/transformer"), "-o", &bundle]);
    let run = run_ok(
        "compile",
        args![&bundle, "-o", engines, "--verify", "--json", "--precision", "bf16", "--lora-rank", "4"],
    );
    let checks = events(&run.stdout, "check");
    let text = |check: &Json, key: &str| check[key].as_str().unwrap().to_owned();
    let mut seen: Vec<String> = checks
        .iter()
        .map(|c| format!("{} {} {}", text(c, "graph"), text(c, "weights"), kind(&text(c, "inputs"))))
        .collect();
    // Tables as transformers use them, and such as they never see; branches with nothing in them, and with something;
    // timesteps that are different, equal, several and one.
    let mut expected = vec!["step.branch stored factors".to_owned()];
    for (graph, weights) in [("step", "stored"), ("step", "f32"), ("step.branch", "stored"), ("step.branch", "f32")] {
        let kinds = ["any", "pairs", "several", "one", "equal", "equal", "equal", "turned", "turned", "turned"];
        expected.extend(kinds.map(|kind| format!("{graph} {weights} {kind}")));
    }
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    for check in &checks {
        let error = &check["outputs"][0]["error"];
        assert_eq!((check["passed"].as_bool(), check["outputs"][0]["name"].as_str()), (Some(true), Some("sample")));
        // bf16 keeps 8 bits of each weight.
        let distance = error["relative_l2"].as_f64().unwrap();
        assert!((1e-4..5e-2).contains(&distance), "{distance}");
    }
}

/// Which of the made inputs a label speaks of.
fn kind(label: &str) -> &'static str {
    match label {
        _ if label.contains("factors of rank 4") => "factors",
        _ if label.ends_with("equal timesteps") => "equal",
        _ if label.ends_with("timesteps in another order") => "turned",
        _ if label.ends_with("one known timestep") => "one",
        _ if label.ends_with("several timesteps") => "several",
        _ if label.contains("rotary tables of equal pairs") => "pairs",
        _ => "any",
    }
}

/// `[n, 4]` → what two layers that cancel leave over, and one infinity.
fn infinite(scratch: &Scratch, name: &str, infinite: bool) -> PathBuf {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::Fixed(16)]);
    let values = noise(1, 256);
    let close: Vec<f32> = values.iter().map(|v| v * 1.0001).collect();
    let (w, c) = (weight(&mut b, "w", &[16, 16], &values), weight(&mut b, "close", &[16, 16], &close));
    let (y, z) = (b.op("MatMul", &[&x, &w]), b.op("MatMul", &[&x, &c]));
    let y = b.op("Sub", &[&z, &y]);
    let mut mask = [0.0; 16];
    mask[3] = if infinite { f32::NEG_INFINITY } else { 0.0 };
    let mask = weight(&mut b, "mask", &[16], &mask);
    let y = b.op("Add", &[&y, &mask]);
    b.output("y", &y, DataType::Float, [Dim::from("n"), Dim::Fixed(16)]);
    save(scratch, name, b)
}

#[test]
fn infinities_of_the_source_do_not_hide_what_differs_elsewhere() {
    let scratch = Scratch::new();
    for has_infinity in [false, true] {
        let model = infinite(&scratch, "m.onnx", has_infinity);
        run_ok("compile", args![&model, "-o", scratch.path("sound.engine"), "--verify"]);
        let wrong = args![&model, "-o", scratch.path("m.engine"), "--precision", "bf16", "--no-calibration"];
        let message = refuse(&scratch, command("compile", wrong), NUMERIC);
        assert!(message.contains("`y` differs"), "{message}");
        let loose =
            args![&model, "-o", scratch.path("m.engine"), "--precision", "bf16", "--no-calibration", "--rtol", "0.1"];
        refuse(&scratch, command("compile", loose), NUMERIC);
    }
}

#[test]
fn outputs_that_would_replace_inputs_are_refused_and_nothing_is_lost() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let inputs = scratch.path("in.safetensors");
    tensors(&inputs, &[("x", &[3, 16])]);
    let (bundle, plan) = (scratch.path("bundle"), scratch.path("p.txt"));
    run_ok("export", args![fixtures().join("adapter/transformer"), "-o", &bundle]);
    let before = scratch.listing();
    for (flags, words) in [
        (args![&model, "-o", &model], "would replace the model"),
        (args![&model, "-o", &inputs, "--inputs", &inputs], "would replace --inputs"),
        (args![&model, "-o", &inputs, "--weights", &inputs], "would replace --weights"),
        (args![&bundle, "-o", &bundle], "would replace the bundle"),
        (args![&model, "-o", &plan, "--precision", "fp16", "--save-precision-plan", &plan], "both name"),
        (
            args![&model, "--precision", "fp16", "--save-precision-plan", scratch.path("no/p.txt")],
            "the folder [TMP]/no does not exist",
        ),
    ] {
        let message = refuse(&scratch, command("compile", flags), USAGE);
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(scratch.listing(), before);
}

#[test]
fn model_whose_data_the_engine_would_replace_is_refused() {
    let (scratch, sample) = (Scratch::new(), crate::tools::sample());
    let bundle = sample.bundle();
    let (onnx, data) = (bundle.join("vae_decoder/first.onnx"), bundle.join("vae_decoder/weights.bin"));
    let model = scratch.copy(&onnx, "first.onnx");
    let data = scratch.copy(&data, "weights.bin");
    let before = std::fs::read(&data).unwrap();
    let message = refuse(&scratch, command("compile", args![&model, "-o", &data]), 3);
    assert!(message.contains("weights.bin") && message.contains("write the engine to another path"), "{message}");
    assert!(std::fs::read(&data).unwrap() == before);
}

#[test]
fn graph_that_cannot_run_is_no_unchecked_engine() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Int64, [Dim::from("n")]);
    let y = b.op("Relu", &[&x]);
    b.output("y", &y, DataType::Int64, [Dim::from("n")]);
    let model = save(&scratch, "m.onnx", b);
    let message = refuse(&scratch, command("compile", args![&model]), 4);
    assert!(message.contains("Relu") && message.contains("--no-verify"), "{message}");
    run_ok("compile", args![&model, "--no-verify"]);
}

#[test]
fn contradictory_flags_are_refused() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let inputs = scratch.path("in.safetensors");
    tensors(&inputs, &[("x", &[3, 16])]);
    for flags in [
        args!["--no-verify", "--inputs", &inputs],
        args!["--no-verify", "--atol", "1"],
        args!["--accuracy-target", "nan"],
        args!["--accuracy-target=-1"],
        args!["--rtol=-1"],
        args!["--lora-rank", "4", "--fuse-modes", "fuse"],
        args!["--precision", "fp16", "--calibration-lora", "a", "--max-strength=-2"],
    ] {
        let all = [args![&model, "-o", scratch.path("m.engine")], flags].concat();
        refuse(&scratch, command("compile", &all), USAGE);
    }
    refuse(&scratch, command("compile", args!["debug", &model, "--no-verify"]), USAGE);
    let branches = args![&model, "-o", scratch.path("m.engine"), "--lora-rank", "4", "--fuse-modes", "branch"];
    let shaped = [branches, args!["--optShapes", "x:5x16"]].concat();
    run_ok("compile", &shaped);
}

#[test]
fn failed_check_names_the_node_and_leaves_the_earlier_engine() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let engine = scratch.path("model.engine");
    run_ok("compile", args![&model]);
    let before = std::fs::read(&engine).unwrap();
    let message = refuse(&scratch, command("compile", args![&model, "--precision", "bf16"]), NUMERIC);
    assert_eq!(std::fs::read(&engine).unwrap(), before);
    for part in ["graph `model`", "output `y` differs", "node `cancel/Sub` (Sub)", "expected relative L2"] {
        assert!(message.contains(part), "{message}");
    }
    // The same engine is made when it is not looked at.
    run_ok("compile", args![&model, "--precision", "bf16", "--no-verify"]);
    assert_ne!(std::fs::read(&engine).unwrap(), before);
}

#[test]
fn accuracy_target_decides_what_passes() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let compile = |flags: &[&str]| {
        let mut all =
            vec![model.to_str().unwrap(), "-o", scratch.path("a.engine").to_str().unwrap(), "--precision", "fp16"]
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>();
        all.extend(flags.iter().map(|f| (*f).to_owned()));
        crate::tools::output(command("compile", &all)).code
    };
    assert_eq!(compile(&["--accuracy-target", "1e-6", "--no-calibration"]), NUMERIC);
    // Measured, the blocks that miss it stay in float32.
    assert_eq!(compile(&["--accuracy-target", "1e-6"]), 0);
    assert_eq!(compile(&["--accuracy-target", "10"]), 0);
    assert_eq!(compile(&["--atol", "1e-6"]), NUMERIC);
    assert_eq!(compile(&["--atol", "2.5", "--rtol", "0"]), 0);
}

#[test]
fn debug_finds_the_node_block_by_block() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    for backend in ["ort", "openvino"] {
        let precision = args!["--precision", "bf16", "--block-nodes", "4", "--json", "--backend", backend];
        let run = run_ok("compile", &[args!["debug", &model], precision].concat());
        let blocks = events(&run.stdout, "block");
        assert!(blocks.len() > 2, "{}", run.stdout);
        let own = |block: &Json| block["own"]["relative_l2"].as_f64().unwrap();
        let worst = blocks.iter().max_by(|a, b| own(a).total_cmp(&own(b))).unwrap();
        assert!(own(worst) > 0.1 && blocks.iter().filter(|b| own(b) > 0.05).count() == 1, "{}", run.stdout);
        assert_eq!(events(&run.stdout, "culprit")[0]["node"], "cancel/Sub");
    }
    let exact = run_ok("compile", args!["debug", &model, "--json"]);
    assert_eq!(events(&exact.stdout, "culprit")[0]["node"], Json::Null);
}

fn tensors(path: &Path, all: &[(&str, &[usize])]) {
    let all = all.iter().map(|(name, shape)| ((*name).to_owned(), RawTensor::f32s(shape, 0.5))).collect();
    write(path, &all, None);
}

#[test]
fn given_inputs_are_used_and_must_fit() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let inputs = scratch.path("in.safetensors");
    tensors(&inputs, &[("x", &[3, 16])]);
    let engine = scratch.path("a.engine");
    let run = run_ok("compile", args![&model, "-o", &engine, "--verify", "--json", "--inputs", &inputs]);
    assert_eq!(events(&run.stdout, "check")[0]["inputs"], "in.safetensors");
    let z: (&str, &[usize]) = ("z", &[1]);
    for (given, what) in [
        (vec![z], "the graph has no input `z`"),
        (vec![("x", &[3, 15])], "input `x`: found f32 [3, 15]"),
        (vec![("x", &[3, 16]), z], "the graph has no input `z`"),
    ] {
        tensors(&inputs, &given);
        let compile = command("compile", args![&model, "-o", scratch.path("b.engine"), "--inputs", &inputs]);
        let message = refuse(&scratch, compile, USAGE);
        assert!(message.contains(what) && message.contains("expected `x` float32 [batch, 16]"), "{message}");
    }
}

/// A model that only runs on inputs of 24 elements, which its types do not say.
fn picky(scratch: &Scratch) -> PathBuf {
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Float, [Dim::from("n"), Dim::from("m")]);
    let shape = b.ints(&[4, 6]);
    let y = b.op("Reshape", &[&x, &shape]);
    let values = noise(1, 6 * 8);
    let w = weight(&mut b, "w", &[6, 8], &values);
    let y = b.op("MatMul", &[&y, &w]);
    b.output("y", &y, DataType::Float, [4usize, 8]);
    save(scratch, "model.onnx", b)
}

#[test]
fn graph_that_no_made_inputs_fit_is_reported_and_refused_by_verify() {
    let scratch = Scratch::new();
    let model = picky(&scratch);
    let run = run_ok("compile", args![&model]);
    assert!(run.stderr.contains("warning: graph `model` was not checked"), "{}", run.stderr);
    let verify = command("compile", args![&model, "-o", scratch.path("b.engine"), "--verify"]);
    let message = refuse(&scratch, verify, NUMERIC);
    assert!(message.contains("--inputs"), "{message}");
    run_ok("compile", args![&model, "-o", scratch.path("c.engine"), "--verify", "--optShapes", "x:3x8"]);
}

#[test]
fn graph_is_compiled_unchecked_without_onnx_runtime_and_refused_by_verify() {
    let scratch = Scratch::new();
    let model = picky(&scratch);
    let compile = |engine: &str| {
        let mut command = command("compile", args![&model, "-o", scratch.path(engine), "--optShapes", "x:3x8"]);
        command.env("V2L_ORT_LIB", scratch.path("missing.so"));
        command
    };
    let run = output(compile("a.engine"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("warning: graph `model` was not checked"), "{}", run.stderr);
    let mut verify = compile("b.engine");
    verify.arg("--verify");
    assert!(refuse(&scratch, verify, NUMERIC).contains("missing.so"));
}

#[test]
fn profile_bounds_what_an_engine_runs_on() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let engine = scratch.path("a.engine");
    let profiles = args![
        &model,
        "-o",
        &engine,
        "--minShapes",
        "x:2x16",
        "--maxShapes",
        "x:4x16",
        "--minShapes",
        "x:8x16",
        "--maxShapes",
        "x:8x16"
    ];
    run_ok("compile", profiles);
    let (inputs, outputs) = (scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    let run = args!["--engine", &engine, "--inputs", &inputs, "--outputs", &outputs];
    for batch in [2, 4, 8] {
        tensors(&inputs, &[("x", &[batch, 16])]);
        run_ok("run", run);
    }
    for batch in [1, 5, 9] {
        tensors(&inputs, &[("x", &[batch, 16])]);
        let message = refuse(&scratch, command("run", run), USAGE);
        let ranges = "profile 0: [2, 16] to [4, 16]; profile 1: [8, 16] to [8, 16]";
        assert!(message.contains(&format!("[{batch}, 16]")) && message.contains(ranges), "{message}");
    }
}

#[test]
fn profile_of_one_shape_makes_the_graph_static() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let engine = scratch.path("a.engine");
    run_ok("compile", args![&model, "-o", &engine, "--optShapes", "x:3x16", "--verify"]);
    let graph = &events(&run_ok("inspect", args![&engine, "--json"]).stdout, "graph")[0];
    assert_eq!(graph["inputs"][0]["shape"], serde_json::json!([3, 16]));
    assert_eq!(graph["profiles"][0]["x"]["opt"], serde_json::json!([3, 16]));
}

#[test]
fn profiles_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let model = cancelling(&scratch);
    let cases: [(&[&str], &str); 5] = [
        (&["--optShapes", "z:3x16"], "which no graph has; the inputs are: x"),
        (&["--optShapes", "x:3x16x1"], "expected 2 extents as in [batch, 16]"),
        (&["--optShapes", "x:3x8"], "the graph fixes it at 16"),
        (&["--minShapes", "x:4x16", "--maxShapes", "x:2x16"], "expected 1 ≤ min ≤ opt ≤ max"),
        (&["--minShapes", "x:4x16"], "neither --optShapes nor --maxShapes"),
    ];
    for (flags, what) in cases {
        let mut all = vec![model.to_str().unwrap()];
        all.extend(flags);
        let message = refuse(&scratch, command("compile", &all), USAGE);
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn explain_says_what_passes_did_and_what_runs_spend_their_time_on() {
    let scratch = Scratch::new();
    let (bundle, engines) = (scratch.path("bundle"), scratch.path("engines"));
    let model = random_weights::made(&fixtures().join("transformer/fun_inp"));
    run_ok("export", args![model.root(), "-o", &bundle]);
    let branches = args!["--lora-rank", "4", "--fuse-modes", "branch"];
    for (flags, graphs) in [(args![], vec!["step"]), (branches, vec!["step.branch"])] {
        let all = [args![&bundle, "-o", &engines, "--explain", "--json"], flags].concat();
        let run = run_ok("compile", &all);
        let passes = events(&run.stdout, "passes");
        assert_eq!(passes.len(), 1);
        assert!(passes[0]["fired"]["timestep-tables"].as_u64() > Some(0), "{}", passes[0]);
        let times = events(&run.stdout, "times");
        assert_eq!(times.iter().map(|t| t["graph"].as_str().unwrap()).collect::<Vec<_>>(), graphs);
        for times in times {
            let (total, share) = (times["total_ms"].as_f64().unwrap(), times["products_share"].as_f64().unwrap());
            let sum: f64 = times["operators_ms"].as_object().unwrap().values().map(|ms| ms.as_f64().unwrap()).sum();
            assert!(total > 0.0 && (sum - total).abs() < 1e-6 && share > 0.0 && share < 1.0, "{times}");
            assert!(times["operators_ms"]["Gemm"].as_f64() > Some(0.0), "{times}");
        }
    }
}
