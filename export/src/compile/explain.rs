//! What the passes did.

use v2l_graphs::Model;
use v2l_graphs::passes::{Lowered, Pass, Report};

/// What the passes did to one graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphReport {
    /// The graph.
    pub graph: String,
    /// Nodes as it was read.
    pub nodes_before: usize,
    /// Nodes as it is stored, bodies not counted.
    pub nodes_after: usize,
    /// How often each pass fired that can be switched off, in the order in which they run.
    pub fired: Vec<(Pass, usize)>,
}

impl GraphReport {
    pub(super) fn new(graph: &str, nodes_before: usize, model: &Model, report: &Report, lowered: Lowered) -> Self {
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
            nodes_after: model.graph.nodes.len(),
            fired: Pass::ALL.map(|pass| (pass, count(pass))).to_vec(),
        }
    }
}
