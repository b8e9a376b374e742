//! Progress and cancellation, and the log's callback.

use std::ffi::c_void;

use v2l_runtime::events::{CancelToken, Event, Observer, Phase};

use crate::failure::{Failure, guard, guard_anywhere};
use crate::growing::{self, growing};
use crate::handles::{Handle, Kind, free, optional, required};
use crate::log::{User, V2L_LOG_WARNING, call, log, send_to, v2l_log_callback};
use crate::pointers::Out;
use crate::status::v2l_status;

/// A phase of the work.
pub type v2l_phase = i32;
/// Prompt to embeddings.
pub const V2L_PHASE_ENCODE_TEXT: v2l_phase = 1;
/// Reference video to latent.
pub const V2L_PHASE_ENCODE_REFERENCE: v2l_phase = 2;
/// First frame to latent.
pub const V2L_PHASE_ENCODE_CONDITION: v2l_phase = 3;
/// The sampler's steps.
pub const V2L_PHASE_DENOISE: v2l_phase = 4;
/// Latent to frames.
pub const V2L_PHASE_DECODE: v2l_phase = 5;
/// Video to latent, by itself.
pub const V2L_PHASE_ENCODE_VIDEO: v2l_phase = 6;
/// A prompt and the base's weights to an adapter.
pub const V2L_PHASE_PREDICT: v2l_phase = 7;

/// Told how far a phase is: `done` of `total` steps, 0 as it begins. Called on the thread of the call.
pub type v2l_progress_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, phase: v2l_phase, done: u64, total: u64)>;

/// Asked whether to stop: 0 goes on, anything else stops. It is asked on the thread of the call, between steps and every few milliseconds
/// within one; while adapters are fused, on several threads at the same time.
pub type v2l_cancelled_callback = Option<unsafe extern "C" fn(user: *mut c_void) -> i32>;

/// A request to stop, to be shared by threads.
pub struct v2l_cancel(CancelToken);

impl Handle for v2l_cancel {
    const KIND: Kind = Kind::Cancel;
}

/// How a long call reports and can be stopped. All zero: it does not report, and ends when it is done.
///
/// What is stopped returns V2L_ERROR_CANCELLED. On ONNX Runtime and OpenVINO a run of a graph ends at its next node, on TensorRT when it is
/// done.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct v2l_control {
    /// sizeof(v2l_control).
    pub size: usize,
    /// May be NULL. Stops the call once it is requested, before or while it runs.
    pub cancel: *const v2l_cancel,
    /// May be NULL.
    pub cancelled: v2l_cancelled_callback,
    /// May be NULL.
    pub progress: v2l_progress_callback,
    /// Given to the callbacks; not looked at.
    pub user: *mut c_void,
}

growing!(
    v2l_control,
    Self {
        size: size_of::<Self>(),
        cancel: std::ptr::null(),
        cancelled: None,
        progress: None,
        user: std::ptr::null_mut()
    }
);

/// Fills in the defaults; `size` is sizeof(v2l_control).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_control_init(control: *mut v2l_control, size: usize) -> v2l_status {
    // SAFETY: the header's promise.
    guard(|| unsafe { growing::init(control, size) })
}

/// Makes a request that is not yet made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_cancel_new(cancel: *mut *mut v2l_cancel) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise.
        let out = unsafe { Out::handle(cancel, "cancel") }?;
        out.give(v2l_cancel(CancelToken::default()));
        Ok(())
    })
}

/// Asks every call that was given `cancel` to stop, now and until v2l_cancel_reset. Returns at once; may be called from any thread and
/// from callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_cancel_request(cancel: *const v2l_cancel) -> v2l_status {
    guard_anywhere(|| {
        // SAFETY: the header's promise.
        unsafe { required(cancel, "cancel") }?.0.request();
        Ok(())
    })
}

/// Takes the request back, for the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_cancel_reset(cancel: *const v2l_cancel) -> v2l_status {
    guard(|| {
        // SAFETY: the header's promise.
        unsafe { required(cancel, "cancel") }?.0.reset();
        Ok(())
    })
}

/// Frees `cancel`; a call that was given it goes on. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_cancel_free(cancel: *mut v2l_cancel) {
    // SAFETY: the header's promise.
    unsafe { free(cancel) }
}

/// A call's [`v2l_control`], usable on every thread that works for the call.
#[derive(Default)]
pub(crate) struct Control {
    cancel: Option<CancelToken>,
    cancelled: v2l_cancelled_callback,
    progress: v2l_progress_callback,
    user: User,
}

impl Control {
    /// # Safety
    /// The header's promise.
    pub(crate) unsafe fn new(control: *const v2l_control) -> Result<Self, Failure> {
        // SAFETY: the caller's promise.
        let v2l_control { cancel, cancelled, progress, user, .. } = unsafe { growing::read(control) }?;
        // SAFETY: as above.
        let cancel = unsafe { optional(cancel, "control.cancel") }?.map(|cancel| cancel.0.clone());
        Ok(Self { cancel, cancelled, progress, user: User(user) })
    }

    /// True if the caller asked to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        let asked = |callback: unsafe extern "C" fn(*mut c_void) -> i32| {
            // SAFETY: the caller's own function, with the pointer that came with it.
            call(|| unsafe { callback(self.user.0) }) != 0
        };
        self.cancel.as_ref().is_some_and(CancelToken::is_requested) || self.cancelled.is_some_and(asked)
    }

    fn progress(&self, phase: Phase, done: usize, total: usize) {
        if let Some(callback) = self.progress {
            // SAFETY: the caller's own function, with the pointer that came with it.
            call(|| unsafe { callback(self.user.0, phase_number(phase), done as u64, total as u64) });
        }
    }
}

/// Tells the caller what a pipeline tells.
impl Observer for &Control {
    fn event(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, total } => self.progress(*phase, 0, *total),
            Event::Step { phase, done, total } => self.progress(*phase, *done, *total),
            Event::PhaseFinished { .. } => {}
            Event::Warning { message } => log(V2L_LOG_WARNING, message),
        }
    }

    fn cancelled(&self) -> bool {
        self.is_cancelled()
    }
}

const fn phase_number(phase: Phase) -> v2l_phase {
    match phase {
        Phase::EncodeText => V2L_PHASE_ENCODE_TEXT,
        Phase::EncodeReference => V2L_PHASE_ENCODE_REFERENCE,
        Phase::EncodeCondition => V2L_PHASE_ENCODE_CONDITION,
        Phase::Denoise => V2L_PHASE_DENOISE,
        Phase::Decode => V2L_PHASE_DECODE,
        Phase::EncodeVideo => V2L_PHASE_ENCODE_VIDEO,
        Phase::Predict => V2L_PHASE_PREDICT,
    }
}

/// Sends the messages of the whole process to `callback`, which gets `user`; NULL for none, as it is in the beginning. When this returns,
/// the callback before it runs no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn v2l_set_log(callback: v2l_log_callback, user: *mut c_void) -> v2l_status {
    guard(|| {
        send_to(callback, user);
        Ok(())
    })
}
