//! Running a model block by block, so that what is seen of it may be larger than memory.

use std::collections::HashMap;
use std::ops::Range;

use indexmap::IndexMap;
use v2l_graphs::Model;
use v2l_graphs::passes::{Extractor, label};

use crate::Executor;

/// How much of a model runs at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of weights in f32, unless a single node has more.
    pub weight_bytes: usize,
    /// Most nodes.
    pub nodes: usize,
}

impl Default for Limits {
    /// A GiB of weights, 200 nodes: about one block of a large transformer.
    fn default() -> Self {
        Self { weight_bytes: 1 << 30, nodes: 200 }
    }
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError<E: std::error::Error + 'static> {
    /// A graph input was not given.
    #[error("input `{name}` is missing; the model takes {expected}")]
    MissingInput {
        /// The input.
        name: String,
        /// All inputs of the model.
        expected: String,
    },
    /// The backend could not run a block.
    #[error("nodes `{first}` to `{last}`: {source}")]
    Run {
        /// First node of the block.
        first: String,
        /// Last node of the block.
        last: String,
        /// The backend's reason.
        source: E,
    },
}

/// The cuts of a model into blocks of at most the limits, each where few values cross.
///
/// Within the second half of what the limits allow, the cut with the fewest values is taken, the later one of equals. Only
/// cuts before nodes that are `allowed` are taken; where there is none, the block is larger.
pub fn blocks(extractor: &Extractor<'_>, limits: Limits, allowed: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let graph = &extractor.model().graph;
    let bytes = |at: usize| {
        let external = graph.nodes[at].uses().filter_map(|name| graph.initializers.get(name)).filter(|w| w.external);
        external.filter_map(v2l_graphs::Initializer::expected_len).fold(0, usize::saturating_add)
    };
    let live = extractor.live_counts();
    let (mut blocks, mut start) = (Vec::new(), 0);
    while start < graph.nodes.len() {
        let (mut end, mut held) = (start, 0usize);
        while end < graph.nodes.len() && end - start < limits.nodes.max(1) {
            held = held.saturating_add(bytes(end));
            if held > limits.weight_bytes && end > start {
                break;
            }
            end += 1;
        }
        if end < graph.nodes.len() {
            let first = start + (end - start).div_ceil(2);
            let best = (first..=end).rev().filter(|&at| allowed(at)).min_by_key(|&at| live[at]);
            end = best.or_else(|| (end..graph.nodes.len()).find(|&at| allowed(at))).unwrap_or(graph.nodes.len());
        }
        blocks.push(start..end);
        start = end;
    }
    blocks
}

/// Runs `model`, whose nodes must be sorted, block by block, and shows every `wanted` intermediate value and output once,
/// in the order in which they are made. Gives the outputs.
///
/// Values are dropped behind their last reader, weights behind their block.
///
/// # Errors
/// [`WalkError`], naming the input or the nodes.
pub fn walk<E: Executor>(
    executor: &mut E,
    model: &Model,
    inputs: &IndexMap<String, E::Value>,
    limits: Limits,
    wanted: &dyn Fn(&str) -> bool,
    visit: &mut dyn FnMut(&str, &E::Value),
) -> Result<IndexMap<String, E::Value>, WalkError<E::Error>> {
    let extractor = Extractor::new(model);
    let mut values: HashMap<String, E::Value> = HashMap::new();
    for input in &model.graph.inputs {
        let Some(value) = inputs.get(&input.name) else {
            let expected = model.graph.inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(WalkError::MissingInput { name: input.name.clone(), expected });
        };
        values.insert(input.name.clone(), value.clone());
    }
    for range in blocks(&extractor, limits, &|_| true) {
        let piece = extractor.piece(range.clone(), wanted);
        let given: Vec<(&str, &E::Value)> =
            piece.graph.inputs.iter().filter_map(|i| Some((i.name.as_str(), values.get(&i.name)?))).collect();
        let made = executor.run(&piece, &given).map_err(|source| WalkError::Run {
            first: label(&model.graph.nodes[range.start]),
            last: label(&model.graph.nodes[range.end - 1]),
            source,
        })?;
        for (name, value) in made {
            if wanted(&name) {
                visit(&name, &value);
            }
            values.insert(name, value);
        }
        let live: std::collections::HashSet<&str> = extractor.live(range.end).into_iter().collect();
        values.retain(|name, _| live.contains(name.as_str()));
    }
    let outputs = model.graph.outputs.iter();
    Ok(outputs.filter_map(|o| Some((o.name.clone(), values.get(&o.name)?.clone()))).collect())
}
