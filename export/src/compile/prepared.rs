//! The first stage: the component's graphs, read, checked and optimised for any backend.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;
use v2l_graphs::passes::{
    PassError, Report, infer_shapes, lower_logic, lower_opset, optimize_with, sort_topologically,
};
use v2l_graphs::{Model, ReadOptions, raise_precision, read_model};
use v2l_runtime::io::map::map_file;

use super::options::CompileOptions;
use super::profiles;
use super::versions::check_versions;
use crate::files::{check_graph, open_file};
use crate::{ExportError, metadata};

/// A component whose graphs were read.
pub(crate) struct Prepared {
    /// Its name: what the bundle calls it, or the graph says, or the file is called.
    pub(crate) component: String,
    /// Facts about it.
    pub(crate) attributes: Json,
    /// Hashes of the source files.
    pub(crate) made_from: IndexMap<String, String>,
    /// By graph: in f32, optimised.
    pub(crate) models: Vec<(String, Model)>,
    /// For each of them: its file, as it was read, and what was done to it.
    pub(crate) sources: Vec<SourceGraph>,
}

/// The source of one of a component's graphs.
pub(crate) struct SourceGraph {
    pub(crate) path: PathBuf,
    pub(crate) read: Model,
    pub(crate) origin: Origin,
}

impl Prepared {
    /// Reads the graphs of a component; `output` may be none of their files.
    pub(crate) fn of(
        name: Option<&str>,
        graphs: &[(String, PathBuf)],
        output: &Path,
        options: &CompileOptions,
    ) -> Result<Self, ExportError> {
        let (mut models, mut sources, mut made_from) = (Vec::new(), Vec::new(), IndexMap::new());
        for (graph, path) in graphs {
            let PreparedGraph { read, model, origin } = prepare(graph, path, Some(output), options)?;
            let bytes = map_file(path).map_err(ExportError::io(path))?;
            made_from.insert(format!("{graph}.onnx"), format!("blake3:{}", blake3::hash(&bytes).to_hex()));
            models.push((graph.clone(), model));
            sources.push(SourceGraph { path: path.clone(), read, origin });
        }
        let facts = |key: &str| models.iter().find_map(|(_, m): &(String, Model)| m.metadata.get(key));
        let named = name.or(facts(metadata::COMPONENT).map(String::as_str));
        let component = named.map_or_else(|| graph_name(&sources[0].path), str::to_owned);
        let attributes =
            facts(metadata::ATTRIBUTES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(Self { component, attributes, made_from, models, sources })
    }
}

/// What a graph is called that nothing names: as its file.
pub(super) fn graph_name(path: &Path) -> String {
    path.file_stem().map_or_else(|| "graph".into(), |stem| stem.to_string_lossy().into_owned())
}

/// A graph as it was read and optimised, for any backend.
pub(crate) struct PreparedGraph {
    /// As it was read, sorted.
    pub(crate) read: Model,
    /// In f32, held to the profiles, optimised.
    pub(crate) model: Model,
    pub(crate) origin: Origin,
}

/// Where a graph comes from, and what was done to it.
pub(crate) struct Origin {
    pub(crate) nodes_before: usize,
    pub(crate) fired: Report,
}

/// Reads a graph, checks it, brings it to f32, holds it to the profiles and optimises it. `output` may be none of its
/// files.
pub(crate) fn prepare(
    graph: &str,
    path: &Path,
    output: Option<&Path>,
    options: &CompileOptions,
) -> Result<PreparedGraph, ExportError> {
    let output = output.and_then(|output| output.canonicalize().ok());
    let open = |file: &Path| match &output {
        Some(output) if file.canonicalize().is_ok_and(|file| file == *output) => {
            let message = "the engine would replace it; write the engine to another path";
            Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, message))
        }
        _ => open_file(path, file),
    };
    let mut model = read_model(path, &ReadOptions { open: &open })?;
    let label = path.display().to_string();
    if let [first, rest @ ..] = &v2l_graphs::check::unsupported_operators(&model)[..] {
        let others: Vec<&str> = rest.iter().map(|o| o.op_type.as_str()).collect();
        let others = if others.is_empty() { String::new() } else { format!("; nor are {}", others.join(", ")) };
        return Err(ExportError::Unsupported {
            what: format!("{label}: node `{}`: operator {}", first.node, first.op_type),
            reason: format!("{}{others}", first.way_out),
        });
    }
    let pass = |e: PassError| ExportError::Graph { graph: label.clone(), reason: e.to_string() };
    sort_topologically(&mut model).map_err(pass)?;
    check_graph(&label, &model)?;
    let read = model.clone();
    raise_precision(&mut model);
    check_versions(&label, &lower_opset(&mut model)?, options)?;
    let nodes_before = model.graph.nodes.len();
    lower_logic(&mut model);
    profiles::apply(&options.profiles, graph, &mut model)?;
    let fired = optimize_with(&mut model, &options.passes).map_err(pass)?;
    infer_shapes(&mut model);
    check_graph(&label, &model)?;
    Ok(PreparedGraph { read, model, origin: Origin { nodes_before, fired } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::testing::Small;

    #[test]
    fn prepared_is_called_as_its_file_and_keeps_the_source_as_it_was_read() {
        let small = Small::new();
        let prepared = small.prepared(&CompileOptions::default());
        assert_eq!(prepared.component, "small");
        let hash = blake3::hash(&std::fs::read(small.path()).unwrap()).to_hex();
        assert_eq!(prepared.made_from["g.onnx"], format!("blake3:{hash}"));
        assert_eq!(prepared.sources[0].read.graph.nodes.len(), 2);
        assert_eq!(prepared.sources[0].origin.nodes_before, 2);
    }

    #[test]
    fn prepare_refuses_a_file_that_the_engine_would_replace() {
        let small = Small::new();
        let error = prepare("g", &small.path(), Some(&small.path()), &CompileOptions::default()).err().unwrap();
        assert!(error.to_string().contains("the engine would replace it"), "{error}");
    }
}
