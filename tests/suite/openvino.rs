//! OpenVINO as a backend, on the real library, against golden files and ONNX Runtime. The library must be there
//! (`bin/setup --tests`).

use std::cell::Cell;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use indexmap::IndexMap;
use ndarray::{ArrayD, IxDyn};
use serde_json::Value as Json;
use v2l_export::targets::{OnnxRuntime, OpenVino, Target};
use v2l_export::{CompileOptions, ExportOptions};
use v2l_graphs::passes::quantize_weights;
use v2l_graphs::{Builder, DataType, Dim, Initializer, Location, TensorData, encode_model};
use v2l_openvino::Core;
use v2l_runtime::backends::openvino::OpenVinoPrecision;
use v2l_runtime::backends::{BackendEngine, OpenEngine, chosen};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{Graph, OpenVinoGraph, Slot, WEIGHTS_PLACEHOLDER};
use v2l_runtime::error::{Classified, ErrorClass};
use v2l_runtime::events::Cancelled;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::adapter::Adapter;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::architecture::root;
use crate::precision::noise;
use crate::support::{Built, Case, assert_close, cases, f32s, fixtures, open_with, openvino, run, skipped, stack};
use crate::swaps::adapter;
use crate::tools::{Run, Scratch, args, command, output};

/// With low-rank branches, where the model can have any.
fn built(model: &str) -> Built {
    let lora_rank = model.starts_with("transformer/").then_some(4);
    let options = CompileOptions { target: Arc::new(OpenVino), lora_rank, ..CompileOptions::default() };
    Built::with(&fixtures().join(model), &ExportOptions::default(), &options)
}

/// Over weights in bfloat16.
fn in_bfloat16(folder: &Path) -> Built {
    let options =
        CompileOptions { storage: Some(Dtype::Bf16), target: Arc::new(OpenVino), ..CompileOptions::default() };
    Built::with(folder, &ExportOptions::default(), &options)
}

fn form(graph: &Graph) -> &OpenVinoGraph {
    graph.files.openvino.as_ref().unwrap_or_else(|| panic!("{} has no form for OpenVINO", graph.name))
}

