//! The graphs of a map, opened as far as it takes to know their inputs and outputs.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::super::error::PredictorError;
use super::constants::Folder;
use super::format::MapGraph;
use super::source::{InputSource, Written};
use crate::engine::Engine;
use crate::engine::manifest::Graph;
use crate::engine::session::Port;

/// An output: the number of its link, and its name.
pub(super) type At = (usize, String);

/// One run of a graph, or one for each slot.
#[derive(Debug)]
pub(super) struct Link {
    /// What the map calls it.
    pub(super) name: String,
    /// The number of its engine.
    pub(super) engine: usize,
    pub(super) graph: String,
    pub(super) each_slot: bool,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    /// Inputs that are not taken by their names.
    pub(super) given: IndexMap<String, Written<InputSource>>,
}

/// Finds the graphs that a map names, in the predictor's engine and in others beside the map. The predictor's engine is the first
/// of the engines.
///
/// # Errors
/// [`PredictorError::Map`] if there is no such graph, or two have one name; as [`Folder::engine`].
pub(super) fn open(
    path: &Path,
    graphs: Vec<MapGraph>,
    predictor: Arc<Engine>,
    folder: &Folder<'_>,
) -> Result<(Vec<Link>, Vec<Arc<Engine>>), PredictorError> {
    let mut links: Vec<Link> = Vec::with_capacity(graphs.len());
    let mut engines = vec![predictor];
    for (number, map) in graphs.into_iter().enumerate() {
        let engine = match (&map.engine, &map.component) {
            (Some(file), component) => {
                let engine = folder.engine(file, component.as_deref())?;
                let known = engines.iter().skip(1).position(|known| known.path() == engine.path());
                known.map_or_else(
                    || {
                        engines.push(engine);
                        engines.len() - 1
                    },
                    |at| at + 1,
                )
            }
            (None, None) => 0,
            (None, Some(component)) => {
                let reason = format!("`component` {component:?} is of an engine directory; name that as `engine`");
                return Err(PredictorError::map(path, reason));
            }
        };
        let key = format!("`graphs`, entry {}: `graph`", number + 1);
        let owner = map.engine.as_ref().map_or_else(|| "the predictor".to_owned(), |file| format!("`{file}`"));
        let graphs = &engines[engine].manifest().graphs;
        let graph = choose(graphs, map.graph.as_deref())
            .ok_or_else(|| PredictorError::map(path, no_graph(&key, &owner, graphs, map.graph.as_deref())))?;
        let name = map.name.unwrap_or_else(|| graph.name.clone());
        if links.iter().any(|link| link.name == name) {
            let reason = format!("`graphs`: two are called `{name}`; give one of them another `name`");
            return Err(PredictorError::map(path, reason));
        }
        if let Some(input) = map.inputs.keys().find(|input| graph.inputs.iter().all(|port| port.name != **input)) {
            let known: Vec<&str> = graph.inputs.iter().map(|port| &port.name[..]).collect();
            let reason = format!("graph `{name}` has no input `{input}`; it takes {}", known.join(", "));
            return Err(PredictorError::map(path, reason));
        }
        links.push(Link {
            name,
            engine,
            graph: graph.name.clone(),
            each_slot: map.each_slot,
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone(),
            given: map.inputs,
        });
    }
    Ok((links, engines))
}

/// The graph asked for, or the only one.
fn choose<'a>(graphs: &'a [Graph], name: Option<&str>) -> Option<&'a Graph> {
    match (name, graphs) {
        (None, [only]) => Some(only),
        (name, graphs) => graphs.iter().find(|graph| Some(&graph.name[..]) == name),
    }
}

fn no_graph(key: &str, owner: &str, graphs: &[Graph], name: Option<&str>) -> String {
    let names: Vec<&str> = graphs.iter().map(|graph| &graph.name[..]).collect();
    let names = names.join(", ");
    match name {
        Some(name) => format!("{key}: {owner} has no graph `{name}`; it has: {names}"),
        None => format!("{key} is missing, and {owner} has several: {names}; name one of them"),
    }
}

/// Finds an output among the links before number `before`.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn find_output(links: &[Link], before: usize, name: &str, graph: Option<&str>) -> Result<At, String> {
    let gives =
        |link: &Link| graph.is_none_or(|graph| link.name == graph) && link.outputs.iter().any(|port| port.name == name);
    if let Some(graph) = graph.filter(|graph| links.iter().all(|link| link.name != *graph)) {
        let names: Vec<&str> = links.iter().map(|link| &link.name[..]).collect();
        return Err(format!("the map has no graph `{graph}`; it has: {}", names.join(", ")));
    }
    let found: Vec<usize> = (0..before).filter(|&at| gives(&links[at])).collect();
    match found[..] {
        [at] => Ok((at, name.to_owned())),
        [first, second, ..] => Err(format!(
            "the graphs `{}` and `{}` both give `{name}`; say whose is meant, as in {{\"output\": \"{name}\", \"graph\": \"{}\"}}",
            links[first].name, links[second].name, links[first].name
        )),
        [] => Err(match links[before..].iter().find(|link| gives(link)) {
            Some(later) => {
                format!("`{name}` is given by graph `{}`, which does not run before; list it earlier", later.name)
            }
            None => {
                let outputs = links.iter().flat_map(|link| &link.outputs).map(|port| &port.name[..]);
                let owner = graph.map_or_else(|| "the predictor".to_owned(), |graph| format!("graph `{graph}`"));
                format!("{owner} has no output `{name}`; it has: {}", outputs.collect::<Vec<_>>().join(", "))
            }
        }),
    }
}
