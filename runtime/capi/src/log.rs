//! The caller's log, and the rule that callbacks do not nest.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::sync::{PoisonError, RwLock};

/// How much a message matters.
pub type v2l_log_level = i32;
/// Something that the user should know; the work goes on.
pub const V2L_LOG_WARNING: v2l_log_level = 1;
/// What was done, and why in this way.
pub const V2L_LOG_INFO: v2l_log_level = 2;

/// Takes a message, which lives until the callback returns. Called on the thread that does the work, by several at the same time.
pub type v2l_log_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, level: v2l_log_level, message: *const c_char)>;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// True inside a callback on this thread.
pub(crate) fn running() -> bool {
    RUNNING.try_with(Cell::get).unwrap_or(false)
}

/// Runs a callback. Callbacks do not nest: what would call another is refused inside one.
pub(crate) fn call<R>(body: impl FnOnce() -> R) -> R {
    RUNNING.set(true);
    let result = body();
    RUNNING.set(false);
    result
}

/// The caller's pointer, which v2l hands on and never follows.
#[derive(Clone, Copy)]
pub(crate) struct User(pub(crate) *mut c_void);

impl Default for User {
    fn default() -> Self {
        Self(std::ptr::null_mut())
    }
}

// SAFETY: the pointer is not followed here, and the header says on which threads callbacks get it.
unsafe impl Send for User {}

// SAFETY: as above.
unsafe impl Sync for User {}

struct Sink {
    callback: v2l_log_callback,
    user: User,
}

static LOG: RwLock<Sink> = RwLock::new(Sink { callback: None, user: User(std::ptr::null_mut()) });

/// Logs what was found and not loaded since the last call.
pub(crate) fn log_passed_over() {
    for words in v2l_runtime::io::library::passed_over() {
        log(V2L_LOG_WARNING, &words);
    }
}

/// Gives a message to the caller's log, if there is one.
pub(crate) fn log(level: v2l_log_level, message: &str) {
    let sink = LOG.read().unwrap_or_else(PoisonError::into_inner);
    let Some(callback) = sink.callback else { return };
    let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: the caller's own function, with the pointer that came with it; the message lives until it returns.
    call(|| unsafe { callback(sink.user.0, level, message.as_ptr()) });
}

/// Sends messages to `callback` from now on. When this returns, the callback before it runs no more.
pub(crate) fn send_to(callback: v2l_log_callback, user: *mut c_void) {
    *LOG.write().unwrap_or_else(PoisonError::into_inner) = Sink { callback, user: User(user) };
}
