//! Runs that end early when they are no longer wanted.

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::failed;
use crate::engine::session::SessionError;
use crate::events::Cancelled;
use crate::tensor::NamedTensors;

/// How often a run asks whether it is still wanted.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// The thread that a session's runs are computed on while the caller's thread asks whether they are still wanted. It begins with the
/// first such run and ends with the session: a thread for each run would begin with cold memory of its own each time.
#[derive(Debug, Default)]
pub(super) struct Runner(OnceLock<ThreadPool>);

impl Runner {
    /// Runs a session, and gives what `collect` makes of its outputs. Once `cancelled` says so, which is asked on the
    /// caller's thread, the run ends at its next operator.
    ///
    /// # Errors
    /// [`SessionError::Cancelled`], or ONNX Runtime's words.
    pub(super) fn run(
        &self,
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
        self.thread()?.in_place_scope(|scope| {
            let options = &options;
            scope.spawn(move |_| {
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

    fn thread(&self) -> Result<&ThreadPool, SessionError> {
        if let Some(thread) = self.0.get() {
            return Ok(thread);
        }
        let made = ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "v2l-run".to_owned()).build();
        let made = made.map_err(|e| failed(format!("no thread for the run: {e}")))?;
        Ok(self.0.get_or_init(|| made))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;
    use crate::backends::interface::Interface;
    use crate::backends::onnxruntime::OrtSession;
    use crate::engine::session::{Dim, Port, Session as _};
    use crate::options::OpenOptions;
    use crate::tensor::{Dtype, Tensor};

    /// `y = x + Gelu(x · up) · down`: tens of milliseconds.
    const BLOCK: &[u8] = include_bytes!("../../../assets/openvino-probe.onnx");

    #[test]
    fn run_ends_in_the_middle_and_the_session_runs_again() {
        let shapes = [("x", [256, 768]), ("up", [768, 3072]), ("down", [3072, 768])];
        let port = |(name, shape): (&str, [usize; 2])| Port {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: shape.map(Dim::Fixed).to_vec(),
        };
        let interface = Interface {
            name: "block".to_owned(),
            inputs: shapes.map(port).to_vec(),
            outputs: vec![port(("y", [256, 768]))],
        };
        let options = OpenOptions { threads: Some(1), ..OpenOptions::default() };
        let mut session = OrtSession::from_graph(interface, BLOCK, Vec::new(), &options).unwrap();
        let tensors =
            shapes.map(|(name, shape)| (name, Tensor::from_f32(&shape, vec![0.01; shape[0] * shape[1]]).unwrap()));
        let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let start = Instant::now();
        let expected = session.run(&inputs).unwrap();
        let whole = start.elapsed();
        let asked = Cell::new(0);
        let second = || asked.replace(asked.get() + 1) > 0;
        let stopped = session.run_unless(&inputs, &second);
        // A machine that computes the block faster than anybody asks twice has nothing to stop.
        assert!(matches!(stopped, Err(SessionError::Cancelled(_))) || whole < ASK_EVERY * 4, "{whole:?}: {stopped:?}");
        assert!(asked.get() > 1 || whole < ASK_EVERY * 4, "asked in the middle");
        assert_eq!(session.run_unless(&inputs, &|| false).unwrap(), expected);
    }
}
