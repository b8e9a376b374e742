//! What a pipeline gives its networks, kept in files: real inputs to calibrate and check on.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::session::{Port, Session, SessionError};
use crate::tensor::{NamedTensors, Tensor};
use crate::weights::write_tensors;

/// A session that writes the inputs of every run to `<folder>/<component>.<graph>.<run>.safetensors`, runs counted from 0,
/// before it hands them on. Factors of adapters (`.lora_down`, `.lora_up`) are left out: they are no inputs of the base graph.
pub struct Recording<S> {
    session: S,
    prefix: PathBuf,
    runs: usize,
}

impl<S: Session> Recording<S> {
    /// Records what `session` is given; the folder must exist. Files of an earlier recording are replaced one by one.
    pub fn new(session: S, folder: &Path, component: &str, graph: &str) -> Self {
        Self { session, prefix: folder.join(format!("{component}.{graph}")), runs: 0 }
    }
}

impl<S: Session> Session for Recording<S> {
    fn inputs(&self) -> &[Port] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[Port] {
        self.session.outputs()
    }

    /// # Errors
    /// [`SessionError::Record`] if the file cannot be written, besides those of the session.
    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        let factor = |name: &str| name.ends_with(".lora_down") || name.ends_with(".lora_up");
        let tensors: NamedTensors = inputs
            .iter()
            .filter(|(name, _)| !factor(name))
            .map(|(name, tensor)| ((*name).to_owned(), (*tensor).clone()))
            .collect();
        let path = format!("{}.{:05}.safetensors", self.prefix.display(), self.runs);
        write_tensors(&path, &tensors, &IndexMap::new()).map_err(|e| SessionError::Record { source: Box::new(e) })?;
        self.runs += 1;
        self.session.run(inputs)
    }

    fn prepare(&mut self, inputs: &[(&str, &Tensor)]) -> Result<(), SessionError> {
        self.session.prepare(inputs)
    }
}
