//! Plans on a GPU that is none: whether the weights arrive, and what becomes of them when something fails.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, IxDyn};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use v2l_trt::DataType;

use super::device::Gpu;
use super::plan::padded;
use super::stand_in::{Edit, StandInGpu};
use super::verify::distance;
use super::*;
use crate::backends::onnxruntime::{OrtEngine, OrtOptions};
use crate::engine::manifest::{Graph, MANIFEST_TENSOR, Probe, Profile, SEAL_TENSOR, ShapeRange, TrtPlan};
use crate::engine::session::{Dim, Port, Session};
use crate::engine::{Engine, Manifest};
use crate::error::{Classified, ErrorClass};
use crate::io::weights::{read_tensors, write_tensors};
use crate::lora::Weighted;
use crate::lora::adapter::{Adapter, LowRank};
use crate::options::{OpenOptions, OrtWeights};
use crate::tensor::{Dtype, NamedTensors, Tensor};
use crate::testing::engines::{LINEARS, fixture, manifest, part, write, write_tiny};

const STORAGE: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn bytes(bytes: Vec<u8>) -> Tensor {
    Tensor::U8(ArrayD::from_shape_vec(IxDyn(&[bytes.len()]), bytes).unwrap())
}

fn options() -> OpenOptions {
    OpenOptions {
        weights: OrtWeights::Stored,
        threads: Some(1),
        ort: OrtOptions { any_backend: true, ..OrtOptions::default() },
        ..OpenOptions::default()
    }
}

fn run(session: &mut dyn Session, inputs: &NamedTensors) -> NamedTensors {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    session.run(&inputs).unwrap()
}

/// An engine for the stand-in for a GPU, what it runs on, and where it lies.
struct Case {
    engine: Arc<Engine>,
    inputs: NamedTensors,
    folder: tempfile::TempDir,
}

impl Case {
    /// All matrices are placeholders.
    fn new(storage: Dtype) -> Self {
        Self::with(storage, |_| {})
    }

    /// The same graph twice, as `step` and as `twin`.
    fn of_two(storage: Dtype) -> Self {
        Self::with_graphs(storage, |graphs| {
            let twin = Graph { name: "twin".into(), ..graphs[0].clone() };
            graphs.push(twin);
        })
    }

    /// The graph changed by `edit`.
    fn with(storage: Dtype, edit: impl Fn(&mut Graph)) -> Self {
        Self::with_graphs(storage, |graphs| edit(&mut graphs[0]))
    }

    fn with_graphs(storage: Dtype, edit: impl Fn(&mut Vec<Graph>)) -> Self {
        let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
        let (folder, inputs) = (tempfile::tempdir().unwrap(), part(&case, "input."));
        let plain = folder.path().join("plain.engine");
        write_tiny(&plain, &part(&case, "weight."), storage);
        let engine = Arc::new(Engine::open(&plain).unwrap());
        let mut ort = OrtEngine::open(Arc::clone(&engine), &options()).unwrap();
        let outputs = run(&mut ort.session("step").unwrap(), &inputs);
        let engine = planned(&folder.path().join("planned.engine"), &engine, (&inputs, &outputs), edit);
        Self { engine, inputs, folder }
    }

    fn open(&self) -> (TrtEngine, Arc<StandInGpu>) {
        let gpu = Arc::new(StandInGpu::new(&self.engine));
        (self.open_on(&gpu, &options()).unwrap(), gpu)
    }

    fn open_on(&self, gpu: &Arc<StandInGpu>, options: &OpenOptions) -> Result<TrtEngine, TrtError> {
        TrtEngine::open_on(Arc::clone(&self.engine), Arc::clone(gpu) as Arc<dyn Gpu>, options)
    }

    fn run(&self, session: &mut dyn Session) -> NamedTensors {
        run(session, &self.inputs)
    }

    /// What ONNX Runtime gives with the same adapters.
    fn expected(&self, adapters: &[Weighted]) -> NamedTensors {
        let mut ort = OrtEngine::open(Arc::clone(&self.engine), &options()).unwrap();
        ort.set_adapters(adapters, None).unwrap();
        self.run(&mut ort.session("step").unwrap())
    }
}

