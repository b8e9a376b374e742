//! The wrappers over a shim that is none: what they hand over, free and say. And the real library, where it is.

#[cfg(feature = "build")]
mod real;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

use super::*;
use crate::ffi::{self, Handle, Log, Prototype, Shape};
use crate::messages::text;
use crate::refit::{Outcome, RefitError, Refitter};

thread_local! {
    /// Objects that were made and not freed.
    static ALIVE: Cell<usize> = const { Cell::new(0) };
}

const WEIGHTS: [(&CStr, i64); 3] = [(c"a", 2), (c"b", 2), (c"fixed", -1)];

struct FakeRuntime(Log);

/// An engine with one input of free extent and two weights of two bf16 each, which go together.
struct FakeEngine {
    runtime: *const FakeRuntime,
    fails: bool,
    held: BTreeMap<CString, Vec<u8>>,
    given: BTreeMap<CString, (*const c_void, bool)>,
    extent: i64,
    addresses: usize,
}

fn made<T>(value: T) -> Handle {
    ALIVE.set(ALIVE.get() + 1);
    Box::into_raw(Box::new(value)).cast()
}

fn say(runtime: &FakeRuntime, message: &CStr) {
    // SAFETY: the wrappers keep the log's context as long as the runtime.
    unsafe { (runtime.0.log)(runtime.0.context, 1, message.as_ptr()) };
}

// SAFETY of the fakes: handles are those that they gave themselves, and names end with NUL; the wrappers under test promise both.

unsafe fn fake<'a>(engine: Handle) -> &'a mut FakeEngine {
    unsafe { &mut *engine.cast::<FakeEngine>() }
}

unsafe extern "C" fn runtime(_: *const RunEntry, log: *const Log) -> Handle {
    let Log { context, log } = unsafe { log.read() };
    made(FakeRuntime(Log { context, log }))
}

unsafe extern "C" fn free<T>(handle: Handle) {
    ALIVE.set(ALIVE.get() - 1);
    drop(unsafe { Box::from_raw(handle.cast::<T>()) });
}

unsafe extern "C" fn free_view(_: Handle) {
    ALIVE.set(ALIVE.get() - 1);
}

unsafe fn view(engine: Handle) -> Handle {
    ALIVE.set(ALIVE.get() + 1);
    engine
}

unsafe extern "C" fn validity(handle: Handle, plan: *const c_void, size: usize, reasons: *mut u64) -> i32 {
    let plan = unsafe { std::slice::from_raw_parts(plan.cast::<u8>(), size) };
    let runtime = unsafe { &*handle.cast::<FakeRuntime>() };
    let found = match plan {
        b"no gpu" => {
            say(runtime, c"CUDA initialization failure (cudaError 35: no driver)");
            1 << 6
        }
        b"other gpu" => 1 << 1 | 1 << 5,
        b"large" => 1 << 4,
        _ => 0,
    };
    unsafe { *reasons = found };
    if found == 0 { 0 } else { INVALID }
}

unsafe extern "C" fn engine(handle: Handle, plan: *const c_void, size: usize) -> Handle {
    let plan = unsafe { std::slice::from_raw_parts(plan.cast::<u8>(), size) };
    if plan == b"broken" {
        say(unsafe { &*handle.cast() }, c"it ends too early");
        return std::ptr::null_mut();
    }
    if plan == b"larger" {
        say(unsafe { &*handle.cast() }, c"[allocate] Error Code 1: Cuda Runtime (out of memory)");
        return std::ptr::null_mut();
    }
    let (fails, runtime) = (plan == b"fails", handle.cast_const().cast());
    made(FakeEngine { runtime, fails, held: BTreeMap::new(), given: BTreeMap::new(), extent: -1, addresses: 0 })
}

unsafe extern "C" fn tensor_count(_: Handle) -> i32 {
    2
}

unsafe extern "C" fn tensor(_: Handle, index: i32, tensor: *mut ffi::Tensor) -> i32 {
    let name = if index == 0 { c"x" } else { c"y" }.as_ptr();
    let mut shape = Shape { rank: 2, extents: [-1; ffi::MAX_RANK] };
    shape.extents[1] = 4;
    let (is_input, dtype, is_plain) = (i32::from(index == 0), 7 * (1 - index), 1 - index);
    unsafe { tensor.write(ffi::Tensor { name, is_input, dtype, is_plain, shape }) };
    1
}

