//! Which values have a row for each timestep that nothing but this timestep decides.
//!
//! What a value has to do with the rows is one of three facts. *Same*: neither its elements nor its extents depend on
//! the rows or on how many there are. *Apart*: its first extent is the number of rows, its other extents depend on no
//! row, and each row depends on the same row of the inputs and on values that are the same. *Mixed*: anything else,
//! and everything of which nothing is proven. A graph of values that are same or apart gives row by row, one row at a
//! time, what it gives for all rows at once.
//!
//! Shapes are asked for ranks and numbers only. These hold for any number of rows, since they are inferred from what
//! comes before; that two extents have one name does not, where a setting is as long as there are rows.

use std::collections::HashMap;

use super::kinds::{Kinds, TIME};
use crate::operators::{Known, Reads, RowRule, operator};
use crate::passes::infer_shapes::constant_values;
use crate::tensor::Tensor;
use crate::walk::bodies;
use crate::{Dim, Graph, Node};

/// What is proven of a value; mixed ones have no fact.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fact {
    Same,
    Apart,
}

/// Marks the nodes that timesteps decide and whose outputs are all apart, where `rows` are the inputs with a row for
/// each timestep and `lead` is their extent.
pub(super) fn independent(graph: &Graph, kinds: &Kinds<'_>, rows: &[String], lead: &Dim) -> Vec<bool> {
    let mut proof =
        Proof { shapes: shapes(graph), constants: constant_values(graph), facts: HashMap::new(), graph, lead };
    for name in graph.initializers.keys() {
        proof.facts.insert(name, Fact::Same);
    }
    for input in &graph.inputs {
        // An initializer that is also an input is only its default.
        proof.facts.remove(&input.name[..]);
        if rows.contains(&input.name) {
            proof.facts.insert(&input.name, Fact::Apart);
        } else if kinds.of.get(&input.name[..]) == Some(&0) && proof.is_without_rows(&input.name) {
            proof.facts.insert(&input.name, Fact::Same);
        }
    }
    let mut marked = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let fact = if kinds.of(node) & !TIME == 0 { proof.fact_of(node) } else { None };
        if let Some(fact) = fact {
            proof.facts.extend(node.outputs.iter().filter(|o| !o.is_empty()).map(|output| (&output[..], fact)));
        }
        marked.push(fact == Some(Fact::Apart));
    }
    marked
}

/// Shapes by value, as far as they are known.
fn shapes(graph: &Graph) -> HashMap<&str, Vec<Dim>> {
    let mut shapes = HashMap::new();
    for (name, value) in &graph.initializers {
        shapes.insert(&name[..], value.shape.iter().map(|&n| Dim::Fixed(n)).collect());
    }
    for info in graph.inputs.iter().chain(&graph.value_info) {
        if let Some(shape) = info.ty.as_ref().and_then(|ty| ty.shape.clone()) {
            shapes.insert(&info.name, shape);
        }
    }
    shapes
}

struct Proof<'a> {
    graph: &'a Graph,
    shapes: HashMap<&'a str, Vec<Dim>>,
    /// Small integers that are the same in every run.
    constants: HashMap<String, Tensor>,
    facts: HashMap<&'a str, Fact>,
    lead: &'a Dim,
}

impl<'a> Proof<'a> {
    /// What holds for every output of the node.
    fn fact_of(&self, node: &Node) -> Option<Fact> {
        let mut apart = false;
        for value in node.uses() {
            apart |= *self.facts.get(value)? == Fact::Apart;
        }
        let mut outputs = node.outputs.iter().filter(|output| !output.is_empty());
        if !apart {
            return outputs.all(|output| self.is_without_rows(output)).then_some(Fact::Same);
        }
        let plain = bodies(node).next().is_none() && outputs.all(|output| self.has_rows_first(output));
        (plain && keeps_rows_apart(self, node)).then_some(Fact::Apart)
    }

    /// False for a value that no row decides, but that has as many elements along an axis as there are rows: a precomputed graph
    /// that is given one row would not fit it.
    fn is_without_rows(&self, value: &str) -> bool {
        self.shape(value).is_none_or(|shape| !self.names_rows(shape))
    }

    /// True if the value has as many elements as there are rows along its first axis, and along no other.
    fn has_rows_first(&self, value: &str) -> bool {
        let Some((first, rest)) = self.shape(value).and_then(<[Dim]>::split_first) else { return false };
        first == self.lead && !self.names_rows(rest)
    }

    fn names_rows(&self, shape: &[Dim]) -> bool {
        matches!(self.lead, Dim::Symbol(_)) && shape.contains(self.lead)
    }
}

impl Known for Proof<'_> {
    fn shape(&self, value: &str) -> Option<&[Dim]> {
        self.shapes.get(value).map(Vec::as_slice)
    }

    fn numbers(&self, value: &str) -> Option<Vec<i64>> {
        if self.graph.inputs.iter().any(|input| input.name == value) {
            return None;
        }
        match self.graph.initializers.get(value) {
            Some(constant) if constant.external => None,
            Some(constant) => Tensor::from_initializer(constant)?.indices(),
            None => self.constants.get(value)?.indices(),
        }
    }

    fn is_apart(&self, value: &str) -> bool {
        self.facts.get(value) == Some(&Fact::Apart)
    }
}

/// True if all outputs are apart of a node some of whose inputs are, and the others the same.
fn keeps_rows_apart(proof: &Proof<'_>, node: &Node) -> bool {
    let Some(rank) = node.outputs.first().and_then(|output| proof.shape(output)).map(<[Dim]>::len) else {
        return false;
    };
    let reads = Reads { known: proof, node };
    match operator(node).map_or(RowRule::Mixed, |known| known.rows) {
        RowRule::Mixed => false,
        RowRule::FirstInput => reads.only_first_apart(),
        RowRule::Aligned => reads.are_aligned(0, rank),
        RowRule::By(keeps) => keeps(&reads, rank).unwrap_or(false),
    }
}