/// An engine on OpenVINO, in this precision.
fn opened(engine: &Arc<Engine>, precision: OpenVinoPrecision) -> OpenEngine {
    let mut options = openvino();
    options.openvino.precision = precision;
    OpenEngine::open(Arc::clone(engine), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// True if OpenVINO names this among what the processor can.
fn computes_in(capability: &str) -> bool {
    let core = Core::open(openvino().openvino.library.as_deref()).unwrap();
    core.capabilities().unwrap().iter().any(|found| found == capability)
}

fn on_openvino(engine: &Arc<Engine>, graph: &str, inputs: &NamedTensors) -> NamedTensors {
    run(&mut *opened(engine, OpenVinoPrecision::F32).session(graph).unwrap(), inputs)
}

const TRANSFORMERS: [&str; 6] = ["rotary_t2v", "sincos_t2v", "learned_i2v", "fun_inp", "v15_t2v", "v15_i2v"];

#[test]
fn transformers_of_every_variant_equal_diffusers_on_openvino() {
    for variant in TRANSFORMERS {
        let folder = format!("transformer/{variant}");
        let engine = built(&folder).engine("transformer");
        let mut session = opened(&engine, OpenVinoPrecision::F32).session("step").unwrap();
        for path in cases(&fixtures().join(&folder)) {
            let case = Case::read(&path);
            let what = format!("{variant} {}", case.name);
            let outputs = run(&mut *session, &case.inputs);
            assert_close(&what, &f32s(&outputs["sample"]), &case.output("sample"), 1e-5);
        }
    }
}

#[test]
fn bfloat16_step_over_timestep_rows_in_float32_stays_within_its_rounding() {
    let engine = built("transformer/rotary_t2v").engine("transformer");
    if !computes_in("BF16") {
        return skipped(
            "bfloat16_step_over_timestep_rows_in_float32_stays_within_its_rounding",
            "this processor has no bfloat16",
        );
    }
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let mut opened = opened(&engine, OpenVinoPrecision::Bf16);
    assert!(opened.report().reason.ends_with("computes in bfloat16, as asked for"), "{}", opened.report().reason);
    let outputs = run(&mut *opened.session("step").unwrap(), &case.inputs);
    assert_close("bf16", &f32s(&outputs["sample"]), &case.output("sample"), 2e-2);
    assert_ne!(outputs, on_openvino(&engine, "step", &case.inputs));
}

#[test]
fn steps_over_bfloat16_weights_compute_in_it_unless_float32_is_asked_for() {
    let folder = fixtures().join("transformer/rotary_t2v");
    let case = Case::read(&cases(&folder)[0]);
    let built = in_bfloat16(&folder);
    let engine = built.engine("transformer");
    let expected = f32s(&run(&mut *built.session("transformer", "step", OrtWeights::F32), &case.inputs)["sample"]);
    let exact = on_openvino(&engine, "step", &case.inputs);
    assert_close("f32", &f32s(&exact["sample"]), &expected, 1e-5);
    let mut auto = opened(&engine, OpenVinoPrecision::Auto);
    let found = run(&mut *auto.session("step").unwrap(), &case.inputs);
    assert_close("auto", &f32s(&found["sample"]), &expected, 2e-2);
    let reason = &auto.report().reason;
    assert_eq!(reason.ends_with("computes in bfloat16, as its weights are stored"), found != exact, "{reason}");
}

#[test]
fn branches_with_factors_of_any_rank_equal_onnx_runtime() {
    let built = built("transformer/rotary_t2v");
    let engine = built.engine("transformer");
    let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
    let mut session = opened(&engine, OpenVinoPrecision::F32).session("step.branch").unwrap();
    for rank in [0, 1, 3, 0] {
        let mut factors = NamedTensors::new();
        for (seed, slot) in engine.manifest().slots.iter().enumerate() {
            // Some have none.
            let rank = if seed % 3 == 0 { 0 } else { rank };
            let factor = |shape: [usize; 2], seed: usize| {
                let values = noise(seed as u64, shape[0] * shape[1]).into_iter().map(|value| value * 0.1).collect();
                Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap())
            };
            factors.insert(format!("{}.lora_down", slot.name), factor([rank, slot.in_features], seed));
            factors.insert(format!("{}.lora_up", slot.name), factor([slot.out_features, rank], 1000 + seed));
        }
        let mut inputs = case.inputs.clone();
        inputs.extend(factors.clone());
        let expected = run(&mut *built.session("transformer", "step.branch", OrtWeights::F32), &inputs);
        let found = run(&mut *session, &inputs);
        assert_close(&format!("rank {rank}"), &f32s(&found["sample"]), &f32s(&expected["sample"]), 1e-5);
        let held: Vec<(&str, &Tensor)> = factors.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        assert!(session.hold(&held).unwrap());
        assert_eq!(run(&mut *session, &case.inputs), found, "factors that the session keeps");
    }
}

/// Both graphs of one half of an autoencoder, the second on the caches of the first, against ONNX Runtime.
fn check_chunks(built: &Built, component: &str, input: &str, [first, rest]: [[usize; 5]; 2]) {
    let engine = built.engine(component);
    let mut inputs = NamedTensors::new();
    for (graph, shape) in [("first", first), ("rest", rest)] {
        let values = noise(shape[2] as u64, shape.iter().product());
        inputs.insert(input.to_owned(), Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap()));
        let expected = run(&mut *built.session(component, graph, OrtWeights::F32), &inputs);
        let found = on_openvino(&engine, graph, &inputs);
        assert!(expected.len() > 1 && found.len() == expected.len(), "{component} {graph}");
        for (name, tensor) in &expected {
            assert_close(&format!("{component} {graph} {name}"), &f32s(&found[name]), &f32s(tensor), 1e-4);
        }
        let caches =
            expected.into_iter().filter_map(|(name, cache)| Some((name.strip_prefix("next_")?.to_owned(), cache)));
        inputs = caches.collect();
    }
}

#[test]
fn autoencoder_and_its_caches_equal_onnx_runtime() {
    let built = built("vae/tiny");
    check_chunks(&built, "vae_encoder", "x", [[1, 3, 9, 16, 24], [1, 3, 8, 16, 24]]);
    check_chunks(&built, "vae_decoder", "z", [[1, 16, 3, 4, 6], [1, 16, 2, 4, 6]]);
}

#[test]
fn text_encoders_equal_transformers_on_openvino() {
    for variant in ["gated_gelu", "relu", "umt5"] {
        let folder = format!("t5/{variant}");
        let engine = built(&folder).engine("text_encoder");
        for path in cases(&fixtures().join(&folder)) {
            let case = Case::read(&path);
            let graph = if case.inputs.contains_key("attention_mask") { "encode_masked" } else { "encode" };
            let outputs = on_openvino(&engine, graph, &case.inputs);
            let expected = case.output("last_hidden_state");
            assert_close(&format!("{variant} {}", case.name), &f32s(&outputs["last_hidden_state"]), &expected, 1e-5);
        }
    }
}