unsafe extern "C" fn device_memory(_: Handle) -> i64 {
    1 << 20
}

unsafe extern "C" fn refitter(_: Handle, engine: Handle, _threads: i32, _validate: i32) -> Handle {
    unsafe { view(engine) }
}

unsafe extern "C" fn weights(handle: Handle, missing: i32, capacity: i32, names: *mut *const c_char) -> i32 {
    let engine = unsafe { fake(handle) };
    let lacks = |name: &CStr| !engine.given.contains_key(name);
    let lacking: Vec<&CStr> = WEIGHTS.iter().map(|w| w.0).filter(|name| *name != c"fixed" && lacks(name)).collect();
    // What is set already is wanted again with the other of the group.
    let wanted: Vec<&CStr> = match missing {
        0 => WEIGHTS.iter().map(|weight| weight.0).collect(),
        _ => lacking,
    };
    for (at, name) in wanted.iter().enumerate().take(capacity as usize) {
        unsafe { names.add(at).write(name.as_ptr()) };
    }
    wanted.len() as i32
}

unsafe extern "C" fn prototype(_: Handle, name: *const c_char, prototype: *mut Prototype) -> i32 {
    let name = unsafe { CStr::from_ptr(name) };
    let count = WEIGHTS.iter().find(|weight| weight.0 == name).map_or(-1, |weight| weight.1);
    unsafe { prototype.write(Prototype { dtype: 7, count }) };
    i32::from(count >= 0)
}

unsafe extern "C" fn set_weight(
    handle: Handle,
    name: *const c_char,
    dtype: i32,
    data: *const c_void,
    count: i64,
    on_device: i32,
) -> i32 {
    let (engine, name) = unsafe { (fake(handle), CStr::from_ptr(name)) };
    if name == c"a" && on_device == 0 && unsafe { *data.cast::<u8>() } == 0xFF {
        say(unsafe { &*engine.runtime }, c"it does not like the value");
        return 0;
    }
    engine.given.insert(name.into(), (data, on_device != 0));
    i32::from(dtype == 7 && count == 2)
}

unsafe extern "C" fn unset_weight(handle: Handle, name: *const c_char) -> i32 {
    let (engine, name) = unsafe { (fake(handle), CStr::from_ptr(name)) };
    i32::from(engine.given.remove(name).is_some())
}

unsafe extern "C" fn refit(handle: Handle, _: Handle) -> i32 {
    let engine = unsafe { fake(handle) };
    for (at, (name, (data, on_device))) in engine.given.iter().enumerate() {
        if engine.fails && at == 1 {
            say(unsafe { &*engine.runtime }, c"the refit broke");
            return 0;
        }
        let bytes =
            if *on_device { vec![0xDD; 4] } else { unsafe { std::slice::from_raw_parts(data.cast(), 4) }.to_vec() };
        engine.held.insert(name.clone(), bytes);
    }
    1
}

unsafe extern "C" fn context(engine: Handle) -> Handle {
    let engine_ref = unsafe { fake(engine) };
    if engine_ref.held.len() < 2 {
        say(unsafe { &*engine_ref.runtime }, c"placeholders are not set");
        return std::ptr::null_mut();
    }
    unsafe { view(engine) }
}

unsafe extern "C" fn set_profile(_: Handle, index: i32, _: Handle) -> i32 {
    i32::from(index == 0)
}

unsafe extern "C" fn set_shape(handle: Handle, input: *const c_char, shape: *const Shape) -> i32 {
    let (engine, input, shape) = unsafe { (fake(handle), text(input), &*shape) };
    let fits = input == "x" && shape.rank == 2 && shape.extents[0] <= 3 && shape.extents[1] == 4;
    if fits {
        engine.extent = shape.extents[0];
    }
    i32::from(fits)
}

unsafe extern "C" fn shape(handle: Handle, name: *const c_char) -> Shape {
    let (engine, name) = unsafe { (fake(handle), text(name)) };
    let mut shape = Shape { rank: if name == "y" { 2 } else { -1 }, extents: [4; ffi::MAX_RANK] };
    shape.extents[0] = engine.extent;
    shape
}