/// The engine with its graph compiled for TensorRT-RTX, as the stand-in has it.
fn planned(
    path: &Path,
    plain: &Engine,
    (inputs, outputs): (&NamedTensors, &NamedTensors),
    edit: impl Fn(&mut Vec<Graph>),
) -> Arc<Engine> {
    let mut tensors = read_tensors(plain.path()).unwrap();
    tensors.retain(|name, _| ![MANIFEST_TENSOR, SEAL_TENSOR].contains(&&name[..]));
    let mut graph = plain.manifest().graphs[0].clone();
    let onnx = plain.blob(graph.files.stored.as_ref().unwrap_or(&graph.files.f32)).unwrap();
    let matrices = graph.weights.iter().filter(|name| plain.weight(name).unwrap().shape.len() > 1).cloned();
    graph.backend = "tensorrt-rtx".into();
    graph.files.plans = vec![TrtPlan {
        file: "v2l/plans/step/tensorrt-rtx-8.9.plan".into(),
        version: "1.7.1".into(),
        compute_capability: Some("8.9".into()),
        weights: matrices.collect(),
        placeholders: true,
    }];
    tensors.insert(graph.files.plans[0].file.clone(), bytes(onnx.to_vec()));
    let probe = path.with_extension("safetensors");
    let inputs = inputs.iter().map(|(name, tensor)| (format!("{PROBE_INPUT}{name}"), tensor.clone()));
    let outputs = outputs.iter().map(|(name, tensor)| (format!("{PROBE_OUTPUT}{name}"), tensor.clone()));
    write_tensors(&probe, &inputs.chain(outputs).collect(), &Default::default()).unwrap();
    // Both sides are ONNX Runtime in f32, on the same weights.
    graph.probe = Some(Probe { file: "v2l/probes/step.safetensors".into(), tolerance: 1e-5 });
    tensors.insert("v2l/probes/step.safetensors".into(), bytes(std::fs::read(&probe).unwrap()));
    let mut graphs = vec![graph];
    edit(&mut graphs);
    let Manifest { storage, slots, .. } = plain.manifest().clone();
    write(path, &tensors, &manifest(&tensors, storage, graphs, slots));
    Arc::new(Engine::open(path).unwrap())
}

fn adapter(name: &str, seed: u64, layers: &[&str]) -> Arc<Adapter> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal =
        |shape| Array2::from_shape_simple_fn(shape, || 0.3 * Distribution::<f32>::sample(&StandardNormal, &mut rng));
    let linears = LINEARS.iter().filter(|(name, ..)| layers.contains(name));
    let layer = |&(name, out, inner): &(&str, usize, usize)| {
        (name.to_owned(), LowRank { down: normal((2, inner)), up: normal((out, 2)), alpha: 2.0 }.into())
    };
    Arc::new(Adapter { name: name.into(), layers: linears.map(layer).collect() })
}

const ALL: [&str; 5] = ["up", "down", "to_q", "to_k", "to_v"];

fn names(weights: &[&str]) -> BTreeSet<String> {
    weights.iter().map(|name| format!("{name}.weight")).collect()
}

#[test]
fn trt_session_follows_swaps_and_gives_what_onnx_runtime_gives_with_the_same_fused_weights() {
    for storage in STORAGE {
        let case = Case::new(storage);
        let (mut trt, gpu) = case.open();
        let mut session = trt.session("step").unwrap();
        let base = case.run(&mut session);
        assert_eq!(base, case.expected(&[]));
        let (a, b) = (adapter("a", 1, &ALL), adapter("b", 2, &["up", "to_k"]));
        for adapters in
            [vec![(a.clone(), 0.5)], vec![(a.clone(), 1.0), (b.clone(), -0.3)], vec![(b, 1.0)], vec![(a, 0.0)]]
        {
            trt.set_adapters(&adapters, None).unwrap();
            let found = case.run(&mut session);
            assert_eq!(found, case.expected(&adapters), "{storage}: the same weights, bit for bit, in the same graph");
            assert_eq!(found != base, adapters[0].1 != 0.0);
            let mut ort = OrtEngine::open(Arc::clone(&case.engine), &options()).unwrap();
            ort.set_adapters(&adapters, None).unwrap();
            assert_eq!(trt.report().fused, ort.report().fused);
        }
        trt.set_adapters(&[], None).unwrap();
        assert_eq!(case.run(&mut session), base);
        assert!(
            trt.report().fused.slots.is_empty() && trt.report().reason.contains("stand-in, compute capability 8.9")
        );
        drop((session, trt));
        assert!(gpu.behaviour.lock().unwrap().alive.is_empty() && gpu.host.held() == 0, "all memory is given back");
    }
}

