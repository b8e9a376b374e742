//! Graphs that belong to no engine: what the compiler runs to see what a model computes.

use std::path::Path;

use ort::session::builder::SessionBuilder;

use super::OrtError;
use super::bounded::within;
use super::builder::configured;
use super::opened_graph::OrtGraph;
use super::session::OrtSession;
use super::weighted::WeightedBuilder;
use crate::backends::interface::{GraphWeight, Interface};
use crate::io::library;
use crate::io::raw::aligned;
use crate::options::{OpenOptions, WeightMode};

impl OrtSession {
    /// Opens the ONNX bytes `onnx`, whose external data are called
    /// [`WEIGHTS_PLACEHOLDER`](crate::engine::manifest::WEIGHTS_PLACEHOLDER), over `weights`, as it stands: without
    /// optimisation or private copies. `options` gives library and threads.
    ///
    /// # Errors
    /// [`OrtError`] if ONNX Runtime refuses the graph, or takes or gives something else than `interface` says.
    pub fn from_graph(
        interface: Interface,
        onnx: &[u8],
        weights: Vec<GraphWeight>,
        options: &OpenOptions,
    ) -> Result<Self, OrtError> {
        let mut builder = WeightedBuilder::new(&interface.name, plain(options, &interface.name)?)?;
        for GraphWeight { name, dtype, shape, data } in weights {
            builder = builder.add(&name, dtype, &shape, aligned(dtype, data))?;
        }
        let (session, held) = builder.commit(onnx)?;
        let inputs = interface.inputs.clone();
        let part = OrtGraph::new(interface, session, held)?.with_limits(options.limits);
        Ok(Self::new(inputs, Vec::new(), part, None))
    }

    /// Opens an ONNX file, and its external data, as they stand: nothing of v2l's is between the file and ONNX Runtime.
    ///
    /// # Errors
    /// [`OrtError`] if ONNX Runtime refuses the file, or takes or gives something else than `interface` says.
    pub fn from_file(interface: Interface, path: &Path, options: &OpenOptions) -> Result<Self, OrtError> {
        let backend = |message: String| OrtError::refused(&interface.name, message);
        let mut builder = plain(options, &interface.name)?;
        let session = builder.commit_from_file(path).map_err(|e| backend(e.to_string()))?;
        drop(builder);
        let inputs = interface.inputs.clone();
        let part = OrtGraph::new(interface, session, Vec::new())?.with_limits(options.limits);
        Ok(Self::new(inputs, Vec::new(), part, None))
    }
}

fn plain(options: &OpenOptions, graph: &str) -> Result<SessionBuilder, OrtError> {
    let backend = |message: String| OrtError::refused(graph, message);
    let environment = library::onnxruntime(options.ort.library.as_deref())?;
    let builder = SessionBuilder::new(&environment).map_err(|e| backend(e.to_string()))?;
    let builder = configured(builder, WeightMode::Stored, options.threads).map_err(backend)?;
    within(options.limits, builder, &environment).map_err(backend)
}
