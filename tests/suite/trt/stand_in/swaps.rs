//! Adapters that follow one another, on several threads, in a process of its own that has the stand-ins loaded.

use std::sync::Arc;

use ndarray::Array2;
use v2l_runtime::backends::OpenEngine;
use v2l_runtime::backends::tensorrt::TrtOptions;
use v2l_runtime::engine::session::{Session, SessionError};
use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::options::OpenOptions;

use super::*;

/// Runs the test of this name again, with the stand-ins; true in the process that has them.
fn loaded(test: &str) -> bool {
    if std::env::var_os(LOADED).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("trt::stand_in::swaps::{test}"), "--nocapture"]);
    let run = output({
        child.env(LOADED, libraries()).env("LD_LIBRARY_PATH", libraries());
        child
    });
    assert!(run.code == 0 && run.stdout.contains("1 passed"), "{}: {}{}", run.code, run.stdout, run.stderr);
    assert!(!run.stderr.contains("stand-in for"), "{}", run.stderr);
    false
}

fn adapter(slots: &[Layer], seed: u64) -> Adapter {
    let layer = |&slot: &Layer| {
        let ((name, out, inner), (down, up)) = (slot, factors(slot, seed));
        let [down, up] =
            [((2, inner), down), ((out, 2), up)].map(|(shape, values)| Array2::from_shape_vec(shape, values).unwrap());
        (name.to_owned(), LowRank { down, up, alpha: 2.0 }.into())
    };
    Adapter { name: seed.to_string(), layers: slots.iter().map(layer).collect() }
}

fn open(engine: &Path) -> OpenEngine {
    let trt = TrtOptions { library: Some(libraries().to_owned()), ..TrtOptions::default() };
    OpenEngine::open(Arc::new(Engine::open(engine).unwrap()), &OpenOptions { trt, ..OpenOptions::default() }).unwrap()
}

/// Runs on a thread that nothing of CUDA has been called on.
fn elsewhere<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(what).join().unwrap())
}

fn run(session: &mut Box<dyn Session>) -> Result<Tensor, SessionError> {
    run_of(3, session)
}

fn run_of(rows: usize, session: &mut Box<dyn Session>) -> Result<Tensor, SessionError> {
    let inputs = inputs(rows, 6);
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    elsewhere(|| session.run(&inputs)).map(|outputs| outputs["y"].clone())
}

#[test]
fn swaps_of_a_plan_are_whole_or_none_on_whatever_thread() {
    if !loaded("swaps_of_a_plan_are_whole_or_none_on_whatever_thread") {
        return;
    }
    let (_, driver, stream) = v2l_cuda::attach(0).unwrap();
    let free = driver.free_memory().unwrap();
    let case = Case::new();
    let (both, one): (&[_], &[_]) = (&[UP, DOWN], &[DOWN]);
    let (a, b) = (Arc::new(adapter(both, 60)), Arc::new(adapter(one, 70)));
    let expected = |adapters: &[_]| case.expected(&inputs(3, 6), &fused(&case.weights(), adapters));

    // Its first profile ends before that of the engine.
    let plan = PLAN.replace("0 x 1 6 2 6 4 6", "0 x 1 6 2 6 3 6");
    let mut engine = open(&case.engine("x.engine", &format!("{plan}refit fails 3\nforgets\n")));
    let mut session = elsewhere(|| engine.session("model")).unwrap();
    assert_eq!(run(&mut session).unwrap(), expected(&[]));
    let mut set = |adapters: &[Weighted]| elsewhere(|| engine.set_adapters(adapters, std::iter::empty(), None));
    set(&[(a.clone(), 0.5)]).unwrap();
    assert_eq!(run(&mut session).unwrap(), expected(&[(both, 60, 0.5)]));
    let error = set(&[(a.clone(), 0.5), (b.clone(), 1.0)]).unwrap_err().to_string();
    let restored = "the planted failure; the engine was loaded again with its former weights";
    assert!(error.contains(restored), "{error}");
    assert_eq!(run(&mut session).unwrap(), expected(&[(both, 60, 0.5)]));
    set(&[(b, 1.0)]).unwrap();
    assert_eq!(run(&mut session).unwrap(), expected(&[(one, 70, 1.0)]));
    set(&[]).unwrap();
    let error = run_of(4, &mut session).unwrap_err().to_string();
    assert!(error.contains("lies out of profile 0") && !error.contains("unsetNamedWeights"), "{error}");

    // Sessions outlive their engine, and are freed wherever.
    let mut again = engine.session("model").unwrap();
    elsewhere(|| drop(engine));
    assert_eq!(run(&mut session).unwrap(), expected(&[]));
    drop(session);
    assert_eq!(run(&mut again).unwrap(), expected(&[]));
    elsewhere(|| drop(again));
    assert_eq!(driver.free_memory().unwrap(), free, "memory is left");
    drop(stream);
}

#[test]
fn stream_that_is_lost_in_a_refit_takes_the_plan_with_it() {
    if !loaded("stream_that_is_lost_in_a_refit_takes_the_plan_with_it") {
        return;
    }
    let (_, driver, stream) = v2l_cuda::attach(0).unwrap();
    let (free, case) = (driver.free_memory().unwrap(), Case::new());
    let path = case.engine("x.engine", &format!("{PLAN}refit breaks 2\n"));
    let mut engine = open(&path);
    let mut session = engine.session("model").unwrap();
    let error =
        engine.set_adapters(&[(Arc::new(adapter(&[UP], 80)), 1.0)], std::iter::empty(), None).unwrap_err().to_string();
    assert!(error.contains("cuStreamSynchronize") && error.contains("the engine is lost"), "{error}");
    assert!(run(&mut session).unwrap_err().to_string().contains("gone"));
    // With a stream of its own another does.
    let mut other = open(&path);
    let mut fresh = other.session("model").unwrap();
    assert_eq!(run(&mut fresh).unwrap(), case.expected(&inputs(3, 6), &case.weights()));
    drop((session, fresh, engine, other));
    assert_eq!(driver.free_memory().unwrap(), free, "memory is left");
    drop(stream);
}