unsafe extern "C" fn infer_shapes(handle: Handle, _: i32, names: *mut *const c_char) -> i32 {
    let missing = unsafe { fake(handle) }.extent < 0;
    if missing {
        unsafe { names.write(c"x".as_ptr()) };
    }
    i32::from(missing)
}

unsafe extern "C" fn set_address(handle: Handle, name: *const c_char, _: Handle) -> i32 {
    let known = matches!(&unsafe { text(name) }[..], "x" | "y");
    unsafe { fake(handle) }.addresses += usize::from(known);
    known.into()
}

unsafe extern "C" fn enqueue(handle: Handle, _: Handle) -> i32 {
    let engine = unsafe { fake(handle) };
    i32::from(engine.addresses == 2 && engine.extent > 0)
}

static FAKE: RunApi = RunApi {
    version: 10_701,
    runtime,
    free_runtime: free::<FakeRuntime>,
    validity,
    engine,
    free_engine: free::<FakeEngine>,
    tensor_count,
    tensor,
    device_memory,
    refitter,
    free_refitter: free_view,
    weights,
    prototype,
    set_weight,
    unset_weight,
    refit,
    context,
    free_context: free_view,
    set_profile,
    set_shape,
    shape,
    infer_shapes,
    set_address,
    enqueue,
};

unsafe extern "C" fn no_runtime(_: *mut c_void, _: i32) -> Handle {
    std::ptr::null_mut()
}

unsafe extern "C" fn no_refitter(_: *mut c_void, _: *mut c_void, _: i32) -> Handle {
    std::ptr::null_mut()
}

fn fake_runtime() -> Runtime {
    let entry = RunEntry { create_runtime: no_runtime, create_refitter: no_refitter };
    Runtime::with(&FAKE, entry, Flavour::Rtx, Version::of_number(10_701)).unwrap()
}

