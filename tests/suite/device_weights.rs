//! Device weights: one session for all adapters, on graphs with precomputed graphs, with branches and typed ones. What `--provider` says
//! where there is no GPU.

use std::sync::Arc;

use ndarray::Array2;
use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::onnxruntime::{Arithmetic, DeviceWeightChoice, OrtEngine, OrtOptions};
use v2l_runtime::components::Components;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::weights::read_tensors;
use v2l_runtime::lora::adapter::{Adapter, LowRank, Update};
use v2l_runtime::lora::{AdapterSet, branch};
use v2l_runtime::options::OpenOptions;
use v2l_runtime::request::Request;
use v2l_runtime::tensor::{Dtype, NamedTensors, Tensor};

use crate::lab::{Lab, Setup, request};
use crate::plans::Planted;
use crate::support::{Built, Case, WEIGHT_MODES, assert_close, cases, f32s, fixtures, run, stack};
use crate::swaps::adapter;
use crate::tools::{Scratch, args, command, output, sample};
use crate::trials::Index;

/// Packed and unpacked weights are multiplied in different order.
const TOLERANCE: f64 = 1e-5;

fn built(storage: Dtype) -> Built {
    let compile = CompileOptions { storage: Some(storage), lora_rank: Some(8), ..CompileOptions::default() };
    Built::with(&fixtures().join("transformer/fun_inp"), &ExportOptions::default(), &compile)
}

fn case() -> Case {
    Case::read(&cases(&fixtures().join("transformer/fun_inp"))[0])
}

fn refs(tensors: &NamedTensors) -> Vec<(&str, &Tensor)> {
    tensors.iter().map(|(name, tensor)| (&name[..], tensor)).collect()
}

#[test]
fn directory_of_device_weights_swaps_under_an_open_session_whose_hoisted_graphs_follow() {
    let inputs = case().inputs;
    for storage in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let built = built(storage);
        let engine = built.engine(TRANSFORMER);
        assert!(engine.graph("step").unwrap().precomputed.is_some(), "there is something to forget");
        let slots = &engine.manifest().slots;
        // Slots of the timestep rows, of the precompute graph and of the blocks.
        let (a, b) = (adapter("a", slots.iter(), 3, 1), adapter("b", slots.iter().step_by(3), 2, 2));
        for weights in WEIGHT_MODES {
            let open = |on_device| {
                let device_weights = if on_device { DeviceWeightChoice::Slots } else { DeviceWeightChoice::None };
                let options = OpenOptions {
                    weights,
                    ort: OrtOptions { device_weights, ..OrtOptions::default() },
                    ..OpenOptions::default()
                };
                EngineDirectory::open(built.engines(), options).unwrap()
            };
            let (mut over_device, mut today) = (open(true), open(false));
            let step = |directory: &mut EngineDirectory| run(directory.session(TRANSFORMER, "step").unwrap(), &inputs);
            let base = step(&mut over_device);
            let states: [&[_]; 3] = [&[(&a, 1.0)], &[(&b, -0.5), (&a, 0.3)], &[]];
            for adapters in states.map(AdapterSet::from) {
                over_device.set_adapters(&adapters, None).unwrap();
                today.set_adapters(&adapters, None).unwrap();
                let (found, expected) = (step(&mut over_device), step(&mut today));
                let what = format!("{storage} {weights:?} {} adapters", adapters.len());
                assert_close(&what, &f32s(&found["sample"]), &f32s(&expected["sample"]), TOLERANCE);
                assert_eq!(found == base, adapters.is_empty(), "{what}: the base comes back bit for bit");
            }
        }
    }
}

#[test]
fn session_over_device_weights_keeps_factors_and_runs_without_them() {
    let (built, inputs) = (built(Dtype::F32), case().inputs);
    let engine = built.engine(TRANSFORMER);
    let graph = engine.graph("step.branch").unwrap();
    let a = adapter("a", engine.manifest().slots.iter(), 3, 1);
    let factors = |strength| branch::inputs(&engine, graph, &[(&a, strength)]).unwrap();
    let options = OpenOptions {
        ort: OrtOptions { device_weights: DeviceWeightChoice::All, ..OrtOptions::default() },
        ..OpenOptions::default()
    };
    let mut session = OrtEngine::open(built.engine(TRANSFORMER), &options).unwrap().session("step.branch").unwrap();
    assert!(session.run(&refs(&inputs)).is_err(), "nothing is kept yet");
    for strength in [1.0, -0.5, 0.0] {
        let factors = factors(strength);
        let mut all = inputs.clone();
        all.extend(factors.clone());
        let given = run(&mut session, &all);
        assert!(session.hold(&refs(&factors)).unwrap());
        let mut schedule = inputs.clone();
        schedule.insert("timestep".to_owned(), Tensor::I64(ndarray::arr1(&[999, 500, 20]).into_dyn()));
        schedule.shift_remove("hidden_states");
        session.prepare(&refs(&schedule), &|| false).unwrap();
        assert_eq!(run(&mut session, &inputs), given, "strength {strength}");
    }
    // What is given comes first, and a wrong factor changes nothing.
    let mut all = inputs.clone();
    all.extend(factors(1.0));
    assert_ne!(run(&mut session, &all), run(&mut session, &inputs));
    let before = run(&mut session, &inputs);
    let name = graph.inputs.iter().find(|port| port.name.ends_with(".lora_up")).unwrap().name.clone();
    let wrong = Tensor::from_f32(&[1, 1], vec![1.0]).unwrap();
    assert!(session.hold(&[(&name, &wrong)]).is_err());
    assert!(session.hold(&[("nothing", &wrong)]).is_err(), "an input that the graph does not take");
    assert_eq!(run(&mut session, &inputs), before);
    let mut plain = OrtEngine::open(built.engine(TRANSFORMER), &OpenOptions::default()).unwrap();
    assert!(!plain.session("step.branch").unwrap().hold(&refs(&factors(1.0))).unwrap(), "the CPU keeps none");
}