#[test]
fn trt_swap_sets_only_weights_whose_value_changes() {
    let case = Case::new(Dtype::Bf16);
    let (mut trt, gpu) = case.open();
    let _session = trt.session("step").unwrap();
    let (a, b) = (adapter("a", 1, &["up", "down"]), adapter("b", 2, &["to_q"]));
    let refits = || std::mem::take(&mut gpu.behaviour.lock().unwrap().refits);
    assert_eq!(refits()[0].len(), case.engine.manifest().graphs[0].files.plans[0].weights.len(), "every placeholder");
    trt.set_adapters(&[(a.clone(), 1.0)], None).unwrap();
    assert_eq!(refits(), [names(&["up", "down"])]);
    trt.set_adapters(&[(a.clone(), 1.0), (b.clone(), 1.0)], None).unwrap();
    assert_eq!(refits(), [names(&["to_q"])]);
    assert_eq!(trt.report().fused.slots.len(), 3, "what was fused before is reported, too");
    trt.set_adapters(&[(b.clone(), 0.5), (a, 0.0)], None).unwrap();
    assert_eq!(refits(), [names(&["up", "down", "to_q"])]);
    trt.set_adapters(&[(b, 0.5)], None).unwrap();
    assert!(refits().is_empty());
    // Weights that go together are set together, those that do not change with what they held.
    gpu.behaviour.lock().unwrap().groups = vec![names(&["to_q", "to_k"])];
    trt.set_adapters(&[], None).unwrap();
    assert_eq!(refits(), [names(&["to_q", "to_k"])]);
}

#[test]
fn trt_plan_that_holds_its_weights_is_not_refit_for_the_base() {
    let case = Case::with(Dtype::F16, |graph| graph.files.plans[0].placeholders = false);
    let (mut trt, gpu) = case.open();
    let mut session = trt.session("step").unwrap();
    assert!(gpu.behaviour.lock().unwrap().refits.is_empty());
    let adapters = [(adapter("a", 3, &ALL), 1.0)];
    trt.set_adapters(&adapters, None).unwrap();
    assert_eq!(gpu.behaviour.lock().unwrap().refits, [names(&ALL)]);
    assert_eq!(case.run(&mut session), case.expected(&adapters));
}

