//! What is known of each value of a graph before it runs.

use std::collections::HashMap;

use super::expr::Expr;
use super::ints::Ints;
use super::symbols::Symbols;
use crate::tensor::{Numbers, Tensor};
use crate::{DataType, Graph, Node};

/// A shape whose extents may be open.
pub(crate) type Partial = Vec<Option<Expr>>;

/// Types, shapes and small integers by value, as far as they are known.
pub(crate) struct Facts<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) symbols: Symbols,
    pub(crate) types: HashMap<&'a str, DataType>,
    pub(crate) shapes: HashMap<&'a str, Vec<Expr>>,
    pub(crate) values: HashMap<&'a str, Ints>,
}

impl Facts<'_> {
    pub(crate) fn shape(&self, node: &Node, input: usize) -> Option<&[Expr]> {
        self.shapes.get(node.inputs.get(input)?.as_str()).map(Vec::as_slice)
    }

    /// The shape of an input, to be changed into that of an output.
    pub(crate) fn partial(&self, node: &Node, input: usize) -> Option<Partial> {
        Some(self.shape(node, input)?.iter().cloned().map(Some).collect())
    }

    pub(crate) fn ints(&self, node: &Node, input: usize) -> Option<&Ints> {
        self.values.get(node.inputs.get(input)?.as_str())
    }

    /// The input's elements, if all are numbers.
    pub(crate) fn numbers(&self, node: &Node, input: usize) -> Option<Vec<i64>> {
        self.ints(node, input)?.numbers()
    }

    /// The elements of a constant float input.
    pub(crate) fn floats(&self, node: &Node, input: usize) -> Option<Vec<f32>> {
        let name = node.inputs.get(input)?;
        let constant = self.graph.initializers.get(name).filter(|i| !i.external)?;
        if self.graph.inputs.iter().any(|i| i.name == *name) {
            return None;
        }
        match Tensor::from_initializer(constant)?.numbers()? {
            Numbers::Float(values) => Some(values),
            _ => None,
        }
    }
}