#[test]
fn engines_for_openvino_share_their_weights_with_the_onnx_forms_and_grow_by_graphs_alone() {
    let folder = fixtures().join("transformer/fun_inp");
    let (with, without) = (built("transformer/fun_inp"), {
        let options = CompileOptions { lora_rank: Some(4), ..CompileOptions::default() };
        Built::with(&folder, &ExportOptions::default(), &options)
    });
    let (with, without) = (with.engine("transformer"), without.engine("transformer"));
    let is_weight = |name: &&String| !name.starts_with("v2l/");
    let weights = |engine: &Engine| -> Vec<(String, _)> {
        let all = engine.manifest().tensors.iter();
        all.filter(|(name, _)| is_weight(name)).map(|(name, record)| (name.clone(), record.clone())).collect()
    };
    assert!(weights(&with) == weights(&without));
    let mut vectors = 0;
    for graph in with.manifest().graphs.iter().flat_map(Graph::parts) {
        let form = form(graph);
        // Every weight is an input or lies in the graph.
        for name in &graph.weights {
            let axes = with.weight(name).unwrap().shape.len();
            assert_eq!(form.weights.contains(name), axes >= 2, "{} {name}", graph.name);
            vectors += usize::from(axes < 2);
        }
        assert!(form.weights.iter().all(|name| graph.weights.contains(name)), "{}", graph.name);
    }
    assert!(vectors > 0, "the model has vectors");
}

#[test]
fn matrices_in_8_bits_give_what_they_give_on_onnx_runtime() {
    for variant in ["rotary_t2v", "fun_inp"] {
        let folder = fixtures().join(format!("transformer/{variant}"));
        let built = in_8_bits(&folder, Arc::new(OpenVino));
        let engine = built.engine("transformer");
        let mut exact = opened(&engine, OpenVinoPrecision::F32);
        let mut quantizing = opened(&engine, OpenVinoPrecision::Int8);
        let reason = &quantizing.report().reason;
        let rounds = reason.ends_with("computes in 8 bits, as asked for, and float32");
        assert!(rounds || reason.ends_with("float32: this processor has no products in 8 bits"), "{reason}");
        for path in cases(&folder) {
            let case = Case::read(&path);
            let what = |how: &str| format!("{variant} {}, {how}", case.name);
            let ort = run(&mut *built.session("transformer", "step", OrtWeights::Stored), &case.inputs);
            let found = run(&mut *exact.session("step").unwrap(), &case.inputs);
            assert_close(&what("rows as they are"), &f32s(&found["sample"]), &f32s(&ort["sample"]), 1e-5);
            let quantized = run(&mut *quantizing.session("step").unwrap(), &case.inputs);
            assert_close(&what("rows in 8 bits"), &f32s(&quantized["sample"]), &case.output("sample"), 5e-2);
            assert_eq!(quantized != found, rounds, "{}", what("what is said is what is done"));
        }
    }
}

#[test]
fn matrices_in_8_bits_are_exact_unless_something_else_is_asked_for() {
    let engine = in_8_bits(&fixtures().join("transformer/rotary_t2v"), Arc::new(OpenVino)).engine("transformer");
    assert_eq!(engine.manifest().storage, Dtype::Bf16, "what is left is");
    let reason = &opened(&engine, OpenVinoPrecision::Auto).report().reason.clone();
    assert!(reason.ends_with("computes in float32"), "{reason}");
}

/// With low-rank branches; what is left beside 8 bits is in bfloat16.
fn in_8_bits(model: &Path, target: Arc<dyn Target>) -> Built {
    let (int8, lora_rank, storage) = (Some(32), Some(4), Some(Dtype::Bf16));
    let options = CompileOptions { int8, lora_rank, storage, target, ..CompileOptions::default() };
    Built::with(model, &ExportOptions::default(), &options)
}

#[test]
fn matrices_in_8_bits_lie_in_an_engine_for_openvino_once() {
    let folder = fixtures().join("transformer/rotary_t2v");
    let engines = [Arc::new(OpenVino) as Arc<dyn Target>, Arc::new(OnnxRuntime)]
        .map(|target| in_8_bits(&folder, target).engine("transformer"));
    let [with, without] = engines.each_ref().map(|engine| {
        let weights = engine.manifest().tensors.iter().filter(|(name, _)| !name.starts_with("v2l/"));
        weights.map(|(name, record)| (name.clone(), record.clone())).collect::<Vec<_>>()
    });
    assert!(with == without);
    for graph in engines[0].manifest().graphs.iter().flat_map(Graph::parts) {
        let form = form(graph);
        let of_layers = |name: &&String| name.ends_with(".int8") || name.ends_with(".int8_scales");
        assert!(form.constants.iter().eq(graph.weights.iter().filter(of_layers)), "{}", graph.name);
    }
}