#[test]
fn trt_swap_that_fails_leaves_the_former_weights_and_report() {
    for storage in STORAGE {
        let case = Case::new(storage);
        let (mut trt, gpu) = case.open();
        let mut session = trt.session("step").unwrap();
        let (a, b) = (adapter("a", 4, &ALL), adapter("b", 5, &["down", "to_v"]));
        trt.set_adapters(&[(a, 1.0)], None).unwrap();
        let (before, reported) = (case.run(&mut session), trt.report().fused.clone());

        // Half of the weights are in: the plan is loaded again and given the former ones.
        gpu.behaviour.lock().unwrap().failing = [true].into();
        let error = trt.set_adapters(&[(b.clone(), 1.0)], None).unwrap_err().to_string();
        assert!(error.contains("planted") && error.contains("loaded again with its former weights"), "{error}");
        assert_eq!(case.run(&mut session), before);
        // Stopped before a weight is set.
        let stopped = trt.set_adapters(&[(b.clone(), 1.0)], Some(&|| true)).unwrap_err();
        assert_eq!(stopped.class(), ErrorClass::Cancelled);
        // No slot of that name.
        let mut unknown = (*b).clone();
        unknown.layers.insert("nowhere".into(), unknown.layers["down"].clone());
        let error = trt.set_adapters(&[(Arc::new(unknown), 1.0)], None).unwrap_err();
        assert_eq!(error.class(), ErrorClass::BadAdapter);
        assert_eq!((case.run(&mut session), &trt.report().fused), (before, &reported), "{storage}");
        // Then it works.
        trt.set_adapters(&[(b.clone(), 1.0)], None).unwrap();
        assert_eq!(case.run(&mut session), case.expected(&[(b, 1.0)]));
        // The refit that would bring it back fails, too: it is gone, and says so.
        gpu.behaviour.lock().unwrap().failing = [true, true].into();
        let error = trt.set_adapters(&[], None).unwrap_err().to_string();
        assert!(error.contains("the engine is lost") && error.contains("planted"), "{error}");
        let given: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        assert!(session.run(&given).unwrap_err().to_string().contains("gone"));
        assert!(gpu.behaviour.lock().unwrap().alive.is_empty());
        // The next change loads it anew.
        trt.set_adapters(&[], None).unwrap();
        assert_eq!(case.run(&mut session), case.expected(&[]));
    }
}

#[test]
fn trt_weight_that_does_not_arrive_is_found_and_the_former_weights_come_back() {
    for storage in STORAGE {
        let case = Case::new(storage);
        for ignored in LINEARS.map(|(name, ..)| format!("{name}.weight")) {
            let gpu = Arc::new(StandInGpu::new(&case.engine));
            gpu.behaviour.lock().unwrap().ignored = Some(ignored.clone());
            // The base, by the probe.
            let mut trt = case.open_on(&gpu, &options()).unwrap();
            let error = trt.session("step").map(drop).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Numeric, "{ignored}: {error}");
            assert!(error.to_string().contains("recorded when it was compiled"), "{error}");
            assert!(gpu.behaviour.lock().unwrap().alive.is_empty());
            // Adapters, by ONNX Runtime: those that are set before the plan is loaded, and those that come later.
            let adapters = vec![(adapter("a", 6, &ALL), 1.0)];
            let mut trt = case.open_on(&gpu, &options()).unwrap();
            trt.set_adapters(&adapters, None).unwrap();
            let error = trt.session("step").map(drop).unwrap_err();
            assert!(error.to_string().contains("ONNX Runtime with the same fused weights"), "{error}");
            gpu.behaviour.lock().unwrap().ignored = None;
            let mut trt = case.open_on(&gpu, &options()).unwrap();
            let mut session = trt.session("step").unwrap();
            let base = case.run(&mut session);
            gpu.behaviour.lock().unwrap().ignored = Some(ignored.clone());
            // It is missed when the plan is loaded again, too.
            let error = trt.set_adapters(&adapters, None).unwrap_err();
            assert!(
                matches!(&error, TrtError::Gone { cause, .. } if matches!(**cause, TrtError::Differs { .. })),
                "{error}"
            );
            assert_eq!(error.class(), ErrorClass::Numeric);
            assert!(gpu.behaviour.lock().unwrap().alive.is_empty());
            gpu.behaviour.lock().unwrap().ignored = None;
            trt.set_adapters(&[], None).unwrap();
            assert_eq!(case.run(&mut session), base);
            assert!(trt.report().fused.slots.is_empty());
            // As asked for, nothing is compared.
            let trusting = OpenOptions { trt: TrtOptions { verify: false, ..TrtOptions::default() }, ..options() };
            drop((session, trt));
            case.open_on(&gpu, &trusting).unwrap().session("step").unwrap();
        }
    }
}

