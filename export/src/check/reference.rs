//! What an engine is compared with: the source as it stands.

use std::path::{Path, PathBuf};

use v2l_graphs::{Model, ReadOptions, raise_precision, read_model, uses_narrow_floats};
use v2l_runtime::map::map_file;
use v2l_runtime::ort_backend::{Interface, OpenOptions, OrtSession};
use v2l_runtime::session::Session;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::compile::types::ports;
use crate::compile::variants::stored_variant;
use crate::execute::{ExecuteError, OrtExecutor};
use crate::{ExportError, check_graph};

/// A source graph that can be run in f32, unoptimised.
///
/// A file without 16-bit floats is opened by ONNX Runtime itself, with nothing of v2l's between; another one is brought to
/// f32 first, its weights widened from the map as they are used. Neither holds a private copy of all weights.
pub(crate) struct Reference {
    path: PathBuf,
    /// The source in f32.
    pub(crate) model: Model,
    untouched: bool,
}

impl Reference {
    pub(crate) fn read(path: &Path) -> Result<Self, ExportError> {
        let mut model = read_model(path, &ReadOptions { open: &|path| map_file(path) })?;
        let label = path.display().to_string();
        v2l_graphs::passes::sort_topologically(&mut model)
            .map_err(|e| ExportError::Graph { graph: label.clone(), reason: e.to_string() })?;
        check_graph(&label, &model)?;
        let untouched = !uses_narrow_floats(&model.graph);
        raise_precision(&mut model);
        Ok(Self { path: path.to_owned(), model, untouched })
    }

    /// A session that computes in f32.
    pub(crate) fn session(&self, options: &OpenOptions) -> Result<OrtSession, ExecuteError> {
        let name = self.path.display().to_string();
        let port = |infos: &[_]| ports(&name, infos).map_err(|e| ExecuteError::Output { name: e.to_string() });
        let (inputs, outputs) = (port(&self.model.graph.inputs)?, port(&self.model.graph.outputs)?);
        if self.untouched {
            return Ok(OrtSession::from_file(Interface { name, inputs, outputs }, &self.path, options)?);
        }
        let stored = |name: &str| {
            let weight = &self.model.graph.initializers[name];
            weight.data.widened_from().filter(|ty| ty.size() == 2).unwrap_or(weight.dtype)
        };
        let executor = OrtExecutor { options: options.clone(), ..OrtExecutor::default() };
        executor.session(&stored_variant(&self.model, &stored), inputs)
    }
}

/// Runs a session on named tensors.
pub(crate) fn run(session: &mut dyn Session, inputs: &NamedTensors) -> Result<NamedTensors, ExecuteError> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Ok(session.run(&inputs)?)
}
