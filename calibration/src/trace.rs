//! Where in a model an error arises.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use v2l_graphs::Model;
use v2l_graphs::passes::{Extractor, label};

use crate::walk::{Limits, WalkError, blocks, walk};
use crate::{Comparison, Executor, compare};

/// One block of a traced model.
#[derive(Clone, Debug)]
pub struct BlockError {
    /// First node.
    pub first: String,
    /// Last node.
    pub last: String,
    /// What the block adds, its inputs being the reference's: the largest error of what it hands on.
    pub own: Comparison,
    /// The error of what it hands on when its inputs are the candidate's.
    pub accumulated: Comparison,
}

/// One node of the block that was looked into.
#[derive(Clone, Debug)]
pub struct NodeError {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// The value that it makes.
    pub value: String,
    /// The value's error, the block's inputs being the reference's.
    pub error: Comparison,
    /// Largest finite magnitude of the value in the reference.
    pub magnitude: f32,
    /// Relative L2 error beyond the largest one among the node's inputs; infinite where the values stop being finite.
    pub added: f64,
}

/// Where a candidate leaves its reference.
#[derive(Clone, Debug)]
pub struct Trace {
    /// All blocks, in order.
    pub blocks: Vec<BlockError>,
    /// Index of the block whose values first stop being finite, else of the one with the largest error of its own.
    pub block: Option<usize>,
    /// Its nodes that make values that the reference has too, in order.
    pub nodes: Vec<NodeError>,
    /// Index of the node that adds most.
    pub node: Option<usize>,
}

impl Trace {
    /// The node that adds most error, if one adds any.
    pub fn culprit(&self) -> Option<&NodeError> {
        self.nodes.get(self.node?).filter(|node| node.added > 0.0)
    }
}

/// Compares two models of the same inputs and value names, first block by block, then within the worst block node by node.
///
/// Values that only one of them has are passed over. Costs two runs of `reference` and two of `candidate`; memory for the
/// values at the cuts, and for those of one block.
///
/// # Errors
/// [`WalkError`] if either model cannot be run.
pub fn trace<E: Executor, F: Executor<Value = E::Value, Error = E::Error>>(
    (on_reference, reference): (&mut E, &Model),
    (on_candidate, candidate): (&mut F, &Model),
    inputs: &IndexMap<String, E::Value>,
    limits: Limits,
) -> Result<Trace, WalkError<E::Error>> {
    let known = Extractor::new(reference);
    let cut = Extractor::new(candidate);
    let given: HashSet<&str> = candidate.graph.inputs.iter().map(|i| i.name.as_str()).collect();
    let made: HashSet<&str> = reference.graph.nodes.iter().flat_map(|n| &n.outputs).map(String::as_str).collect();
    let shared = |name: &str| made.contains(name) && known.dtype(name) == cut.dtype(name);
    let ranges = blocks(&cut, limits, &|at| cut.live(at).iter().all(|name| given.contains(name) || shared(name)));
    let mut at_cuts: HashSet<&str> = ranges.iter().flat_map(|range| cut.live(range.end)).collect();
    at_cuts.extend(candidate.graph.outputs.iter().map(|o| o.name.as_str()));

    let mut expected: HashMap<String, E::Value> = inputs.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut keep = |name: &str, value: &E::Value| drop(expected.insert(name.to_owned(), value.clone()));
    walk(on_reference, reference, inputs, limits, &|name| at_cuts.contains(name), &mut keep)?;

    let mut actual = expected.clone();
    actual.retain(|name, _| inputs.contains_key(name));
    let mut found = Vec::new();
    for range in &ranges {
        let piece = cut.piece(range.clone(), &|_| false);
        let (first, last) = (label(&candidate.graph.nodes[range.start]), label(&candidate.graph.nodes[range.end - 1]));
        let mut run = |values: &HashMap<String, E::Value>| {
            let given: Vec<(&str, &E::Value)> =
                piece.graph.inputs.iter().filter_map(|i| Some((i.name.as_str(), values.get(&i.name)?))).collect();
            let run = on_candidate.run(&piece, &given);
            run.map_err(|source| WalkError::Run { first: first.clone(), last: last.clone(), source })
        };
        let own = worst::<E>(&run(&expected)?, &expected);
        let made = run(&actual)?;
        let accumulated = worst::<E>(&made, &expected);
        actual.extend(made);
        let live: HashSet<&str> = cut.live(range.end).into_iter().collect();
        actual.retain(|name, _| live.contains(name.as_str()));
        found.push(BlockError { first, last, own, accumulated });
    }
    let block = most(found.iter().map(|b| if b.own.non_finite > 0 { f64::INFINITY } else { b.own.relative_l2 }));
    let nodes = match block {
        Some(block) => {
            let piece = cut.piece(ranges[block].clone(), &shared);
            let wanted: HashSet<&str> = piece.graph.outputs.iter().map(|o| o.name.as_str()).collect();
            let mut keep = |name: &str, value: &E::Value| drop(expected.insert(name.to_owned(), value.clone()));
            walk(on_reference, reference, inputs, limits, &|name| wanted.contains(name), &mut keep)?;
            let given: Vec<(&str, &E::Value)> =
                piece.graph.inputs.iter().filter_map(|i| Some((i.name.as_str(), expected.get(&i.name)?))).collect();
            let (first, last) = (found[block].first.clone(), found[block].last.clone());
            let made = on_candidate.run(&piece, &given).map_err(|source| WalkError::Run { first, last, source })?;
            nodes::<E>(&piece, &made, &expected)
        }
        None => Vec::new(),
    };
    let node = most(nodes.iter().map(|n| n.added));
    Ok(Trace { blocks: found, block, nodes, node })
}

