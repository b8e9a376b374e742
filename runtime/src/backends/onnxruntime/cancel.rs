//! Runs that end early when they are no longer wanted.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};

use super::failed;
use crate::engine::session::SessionError;
use crate::events::Cancelled;
use crate::tensor::NamedTensors;

/// How often a run asks whether it is still wanted.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Runs a session on a thread of its own, and gives what `collect` makes of its outputs. Once `cancelled` says so, which is asked on this
/// thread, the run ends at its next operator.
///
/// # Errors
/// [`SessionError::Cancelled`], or ONNX Runtime's words.
pub(super) fn run(
    session: &mut Session,
    values: &[SessionInputValue<'_>],
    cancelled: &dyn Fn() -> bool,
    collect: impl FnOnce(&SessionOutputs<'_>) -> Result<NamedTensors, SessionError> + Send,
) -> Result<NamedTensors, SessionError> {
    if cancelled() {
        return Err(Cancelled.into());
    }
    let options = RunOptions::new().map_err(|e| failed(e.to_string()))?;
    let (done, ended) = channel();
    thread::scope(|scope| {
        let options = &options;
        scope.spawn(move || {
            let results = session.run_with_options(values, options).map_err(|e| failed(e.to_string()));
            // Nobody listens only if the other thread panics.
            let _ = done.send(results.and_then(|results| collect(&results)));
        });
        let mut stopped = false;
        loop {
            match ended.recv_timeout(ASK_EVERY) {
                Ok(Err(_)) if stopped => return Err(Cancelled.into()),
                Ok(results) => return results,
                Err(RecvTimeoutError::Timeout) if !stopped && cancelled() => stopped = options.terminate().is_ok(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(failed("the run panicked".to_owned())),
            }
        }
    })
}
