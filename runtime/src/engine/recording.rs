//! What a pipeline gives its networks, kept in files: real inputs to calibrate and check on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;

use crate::engine::session::{Port, Session, SessionError};
use crate::io::weights::write_tensors;
use crate::tensor::{NamedTensors, Tensor};

/// Writes the inputs of every run of its sessions to `<folder>/<component>.<graph>.<run>.safetensors`. Runs are counted from 0
/// by graph, over all sessions of a recorder and its clones. Files of an earlier recording are replaced one by one.
#[derive(Clone, Debug)]
pub struct Recorder {
    folder: PathBuf,
    runs: Arc<Mutex<HashMap<String, usize>>>,
}

impl Recorder {
    /// Records to `folder`, which must exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), runs: Arc::default() }
    }

    /// A session that writes what it is given before it hands it on. Factors of adapters (`.lora_down`, `.lora_up`) are left
    /// out: they are no inputs of the base graph.
    pub fn session(&self, session: Box<dyn Session>, component: &str, graph: &str) -> Recording {
        Recording { session, recorder: self.clone(), graph: format!("{component}.{graph}") }
    }

    /// The file of the next run.
    fn next(&self, graph: &str) -> PathBuf {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.entry(graph.to_owned()).or_default();
        let path = self.folder.join(format!("{graph}.{run:05}.safetensors"));
        *run += 1;
        path
    }
}

/// See [`Recorder::session`].
pub struct Recording {
    session: Box<dyn Session>,
    recorder: Recorder,
    graph: String,
}

impl Recording {
    /// Writes the inputs of the next run.
    fn record(&self, inputs: &[(&str, &Tensor)]) -> Result<(), SessionError> {
        let factor = |name: &str| name.ends_with(".lora_down") || name.ends_with(".lora_up");
        let tensors: NamedTensors = inputs
            .iter()
            .filter(|(name, _)| !factor(name))
            .map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone()))
            .collect();
        let path = self.recorder.next(&self.graph);
        write_tensors(&path, &tensors, &IndexMap::new()).map_err(|e| SessionError::Record { source: Box::new(e) })
    }
}

impl Session for Recording {
    fn inputs(&self) -> &[Port] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[Port] {
        self.session.outputs()
    }

    /// # Errors
    /// [`SessionError::Record`] if the file cannot be written, besides those of the session.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        self.record(inputs)?;
        self.session.run(inputs)
    }

    fn run_unless(
        &mut self,
        inputs: &[(&str, &Tensor)],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<NamedTensors, SessionError> {
        self.record(inputs)?;
        self.session.run_unless(inputs, cancelled)
    }

    fn hold(&mut self, inputs: &[(&str, &Tensor)]) -> Result<bool, SessionError> {
        self.session.hold(inputs)
    }

    fn prepare(&mut self, inputs: &[(&str, &Tensor)], cancelled: &dyn Fn() -> bool) -> Result<(), SessionError> {
        self.session.prepare(inputs, cancelled)
    }
}