#[test]
fn trt_engine_with_adapters_before_its_plan_is_loaded_has_them_from_the_first_run() {
    let case = Case::new(Dtype::Bf16);
    let adapters = vec![(adapter("a", 7, &ALL), 0.7)];
    let gpu = Arc::new(StandInGpu::new(&case.engine));
    let mut trt = case.open_on(&gpu, &options()).unwrap();
    trt.set_adapters(&adapters, None).unwrap();
    assert_eq!(trt.report().fused.slots.len(), LINEARS.len());
    let mut session = trt.session("step").unwrap();
    assert_eq!(case.run(&mut session), case.expected(&adapters));
    assert_eq!(gpu.behaviour.lock().unwrap().refits.len(), 1, "pristine weights never went in");
}

#[test]
fn trt_session_runs_in_the_profile_that_holds_the_shapes() {
    let range =
        |batch| ShapeRange { min: vec![batch, 8, 1, 1], opt: vec![batch, 8, 9, 9], max: vec![batch, 8, 99, 99] };
    let profile = |batch| Profile::from([("image".to_owned(), range(batch))]);
    let case = Case::with(Dtype::F32, |graph| graph.profiles = vec![profile(77), profile(1), profile(2)]);
    let batch = case.inputs["image"].shape()[0];
    let (mut trt, gpu) = case.open();
    let mut session = trt.session("step").unwrap();
    case.run(&mut session);
    assert_eq!(gpu.behaviour.lock().unwrap().profiles, [batch, batch], "the probe's, and the run's");
    let mut other = case.inputs.clone();
    other["image"] = Tensor::from_f32(&[3, 8, 2, 2], vec![0.0; 96]).unwrap();
    let other: Vec<(&str, &Tensor)> = other.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    assert!(session.run(&other).unwrap_err().to_string().contains("lies outside what the graph was compiled for"));
}

#[test]
fn trt_engine_that_does_not_fit_is_refused_with_a_way_out() {
    let case = Case::new(Dtype::F32);
    let message = |case: &Case, capability: &str| {
        let mut gpu = StandInGpu::new(&case.engine);
        gpu.capability = capability.parse().unwrap();
        let opened = case.open_on(&Arc::new(gpu), &options()).and_then(|mut trt| trt.session("step").map(drop));
        let error = opened.unwrap_err();
        (error.class(), error.to_string())
    };
    let (class, text) = message(&case, "9.0");
    assert_eq!(class, ErrorClass::Version);
    assert!(text.contains("for compute capability 8.9; this GPU (stand-in) is 9.0: compile with"), "{text}");
    let (class, text) = message(&Case::with(Dtype::F32, |graph| graph.backend = "ort".into()), "8.9");
    assert!(class == ErrorClass::Version && text.contains("compiled for `ort`; expected `tensorrt-rtx`"), "{text}");
    let other = Case::with(Dtype::F32, |graph| graph.outputs[0].name = "elsewhere".into());
    let (class, text) = message(&other, "8.9");
    assert!(class == ErrorClass::BadModel && text.contains("no output `elsewhere`"), "{text}");
    let plans: [(Edit, &str); 4] = [
        (
            |tensors| tensors[0].dtype = DataType::I8,
            "input `ids`: the engine says i64 of 1 axes, its plan i8 of 1 axes",
        ),
        (|tensors| tensors[1].rank = 3, "input `image`: the engine says f32 of 4 axes, its plan f32 of 3 axes"),
        (
            |tensors| tensors[1].is_plain = false,
            "input `image`: the engine says on the GPU, row-major, its plan on the host, or",
        ),
        (|tensors| drop(tensors.pop()), "number of outputs: the engine says 3, its plan 2"),
    ];
    for (edit, expected) in plans {
        let (mut trt, gpu) = case.open();
        gpu.behaviour.lock().unwrap().tensors = Some(edit);
        let error = trt.session("step").map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.class(), ErrorClass::BadModel);
        assert!(gpu.behaviour.lock().unwrap().alive.is_empty());
    }
    // A slot whose weight is a constant of the plan.
    let fixed = Case::with(Dtype::F32, |graph| graph.files.plans[0].weights.retain(|name| name != "up.weight"));
    let (mut trt, _) = fixed.open();
    let error = trt.set_adapters(&[(adapter("a", 8, &["up"]), 1.0)], None).unwrap_err().to_string();
    assert!(error.contains("slot `up`: weight `up.weight` cannot be replaced in this plan"), "{error}");
    trt.set_adapters(&[(adapter("a", 8, &["down"]), 1.0)], None).unwrap();
    drop(case.folder);
}

