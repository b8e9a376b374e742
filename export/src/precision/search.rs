//! What each block in 16 bits does to the outputs, and the cheapest plan within a target.

use serde::Serialize;
use v2l_calibration::{GraphPlan, Island, Precision, Ranges};
use v2l_graphs::{DataType, Model, node_labels};

use super::blocks::blocks;
use super::measure::{Bench, Run};
use crate::ExportError;

/// What one block does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockSensitivity {
    /// `component/graph`.
    pub graph: String,
    /// The block.
    pub block: String,
    /// Its nodes.
    pub nodes: usize,
    /// Largest relative L2 error of an output when only this block computes as planned, the rest in float32; `None` if the
    /// outputs are then not finite.
    pub error: Option<f64>,
    /// Bytes that the plan saves in it: of weights, and of the values that it makes on one input if they were measured.
    pub saved_bytes: u64,
    /// True if it computes as planned; false if the target keeps it in float32.
    pub kept: bool,
}

/// Measures every block, and with a target changes `plan` to the one that saves most while it meets the target: first all
/// blocks, then without those that cost most accuracy per byte saved, until it does.
///
/// Costs one emulated run per block and input, and about the logarithm of their number more.
pub(super) fn fit(
    bench: &Bench<'_>,
    runs: &[Run],
    plan: &mut GraphPlan,
    types: &[DataType],
    ranges: &Ranges,
    target: Option<f64>,
) -> Result<Vec<BlockSensitivity>, ExportError> {
    let (graph, model) = (&bench.model.graph, bench.model);
    let blocks: Vec<(String, Vec<usize>)> = blocks(graph)
        .into_iter()
        .filter(|(_, nodes)| nodes.iter().any(|&node| types[node] != DataType::Float))
        .collect();
    let only = |chosen: &[usize]| {
        let mut partial = vec![DataType::Float; types.len()];
        for &node in chosen.iter().flat_map(|&block| &blocks[block].1) {
            partial[node] = types[node];
        }
        partial
    };
    let mut rows = Vec::new();
    for (index, (block, nodes)) in blocks.iter().enumerate() {
        let error = bench.error(runs, &only(&[index]))?;
        rows.push(BlockSensitivity {
            graph: bench.name.to_owned(),
            block: block.clone(),
            nodes: nodes.len(),
            error: error.is_finite().then_some(error),
            saved_bytes: saved(model, types, nodes, ranges, runs.len() as u64),
            kept: true,
        });
    }
    let Some(target) = target else { return Ok(rows) };
    // Errors of blocks add up about as squares do; what matters is how much of them a saved byte costs.
    let price = |row: &BlockSensitivity| row.error.map_or(f64::INFINITY, |e| e * e / row.saved_bytes.max(1) as f64);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| price(&rows[a]).total_cmp(&price(&rows[b])).then(a.cmp(&b)));
    // The most blocks, cheapest first, that meet the target together; none do trivially.
    let meets = |count: usize| Ok::<bool, ExportError>(bench.error(runs, &only(&order[..count]))? <= target);
    let mut most = if meets(order.len())? { order.len() } else { 0 };
    let mut beyond = order.len();
    while most < order.len() && beyond - most > 1 {
        let middle = most + (beyond - most) / 2;
        if meets(middle)? {
            most = middle;
        } else {
            beyond = middle;
        }
    }
    let labels = node_labels(graph);
    for &block in &order[most..] {
        rows[block].kept = false;
        let error = rows[block].error.map_or_else(|| "values that are not finite".to_owned(), |e| format!("{e:.2e}"));
        for &node in blocks[block].1.iter().filter(|&&node| types[node] != DataType::Float) {
            let why = format!("sensitivity: block `{}` alone gives {error}, target {target:.2e}", blocks[block].0);
            plan.islands.insert(labels[node].clone(), Island { precision: Precision::Fp32, why });
        }
    }
    let place: std::collections::HashMap<&String, usize> = labels.iter().enumerate().map(|(at, l)| (l, at)).collect();
    plan.islands.sort_by(|a, _, b, _| place.get(a).cmp(&place.get(b)));
    Ok(rows)
}

/// Bytes that 16 bits save in some nodes.
fn saved(model: &Model, types: &[DataType], nodes: &[usize], ranges: &Ranges, runs: u64) -> u64 {
    let graph = &model.graph;
    let low = nodes.iter().filter(|&&node| types[node] != DataType::Float).map(|&node| &graph.nodes[node]);
    let of_node = |node: &v2l_graphs::Node| {
        let weights = node.inputs.iter().filter_map(|name| graph.initializers.get(name)).filter(|w| w.external);
        let weights: u64 = weights.map(|w| w.expected_len().unwrap_or(0) as u64 / 2).sum();
        let values = node.outputs.iter().filter_map(|name| ranges.get(name));
        weights + values.map(|range| range.count / runs.max(1) * 2).sum::<u64>()
    };
    low.map(of_node).sum()
}
