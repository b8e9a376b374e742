//! The v2l runtime as a backend of NVIDIA Triton Inference Server.
//!
//! The library is `libtriton_v2l.so`; a model is an engine directory, or a graph of an engine. Triton's own functions are declared here by hand and resolved by
//! the server that loads the library. Every entry goes through `failure::guard`: nothing unwinds into the server. `docs/serving.md`
//! says what a request holds.
//!
//! # Safety
//! Of every exported function: it is called by a Triton server, with objects of the server's that live as `tritonbackend.h` says.

#![allow(
    unsafe_code,
    non_snake_case,
    clippy::missing_safety_doc,
    reason = "a C ABI: names, pointers and contracts are those of tritonbackend.h"
)]

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

mod adapters;
mod asked;
mod failure;
mod ffi;
mod graph;
mod instance;
mod metrics;
mod server;
mod settings;

use asked::Asked;
use failure::{Failure, caught, check, guard, log};
use graph::GraphInstance;
use instance::{Instance, Watcher};
use server::{Made, Model, Request, Responses};
use settings::{Serves, Settings};

/// Refuses a server whose interface is another, and keeps ONNX Runtime from reporting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Initialize(_backend: *mut ffi::Backend) -> *mut ffi::Error {
    guard(|| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: places for what the server says.
        check(unsafe { ffi::TRITONBACKEND_ApiVersion(&raw mut major, &raw mut minor) })?;
        if (major, minor >= ffi::API_MINOR) != (ffi::API_MAJOR, true) {
            return Err(Failure::internal(format!(
                "the server's backend interface is {major}.{minor}; expected {}.{} or a later one of {}",
                ffi::API_MAJOR,
                ffi::API_MINOR,
                ffi::API_MAJOR
            )));
        }
        Ok(())
    })
}

/// Frees what models shared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Finalize(_backend: *mut ffi::Backend) -> *mut ffi::Error {
    guard(|| {
        metrics::finish();
        Ok(())
    })
}

/// Reads a model's configuration, and fills it in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInitialize(model: *mut ffi::Model) -> *mut ffi::Error {
    guard(|| {
        let state = Box::into_raw(Box::new(Settings::of(Model(model))?));
        // SAFETY: the state is the model's until ModelFinalize takes it back; if the server does not take it, it is freed here.
        unsafe {
            check(ffi::TRITONBACKEND_ModelSetState(model, state.cast())).inspect_err(|_| drop(Box::from_raw(state)))
        }
    })
}

/// Frees what ModelInitialize made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelFinalize(model: *mut ffi::Model) -> *mut ffi::Error {
    guard(|| {
        let mut state: *mut c_void = null_mut();
        // SAFETY: the model's own state, which nobody uses any more.
        unsafe {
            check(ffi::TRITONBACKEND_ModelState(model, &raw mut state))?;
            if !state.is_null() {
                drop(Box::from_raw(state.cast::<Settings>()));
            }
        }
        Ok(())
    })
}

/// What an instance has open.
enum State {
    Videos(Box<Instance>),
    Graph(GraphInstance),
}

/// The settings of an instance's model.
///
/// # Safety
/// The instance lives, and so does its model.
unsafe fn settings<'a>(instance: *mut ffi::Instance) -> Result<&'a Settings, Failure> {
    let (mut model, mut state): (_, *mut c_void) = (null_mut(), null_mut());
    // SAFETY: the caller's promise; ModelInitialize set the state, which does not change.
    unsafe {
        check(ffi::TRITONBACKEND_ModelInstanceModel(instance, &raw mut model))?;
        check(ffi::TRITONBACKEND_ModelState(model, &raw mut state))?;
        state.cast::<Settings>().as_ref().ok_or_else(|| Failure::internal("the model has no state"))
    }
}

/// Opens the engine directory, or the graph, for an instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceInitialize(instance: *mut ffi::Instance) -> *mut ffi::Error {
    guard(|| {
        // SAFETY: the server's own instance.
        let settings = unsafe { settings(instance) }?;
        let opened = match &settings.serves {
            Serves::Videos(folder) => State::Videos(Box::new(Instance::open(folder, settings)?)),
            Serves::Graph(engine, graph) => State::Graph(GraphInstance::open(engine, graph, settings)?),
        };
        let state = Box::into_raw(Box::new(Mutex::new(opened)));
        // SAFETY: as in ModelInitialize.
        unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceSetState(instance, state.cast()))
                .inspect_err(|_| drop(Box::from_raw(state)))
        }
    })
}

