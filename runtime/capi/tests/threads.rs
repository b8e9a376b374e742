//! Eight threads, one engine, adapters swapped under load: every response is that of the adapters that it asked for.
//!
//! With `--features stand-in-backend` ONNX Runtime is left out, for ThreadSanitizer.

#![allow(unsafe_code, reason = "calls the C ABI")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod tiny;

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tiny::{Given, Tiny, check, inputs};
use v2l::*;

const THREADS: usize = 8;
const ADAPTERS: usize = 3;
const REQUESTS: usize = 60;

/// A handle that threads share.
struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the header says that handles may be used from several threads.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(self) -> *mut T {
        self.0
    }
}

struct Opened {
    _files: Tiny,
    engine: Shared<v2l_engine>,
    adapters: Vec<Shared<v2l_adapter>>,
}

impl Opened {
    fn new() -> Self {
        let files = Tiny::new(ADAPTERS);
        let mut engine = ptr::null_mut();
        // SAFETY: the calls of these tests follow the header.
        check(unsafe { v2l_engine_new(files.path("tiny.engine").as_ptr(), ptr::null(), &mut engine) });
        let load = |at: usize| {
            let (file, mut adapter) = (files.path(&format!("lora{at}.safetensors")), ptr::null_mut());
            // SAFETY: as above.
            check(unsafe { v2l_adapter_new(engine, file.as_ptr(), ptr::null(), &mut adapter) });
            Shared(adapter)
        };
        let adapters = (0..ADAPTERS).map(load).collect();
        Self { _files: files, engine: Shared(engine), adapters }
    }

    fn session(&self) -> Shared<v2l_session> {
        let mut session = ptr::null_mut();
        // SAFETY: as above.
        check(unsafe { v2l_session_new(self.engine.get(), c"step".as_ptr(), &mut session) });
        Shared(session)
    }

    /// What a request asks for: no adapter, one or two, at some strength.
    fn set(&self, kind: usize) -> Vec<v2l_weighted_adapter> {
        let chosen = (0..ADAPTERS).filter(|at| kind & (1 << at) != 0);
        chosen.map(|at| v2l_weighted_adapter { adapter: self.adapters[at].get(), strength: 0.5 + at as f32 }).collect()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: as above; nothing uses the handles any more.
        unsafe {
            self.adapters.iter().for_each(|adapter| v2l_adapter_free(adapter.get()));
            v2l_engine_free(self.engine.get());
        }
    }
}

/// The bytes of a result's first tensor; the result is freed.
fn taken(outputs: *mut v2l_tensors) -> Vec<u8> {
    let mut tensor = std::mem::MaybeUninit::<v2l_tensor>::uninit();
    // SAFETY: a result of the library's, which is freed last; its f32 tensor has the extents that it says.
    unsafe {
        check(v2l_tensors_get(outputs, 0, tensor.as_mut_ptr()));
        let tensor = tensor.assume_init();
        let shape = std::slice::from_raw_parts(tensor.shape, tensor.rank as usize);
        let length = shape.iter().product::<i64>() as usize * 4;
        let bytes = std::slice::from_raw_parts(tensor.data.cast::<u8>(), length).to_vec();
        v2l_tensors_free(outputs);
        bytes
    }
}

/// Asks for a set of adapters and runs, in one call.
fn respond(session: Shared<v2l_session>, set: &[v2l_weighted_adapter], given: &Given) -> Vec<u8> {
    let tensors = given.tensors();
    let options = v2l_run_options {
        size: size_of::<v2l_run_options>(),
        adapters: if set.is_empty() { ptr::NonNull::dangling().as_ptr() } else { set.as_ptr() },
        adapter_count: set.len(),
        control: ptr::null(),
    };
    let mut outputs = ptr::null_mut();
    // SAFETY: as above.
    check(unsafe { v2l_session_run(session.get(), tensors.as_ptr(), tensors.len(), &options, &mut outputs) });
    taken(outputs)
}

fn free(session: Shared<v2l_session>) {
    // SAFETY: as above; nothing uses the session any more.
    unsafe { v2l_session_free(session.get()) }
}

/// Every thread sends its requests to the session that `session_of` gives it.
fn check_load(loaded: &Opened, session_of: impl Fn(usize) -> Shared<v2l_session> + Sync) {
    let given = Given::new(inputs());
    let alone = loaded.session();
    let kinds = [0, 1, 2, 4, 3, 6];
    let expected: HashMap<usize, Vec<u8>> =
        kinds.iter().map(|&kind| (kind, respond(alone, &loaded.set(kind), &given))).collect();
    let different: std::collections::HashSet<&Vec<u8>> = expected.values().collect();
    assert_eq!(different.len(), kinds.len(), "adapters that change nothing show nothing");
    free(alone);

    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (session_of, expected, answered) = (&session_of, &expected, &answered);
            scope.spawn(move || {
                let given = Given::new(inputs());
                for request in 0..REQUESTS {
                    let kind = kinds[(thread * 5 + request * (thread + 1)) % kinds.len()];
                    let response = respond(session_of(thread), &loaded.set(kind), &given);
                    assert!(response == expected[&kind], "thread {thread}, request {request}: not of set {kind}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(answered.into_inner(), THREADS * REQUESTS);
}

#[test]
fn eight_threads_with_sessions_of_one_engine_get_what_they_asked_for() {
    let loaded = Opened::new();
    let sessions: Vec<Shared<v2l_session>> = (0..THREADS).map(|_| loaded.session()).collect();
    check_load(&loaded, |thread| sessions[thread]);
    sessions.into_iter().for_each(free);
}

#[test]
fn eight_threads_on_one_session_get_what_they_asked_for() {
    let loaded = Opened::new();
    let session = loaded.session();
    check_load(&loaded, |_| session);
    free(session);
}

#[test]
fn swap_that_another_thread_cancels_leaves_the_session_as_it_was() {
    let loaded = Opened::new();
    let (session, given) = (loaded.session(), Given::new(inputs()));
    let before = respond(session, &loaded.set(1), &given);
    let mut cancel = ptr::null_mut();
    // SAFETY: as above.
    check(unsafe { v2l_cancel_new(&mut cancel) });
    let cancel = Shared(cancel);
    let done = AtomicBool::new(false);
    let cancelled = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: as above.
                check(unsafe { v2l_cancel_request(cancel.get()) });
                std::thread::yield_now();
                // SAFETY: as above.
                check(unsafe { v2l_cancel_reset(cancel.get()) });
            }
        });
        let control = v2l_control {
            size: size_of::<v2l_control>(),
            cancel: cancel.get(),
            cancelled: None,
            progress: None,
            user: ptr::null_mut(),
        };
        let set = loaded.set(6);
        let mut cancelled = 0;
        for _ in 0..200 {
            // SAFETY: as above.
            let status =
                unsafe { v2l_session_set_adapters(session.get(), set.as_ptr(), set.len(), &control, ptr::null_mut()) };
            match status {
                V2L_ERROR_CANCELLED => cancelled += 1,
                status => check(status),
            }
            assert!(respond(session, &loaded.set(1), &given) == before);
        }
        done.store(true, Ordering::Relaxed);
        cancelled
    });
    assert!(cancelled > 0, "no swap was cancelled");
    free(session);
    // SAFETY: as above; nothing uses the request any more.
    unsafe { v2l_cancel_free(cancel.get()) };
}
