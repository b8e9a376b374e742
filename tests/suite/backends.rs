//! A backend of another crate's: it comes in by the trait alone, and what it opens is recorded, fused, swapped and taken back as ONNX
//! Runtime's is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use v2l_export::{CompileOptions, ExportOptions};
use v2l_runtime::backends::onnxruntime::{DeviceWeightChoice, OnnxRuntime, OrtOptions};
use v2l_runtime::backends::{
    Backend, BackendEngine, BackendError, BackendFailure, Fused, OpenEngine, OpenReport, Reopen,
};
use v2l_runtime::components::Needs;
use v2l_runtime::components::TRANSFORMER;
use v2l_runtime::engine::footprint::Shapes;
use v2l_runtime::engine::recording::Recorder;
use v2l_runtime::engine::session::Session;
use v2l_runtime::engine::{Engine, EngineError};
use v2l_runtime::error::{Classified, ErrorClass};
use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::fuse::CancelCheck;
use v2l_runtime::options::{OpenOptions, OrtWeights, WeightMode};
use v2l_runtime::tensor::{Dtype, NamedTensors};

use crate::support::{Built, Case, cases, fixtures, run, stack};
use crate::swaps::adapter;

/// Forwards to ONNX Runtime. Sessions cannot be opened again while it is told so.
#[derive(Default)]
struct Forwarding {
    stuck: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the trial is stuck")]
struct Stuck;

impl Classified for Stuck {
    fn class(&self) -> ErrorClass {
        ErrorClass::Unsupported
    }
}

impl BackendFailure for Stuck {
    fn branches_may_help(&self) -> bool {
        true
    }
}

impl Backend for Forwarding {
    fn name(&self) -> &'static str {
        "forwarding"
    }

    fn about(&self) -> &'static str {
        "ONNX Runtime, one hand further"
    }

    fn suits(&self, _: &Engine, _: &OpenOptions) -> bool {
        false
    }

    fn on_this_machine(&self, options: &OpenOptions) -> (bool, String) {
        OnnxRuntime.on_this_machine(options)
    }

    fn held_weights(&self, engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
        OnnxRuntime.held_weights(engine, options)
    }

    fn needs(
        &self,
        engine: &Engine,
        graph: &str,
        options: &OpenOptions,
        fused: Fused<'_>,
        shapes: &Shapes,
        runs: usize,
    ) -> Result<Option<Needs>, EngineError> {
        OnnxRuntime.needs(engine, graph, options, fused, shapes, runs)
    }

    fn cache_key(&self, options: &OpenOptions) -> String {
        OnnxRuntime.cache_key(options)
    }

    fn open(&self, engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn BackendEngine>, BackendError> {
        Ok(Box::new(Forwarded { ort: OnnxRuntime.open(engine, options)?, stuck: Arc::clone(&self.stuck) }))
    }
}

struct Forwarded {
    ort: Box<dyn BackendEngine>,
    stuck: Arc<AtomicBool>,
}

impl BackendEngine for Forwarded {
    fn engine(&self) -> &Arc<Engine> {
        self.ort.engine()
    }

    fn report(&self) -> &OpenReport {
        self.ort.report()
    }

    fn session(&mut self, graph: &str) -> Result<Box<dyn Session>, BackendError> {
        self.ort.session(graph)
    }

    fn set_adapters(
        &mut self,
        adapters: &[Weighted],
        reopen: Reopen<'_>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), BackendError> {
        let mut reopen = |ort: &mut dyn BackendEngine| match self.stuck.load(Ordering::Relaxed) {
            true => Err(Stuck.into()),
            false => reopen(ort),
        };
        self.ort.set_adapters(adapters, &mut reopen, cancelled)
    }
}

/// An open engine with a session of its step.
struct Opened {
    engine: OpenEngine,
    sessions: BTreeMap<String, Box<dyn Session>>,
}

impl Opened {
    fn new(mut engine: OpenEngine) -> Self {
        let sessions = BTreeMap::from([("step".to_owned(), engine.session("step").unwrap())]);
        Self { engine, sessions }
    }

    fn set(&mut self, adapters: &[Weighted]) -> Result<(), BackendError> {
        self.engine.set_adapters(adapters, self.sessions.iter_mut(), None)
    }

