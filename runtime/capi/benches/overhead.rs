//! What a call through the C ABI costs beside the same in Rust, on the same engine.

#![allow(unsafe_code, reason = "calls the C ABI")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../tests/tiny/mod.rs"]
mod tiny;

use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny::{Given, Tiny, check, inputs};
use v2l::*;
use v2l_runtime::backends::onnxruntime::OrtEngine;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::Session;
use v2l_runtime::options::OpenOptions;
use v2l_runtime::tensor::Tensor;

const ROUNDS: usize = 2000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn main() {
    let files = Tiny::new(0);
    let path = files.path("tiny.engine");
    let tensors = inputs();
    let borrowed: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    let options = OpenOptions { threads: Some(1), ..OpenOptions::default() };
    let file = Arc::new(Engine::open(path.to_str().unwrap()).unwrap());
    let mut rust = OrtEngine::open(file, &options).unwrap().session("step").unwrap();

    let given = Given::new(inputs());
    let given = given.tensors();
    let (mut engine, mut session) = (ptr::null_mut(), ptr::null_mut());
    let mut options = std::mem::MaybeUninit::<v2l_open_options>::uninit();
    // SAFETY: the calls follow the header.
    unsafe {
        check(v2l_open_options_init(options.as_mut_ptr(), size_of::<v2l_open_options>()));
        (*options.as_mut_ptr()).threads = 1;
        check(v2l_engine_new(path.as_ptr(), options.as_ptr(), &mut engine));
        check(v2l_session_new(engine, c"step".as_ptr(), &mut session));
    }
    let mut through_rust = || drop(rust.run(&borrowed).unwrap());
    let through_abi = || {
        let mut outputs = ptr::null_mut();
        // SAFETY: as above.
        unsafe {
            check(v2l_session_run(session, given.as_ptr(), given.len(), ptr::null(), &mut outputs));
            v2l_tensors_free(outputs);
        }
    };
    let (mut in_rust, mut in_c) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        in_rust.push(timed(&mut through_rust));
        in_c.push(timed(through_abi));
    }
    // SAFETY: as above.
    unsafe {
        v2l_session_free(session);
        v2l_engine_free(engine);
    }
    let (in_rust, in_c) = (median(in_rust), median(in_c));
    let more = in_c.as_secs_f64() - in_rust.as_secs_f64();
    println!("medians of {ROUNDS} runs: {in_rust:?} in Rust, {in_c:?} through the ABI: {:+.1} µs", more * 1e6);
}
