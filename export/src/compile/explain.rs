//! What the passes did.

use std::collections::BTreeMap;

use v2l_graphs::passes::{Lowered, Pass, Report};
use v2l_runtime::engine::manifest::Graph;

use super::weights::StoredWeight;

/// What the passes did to one graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphReport {
    /// The graph.
    pub graph: String,
    /// Nodes as it was read.
    pub nodes_before: usize,
    /// Nodes that every run executes as it is stored, bodies not counted.
    pub nodes_after: usize,
    /// Bytes of stored weights that a run reads without precomputing.
    pub weight_bytes_before: u64,
    /// Bytes of stored weights that every run reads.
    pub weight_bytes_after: u64,
    /// How often each pass fired that can be switched off, in the order in which they run; for the precomputing ones, how
    /// many values they give to the step.
    pub fired: Vec<(Pass, usize)>,
    /// FLOPs of the products of the precompute graph for each row (token) of the inputs that they are made from: what every step after the
    /// first does without.
    pub precompute_flops: BTreeMap<String, u64>,
}

impl GraphReport {
    pub(super) fn new(graph: &str, nodes_before: usize, report: &Report, lowered: Lowered) -> Self {
        let count = |pass| match pass {
            Pass::WeightLayout => report.weight_layouts_folded,
            Pass::Shapes => report.shapes_folded,
            Pass::Constants => report.constants_folded,
            Pass::Duplicates => report.duplicates_merged,
            Pass::Rotary => lowered.rotary,
            Pass::Attention => lowered.attention,
            Pass::ModulatedNorm => lowered.modulated_norm,
            _ => 0,
        };
        Self {
            graph: graph.to_owned(),
            nodes_before,
            nodes_after: 0,
            weight_bytes_before: 0,
            weight_bytes_after: 0,
            fired: Pass::ALL.map(|pass| (pass, count(pass))).to_vec(),
            precompute_flops: BTreeMap::new(),
        }
    }

    /// Adds what precomputing did: every run executes `nodes` of `stored`.
    pub(super) fn store(&mut self, nodes: usize, stored: &Graph, weights: &BTreeMap<String, StoredWeight>) {
        self.nodes_after = nodes;
        self.weight_bytes_after = bytes(stored, weights);
        self.weight_bytes_before = stored.parts().map(|part| bytes(part, weights)).sum();
        let precomputed = stored.precomputed.as_ref();
        for (pass, count) in &mut self.fired {
            let outputs = match pass {
                Pass::Precompute => precomputed.and_then(|s| Some(s.precompute.as_ref()?.outputs.len())),
                Pass::TimestepRows => precomputed.and_then(|s| Some(s.timestep_rows.as_ref()?.graph.outputs.len())),
                _ => None,
            };
            *count = outputs.unwrap_or(*count);
        }
    }
}

fn bytes(graph: &Graph, weights: &BTreeMap<String, StoredWeight>) -> u64 {
    graph.weights.iter().filter_map(|name| weights.get(name)).map(|weight| weight.data.len() as u64).sum()
}