#[test]
fn runs_give_the_same_bits_again_in_one_and_two_threads_and_in_eight_sessions_at_once() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    let case = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]);
    let on_threads = |threads| {
        let options = OpenOptions { threads: Some(threads), ..openvino() };
        OpenEngine::open(Arc::clone(&engine), &options).unwrap()
    };
    let first = run(&mut *on_threads(1).session("step").unwrap(), &case.inputs);
    let mut two = on_threads(2);
    let mut sessions: Vec<_> = (0..8).map(|_| two.session("step").unwrap()).collect();
    std::thread::scope(|scope| {
        for session in &mut sessions {
            scope.spawn(|| {
                for _ in 0..3 {
                    assert_eq!(run(&mut **session, &case.inputs), first);
                }
            });
        }
    });
}

#[test]
fn timestep_rows_have_the_same_bits_prepared_or_not_and_follow_adapters() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    assert!(engine.graph("step").unwrap().precomputed.is_some(), "there is something to forget");
    let inputs = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]).inputs;
    let steer = adapter("a", engine.manifest().slots.iter(), 3, 1);
    let mut steered = open_with(Arc::clone(&engine), &openvino(), &[(&steer, 0.5)]);
    let expected = run(&mut *steered.session("step").unwrap(), &inputs);
    let mut base = opened(&engine, OpenVinoPrecision::F32);
    let mut session = base.session("step").unwrap();
    let alone = run(&mut *session, &inputs);
    let mut prepared = base.session("step").unwrap();
    let mut schedule = inputs.clone();
    schedule.insert("timestep".to_owned(), Tensor::I64(ndarray::arr1(&[999, 500, 20]).into_dyn()));
    schedule.shift_remove("hidden_states");
    let schedule: Vec<(&str, &Tensor)> = schedule.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    prepared.prepare(&schedule, &|| false).unwrap();
    assert_eq!(run(&mut *prepared, &inputs), alone);
    base.set_adapters(&stack(&[(&steer, 0.5)]), std::iter::empty(), None).unwrap();
    for session in [&mut session, &mut prepared] {
        assert_eq!(run(&mut **session, &inputs), expected, "as a session that was opened over the adapter");
    }
    base.set_adapters(&[], std::iter::empty(), None).unwrap();
    assert_eq!(run(&mut *session, &inputs), alone, "the base comes back bit for bit");
}

#[test]
fn a_run_that_is_no_longer_wanted_ends_and_leaves_the_session_as_it_was() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    let case = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]);
    for options in [openvino(), OpenOptions::default()] {
        let mut session = OpenEngine::open(Arc::clone(&engine), &options).unwrap().session("step").unwrap();
        let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        let before = session.run(&inputs).unwrap();
        let stopped = session.run_unless(&inputs, &|| true).unwrap_err();
        assert_eq!((stopped.class(), stopped.to_string()), (ErrorClass::Cancelled, Cancelled.to_string()));
        assert_eq!(session.run_unless(&inputs, &|| false).unwrap(), before);
    }
}

#[test]
fn timesteps_that_are_no_longer_wanted_are_not_prepared_and_the_session_stays_as_it_was() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    let inputs = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]).inputs;
    let mut schedule = inputs.clone();
    schedule.insert("timestep".to_owned(), Tensor::I64(ndarray::Array1::from_iter(0..40).into_dyn()));
    schedule.shift_remove("hidden_states");
    let schedule: Vec<(&str, &Tensor)> = schedule.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    for options in [openvino(), OpenOptions::default()] {
        let mut session = OpenEngine::open(Arc::clone(&engine), &options).unwrap().session("step").unwrap();
        let before = run(&mut *session, &inputs);
        for rows in [0, 3] {
            let asked = Cell::new(0);
            let later = || asked.replace(asked.get() + 1) >= rows;
            let stopped = session.prepare(&schedule, &later).unwrap_err();
            assert_eq!((stopped.class(), stopped.to_string()), (ErrorClass::Cancelled, Cancelled.to_string()));
            assert!(asked.get() <= rows + 1, "asked {} times", asked.get());
            assert_eq!(run(&mut *session, &inputs), before);
        }
        session.prepare(&schedule, &|| false).unwrap();
        assert_eq!(run(&mut *session, &inputs), before);
    }
}

