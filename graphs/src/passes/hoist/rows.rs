//! Which nodes compute each row of their result from the same row of what they read.

use std::collections::{HashMap, HashSet};

use crate::passes::tensor::{Numbers, Tensor, axis};
use crate::passes::walk::is_onnx;
use crate::{Dim, Graph, Node};

/// Operators that work element by element.
const UNARY: [&str; 20] = [
    "Abs",
    "Cast",
    "Ceil",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Identity",
    "Log",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Tanh",
];
/// Operators that work element by element on what they broadcast.
const BINARY: [&str; 5] = ["Add", "Div", "Mul", "Pow", "Sub"];

/// Marks the nodes among those that `wanted` marks whose outputs all have the first extent `lead` and, by a list of operators
/// that are known to keep rows apart, depend in each row on the same row of `rows` and of other marked nodes only.
pub(super) fn independent(graph: &Graph, rows: &[String], lead: &Dim, wanted: impl Fn(&Node) -> bool) -> Vec<bool> {
    let mut shapes: HashMap<&str, Vec<Dim>> = HashMap::new();
    for info in graph.inputs.iter().chain(&graph.value_info) {
        if let Some(shape) = info.ty.as_ref().and_then(|ty| ty.shape.clone()) {
            shapes.insert(&info.name, shape);
        }
    }
    for (name, value) in &graph.initializers {
        shapes.insert(name, value.shape.iter().map(|&n| Dim::Fixed(n)).collect());
    }
    let mut proof = Proof { graph, shapes, lead, apart: rows.iter().map(String::as_str).collect() };
    let mut marked = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let kept = wanted(node) && proof.keeps_rows_apart(node) == Some(true);
        if kept {
            proof.apart.extend(node.outputs.iter().map(String::as_str));
        }
        marked.push(kept);
    }
    marked
}

struct Proof<'a> {
    graph: &'a Graph,
    shapes: HashMap<&'a str, Vec<Dim>>,
    lead: &'a Dim,
    /// Values whose rows depend on the same row of the inputs.
    apart: HashSet<&'a str>,
}

impl Proof<'_> {
    fn keeps_rows_apart(&self, node: &Node) -> Option<bool> {
        let output = self.shape(node.outputs.first()?)?;
        let rank = output.len();
        for name in &node.outputs {
            if self.shape(name)?.first() != Some(self.lead) {
                return Some(false);
            }
        }
        let input = |at: usize| node.inputs.get(at).filter(|name| !name.is_empty());
        let row = |at: usize| input(at).is_some_and(|name| self.apart.contains(&name[..]));
        let rest_whole = |from: usize| (from..node.inputs.len()).all(|at| !row(at));
        let other_axis = |axes: &[i64], rank| axes.iter().all(|&a| axis(a, rank).is_some_and(|a| a > 0));
        let first_rank = || Some(self.shape(input(0)?)?.len());
        if !is_onnx(node) {
            return Some(false);
        }
        Some(match &node.op_type[..] {
            op if UNARY.contains(&op) => row(0),
            op if BINARY.contains(&op) => (0..2).all(|at| self.is_aligned(node, at, rank).unwrap_or(false)),
            "Gemm" => {
                let plain = node.int("transA").unwrap_or(0) == 0 && row(0) && !row(1);
                plain && (input(2).is_none() || self.is_aligned(node, 2, rank).unwrap_or(false))
            }
            "MatMul" => row(0) && !row(1) && first_rank()? >= 2 && self.shape(input(1)?)?.len() == 2,
            "LayerNormalization" | "RMSNormalization" => {
                let axes = [node.int("axis").unwrap_or(-1)];
                row(0) && rest_whole(1) && node.outputs.len() == 1 && other_axis(&axes, rank) && self.vectors(node)?
            }
            "Softmax" => row(0) && other_axis(&[node.int("axis").unwrap_or(-1)], rank),
            "Split" => row(0) && rest_whole(1) && other_axis(&[node.int("axis").unwrap_or(0)], rank),
            "Concat" => (0..node.inputs.len()).all(row) && other_axis(&[node.int("axis")?], rank),
            "Unsqueeze" => row(0) && other_axis(&self.numbers(input(1)?)?, rank),
            "Squeeze" => row(0) && other_axis(&self.numbers(input(1)?)?, first_rank()?),
            "Slice" => row(0) && rest_whole(1) && other_axis(&self.numbers(input(3)?)?, rank),
            "Transpose" => row(0) && node.ints("perm")?.first() == Some(&0),
            "Reshape" => {
                let copies = self.numbers(input(1)?)?.first() == Some(&0);
                row(0) && copies && node.int("allowzero").unwrap_or(0) == 0
            }
            _ => false,
        })
    }

    /// A row value of the same rank, or a whole one that has no extent, or 1, where the rows are.
    fn is_aligned(&self, node: &Node, at: usize, rank: usize) -> Option<bool> {
        let name = node.inputs.get(at)?;
        let shape = self.shape(name)?;
        Some(match self.apart.contains(&name[..]) {
            true => shape.len() == rank,
            false => shape.len() < rank || (shape.len() == rank && shape[0] == Dim::Fixed(1)),
        })
    }

    /// True if scale and bias have no extent where the rows are.
    fn vectors(&self, node: &Node) -> Option<bool> {
        let mut one = true;
        for name in node.inputs.iter().skip(1).filter(|name| !name.is_empty()) {
            one &= self.shape(name)?.len() == 1;
        }
        Some(one)
    }

    fn shape(&self, name: &str) -> Option<&[Dim]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    fn numbers(&self, name: &str) -> Option<Vec<i64>> {
        let constant = self.graph.initializers.get(name).filter(|c| !c.external)?;
        if self.graph.inputs.iter().any(|input| input.name == name) {
            return None;
        }
        match Tensor::from_initializer(constant)?.numbers()? {
            Numbers::Int(numbers) => Some(numbers),
            _ => None,
        }
    }
}
