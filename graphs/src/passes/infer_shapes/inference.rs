//! Going through a graph, node by node, with what the operators tell.

use std::collections::HashMap;

use super::values::value;
use crate::operators::{ShapeRule, broadcast, operator, result_type};
use crate::symbolic::{Expr, Facts, Ints, Partial, Symbols};
use crate::walk::only_output;
use crate::{Attribute, DataType, Dim, Graph, Initializer, Node, TensorType};

/// What is known of each value, and what was recorded.
pub(super) struct Inference<'a> {
    pub(super) facts: Facts<'a>,
    recorded: HashMap<&'a str, &'a TensorType>,
    /// Take an `If` for its first branch where the two differ: for estimates.
    lenient: bool,
}

impl<'a> Inference<'a> {
    /// `least` is what a named extent of an input is at least.
    pub(super) fn run(graph: &'a Graph, least: i64) -> Self {
        Self::run_as(graph, least, false)
    }

    pub(super) fn run_as(graph: &'a Graph, least: i64, lenient: bool) -> Self {
        let mut cx = Self {
            lenient,
            facts: Facts {
                graph,
                symbols: Symbols::new(least),
                types: HashMap::new(),
                shapes: HashMap::new(),
                values: HashMap::new(),
            },
            recorded: HashMap::new(),
        };
        // First, so that no derived extent takes the name of a declared one.
        for dim in graph.inputs.iter().filter_map(|i| i.ty.as_ref()?.shape.as_ref()).flatten() {
            if let Dim::Symbol(name) = dim {
                cx.facts.symbols.declared(name);
            }
        }
        for (name, value) in &graph.initializers {
            cx.initializer(name, value);
        }
        for input in &graph.inputs {
            // An initializer that is also an input is only its default.
            cx.facts.values.remove(input.name.as_str());
            cx.facts.shapes.remove(input.name.as_str());
            let Some(ty) = &input.ty else { continue };
            cx.facts.types.insert(&input.name, ty.dtype);
            if let Some(shape) = &ty.shape {
                let shape = shape.iter().map(|dim| cx.declared(dim)).collect();
                cx.facts.shapes.insert(&input.name, shape);
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
            Dim::Fixed(n) => i64::try_from(*n).map_or_else(|_| self.facts.symbols.open(), Expr::from),
            Dim::Symbol(name) if !name.is_empty() => self.facts.symbols.declared(name),
            _ => self.facts.symbols.open(),
        }
    }

    fn node(&mut self, node: &'a Node) {
        let known = operator(node);
        let (shapes, branch_types) = match known.map_or(ShapeRule::Open, |known| known.shape) {
            ShapeRule::Open => (Vec::new(), Vec::new()),
            ShapeRule::Like(input) => (vec![self.facts.partial(node, input)], Vec::new()),
            ShapeRule::Broadcast => (vec![broadcast_inputs(&mut self.facts, node)], Vec::new()),
            ShapeRule::First(shape) => (vec![shape(&mut self.facts, node)], Vec::new()),
            ShapeRule::Each(shapes) => (shapes(&mut self.facts, node), Vec::new()),
            ShapeRule::Branches => self.branches(node).into_iter().unzip(),
        };
        let mut shapes = shapes.into_iter();
        for (index, output) in node.outputs.iter().enumerate() {
            let shape = shapes.next().flatten();
            if output.is_empty() {
                continue;
            }
            let input = |i: usize| self.facts.types.get(node.inputs.get(i)?.as_str()).copied();
            let recorded = self.recorded.get(output.as_str()).copied();
            let branches = || branch_types.get(index).copied().flatten();
            if let Some(dtype) = result_type(node, index, input).or_else(branches).or(recorded.map(|ty| ty.dtype)) {
                self.facts.types.insert(output, dtype);
            }
            if let Some(shape) = self.settled(shape, recorded.and_then(|ty| ty.shape.as_deref())) {
                self.facts.shapes.insert(output, shape);
            }
        }
        if let (Some(output), Some(known)) = (only_output(node), known)
            && let Some(&dtype @ (DataType::Int64 | DataType::Int32)) = self.facts.types.get(output)
            && let Some(value) = value(&mut self.facts, node, known, dtype)
        {
            self.facts.values.insert(output, value);
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

    /// Shape and type of each output of a body. What it defines itself is forgotten again: the other body may use the
    /// same names.
    fn body(&mut self, body: &'a Graph) -> Vec<(Option<Vec<Expr>>, Option<DataType>)> {
        for (name, value) in &body.initializers {
            self.initializer(name, value);
        }
        for node in &body.nodes {
            self.node(node);
        }
        let known = |name: &str| (self.facts.shapes.get(name).cloned(), self.facts.types.get(name).copied());
        let outputs = body.outputs.iter().map(|output| known(&output.name)).collect();
        let own = body.nodes.iter().flat_map(|node| &node.outputs).chain(body.initializers.keys());
        for name in own {
            self.facts.shapes.remove(&name[..]);
            self.facts.types.remove(&name[..]);
            self.facts.values.remove(&name[..]);
        }
        outputs
    }

    fn initializer(&mut self, name: &'a str, value: &Initializer) {
        self.facts.types.insert(name, value.dtype);
        if let Some(shape) = value.shape.iter().map(|&d| i64::try_from(d).ok().map(Expr::from)).collect() {
            self.facts.shapes.insert(name, shape);
        }
        if let Some(ints) = Some(value).filter(|v| !v.external).and_then(Ints::constant) {
            self.facts.values.insert(name, ints);
        }
    }

    /// An extent for every axis: the inferred one unless only the record knows a number, else the recorded one, else
    /// one of which nothing is known. `None` if not even the rank is known.
    fn settled(&mut self, inferred: Option<Partial>, recorded: Option<&[Dim]>) -> Option<Vec<Expr>> {
        let inferred = match (inferred, recorded) {
            (Some(shape), _) => shape,
            (None, Some(recorded)) => vec![None; recorded.len()],
            (None, None) => return None,
        };
        let recorded = recorded.filter(|r| r.len() == inferred.len());
        let settle = |(axis, extent): (usize, Option<Expr>)| {
            let extent = extent.filter(|e| self.facts.symbols.dim(e).is_some());
            match (extent, recorded.map(|r| &r[axis])) {
                (Some(e), _) if e.number().is_some() => e,
                (_, Some(Dim::Fixed(n))) if i64::try_from(*n).is_ok() => Expr::from(*n as i64),
                (Some(e), _) => e,
                (None, Some(Dim::Symbol(name))) if self.facts.symbols.is_declared(name) => {
                    self.facts.symbols.declared(name)
                }
                _ => self.facts.symbols.open(),
            }
        };
        Some(inferred.into_iter().enumerate().map(settle).collect())
    }
}

fn broadcast_inputs(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shapes = (0..node.inputs.len()).map(|i| facts.partial(node, i)).collect::<Option<Vec<_>>>()?;
    shapes.into_iter().reduce(|a, b| broadcast(&mut facts.symbols, &a, &b))
}