/// An adapter of these, which changes a bias, too: the graphs that it lies in are compiled again.
fn with_a_bias(engine: &Engine) -> Adapter {
    let is_bias = |slot: &&Slot| slot.name.ends_with("bias");
    let bias = engine.parameters().iter().find(is_bias).expect("the model has a bias");
    adapter("a", engine.manifest().slots.iter().chain([bias]), 3, 1)
}

#[test]
fn base_that_cannot_be_brought_back_leaves_adapters_and_sessions_as_they_were() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    let inputs = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]).inputs;
    let steer = stack(&[(&with_a_bias(&engine), 0.5)]);
    let mut on = chosen(&engine, &openvino()).open(Arc::clone(&engine), &openvino()).unwrap();
    let base = run(&mut *on.session("step").unwrap(), &inputs);
    on.set_adapters(&steer, &mut |_| Ok(()), None).unwrap();
    let report = on.report().private_bytes;
    let mut session = on.session("step").unwrap();
    let steered = run(&mut *session, &inputs);
    assert_ne!(steered, base);
    // What a graph that does not compile any more looks like.
    let mut fails = |on: &mut dyn BackendEngine| on.session("nowhere").map(drop);
    let error = on.set_adapters(&[], &mut fails, None).unwrap_err();
    assert!(error.to_string().contains("has no graph `nowhere`"), "{error}");
    assert_eq!(on.report().private_bytes, report);
    assert_eq!(run(&mut *session, &inputs), steered, "the session that is open");
    assert_eq!(run(&mut *on.session("step").unwrap(), &inputs), steered, "one that is opened now");
    on.set_adapters(&[], &mut |_| Ok(()), None).unwrap();
    assert_eq!(run(&mut *on.session("step").unwrap(), &inputs), base, "the base comes back bit for bit");
}

#[test]
fn graphs_are_not_compiled_again_once_that_is_no_longer_wanted_and_everything_stays_as_it_was() {
    let built = built("transformer/fun_inp");
    let engine = built.engine("transformer");
    let inputs = Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0]).inputs;
    let steer = stack(&[(&with_a_bias(&engine), 0.5)]);
    let mut on = opened(&engine, OpenVinoPrecision::F32);
    let mut sessions = IndexMap::from([("step".to_owned(), on.session("step").unwrap())]);
    let base = run(&mut *sessions["step"], &inputs);
    let asked = AtomicUsize::new(0);
    let count = || {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    };
    on.set_adapters(&steer, sessions.iter_mut(), Some(&count)).unwrap();
    let steered = run(&mut *sessions["step"], &inputs);
    on.set_adapters(&[], sessions.iter_mut(), None).unwrap();
    assert_eq!(run(&mut *sessions["step"], &inputs), base);
    // The last question comes before the graph is compiled, when all is fused.
    let left = AtomicUsize::new(asked.load(Ordering::Relaxed));
    let at_last = || left.fetch_sub(1, Ordering::Relaxed) == 1;
    let error = on.set_adapters(&steer, sessions.iter_mut(), Some(&at_last)).unwrap_err();
    assert_eq!((error.class(), error.to_string()), (ErrorClass::Cancelled, Cancelled.to_string()));
    assert_eq!(left.load(Ordering::Relaxed), 0, "it was asked as often as before");
    assert_eq!(run(&mut *sessions["step"], &inputs), base);
    assert_eq!(run(&mut *on.session("step").unwrap(), &inputs), base);
    on.set_adapters(&steer, sessions.iter_mut(), None).unwrap();
    assert_eq!(run(&mut *sessions["step"], &inputs), steered);
}

#[test]
fn engines_without_a_form_for_openvino_are_refused_with_a_way_out() {
    let plain = Built::plain(&fixtures().join("transformer/rotary_t2v"));
    let error = OpenEngine::open(plain.engine("transformer"), &openvino()).err().unwrap();
    let expected = "transformer, graph `step`: the engine holds no form for OpenVINO; compile it with `v2l-compile --backend \
                    openvino`, or run it with `backend \"ort\"`";
    assert_eq!((error.class(), error.to_string()), (ErrorClass::Version, expected.to_owned()));
}

#[test]
fn debug_looks_into_the_form_for_openvino_block_by_block() {
    let built = Built::plain(&fixtures().join("transformer/rotary_t2v"));
    let graph = built.bundle().join("transformer/step.onnx");
    let options = args!["--backend", "openvino", "--block-nodes", "40", "--json"];
    let run = output(command("compile", &[args!["debug", &graph], options].concat()));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let events = run.stdout.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let blocks: Vec<Json> = events.filter(|event| event["event"] == "block").collect();
    let largest = |which: &str| {
        let errors = blocks.iter().map(|block| block[which]["relative_l2"].as_f64().unwrap());
        errors.fold(0.0, f64::max)
    };
    // Bits of its own say that it ran there.
    assert!(blocks.len() > 3 && largest("own") > 0.0, "{}", run.stdout);
    assert!(largest("own") < 1e-5 && largest("accumulated") < 1e-5, "{}", run.stdout);
}

