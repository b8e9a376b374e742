//! One graph as callers see it.

use super::opened_graph::OrtGraph;
use super::operator_times::OperatorTimes;
use crate::backends::graph_session::GraphSession;
use crate::engine::session::SessionError;

/// A graph of an engine on ONNX Runtime.
pub type OrtSession = GraphSession<OrtGraph>;

impl OrtSession {
    /// Ends profiling: what the last run spent its time on, its precomputed graphs left out, which only some runs need; `None` if the
    /// engine was opened without [`OrtOptions::profile`](super::OrtOptions::profile), or on the second call.
    ///
    /// # Errors
    /// [`SessionError::Backend`] if the profile cannot be read.
    pub fn operator_times(&mut self) -> Result<Option<OperatorTimes>, SessionError> {
        self.main.operator_times()
    }
}
