//! What an ONNX file holds, for people and for scripts.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use v2l_graphs::{Dim, ValueInfo};
use v2l_runtime::engine::manifest::{Absent, Slot};

use crate::compile::SlotReport;
use crate::compile::prepared::{PreparedGraph, prepare};
use crate::compile::slots::{Discovered, slots};
use crate::{CompileOptions, ExportError, metadata};

/// What an ONNX file holds.
#[derive(Clone, Debug)]
pub struct OnnxSummary {
    /// Interface, weights and operators in a few lines, without a final newline.
    pub text: String,
    /// Graph name.
    pub graph: String,
    /// Who wrote it, and which version.
    pub producer: String,
    /// Operator-set version by domain.
    pub opsets: IndexMap<String, i64>,
    /// `name: type [extents]` of each input.
    pub inputs: Vec<String>,
    /// The same of each output.
    pub outputs: Vec<String>,
    /// Number of nodes by operator.
    pub operators: BTreeMap<String, usize>,
    /// Number of weights.
    pub weights: usize,
    /// Their bytes.
    pub weight_bytes: usize,
    /// `metadata_props`, without the slots.
    pub metadata: IndexMap<String, String>,
    /// What adapters may change: those that the file declares, else each matrix that feeds a MatMul or Gemm as it would
    /// be compiled.
    pub slots: Vec<Slot>,
    /// Layers that are no slots.
    pub absent: Vec<Absent>,
    /// What is to be said of both.
    pub report: SlotReport,
}

/// Reads and checks an ONNX file and says what it holds; with `nodes`, every node too. Weights are not read.
///
/// # Errors
/// [`ExportError`], as [`crate::compile`] would refuse the file.
pub fn summarize_onnx(path: &Path, nodes: bool) -> Result<OnnxSummary, ExportError> {
    let label = path.display().to_string();
    let PreparedGraph { read: model, model: prepared, .. } = prepare(&label, path, None, &CompileOptions::default())?;
    let text = model.summary(nodes).trim_end().to_owned();
    let graph = model.graph.name.clone();
    let Discovered { slots, absent, report } = slots(&mut [(graph.clone(), prepared)], None)?;
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in &model.graph.nodes {
        *operators.entry(node.op_type.clone()).or_default() += 1;
    }
    let weights: Vec<usize> = model.graph.initializers.values().filter(|w| w.external).map(|w| w.data.len()).collect();
    Ok(OnnxSummary {
        text,
        graph,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_owned(),
        opsets: model.opsets,
        inputs: model.graph.inputs.iter().map(port).collect(),
        outputs: model.graph.outputs.iter().map(port).collect(),
        operators,
        weights: weights.len(),
        weight_bytes: weights.iter().sum(),
        metadata: model.metadata.into_iter().filter(|(key, _)| key != metadata::SLOTS).collect(),
        slots,
        absent,
        report,
    })
}

fn port(info: &ValueInfo) -> String {
    let Some(ty) = &info.ty else { return format!("{}: ?", info.name) };
    let extents = |dims: &Vec<Dim>| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("{}: {} [{}]", info.name, ty.dtype, ty.shape.as_ref().map_or("…".to_owned(), extents))
}