#[test]
fn both_leaves_out_what_openvino_does_not_take_and_says_so() {
    let scratch = Scratch::new();
    let model = |name: &str, axis: i64, extents: &[usize]| {
        let mut b = Builder::new("g");
        let x = b.input("x", DataType::Float, [2_usize, 5, 8]);
        let scale = b.floats(extents, &vec![0.5; extents.iter().product()]);
        let y = b.node("LayerNormalization", &[&x, &scale]).attr("axis", axis).out();
        b.output("y", &y, DataType::Float, [2_usize, 5, 8]);
        scratch.write(name, encode_model(&b.finish().unwrap(), &|_| None).unwrap())
    };
    let (taken, refused) = (model("taken.onnx", -1, &[8]), model("refused.onnx", 1, &[5, 8]));
    let engine = scratch.path("g.engine");
    let compile = |model: &Path, backend: &str| {
        output(command("compile", args![model, "-o", &engine, "--backend", backend, "--json"]))
    };
    let run = compile(&refused, "openvino");
    assert!(run.code != 0 && !engine.exists() && run.stderr.contains("scales of one axis only"), "{}", run.stderr);
    for (model, has_form) in [(&refused, false), (&taken, true)] {
        let run = compile(model, "both");
        assert_eq!(run.code, 0, "{}", run.stderr);
        let words = "scales of one axis only, and its width is no known number; the component is compiled for ONNX Runtime alone";
        assert_eq!(run.stderr.contains(words), !has_form, "{}", run.stderr);
        let opened = Engine::open(&engine).unwrap();
        assert_eq!(opened.manifest().graphs[0].files.openvino.is_some(), has_form);
        std::fs::remove_file(&engine).unwrap();
    }
}

/// `y = x + Gelu(x · up) · down`: what `--backend auto` times. `UPDATE_PROBE=1` writes it.
#[test]
fn probes_are_the_graphs_that_they_say_to_be() {
    let (tokens, width, hidden) = (256, 768, 3072);
    for (file, in_8_bits) in [("openvino-probe.onnx", false), ("openvino-probe-int8.onnx", true)] {
        let mut b = Builder::new("probe");
        let x = b.input("x", DataType::Float, [tokens, width]);
        let mut matrix = |name: &str, ins: usize, outs: usize| match in_8_bits {
            true => {
                let zeros = TensorData::raw(vec![0; ins * outs * 4]);
                b.initializer(name, Initializer::weight(DataType::Float, &[ins, outs], zeros))
            }
            false => b.input(name, DataType::Float, [ins, outs]),
        };
        let (up, down) = (matrix("up", width, hidden), matrix("down", hidden, width));
        let inner = b.op("MatMul", &[&x, &up]);
        let active = b.op("Gelu", &[&inner]);
        let outer = b.op("MatMul", &[&active, &down]);
        let y = b.op("Add", &[&x, &outer]);
        b.output("y", &y, DataType::Float, [tokens, width]);
        let mut model = b.finish().unwrap();
        if in_8_bits {
            assert_eq!(quantize_weights(&mut model, &["up".to_owned(), "down".to_owned()], 64), 2);
        }
        let elsewhere = |name: &str| {
            let length = model.graph.initializers[name].expected_len()? as u64;
            Some(Location { file: WEIGHTS_PLACEHOLDER.into(), offset: 0, length })
        };
        let bytes = encode_model(&model, &elsewhere).unwrap();
        let path = root().join("runtime/assets").join(file);
        if std::env::var_os("UPDATE_PROBE").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(path).unwrap() == bytes, "run with UPDATE_PROBE=1");
    }
}

/// A transformer's engine, and named tensors that it takes.
struct Named {
    built: Built,
    scratch: Scratch,
}

impl Named {
    fn new() -> Self {
        Self::over(built("transformer/rotary_t2v"))
    }

    fn over(built: Built) -> Self {
        let scratch = Scratch::new();
        let case = Case::read(&cases(&fixtures().join("transformer/rotary_t2v"))[0]);
        write_tensors(scratch.path("in.safetensors"), &case.inputs, &IndexMap::new()).unwrap();
        Self { built, scratch }
    }

    /// `v2l-run` on them, with a folder of its own for what is kept for the machine.
    fn run(&self, more: &[OsString]) -> Run {
        output(self.command(more))
    }