/// A stream that is always done, or lost.
struct Fake(Option<&'static str>);

// SAFETY: no driver sees the handle.
unsafe impl Stream for Fake {
    fn handle(&self) -> *mut c_void {
        std::ptr::null_mut()
    }

    fn synchronize(&self) -> Result<(), String> {
        self.0.map_or(Ok(()), |error| Err(error.to_owned()))
    }
}

const DONE: Fake = Fake(None);

#[test]
fn load_says_why_a_plan_does_not_fit() {
    let mut runtime = fake_runtime();
    let mut message = |plan: &[u8]| runtime.load(plan).err().unwrap();
    let error = message(b"no gpu");
    assert!(matches!(error, RunError::NoDevice { .. }) && error.to_string().contains("--backend ort"), "{error}");
    let expected = "TensorRT-RTX 1.7.1 does not load this plan: it was not built for this GPU, it is damaged; compile";
    let error = message(b"other gpu").to_string();
    assert!(error.starts_with(expected), "{error}");
    // What was said earlier is not said again.
    let error = message(b"broken").to_string();
    assert!(error.contains("it does not say why: it ends too early;"), "{error}");
    for plan in [&b"large"[..], b"larger"] {
        let error = message(plan);
        assert!(matches!(error, RunError::Memory { .. }), "{error}");
        assert!(error.to_string().contains("loading the plan takes more GPU memory than is free"), "{error}");
    }
}

#[test]
fn engine_is_refit_run_and_freed_with_all_that_was_made_of_it() {
    let mut runtime = fake_runtime();
    let mut engine = runtime.load(b"ok").unwrap();
    drop(runtime);
    let tensors = engine.tensors().unwrap();
    let x =
        Tensor { name: "x".into(), is_input: true, dtype: DataType::Bf16, is_plain: true, shape: vec![None, Some(4)] };
    let y =
        Tensor { name: "y".into(), is_input: false, dtype: DataType::F32, is_plain: false, shape: vec![None, Some(4)] };
    assert_eq!(tensors, [x, y]);
    assert_eq!(engine.activation_bytes(), 1 << 20);
    let prototypes = engine.prototypes(&DONE).unwrap();
    assert_eq!(prototypes.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(prototypes.values().all(|p| (p.dtype, p.count) == (DataType::Bf16, 2)));
    let error = engine.set_shape("x", &[2, 4]).unwrap_err().to_string();
    assert!(error.contains("making an execution context failed: placeholders are not set"), "{error}");

    let mut refitter = engine.refitter(&DONE, 0).unwrap();
    let (a, b) = (vec![1; 4], vec![2; 4]);
    assert_eq!(refitter.refit(&[("a", &a)]), Ok(Outcome::Missing(vec!["b".into()])));
    assert_eq!(refitter.refit(&[("a", &a), ("b", &b)]), Ok(Outcome::Done));
    // SAFETY: the fake does not read device memory.
    let device =
        unsafe { refitter.refit_from(&[("a", Source::Host(&a)), ("b", Source::Device { address: 64, bytes: 4 })]) };
    assert_eq!(device, Ok(Outcome::Done));
    drop(refitter);

    engine.set_profile(0, &DONE).unwrap();
    assert!(engine.set_profile(1, &DONE).unwrap_err().to_string().contains("choosing profile 1 failed"));
    assert_eq!(engine.missing_inputs().unwrap(), ["x"]);
    assert!(engine.set_shape("x", &[4, 4]).unwrap_err().to_string().contains("the shape [4, 4] failed"));
    assert!(engine.set_shape("x", &[1; 9]).unwrap_err().to_string().contains("more than 8 axes"));
    assert!(engine.set_shape("\0", &[1]).unwrap_err().to_string().contains("NUL"));
    engine.set_shape("x", &[2, 4]).unwrap();
    assert_eq!(engine.shape("y").unwrap(), [Some(2), Some(4)]);
    assert!(engine.shape("z").is_err() && engine.missing_inputs().unwrap().is_empty());
    assert!(engine.enqueue(&DONE).unwrap_err().to_string().contains("running failed"));
    for name in ["x", "y"] {
        // SAFETY: the fake reads no memory.
        unsafe { engine.set_address(name, std::ptr::null_mut()).unwrap() };
    }
    engine.enqueue(&DONE).unwrap();
    assert!(ALIVE.get() > 0);
    drop(engine);
    assert_eq!(ALIVE.get(), 0, "something is not freed");
}

#[test]
fn refit_refuses_what_the_engine_cannot_take_and_forgets_what_it_was_given() {
    let mut runtime = fake_runtime();
    let mut engine = runtime.load(b"ok").unwrap();
    let mut refitter = engine.refitter(&DONE, 2).unwrap();
    let mut refused = |weights: &[(&str, &[u8])]| match refitter.refit(weights).unwrap_err() {
        RefitError::Refused { weight, reason } => format!("{weight}: {reason}"),
        other => panic!("{other}"),
    };
    assert_eq!(refused(&[("a", &[0; 3])]), "a: expected 4 bytes, found 3 bytes");
    assert_eq!(refused(&[("fixed", &[0; 4])]), "fixed: expected no such weight, found 4 bytes");
    assert!(refused(&[("a\0", &[0; 4])]).contains("NUL"));
    assert_eq!(refused(&[("b", &[0; 4]), ("a", &[0xFF; 4])]), "a: it does not like the value");
    // `b` was given a moment ago and its bytes are gone: it is asked for again.
    assert_eq!(refitter.refit(&[("a", &[0; 4])]), Ok(Outcome::Missing(vec!["b".into()])));
}

#[test]
fn refit_that_fails_says_so_and_so_does_a_stream_that_is_lost() {
    let mut runtime = fake_runtime();
    let weights: [(&str, &[u8]); 2] = [("a", &[0; 4]), ("b", &[0; 4])];
    let mut engine = runtime.load(b"fails").unwrap();
    let failed = engine.refitter(&DONE, 1).unwrap().refit(&weights);
    assert_eq!(failed, Err(RefitError::Failed { reason: "the refit broke".into() }));
    drop(engine);
    let mut engine = runtime.load(b"ok").unwrap();
    let failed = engine.refitter(&Fake(Some("the device is lost")), 1).unwrap().refit(&weights);
    assert_eq!(failed, Err(RefitError::Failed { reason: "the device is lost".into() }));
    drop((engine, runtime));
    assert_eq!(ALIVE.get(), 0);
}
