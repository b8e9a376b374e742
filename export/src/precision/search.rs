//! What each block in fewer bits does to the outputs, and the cheapest choice of blocks within a target.

use std::collections::{HashMap, HashSet};

use v2l_calibration::{Exception, GraphPlan, Precision, Ranges};
use v2l_graphs::passes::restore_quantized;
use v2l_graphs::{DataType, Initializer, Model, node_labels};

use super::blocks::blocks;
use super::measure::{Bench, Run};
use super::report::BlockSensitivity;
use crate::ExportError;

/// A block that may be cheapened.
struct Candidate {
    block: String,
    nodes: usize,
    saved_bytes: u64,
}

/// Measures every block, and with a target changes `plan` to the one that saves most while it meets the target: first
/// all blocks, then without those that cost most accuracy per byte saved, until it does.
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
        bench.error(runs, &partial)
    };
    let candidates = blocks.iter().map(|(block, nodes)| Candidate {
        block: block.clone(),
        nodes: nodes.len(),
        saved_bytes: saved(model, types, nodes, ranges, runs.len() as u64),
    });
    let rows = most_within(bench.name, candidates.collect(), &only, target)?;
    let labels = node_labels(graph);
    for (row, (name, nodes)) in rows.iter().zip(&blocks).filter(|(row, _)| !row.kept) {
        let error = row.error.map_or_else(|| "values that are not finite".to_owned(), |e| format!("{e:.2e}"));
        let target = target.unwrap_or_default();
        for &node in nodes.iter().filter(|&&node| types[node] != DataType::Float) {
            let why = format!("sensitivity: block `{name}` alone gives {error}, target {target:.2e}");
            plan.exceptions.insert(labels[node].clone(), Exception { precision: Precision::Fp32, why });
        }
    }
    let place: HashMap<&String, usize> = labels.iter().enumerate().map(|(at, l)| (l, at)).collect();
    plan.exceptions.sort_by(|a, _, b, _| place.get(a).cmp(&place.get(b)));
    Ok(rows)
}

/// Measures what each block's matrices among `names` do in 8 bits with `block` inputs to a scale, and which blocks may
/// have them so within the target, as [`fit`] does. Rows are of blocks with such matrices; the matrices of those that
/// are not kept are taken from `names`.
pub(super) fn fit_int8(
    bench: &Bench<'_>,
    runs: &[Run],
    names: &mut Vec<String>,
    block: usize,
    target: f64,
) -> Result<Vec<BlockSensitivity>, ExportError> {
    let graph = &bench.model.graph;
    // A matrix belongs to the first block that reads it.
    let mut free: HashSet<&String> = names.iter().collect();
    let mut groups: Vec<(Candidate, Vec<String>)> = Vec::new();
    for (name, nodes) in blocks(graph) {
        let read = nodes.iter().flat_map(|&node| &graph.nodes[node].inputs);
        let own: Vec<String> = read.filter(|input| free.remove(input)).cloned().collect();
        if !own.is_empty() {
            let saved_bytes = own.iter().map(|name| saved_int8(&graph.initializers[name], block)).sum();
            groups.push((Candidate { block: name, nodes: nodes.len(), saved_bytes }, own));
        }
    }
    let (candidates, groups): (Vec<Candidate>, Vec<Vec<String>>) = groups.into_iter().unzip();
    let only = |chosen: &[usize]| {
        let chosen: Vec<String> = chosen.iter().flat_map(|&at| groups[at].clone()).collect();
        let mut model = bench.model.clone();
        restore_quantized(&mut model, &chosen, block);
        bench.error_of(runs, &model)
    };
    let rows = most_within(bench.name, candidates, &only, Some(target))?;
    for (_, left_out) in rows.iter().zip(&groups).filter(|(row, _)| !row.kept) {
        names.retain(|name| !left_out.contains(name));
    }
    Ok(rows)
}

/// Measures each candidate alone; with a target, keeps the most of them, cheapest in accuracy per byte first, that meet
/// it together. `error` is that of the outputs with some candidates, by index.
fn most_within(
    graph: &str,
    candidates: Vec<Candidate>,
    error: &dyn Fn(&[usize]) -> Result<f64, ExportError>,
    target: Option<f64>,
) -> Result<Vec<BlockSensitivity>, ExportError> {
    let mut rows = Vec::new();
    for (index, Candidate { block, nodes, saved_bytes }) in candidates.into_iter().enumerate() {
        let error = error(&[index])?;
        let error = error.is_finite().then_some(error);
        rows.push(BlockSensitivity { graph: graph.to_owned(), block, nodes, error, saved_bytes, kept: true });
    }
    let Some(target) = target else { return Ok(rows) };
    // Errors of blocks add up about as squares do; what matters is how much of them a saved byte costs.
    let price = |row: &BlockSensitivity| row.error.map_or(f64::INFINITY, |e| e * e / row.saved_bytes.max(1) as f64);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| price(&rows[a]).total_cmp(&price(&rows[b])).then(a.cmp(&b)));
    // None meet it trivially.
    let meets = |count: usize| Ok::<bool, ExportError>(error(&order[..count])? <= target);
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
    for &block in &order[most..] {
        rows[block].kept = false;
    }
    Ok(rows)
}

/// Bytes that 8 bits with scales save of a matrix as it is stored.
fn saved_int8(weight: &Initializer, block: usize) -> u64 {
    let own = weight.data.widened_from().unwrap_or(weight.dtype).size();
    let elements = weight.expected_len().unwrap_or(0) / weight.dtype.size();
    (elements * own).saturating_sub(elements + elements / block * 4) as u64
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