    fn command(&self, more: &[OsString]) -> Command {
        let engine = self.built.engines().join("transformer.engine");
        let tensors = args!["--inputs", self.scratch.path("in.safetensors"), "--outputs", self.scratch.path("out")];
        let args = [args!["--engine", engine, "--graph", "step", "--json"], tensors, more].concat();
        let mut command = command("run", &args);
        command.env("XDG_CACHE_HOME", self.scratch.path("cache"));
        command
    }
}

/// The same on an emulated processor that has AVX2, and neither bfloat16 nor 8-bit products.
fn emulated(command: &Command) -> Command {
    let mut emulated = Command::new("qemu-x86_64");
    // All is emulated already under `bin/test --emulate`.
    if command.get_program() != "qemu-x86_64" {
        emulated.args(["-cpu", "Haswell"]).arg(command.get_program());
    }
    emulated.args(command.get_args());
    emulated.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    emulated
}

/// False without the emulator, which is said as the reason that `test` does not run.
fn emulates(test: &str) -> bool {
    let there = Command::new("qemu-x86_64").arg("--version").output().is_ok_and(|run| run.status.success());
    if !there {
        skipped(test, "there is no qemu-x86_64 (apt-get install qemu-user)");
    }
    there
}

/// Why OpenVINO or ONNX Runtime was taken, and what it computes.
fn reason_and_sample(named: &Named, command: Command) -> (String, ArrayD<f32>) {
    let run = output(command);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let tensors = read_tensors(named.scratch.path("out")).unwrap();
    (member(&run, "opened", "reason").as_str().unwrap().to_owned(), f32s(&tensors["sample"]))
}

#[test]
fn without_products_in_8_bits_rows_stay_in_float32_and_the_run_says_so() {
    if !emulates("without_products_in_8_bits_rows_stay_in_float32_and_the_run_says_so") {
        return;
    }
    let named = Named::over(in_8_bits(&fixtures().join("transformer/rotary_t2v"), Arc::new(OpenVino)));
    let on_openvino = |precision: &str| {
        let command = named.command(args!["--backend", "openvino", "--openvino-precision", precision]);
        reason_and_sample(&named, emulated(&command))
    };
    let (_, exact) = on_openvino("f32");
    let (reason, found) = on_openvino("int8");
    assert!(reason.ends_with("float32: this processor has no products in 8 bits"), "{reason}");
    assert_eq!(found, exact);
}

#[test]
fn without_bfloat16_auto_takes_onnx_runtime_and_openvino_computes_in_float32() {
    if !emulates("without_bfloat16_auto_takes_onnx_runtime_and_openvino_computes_in_float32") {
        return;
    }
    let named = Named::over(in_bfloat16(&fixtures().join("transformer/rotary_t2v")));
    let outputs = |command: Command| reason_and_sample(&named, command);
    let (_, expected) = outputs(named.command(args!["--backend", "openvino", "--openvino-precision", "f32"]));
    let (reason, found) = outputs(emulated(&named.command(args!["--backend", "openvino"])));
    assert!(reason.ends_with("float32: this processor has no bfloat16"), "{reason}");
    assert_close("float32 on an emulated processor", &found, &expected, 1e-5);
    let (_, expected) = outputs(emulated(&named.command(args!["--backend", "ort"])));
    let (reason, found) = outputs(emulated(&named.command(args!["--backend", "auto"])));
    assert!(!reason.starts_with("OpenVINO") && found == expected, "{reason}");
    let run = output(emulated(&named.command(args!["--backend", "openvino", "--openvino-precision", "bf16"])));
    assert!(run.code == 6 && run.stderr.contains("use `--openvino-precision f32`"), "{} {}", run.code, run.stderr);
}

/// The member of an event.
fn member(run: &Run, event: &str, name: &str) -> Json {
    let mut events = run.stdout.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    events.find(|found| found["event"] == event).unwrap_or_else(|| panic!("{} {}", run.stdout, run.stderr))[name]
        .clone()
}