/// Frees what ModelInstanceInitialize made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceFinalize(instance: *mut ffi::Instance) -> *mut ffi::Error {
    guard(|| {
        let mut state: *mut c_void = null_mut();
        // SAFETY: the instance's own state, which nobody uses any more.
        unsafe {
            check(ffi::TRITONBACKEND_ModelInstanceState(instance, &raw mut state))?;
            if !state.is_null() {
                drop(Box::from_raw(state.cast::<Mutex<State>>()));
            }
        }
        Ok(())
    })
}

/// Answers requests, one after the other. Each gets its responses, is counted and released; an error here is of none of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: *mut ffi::Instance,
    requests: *mut *mut ffi::Request,
    count: u32,
) -> *mut ffi::Error {
    let mut state: *mut c_void = null_mut();
    // SAFETY: the server's own instance; ModelInstanceInitialize set its state.
    let opened = caught(|| unsafe {
        check(ffi::TRITONBACKEND_ModelInstanceState(instance, &raw mut state))?;
        let state = state.cast::<Mutex<State>>().as_ref();
        Ok((settings(instance)?, state.ok_or_else(|| Failure::internal("the instance has no state"))?))
    });
    let (settings, state) = match opened {
        Ok(opened) => opened,
        // The requests stay the server's.
        Err(failure) => return failure.into_error(),
    };
    // SAFETY: the server gives so many requests, and they are this backend's until they are released.
    let requests = unsafe { std::slice::from_raw_parts(requests, count as usize) };
    for request in requests.iter().copied().map(Request) {
        let began = now();
        let answered = caught(|| answer(request, settings, state));
        if let Err(failure) = &answered {
            log(&format!("a request could not be answered: {failure:?}"));
        }
        let ended = now();
        // SAFETY: instance and request are the server's, and the request is not released yet.
        let counted = check(unsafe {
            let success = matches!(answered, Ok(true));
            ffi::TRITONBACKEND_ModelInstanceReportStatistics(instance, request.0, success, began, began, ended, ended)
        });
        if let Err(failure) = counted.and(request.release()) {
            log(&format!("a request could not be counted or released: {failure:?}"));
        }
    }
    null_mut()
}

/// Nanoseconds of the clock that Triton's statistics go by.
fn now() -> u64 {
    use std::sync::OnceLock;
    static BEGIN: OnceLock<(Instant, u64)> = OnceLock::new();
    let (begin, offset) = BEGIN.get_or_init(|| (Instant::now(), uptime()));
    offset + u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX / 2)
}

/// Nanoseconds since the machine started: the origin of the clock that [`Instant`] counts.
fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    (seconds * 1e9) as u64
}

/// Answers a request; true if with what it asks for.
fn answer(request: Request, settings: &Settings, state: &Mutex<State>) -> Result<bool, Failure> {
    let responses = Responses::new(request)?;
    match caught(|| make(request, settings, state, &responses)) {
        Ok(outputs) => {
            responses.send(Ok(&outputs), true)?;
            Ok(true)
        }
        Err(failure) => {
            responses.send(Err(failure), true)?;
            Ok(false)
        }
    }
}

/// What a request asks for, made by an instance; panics may have left that in between, which the next set of adapters puts right.
fn make(
    request: Request,
    settings: &Settings,
    state: &Mutex<State>,
    responses: &Responses,
) -> Result<Vec<Made>, Failure> {
    let began = Instant::now();
    let made = match &settings.serves {
        Serves::Graph(..) => match &mut *state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Graph(instance) => instance.run(request, settings)?,
            State::Videos(_) => return Err(Failure::internal("the instance makes videos")),
        },
        Serves::Videos(_) => {
            let asked = Asked::of(request, settings)?;
            let progress = (settings.decoupled && asked.wants("progress")).then_some(responses);
            let mut observer = Watcher { request, progress, metrics: &settings.metrics, began };
            let sampled = match &mut *state.lock().unwrap_or_else(PoisonError::into_inner) {
                State::Videos(instance) => instance.run(&asked, &settings.metrics, &mut observer)?,
                State::Graph(_) => return Err(Failure::internal("the instance runs a graph")),
            };
            sampled.outputs(&asked, &settings.metrics)?
        }
    };
    settings.metrics.took(c"total", began.elapsed().as_secs_f64());
    Ok(made)
}