#[test]
fn trt_session_keeps_inputs_on_the_gpu_until_others_are_kept() {
    let case = Case::new(Dtype::F32);
    let (mut trt, gpu) = case.open();
    let mut session = trt.session("step").unwrap();
    let expected = case.run(&mut session);
    let without = gpu.host.held();
    let (image, other) = (
        &case.inputs["image"],
        Tensor::from_f32(case.inputs["image"].shape(), vec![0.5; case.inputs["image"].len()]).unwrap(),
    );
    assert!(session.hold(&[("image", image)]).unwrap());
    assert!(gpu.host.held() > without);
    let rest: Vec<(&str, &Tensor)> =
        case.inputs.iter().filter(|(name, _)| *name != "image").map(|(name, tensor)| (&name[..], tensor)).collect();
    assert_eq!(session.run(&rest).unwrap(), expected);
    // What is given comes before what is kept.
    let mut given = rest.clone();
    given.push(("image", &other));
    let changed = session.run(&given).unwrap();
    assert_ne!(changed, expected);
    session.hold(&[("image", &other)]).unwrap();
    assert_eq!(session.run(&rest).unwrap(), changed);
    assert!(session.hold(&[("image", image), ("nothing", image)]).is_err());
    session.hold(&[]).unwrap();
    assert!(session.run(&rest).unwrap_err().to_string().contains("input `image` is missing"));
    assert_eq!(gpu.host.held(), without);
}

#[test]
fn trt_factors_get_zeros_up_to_the_rank_that_the_plan_is_for() {
    let port = |shape: Vec<Dim>| Port { name: "l.lora".into(), dtype: Dtype::F32, shape };
    let rank = || Dim::Symbol("l.lora_rank".into());
    let tensor = |shape: &[usize]| {
        let count = shape.iter().product();
        Tensor::from_f32(shape, (1..=count).map(|n: usize| n as f32).collect()).unwrap()
    };
    let pad = |port: &Port, found: &[usize], rank| padded(port, tensor(found).view().unwrap(), rank);
    let (down, up) = (port(vec![rank(), Dim::Fixed(3)]), port(vec![Dim::Fixed(2), rank()]));
    let values = |shape, values: &[f32]| Some(Tensor::from_f32(shape, values.to_vec()).unwrap());
    assert_eq!(pad(&down, &[1, 3], Some(2)).unwrap(), values(&[2, 3], &[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]));
    assert_eq!(pad(&up, &[2, 1], Some(3)).unwrap(), values(&[2, 3], &[1.0, 0.0, 0.0, 2.0, 0.0, 0.0]));
    assert_eq!(pad(&down, &[0, 3], Some(1)).unwrap(), values(&[1, 3], &[0.0; 3]));
    assert_eq!(pad(&up, &[2, 0], Some(1)).unwrap(), values(&[2, 1], &[0.0; 2]));
    // What has that rank, or none, stays as it is.
    assert_eq!(pad(&down, &[2, 3], Some(2)).unwrap(), None);
    assert_eq!(pad(&port(vec![Dim::Fixed(2), Dim::Fixed(3)]), &[2, 3], Some(4)).unwrap(), None);
    assert_eq!(pad(&down, &[2, 3], None).unwrap(), None);
    let message = pad(&up, &[2, 4], Some(3)).unwrap_err().to_string();
    assert!(message.contains("a rank of at most 3, for which it was compiled, found 4"), "{message}");
}

