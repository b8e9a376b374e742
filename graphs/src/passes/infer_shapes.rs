//! Symbolic inference of the types and shapes of all values.
//!
//! Extents are polynomials over the symbols of the graph's inputs, so that what is equal at run time is mostly equal
//! here too. A backend can then tell before running which buffers fit which values.

mod footprint;
mod inference;
mod settle;
#[cfg(test)]
mod tests;
mod values;

use std::collections::{HashMap, HashSet};

use crate::symbolic::Expr;
use crate::tensor::Tensor;
use crate::walk::only_output;
use crate::{Dim, Graph, Model, TensorType, ValueInfo};
use inference::Inference;

pub use footprint::{Extent, Footprint, Sum, footprint};
pub use settle::settle_extents;

/// Writes the type and shape of every value between inputs and outputs of the main graph into `value_info`, as far as
/// the operators tell, and returns how many values remain without.
///
/// Inputs are taken at their word, and their named extents to be at least 1. A named extent of the result is a
/// polynomial over theirs with quotients, remainders and the larger of two (`2*(height//2)`), or a name of its own
/// (`unk__3`); two extents have one name only if they are equal in every run that does not fail. Where an operator
/// tells nothing, what is recorded stays; declared inputs and outputs are never changed. The nodes must be sorted.
pub fn infer_shapes(model: &mut Model) -> usize {
    let facts = Inference::run(&model.graph, 1).facts;
    let dims = |shape: &[Expr]| shape.iter().map(|e| facts.symbols.dim(e)).collect::<Option<Vec<Dim>>>();
    let fixed: HashSet<&str> = model.graph.inputs.iter().chain(&model.graph.outputs).map(|i| i.name.as_str()).collect();
    let (mut infos, mut unknown) = (Vec::new(), 0);
    let mut told = HashSet::new();
    let made = model.graph.nodes.iter().flat_map(|n| &n.outputs);
    for name in made.filter(|name| !name.is_empty() && !fixed.contains(name.as_str())) {
        let shape = facts.shapes.get(name.as_str()).and_then(|s| dims(s));
        let (Some(shape), Some(&dtype)) = (shape, facts.types.get(name.as_str())) else {
            unknown += 1;
            continue;
        };
        if told.insert(name.clone()) {
            infos.push(ValueInfo { name: name.clone(), ty: Some(TensorType { dtype, shape: Some(shape) }) });
        }
    }
    model.graph.value_info.retain(|info| !told.contains(&info.name));
    model.graph.value_info.extend(infos);
    unknown
}

/// The small int64 and int32 values of the main graph's nodes that are the same in every run, also over empty tensors.
pub(super) fn constant_values(graph: &Graph) -> HashMap<String, Tensor> {
    let facts = Inference::run(graph, 0).facts;
    let outputs = graph.nodes.iter().filter_map(only_output);
    outputs.filter_map(|name| Some((name.to_owned(), facts.values.get(name)?.tensor()?))).collect()
}
