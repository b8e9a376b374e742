//! Symbolic inference of the types and shapes of all values.
//!
//! Extents are polynomials over the symbols of the graph's inputs, so that what is equal at run time is mostly equal
//! here too. A backend can then tell before running which buffers fit which values.

mod expr;
mod footprint;
mod operators;
mod settle;
mod symbols;
#[cfg(test)]
mod tests;
mod values;

use std::collections::{HashMap, HashSet};

use super::tensor::Tensor;
use super::walk::{is_onnx, only_output};
use crate::check::result_type;
use crate::{Attribute, DataType, Dim, Graph, Initializer, Model, Node, TensorType, ValueInfo};
use expr::Expr;
use symbols::Symbols;

pub use footprint::{Extent, Footprint, Sum, footprint};
pub use settle::settle_extents;
use values::Ints;

/// A shape whose extents may be open.
type Partial = Vec<Option<Expr>>;

/// Writes the type and shape of every value between inputs and outputs of the main graph into `value_info`, as far as
/// the operators tell, and returns how many values remain without.
///
/// Inputs are taken at their word, and their named extents to be at least 1. A named extent of the result is a
/// polynomial over theirs with quotients, remainders and the larger of two (`2*(height//2)`), or a name of its own
/// (`unk__3`); two extents have one name only if they are equal in every run that does not fail. Where an operator
/// tells nothing, what is recorded stays; declared inputs and outputs are never changed. The nodes must be sorted.
pub fn infer_shapes(model: &mut Model) -> usize {
    let inference = Inference::run(&model.graph, 1);
    let dims = |shape: &[Expr]| shape.iter().map(|e| inference.symbols.dim(e)).collect::<Option<Vec<Dim>>>();
    let fixed: HashSet<&str> = model.graph.inputs.iter().chain(&model.graph.outputs).map(|i| i.name.as_str()).collect();
    let (mut infos, mut unknown) = (Vec::new(), 0);
    let mut told = HashSet::new();
    let made = model.graph.nodes.iter().flat_map(|n| &n.outputs);
    for name in made.filter(|name| !name.is_empty() && !fixed.contains(name.as_str())) {
        let shape = inference.shapes.get(name.as_str()).and_then(|s| dims(s));
        let (Some(shape), Some(&dtype)) = (shape, inference.types.get(name.as_str())) else {
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
    let inference = Inference::run(graph, 0);
    let outputs = graph.nodes.iter().filter_map(only_output);
    outputs.filter_map(|name| Some((name.to_owned(), inference.values.get(name)?.tensor()?))).collect()
}

/// What is known of each value.
struct Inference<'a> {
    graph: &'a Graph,
    symbols: Symbols,
    types: HashMap<&'a str, DataType>,
    shapes: HashMap<&'a str, Vec<Expr>>,
    values: HashMap<&'a str, Ints>,
    recorded: HashMap<&'a str, &'a TensorType>,
    /// Take an `If` for its first branch where the two differ: for estimates.
    lenient: bool,
}

impl<'a> Inference<'a> {
    /// `least` is what a named extent of an input is at least.
    fn run(graph: &'a Graph, least: i64) -> Self {
        Self::run_as(graph, least, false)
    }

    fn run_as(graph: &'a Graph, least: i64, lenient: bool) -> Self {
        let mut cx = Self {
            lenient,
            graph,
            symbols: Symbols::new(least),
            types: HashMap::new(),
            shapes: HashMap::new(),
            values: HashMap::new(),
            recorded: HashMap::new(),
        };
        // First, so that no derived extent takes the name of a declared one.
        for dim in graph.inputs.iter().filter_map(|i| i.ty.as_ref()?.shape.as_ref()).flatten() {
            if let Dim::Symbol(name) = dim {
                cx.symbols.declared(name);
            }
        }
        for (name, value) in &graph.initializers {
            cx.initializer(name, value);
        }
        for input in &graph.inputs {
            // An initializer that is also an input is only its default.
            cx.values.remove(input.name.as_str());
            cx.shapes.remove(input.name.as_str());
            let Some(ty) = &input.ty else { continue };
            cx.types.insert(&input.name, ty.dtype);
            if let Some(shape) = &ty.shape {
                let shape = shape.iter().map(|dim| cx.declared(dim)).collect();
                cx.shapes.insert(&input.name, shape);
            }
        }
        for info in graph.outputs.iter().chain(&graph.value_info) {
            if let Some(ty) = &info.ty {
                cx.recorded.entry(&info.name).or_insert(ty);
            }
        }
        for node in &graph.nodes {
            cx.node(node);
        }
        cx
    }

    fn declared(&mut self, dim: &Dim) -> Expr {
        match dim {
            Dim::Fixed(n) => i64::try_from(*n).map_or_else(|_| self.symbols.open(), Expr::from),
            Dim::Symbol(name) if !name.is_empty() => self.symbols.declared(name),
            _ => self.symbols.open(),
        }
    }

    fn node(&mut self, node: &'a Node) {
        let (shapes, branch_types) = match &node.op_type[..] {
            "If" if is_onnx(node) => self.branches(node).into_iter().unzip(),
            _ => (operators::shapes(self, node), Vec::new()),
        };
        let mut shapes = shapes.into_iter();
        for (index, output) in node.outputs.iter().enumerate() {
            let shape = shapes.next().flatten();
            if output.is_empty() {
                continue;
            }
            let input = |i: usize| self.types.get(node.inputs.get(i)?.as_str()).copied();
            let recorded = self.recorded.get(output.as_str()).copied();
            let branches = || branch_types.get(index).copied().flatten();
            if let Some(dtype) = result_type(node, index, input).or_else(branches).or(recorded.map(|ty| ty.dtype)) {
                self.types.insert(output, dtype);
            }
            if let Some(shape) = self.settled(shape, recorded.and_then(|ty| ty.shape.as_deref())) {
                self.shapes.insert(output, shape);
            }
        }
        if let (Some(output), true) = (only_output(node), is_onnx(node))
            && let Some(&dtype @ (DataType::Int64 | DataType::Int32)) = self.types.get(output)
            && let Some(value) = values::value(self, node, dtype)
        {
            self.values.insert(output, value);
        }
    }

    /// What both branches of an `If` agree on, output by output.
    fn branches(&mut self, node: &'a Node) -> Vec<(Option<Partial>, Option<DataType>)> {
        let bodies = ["then_branch", "else_branch"].map(|name| match node.attributes.get(name) {
            Some(Attribute::Graph(body)) => self.body(body),
            _ => Vec::new(),
        });
        let [then, other] = bodies;
        then.into_iter()
            .zip(other)
            .map(|((a, a_type), (b, b_type))| {
                let shape = match (a, b) {
                    (Some(a), Some(b)) if a.len() == b.len() => {
                        Some(a.into_iter().zip(b).map(|(a, b)| (a == b || self.lenient).then_some(a)).collect())
                    }
                    _ => None,
                };
                (shape, a_type.filter(|_| a_type == b_type))
            })
            .collect()
    }

    /// Shape and type of each output of a body. What it defines itself is forgotten again: the other body may use the same
    /// names.
    fn body(&mut self, body: &'a Graph) -> Vec<(Option<Vec<Expr>>, Option<DataType>)> {
        for (name, value) in &body.initializers {
            self.initializer(name, value);
        }
        for node in &body.nodes {
            self.node(node);
        }
        let known = |name: &str| (self.shapes.get(name).cloned(), self.types.get(name).copied());
        let outputs = body.outputs.iter().map(|output| known(&output.name)).collect();
        let own = body.nodes.iter().flat_map(|node| &node.outputs).chain(body.initializers.keys());
        for name in own {
            self.shapes.remove(&name[..]);
            self.types.remove(&name[..]);
            self.values.remove(&name[..]);
        }
        outputs
    }

    fn initializer(&mut self, name: &'a str, value: &Initializer) {
        self.types.insert(name, value.dtype);
        if let Some(shape) = value.shape.iter().map(|&d| i64::try_from(d).ok().map(Expr::from)).collect() {
            self.shapes.insert(name, shape);
        }
        if let Some(ints) = Some(value).filter(|v| !v.external).and_then(Ints::constant) {
            self.values.insert(name, ints);
        }
    }

    /// An extent for every axis: the inferred one unless only the record knows a number, else the recorded one, else one
    /// of which nothing is known. `None` if not even the rank is known.
    fn settled(&mut self, inferred: Option<Partial>, recorded: Option<&[Dim]>) -> Option<Vec<Expr>> {
        let inferred = match (inferred, recorded) {
            (Some(shape), _) => shape,
            (None, Some(recorded)) => vec![None; recorded.len()],
            (None, None) => return None,
        };
        let recorded = recorded.filter(|r| r.len() == inferred.len());
        let settle = |(axis, extent): (usize, Option<Expr>)| {
            let extent = extent.filter(|e| self.symbols.dim(e).is_some());
            match (extent, recorded.map(|r| &r[axis])) {
                (Some(e), _) if e.number().is_some() => e,
                (_, Some(Dim::Fixed(n))) if i64::try_from(*n).is_ok() => Expr::from(*n as i64),
                (Some(e), _) => e,
                (None, Some(Dim::Symbol(name))) if self.symbols.is_declared(name) => self.symbols.declared(name),
                _ => self.symbols.open(),
            }
        };
        Some(inferred.into_iter().enumerate().map(settle).collect())
    }

    fn shape(&self, node: &Node, input: usize) -> Option<&[Expr]> {
        self.shapes.get(node.inputs.get(input)?.as_str()).map(Vec::as_slice)
    }

    fn ints(&self, node: &Node, input: usize) -> Option<&Ints> {
        self.values.get(node.inputs.get(input)?.as_str())
    }

    /// The input's elements, if all are numbers.
    fn numbers(&self, node: &Node, input: usize) -> Option<Vec<i64>> {
        self.ints(node, input)?.numbers()
    }

    /// True if the node has this input.
    fn given(node: &Node, input: usize) -> bool {
        node.inputs.get(input).is_some_and(|name| !name.is_empty())
    }
}