#[test]
fn trt_swap_changes_both_graphs_or_none_and_says_what_is_gone() {
    let (a, b) = (vec![(adapter("a", 9, &ALL), 1.0)], vec![(adapter("b", 10, &ALL), 1.0)]);
    // Which of the swap's refits fail, and those that would bring former weights back, in order; a weight that is not used, and where;
    // and whose weights are then gone.
    let cases: [(&[bool], Option<&str>, &[&str]); 7] = [
        (&[true], None, &[]),
        (&[true, true], None, &["step"]),
        (&[false, true], None, &[]),
        // The second graph's swap fails and it comes back; the first is reset.
        (&[false, true, false, true], None, &["step"]),
        (&[false, true, true], None, &["twin"]),
        (&[], Some("twin"), &["twin"]),
        (&[], Some("step"), &["step"]),
    ];
    for (failing, ignoring, gone) in cases {
        let case = Case::of_two(Dtype::Bf16);
        let (mut trt, gpu) = case.open();
        let mut sessions = ["step", "twin"].map(|graph| trt.session(graph).unwrap());
        trt.set_adapters(&a, None).unwrap();
        let (before, reported) = (case.expected(&a), trt.report().fused.clone());
        let what = format!("{failing:?} {ignoring:?}");
        {
            let mut behaviour = gpu.behaviour.lock().unwrap();
            behaviour.failing = failing.iter().copied().collect();
            behaviour.ignored = ignoring.map(|_| "up.weight".to_owned());
            behaviour.ignoring = ignoring.map(str::to_owned);
        }
        let error = trt.set_adapters(&b, None).unwrap_err().to_string();
        assert!(gpu.behaviour.lock().unwrap().failing.is_empty(), "{what}: {error}");
        assert_eq!(trt.report().fused, reported, "{what}");
        for (graph, session) in ["step", "twin"].into_iter().zip(&mut sessions) {
            let given: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
            match session.run(&given) {
                Ok(found) => assert!(found == before && !gone.contains(&graph), "{what}: {graph}"),
                Err(e) => assert!(gone.contains(&graph) && e.to_string().contains("gone"), "{what}: {graph}: {e}"),
            }
        }
        assert_eq!(error.contains("lost"), !gone.is_empty(), "{what}: {error}");
        // The next swap brings all of them.
        gpu.behaviour.lock().unwrap().ignored = None;
        trt.set_adapters(&b, None).unwrap();
        for session in &mut sessions {
            assert_eq!(case.run(session), case.expected(&b), "{what}");
        }
    }
}

#[test]
fn trt_adapters_set_before_a_graph_is_open_are_reported_and_wait_for_it() {
    let case = Case::of_two(Dtype::F16);
    let (mut trt, gpu) = case.open();
    let adapters = [(adapter("a", 11, &["up", "to_q"]), 1.0)];
    trt.set_adapters(&adapters, None).unwrap();
    assert!(gpu.behaviour.lock().unwrap().alive.is_empty(), "nothing is loaded before it is needed");
    let mut ort = OrtEngine::open(Arc::clone(&case.engine), &options()).unwrap();
    ort.set_adapters(&adapters, None).unwrap();
    assert_eq!(trt.report().fused, ort.report().fused);
    assert_eq!(case.run(&mut trt.session("twin").unwrap()), case.expected(&adapters));
    assert_eq!(gpu.behaviour.lock().unwrap().alive.len(), 1);
}

#[test]
fn trt_output_that_is_not_a_number_does_not_pass_for_a_good_one() {
    let nan = f32::from_bits(0xffc0_0000);
    let tensor = |values: [f32; 2]| Tensor::from_f32(&[2], values.to_vec()).unwrap();
    for (found, expected) in
        [([nan, 1.0], [1.0, 1.0]), ([1.0, 1.0], [nan, 1.0]), ([f32::INFINITY; 2], [f32::INFINITY; 2])]
    {
        assert_eq!(distance(&tensor(found), &tensor(expected)), f64::INFINITY);
    }
    assert_eq!(distance(&tensor([0.0; 2]), &tensor([0.0; 2])), 0.0);
    assert_eq!(distance(&tensor([1.0, 0.0]), &tensor([0.0; 2])), f64::INFINITY);
    assert_eq!(distance(&tensor([3.0, 0.0]), &tensor([3.0, 4.0])), 0.8);
}