#[test]
fn typed_graph_over_device_weights_equals_one_over_fused_initializers() {
    let planted = Planted::new();
    planted.compiled("model.engine", &["--precision", "fp16", "--calibration", "@inputs.safetensors"]);
    let inputs = read_tensors(planted.path("inputs.safetensors")).unwrap();
    let factors = |rows: usize, columns: usize| {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 3) % 11) as f32 * 0.01 - 0.05)
    };
    let width = crate::plans::WIDTH;
    let update: Arc<Update> = LowRank { down: factors(4, width), up: factors(width, 4), alpha: 4.0 }.into();
    let layers = [("blocks.0.up".to_owned(), update.clone()), ("blocks.0.down".to_owned(), update)];
    let adapter = Adapter { name: "a".into(), layers: layers.into_iter().collect() };
    let open = |on_device| {
        let device_weights = if on_device { DeviceWeightChoice::All } else { DeviceWeightChoice::None };
        let engine = Arc::new(Engine::open(planted.path("model.engine")).unwrap());
        let options = OpenOptions {
            ort: OrtOptions { arithmetic: Arithmetic::Plan, device_weights, ..OrtOptions::default() },
            ..OpenOptions::default()
        };
        OrtEngine::open(engine, &options).unwrap()
    };
    let (mut over_device, mut today) = (open(true), open(false));
    let graph = today.engine().manifest().graphs[0].name.clone();
    let mut session = over_device.session(&graph).unwrap();
    let base = run(&mut session, &inputs);
    for adapters in [stack(&[(&adapter, 1.0)]), vec![]] {
        over_device.set_adapters(&adapters, None).unwrap();
        today.set_adapters(&adapters, None).unwrap();
        let found = run(&mut session, &inputs);
        let expected = run(&mut today.session(&graph).unwrap(), &inputs);
        assert_eq!(found, expected, "weights are used as they are in both");
        assert_eq!(found == base, adapters.is_empty());
    }
}

/// What a GPU is given, on the CPU: every weight of every network an input.
#[test]
fn pipeline_over_device_weights_of_all_kinds_gives_the_same_video() {
    let model = fixtures().join("miniature");
    let index = Index::read(&model).unwrap();
    let effect = index.effects().next().unwrap().clone();
    let trial = index.trials(&model, &effect, 1).unwrap().remove(0);
    for weights in WEIGHT_MODES {
        for branches in [false, true] {
            let plain = Setup { weights, branches, ..Setup::default() };
            let [mut today, mut over_device] = [DeviceWeightChoice::None, DeviceWeightChoice::All]
                .map(|device_weights| Lab::new(&model, Setup { device_weights, ..plain }).unwrap());
            let tokens = over_device.tokens(&trial.reference).unwrap();
            let adapter = today.adapter(&tokens).unwrap();
            let few_steps = Request { num_inference_steps: Some(3), ..request(&trial) };
            let latents = |lab: &mut Lab| lab.finish(&few_steps).unwrap().0.latents.into_dyn();
            let base = latents(&mut over_device);
            for strength in [Some(1.0), None] {
                let adapters: Vec<(Adapter, f32)> = strength.map(|s| (adapter.clone(), s)).into_iter().collect();
                today.steer(adapters.clone()).unwrap();
                over_device.steer(adapters).unwrap();
                let found = latents(&mut over_device);
                let what = format!("{weights:?}, branches {branches}, strength {strength:?}");
                // Steps of the sampler carry on what sums in another order differ by.
                assert_close(&what, &found, &latents(&mut today), 1e-4);
                assert_eq!(found == base, strength.is_none(), "{what}: the base comes back bit for bit");
            }
        }
    }
}

#[test]
fn cuda_provider_without_what_it_needs_exits_with_6_and_a_way_out() {
    let sample = sample();
    let scratch = Scratch::new();
    let way_out = if cfg!(feature = "cuda") { "libonnxruntime_providers_cuda" } else { "--features cuda" };
    let common = args!["--provider", "cuda", "--backend", "ort"];
    let single =
        args!["--engine", sample.engine("text_encoder"), "--inputs", scratch.path("i"), "--outputs", scratch.path("o")];
    let ids = Tensor::I64(ndarray::Array2::zeros((1, 4)).into_dyn());
    let tensors: NamedTensors = [("input_ids".to_owned(), ids)].into_iter().collect();
    v2l_runtime::io::weights::write_tensors(scratch.path("i"), &tensors, &indexmap::IndexMap::new()).unwrap();
    let pipeline =
        args!["--engine", sample.engines(), "--prompt", "x", "-o", scratch.path("o.gif"), "--num-frames", "1"];
    for arguments in [single, pipeline] {
        let run = output(command("run", &[arguments, common].concat()));
        assert!(run.code == 6 && run.stderr.contains(way_out), "{}: {}", run.code, run.stderr);
        assert!(!scratch.path("o").exists() && !scratch.path("o.gif").exists());
    }
    let run = output(command("run", &[single, args!["--provider", "gpu"]].concat()));
    assert!(run.code == 2 && run.stderr.contains("expected cpu, cuda or cuda:N"), "{}", run.stderr);
}