    fn run(&mut self, inputs: &NamedTensors) -> NamedTensors {
        run(&mut **self.sessions.get_mut("step").unwrap(), inputs)
    }
}

#[test]
fn backend_of_another_crate_gives_the_bits_of_the_one_that_it_forwards_to() {
    let fun_inp = fixtures().join("transformer/fun_inp");
    let compile = CompileOptions { storage: Some(Dtype::Bf16), lora_rank: Some(8), ..CompileOptions::default() };
    let built = Built::with(&fun_inp, &ExportOptions::default(), &compile);
    let (engine, inputs) = (built.engine(TRANSFORMER), Case::read(&cases(&fun_inp)[0]).inputs);
    let slots = &engine.manifest().slots;
    let (a, b) = (adapter("a", slots.iter(), 3, 1), adapter("b", slots.iter().step_by(3), 2, 2));
    let states: [&[_]; 3] = [&[(&a, 1.0)], &[(&b, -0.5), (&a, 0.3)], &[]];
    let states = states.map(stack);
    // Over device weights, sessions take other weights without being opened again.
    for (weights, device_weights) in [
        (OrtWeights::F32, DeviceWeightChoice::None),
        (OrtWeights::Stored, DeviceWeightChoice::None),
        (OrtWeights::Stored, DeviceWeightChoice::Slots),
    ] {
        let options = OpenOptions {
            weights,
            ort: OrtOptions { device_weights, ..OrtOptions::default() },
            ..OpenOptions::default()
        };
        let trial = Forwarding::default();
        let opened = [
            OpenEngine::open_on(&trial, Arc::clone(&engine), &options).unwrap(),
            OpenEngine::open(Arc::clone(&engine), &options).unwrap(),
        ];
        let [mut forwarded, mut ort] = opened.map(|mut engine| {
            engine.set_adapters(&states[1], std::iter::empty(), None).unwrap();
            Opened::new(engine)
        });
        assert_eq!(forwarded.engine.report().mode, ort.engine.report().mode);
        let first = ort.run(&inputs);
        assert!(forwarded.run(&inputs) == first, "{weights:?}: fused before a session is open");
        for adapters in &states {
            forwarded.set(adapters).unwrap();
            ort.set(adapters).unwrap();
            let (found, expected) = (forwarded.run(&inputs), ort.run(&inputs));
            assert!(found == expected, "{weights:?}, {} adapters", adapters.len());
            assert_eq!(found == first, adapters.len() == 2, "{weights:?}: adapters change what the step computes");
        }
    }
}

#[test]
fn swap_that_fails_in_a_backend_of_another_crate_leaves_adapters_and_sessions_and_says_what_it_is() {
    let fun_inp = fixtures().join("transformer/fun_inp");
    let built = Built::plain(&fun_inp);
    let (engine, inputs) = (built.engine(TRANSFORMER), Case::read(&cases(&fun_inp)[0]).inputs);
    let adapters = stack(&[(&adapter("a", engine.manifest().slots.iter(), 3, 1), 1.0)]);
    let (trial, records) = (Forwarding::default(), tempfile::tempdir().unwrap());
    let options = OpenOptions { record: Some(Recorder::new(records.path())), ..OpenOptions::default() };
    let mut opened = Opened::new(OpenEngine::open_on(&trial, Arc::clone(&engine), &options).unwrap());
    let base = opened.run(&inputs);
    trial.stuck.store(true, Ordering::Relaxed);
    let error = opened.set(&adapters).unwrap_err();
    assert_eq!((error.to_string(), error.class()), ("the trial is stuck".to_owned(), ErrorClass::Unsupported));
    assert!(error.branches_may_help() && error.downcast_ref::<Stuck>().is_some());
    assert!(opened.run(&inputs) == base, "the former session");
    assert!(run(&mut *opened.engine.session("step").unwrap(), &inputs) == base, "the former weights");
    trial.stuck.store(false, Ordering::Relaxed);
    opened.set(&adapters).unwrap();
    assert!(opened.run(&inputs) != base);
    assert_eq!(
        std::fs::read_dir(records.path()).unwrap().count(),
        4,
        "every run is recorded, those of swapped sessions too"
    );
}