#[test]
fn command_line_runs_on_openvino_or_says_how_to_come_by_it() {
    let named = Named::new();
    let run = named.run(args!["--backend", "openvino", "--openvino-precision", "f32"]);
    let reason = member(&run, "opened", "reason");
    assert!(run.code == 0 && reason.as_str().unwrap().ends_with("computes in float32, as asked for"), "{reason}");
    let nowhere = named.scratch.path("nowhere");
    let run = named.run(args!["--backend", "openvino", "--openvino-lib", &nowhere]);
    assert!(run.code == 6 && run.stderr.contains("pip install openvino"), "{} {}", run.code, run.stderr);
    let run = named.run(args!["--backend", "ort", "--openvino-lib", &nowhere]);
    assert!(run.code == 2 && run.stderr.contains("--openvino-lib is for OpenVINO"), "{} {}", run.code, run.stderr);
    let run = named.run(args!["--backend", "tensorrt", "--fused-cache", &nowhere]);
    assert!(
        run.code == 2 && run.stderr.contains("--fused-cache is for ONNX Runtime and"),
        "{} {}",
        run.code,
        run.stderr
    );
    let run = named.run(args!["--backend", "openvino", "--openvino-precision", "f16"]);
    assert!(run.code == 2 && run.stderr.contains("expected auto, f32, bf16 or int8"), "{} {}", run.code, run.stderr);
}

#[test]
fn whole_numbers_of_more_than_32_bits_are_refused_on_openvino() {
    let scratch = Scratch::new();
    let mut b = Builder::new("g");
    let x = b.input("x", DataType::Int64, [Dim::from("n")]);
    let y = b.op("Neg", &[&x]);
    b.output("y", &y, DataType::Int64, [Dim::from("n")]);
    let model = scratch.write("model.onnx", encode_model(&b.finish().unwrap(), &|_| None).unwrap());
    let (engine, inputs, outputs) = (scratch.path("m.engine"), scratch.path("in.safetensors"), scratch.path("out"));
    let compiled = output(command("compile", args![model, "-o", &engine, "--backend", "openvino"]));
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    let run = |last: i64| {
        let given = Tensor::I64(ArrayD::from_shape_vec(IxDyn(&[2]), vec![-7, last]).unwrap());
        write_tensors(&inputs, &[("x".to_owned(), given)].into_iter().collect(), &IndexMap::new()).unwrap();
        output(command(
            "run",
            args!["--engine", &engine, "--backend", "openvino", "--inputs", &inputs, "--outputs", &outputs],
        ))
    };
    assert_eq!(run(i64::from(i32::MAX)).code, 0);
    let found = read_tensors(&outputs).unwrap();
    assert_eq!(found["y"], Tensor::I64(ArrayD::from_shape_vec(IxDyn(&[2]), vec![7, -i64::from(i32::MAX)]).unwrap()));
    for beyond in [1 << 31, i64::MIN] {
        let refused = run(beyond);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains("`x`") && refused.stderr.contains(&beyond.to_string()), "{}", refused.stderr);
    }
}

#[test]
fn auto_takes_openvino_by_what_was_measured_on_the_machine() {
    let model = fixtures().join("transformer/rotary_t2v");
    let in_8_bits = in_8_bits(&model, Arc::new(OpenVino));
    for (named, kept_in, what) in
        [(Named::new(), "openvino-probe", "bfloat16"), (Named::over(in_8_bits), "openvino-probe-int8", "8 bits")]
    {
        let mut inspect = command("inspect", args!["--machine", "--json"]);
        inspect.env("XDG_CACHE_HOME", named.scratch.path("cache"));
        let machine = output(inspect);
        let backends = member(&machine, "machine", "backends");
        let openvino = backends.as_array().unwrap().iter().find(|backend| backend["name"] == "openvino").unwrap();
        let reason = openvino["reason"].as_str().unwrap();
        let kept = named.scratch.path("cache/v2l").join(kept_in);
        let on_openvino = |more: &[OsString]| {
            let run = named.run(more);
            member(&run, "opened", "reason").as_str().unwrap().starts_with("OpenVINO")
        };
        if reason.contains(&format!("no instructions for {what}")) {
            assert!(!kept.exists() && !on_openvino(args![]), "{reason}");
            continue;
        }
        let text = std::fs::read_to_string(&kept).unwrap();
        let (key, ratio) = text.trim_end().split_once('\n').unwrap();
        assert!(reason.contains(&format!("a block in {what} takes ")), "{reason}");
        assert!(ratio.parse::<f64>().unwrap() > 0.0, "{text}");
        for (ratio, expected) in [("0.25", true), ("1.5", false)] {
            std::fs::write(&kept, format!("{key}\n{ratio}\n")).unwrap();
            assert_eq!(on_openvino(args![]), expected, "{what} {ratio}");
            assert!(!on_openvino(args!["--ort-weights", "f32"]), "a choice of ONNX Runtime");
        }
        std::fs::write(&kept, "another machine\n0.1\n").unwrap();
        named.run(args![]);
        assert!(std::fs::read_to_string(&kept).unwrap().starts_with(key), "it is measured again");
    }
}