/// Index of the first of the largest.
fn most(values: impl Iterator<Item = f64>) -> Option<usize> {
    values.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}

/// The comparison with the largest error among the floating-point values.
fn worst<E: Executor>(made: &[(String, E::Value)], expected: &HashMap<String, E::Value>) -> Comparison {
    let compared =
        made.iter().filter_map(|(name, value)| compare(&E::floats(value)?, &E::floats(expected.get(name)?)?));
    let rank = |c: &Comparison| if c.non_finite > 0 { f64::INFINITY } else { c.relative_l2 };
    compared.reduce(|a, b| if rank(&b) > rank(&a) { b } else { a }).unwrap_or(Comparison::EQUAL)
}

fn nodes<E: Executor>(
    piece: &Model,
    made: &[(String, E::Value)],
    expected: &HashMap<String, E::Value>,
) -> Vec<NodeError> {
    let made: HashMap<&str, &E::Value> = made.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let mut errors: HashMap<&str, f64> = HashMap::new();
    let mut found = Vec::new();
    for node in &piece.graph.nodes {
        // A value that only the candidate has hands its inputs' error on.
        let before = node.uses().filter_map(|name| errors.get(name)).fold(0.0, |a: f64, b| a.max(*b));
        for value in &node.outputs {
            let compared = made.get(value.as_str()).and_then(|actual| {
                let reference = E::floats(expected.get(value)?)?;
                let magnitude = reference.iter().filter(|v| v.is_finite()).fold(0.0f32, |m, v| m.max(v.abs()));
                Some((compare(&E::floats(actual)?, &reference)?, magnitude))
            });
            let Some((error, magnitude)) = compared else {
                errors.insert(value, before);
                continue;
            };
            let after = if error.non_finite > 0 { f64::INFINITY } else { error.relative_l2 };
            errors.insert(value, after);
            let added = if before.is_infinite() { 0.0 } else { (after - before).max(0.0) };
            found.push(NodeError {
                node: label(node),
                op_type: node.op_type.clone(),
                value: value.clone(),
                error,
                magnitude,
                added,
            });
        }
    }
    found
}
