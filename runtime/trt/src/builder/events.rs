//! What TensorRT says while it builds. It calls from threads of its own.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{ParserError, Refittable, Step};
use crate::messages::{keep, text};
use crate::{DataType, ffi};

/// Everything that was said.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) parser: Vec<ParserError>,
    pub(super) refittable: Vec<Refittable>,
    pub(super) cancelled: bool,
    /// Not among the lines between processes: it lies in their file.
    #[serde(skip)]
    pub(super) timing_cache: Option<Vec<u8>>,
}

/// Listens to one build.
pub(super) struct Listener<'a> {
    said: Mutex<Said>,
    progress: Mutex<&'a mut (dyn FnMut(Step<'_>) -> bool + Send)>,
}

impl<'a> Listener<'a> {
    pub(super) fn new(progress: &'a mut (dyn FnMut(Step<'_>) -> bool + Send)) -> Self {
        Self { said: Mutex::default(), progress: Mutex::new(progress) }
    }

    /// Callbacks that may be used as long as `self` is borrowed.
    pub(super) fn callbacks(&self) -> ffi::Callbacks {
        let context = std::ptr::from_ref(self).cast::<c_void>();
        ffi::Callbacks { context, log, parser_error, record, progress, timing_cache }
    }

    pub(super) fn finish(self) -> Said {
        self.said.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, tell: impl FnOnce(&mut Said)) {
        tell(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The listener behind a callback's context.
///
/// # Safety
/// `context` is that of [`Listener::callbacks`], whose listener is borrowed until the build has returned.
#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe fn listener<'a>(context: *const c_void) -> &'a Listener<'a> {
    // SAFETY: as above; a listener is shared between threads by its mutexes alone.
    unsafe { &*context.cast::<Listener<'a>>() }
}

// SAFETY of the five callbacks: the shim passes the context that it was given, and strings and structures that live as long as the
// call. A panic ends the process at the boundary, as `extern "C"` has it.

#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn log(context: *const c_void, severity: i32, message: *const c_char) {
    if severity > 2 {
        return;
    }
    // SAFETY: see above.
    let (listener, message) = unsafe { (listener(context), text(message)) };
    listener.say(|said| keep(if severity == 2 { &mut said.warnings } else { &mut said.errors }, message));
}

#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn parser_error(context: *const c_void, error: *const ffi::ParserError) {
    // SAFETY: see above.
    let (listener, error) = unsafe { (listener(context), &*error) };
    // SAFETY: see above.
    let [name, op_type, description] = unsafe { [text(error.node_name), text(error.op_type), text(error.description)] };
    let node = (error.node >= 0).then_some((name, op_type));
    listener.say(|said| said.parser.push(ParserError { code: error.code, node, description }));
}

#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn record(context: *const c_void, record: *const ffi::RefitRecord) {
    // SAFETY: see above.
    let (listener, record) = unsafe { (listener(context), &*record) };
    // SAFETY: see above.
    let (name, initializer) = unsafe { (text(record.name), text(record.initializer)) };
    let refittable = Refittable {
        name,
        initializer: (!record.initializer.is_null()).then_some(initializer),
        dtype: DataType::of_tensorrt(record.dtype),
        count: record.count.unsigned_abs(),
    };
    listener.say(|said| said.refittable.push(refittable));
}

#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn timing_cache(context: *const c_void, data: *const c_void, size: usize) {
    // SAFETY: see above; there are `size` bytes, which are not none.
    let (listener, bytes) = unsafe { (listener(context), std::slice::from_raw_parts(data.cast::<u8>(), size)) };
    listener.say(|said| said.timing_cache = Some(bytes.to_vec()));
}

#[allow(unsafe_code, reason = "TensorRT through its shim")]
unsafe extern "C" fn progress(context: *const c_void, phase: *const c_char, step: i32, steps: i32) -> i32 {
    // SAFETY: see above.
    let (listener, phase) = unsafe { (listener(context), text(phase)) };
    let step = Step { phase: &phase, done: step.unsigned_abs(), of: steps.unsigned_abs() };
    let goes_on = (listener.progress.lock().unwrap_or_else(PoisonError::into_inner))(step);
    if !goes_on {
        listener.say(|said| said.cancelled = true);
    }
    i32::from(goes_on)
}
