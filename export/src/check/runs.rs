//! What an engine is compared on.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use v2l_graphs::{Graph, Node};
use v2l_runtime::backends::onnxruntime::OrtError;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{BRANCH_SUFFIX, Profile, ShapeRange};
use v2l_runtime::options::OpenOptions;

use super::inputs::{InputSet, profile_extents};
use super::made::{Runs, made_runs};
use super::options::CheckOptions;
use super::reference::{Reference, run};
use super::report::Unchecked;
use super::rows::RowInputs;
use crate::ExportError;
use crate::execute::ExecuteError;
use crate::remedy::Remedy;

/// Runs the reference on the given inputs, or on made ones; `ort` is how it is opened.
///
/// # Errors
/// [`ExportError::NotChecked`] if the library is missing or no inputs can be made, and those of a graph that does not
/// run.
pub(super) fn reference_runs(
    reference: &Reference,
    name: &str,
    given: Vec<InputSet>,
    tables: &HashSet<String>,
    engine: &Engine,
    (options, ort): (&CheckOptions, &OpenOptions),
) -> Result<Runs, ExportError> {
    let graph_error = |reason: String| ExportError::Graph { graph: name.to_owned(), reason };
    let not_checked = |reason: String| ExportError::NotChecked(Unchecked::on_inputs(name, reason));
    let mut session = match reference.session(ort) {
        Ok(session) => session,
        Err(ExecuteError::Open(error @ OrtError::Library(_))) => {
            return Err(ExportError::NotChecked(Unchecked::new(name, error.to_string())));
        }
        Err(error @ ExecuteError::Open(OrtError::NoKernel { .. })) => {
            let what = "a graph that this ONNX Runtime does not run".to_owned();
            return Err(ExportError::Unsupported { what, reason: error.to_string() }.advised(&[Remedy::WithoutCheck]));
        }
        Err(error) => return Err(graph_error(error.to_string()).advised(&[Remedy::WithoutCheck])),
    };
    let sizes = sizes(engine, name, &reference.model.graph, options);
    let mut runs = Runs::new();
    if given.is_empty() {
        runs = made_runs(reference, &mut session, &sizes, tables, options.seed).map_err(not_checked)?;
    }
    for set in given {
        let set = InputSet { tensors: reference.fitted(set.tensors), ..set };
        let outputs = run(&mut session, &set.tensors).map_err(|e| graph_error(format!("{}: {e}", set.label)))?;
        runs.push((set, outputs));
    }
    if let Some(rows) = RowInputs::of(reference, engine, name).filter(|_| options.thorough) {
        rows.add(&mut runs, &mut session, &sizes, options.seed).map_err(not_checked)?;
    }
    Ok(runs)
}

/// The graph's inputs that decide between the branches of an `If`: the tables of rotary embeddings, whose neighbours
/// are equal or not.
pub(super) fn tables(graph: &Graph) -> HashSet<String> {
    let makers: HashMap<&str, &Node> =
        graph.nodes.iter().flat_map(|node| node.outputs.iter().map(move |output| (output.as_str(), node))).collect();
    let mut open: Vec<&str> = graph
        .nodes
        .iter()
        .filter(|node| node.op_type == "If")
        .filter_map(|node| Some(node.inputs.first()?.as_str()))
        .collect();
    let mut seen = HashSet::new();
    while let Some(name) = open.pop() {
        if seen.insert(name)
            && let Some(node) = makers.get(name)
        {
            open.extend(node.inputs.iter().map(String::as_str));
        }
    }
    graph.inputs.iter().map(|input| &input.name).filter(|name| seen.contains(name.as_str())).cloned().collect()
}

/// Extents that the profiles ask for: the first one's opt, and with `thorough` every one's min, opt and max.
fn sizes(engine: &Engine, name: &str, graph: &Graph, options: &CheckOptions) -> Vec<IndexMap<String, usize>> {
    let manifest = engine.manifest();
    let compiled = manifest.graph(name).or_else(|| manifest.graph(&format!("{name}{BRANCH_SUFFIX}")));
    let profiles = compiled.map(|graph| graph.profiles.clone()).unwrap_or_default();
    let of = |profile: &Profile, choose: fn(&ShapeRange) -> &Vec<usize>| {
        profile_extents(graph, profile, choose, options.extents.clone())
    };
    let mut sizes: Vec<IndexMap<String, usize>> = match options.thorough {
        true => profiles.iter().flat_map(|p| [of(p, |r| &r.min), of(p, |r| &r.opt), of(p, |r| &r.max)]).collect(),
        false => profiles.first().map(|p| of(p, |r| &r.opt)).into_iter().collect(),
    };
    sizes.dedup();
    if sizes.is_empty() { vec![options.extents.clone()] } else { sizes }
}
