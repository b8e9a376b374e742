//! Types of a graph's nodes.

use std::collections::BTreeMap;

use v2l_graphs::{DataType, Freedom, Model, freedom};

/// The types of a variant's nodes with low-rank branches: those of the plain graph's nodes, and for each branch that of
/// the layer that it stands beside.
pub(crate) fn branch_types(plain: &Model, types: &[DataType], branched: &Model) -> Vec<DataType> {
    let outputs = plain.graph.nodes.iter().zip(types).flat_map(|(node, ty)| node.outputs.iter().map(move |o| (o, *ty)));
    let by_output: BTreeMap<&str, DataType> = outputs.map(|(name, ty)| (name.as_str(), ty)).collect();
    let free = freedom(&branched.graph);
    let of = |output: &str| {
        let ends = output.rmatch_indices('/').map(|(at, _)| &output[..at]);
        std::iter::once(output).chain(ends).find_map(|name| by_output.get(name).copied())
    };
    let of_node = |(node, free): (&v2l_graphs::Node, &Freedom)| {
        let known = node.outputs.iter().find_map(|output| of(output)).filter(|_| *free == Freedom::Any);
        known.unwrap_or(DataType::Float)
    };
    branched.graph.nodes.iter().zip(&free).map(of_node).collect()
}

/// `fp16` or `bf16` if these types have only that beside float32, `mixed` if both, `fp32` if neither.
pub(crate) fn arithmetic(types: &[DataType]) -> &'static str {
    let has = |ty: DataType| types.contains(&ty);
    match (has(DataType::Float16), has(DataType::Bfloat16)) {
        (true, true) => "mixed",
        (true, false) => "fp16",
        (false, true) => "bf16",
        (false, false) => "fp32",
    }
}
