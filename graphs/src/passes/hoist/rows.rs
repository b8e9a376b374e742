//! Which values have a row for each timestep that nothing but this timestep decides.
//!
//! What a value has to do with the rows is one of three facts. *Same*: neither its elements nor its extents depend on the
//! rows or on how many there are. *Apart*: its first extent is the number of rows, its other extents depend on no row, and
//! each row depends on the same row of the inputs and on values that are the same. *Mixed*: anything else, and everything of
//! which nothing is proven. A graph of values that are same or apart gives row by row, one row at a time, what it gives for
//! all rows at once.
//!
//! Shapes are asked for ranks and numbers only. These hold for any number of rows, since they are inferred from what comes
//! before; that two extents have one name does not, where a setting is as long as there are rows.

use std::collections::HashMap;

use super::{Kinds, TIME};
use crate::passes::infer_shapes::constant_values;
use crate::passes::tensor::{Tensor, axis};
use crate::passes::walk::{bodies, is_onnx};
use crate::{Attribute, Dim, Graph, Node};

/// Operators that work element by element on their first input.
const UNARY: [&str; 35] = [
    "Abs",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
];
/// Operators that work element by element on what they broadcast.
const BROADCAST: [&str; 20] = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
];
/// Operators that take the axes in [`Node::inputs`]'s second place together.
const REDUCE: [&str; 10] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

/// What is proven of a value; mixed ones have no fact.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fact {
    Same,
    Apart,
}

/// Marks the nodes that timesteps decide and whose outputs are all apart, where `rows` are the inputs with a row for each
/// timestep and `lead` is their extent.
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

fn product(mut extents: impl Iterator<Item = Option<usize>>) -> Option<usize> {
    extents.try_fold(1usize, |product, extent| product.checked_mul(extent?))
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
        let known = is_onnx(node) && bodies(node).next().is_none() && outputs.all(|output| self.has_rows_first(output));
        let reads = Reads { proof: self, node };
        (known && reads.keeps_rows_apart().unwrap_or(false)).then_some(Fact::Apart)
    }

    /// False for a value that no row decides, but that has as many elements along an axis as there are rows: a stage that is
    /// given one row would not fit it.
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

    fn shape(&self, value: &str) -> Option<&[Dim]> {
        self.shapes.get(value).map(Vec::as_slice)
    }

    /// The elements of a small integer tensor that is the same in every run.
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
}

/// A node, some of whose inputs are apart and the others the same.
struct Reads<'a> {
    proof: &'a Proof<'a>,
    node: &'a Node,
}

impl Reads<'_> {
    /// True if the outputs are apart. Each rule shows that a run on one row gives this row of a run on all of them.
    fn keeps_rows_apart(&self) -> Option<bool> {
        let op = &self.node.op_type[..];
        let rank = self.proof.shape(self.node.outputs.first()?)?.len();
        Some(match op {
            "Dropout" => self.only_first_apart(),
            op if UNARY.contains(&op) => self.only_first_apart(),
            op if BROADCAST.contains(&op) => self.are_aligned(0, rank),
            op if REDUCE.contains(&op) => {
                self.only_first_apart() && self.axes(1)?.is_some_and(|axes| self.are_behind_rows(&axes, 0))
            }
            "ArgMax" | "ArgMin" => self.is_behind_rows("axis", 0),
            "Softmax" | "LogSoftmax" | "Hardmax" => self.is_behind_rows("axis", -1),
            "MatMul" => self.matmul()?,
            "Gemm" => {
                let plain = self.node.int("transA").unwrap_or(0) == 0 && self.apart(0) && !self.apart(1);
                plain && self.are_aligned(2, rank)
            }
            "LayerNormalization" | "RMSNormalization" => {
                self.apart(0) && self.behind_rows(self.node.int("axis").unwrap_or(-1), 0) && self.are_aligned(1, rank)
            }
            // Each sample by itself; those of a batch norm by what was found in training.
            "GroupNormalization" | "InstanceNormalization" => self.only_first_apart() && rank >= 2,
            "BatchNormalization" => {
                self.only_first_apart() && rank >= 2 && self.node.int("training_mode").unwrap_or(0) == 0
            }
            "Conv" => self.only_first_apart() && rank >= 3,
            _ => self.moves(rank)?,
        })
    }

    /// The operators that only move elements.
    fn moves(&self, rank: usize) -> Option<bool> {
        let node = self.node;
        let first = self.only_first_apart();
        Some(match &node.op_type[..] {
            "Concat" => {
                let all = (0..node.inputs.len()).all(|at| self.apart(at) && self.rank(at) == Some(rank));
                all && self.behind_rows(node.int("axis")?, 0)
            }
            "Split" => self.is_behind_rows("axis", 0),
            "CumSum" => first && self.are_behind_rows(&self.numbers(1)?, 0),
            "Slice" => {
                let axes = if node.inputs.len() > 1 { self.numbers(3)? } else { node.ints("axes")?.to_vec() };
                first && self.are_behind_rows(&axes, 0)
            }
            // In the order of the result's axes.
            "Unsqueeze" => first && self.axes(1)??.iter().all(|&a| axis(a, rank).is_some_and(|a| a > 0)),
            "Squeeze" => first && self.are_behind_rows(&self.axes(1)??, 0),
            "Transpose" => match node.ints("perm") {
                Some(perm) => first && perm.first() == Some(&0),
                None => first && rank == 1,
            },
            // Behind the last axis it would be a column for each row: another one than the first.
            "Flatten" => {
                first && matches!(node.int("axis").unwrap_or(1), a if a == 1 || axis(a, self.rank(0)?) == Some(1))
            }
            "Reshape" => first && self.reshapes_rows()?,
            "Expand" => {
                let shape = self.numbers(1)?;
                first && (shape.len() < rank || (shape.len() == rank && shape[0] == 1 && self.rank(0) == Some(rank)))
            }
            "Tile" => first && self.numbers(1)?.first() == Some(&1),
            "Pad" => first && self.pads_no_rows(rank)?,
            // Rows of a table, one for each index; or columns of rows.
            "Gather" => match (self.apart(0), self.apart(1)) {
                (false, true) => axis(node.int("axis").unwrap_or(0), self.rank(0)?) == Some(0),
                (true, false) => self.behind_rows(node.int("axis").unwrap_or(0), 0),
                _ => false,
            },
            "GatherElements" => {
                let all = self.apart(0) && self.apart(1) && self.rank(0)? == self.rank(1)?;
                all && self.behind_rows(node.int("axis").unwrap_or(0), 0)
            }
            _ => false,
        })
    }

    /// The rows must not be what is summed over, and must lie along the first axis of the product.
    fn matmul(&self) -> Option<bool> {
        let (a, b) = (self.rank(0)?, self.rank(1)?);
        Some(match (self.apart(0), self.apart(1)) {
            // Matrices of each row, and those of the other, one for each row or the same for all.
            (true, true) => a == b && a >= 3,
            (true, false) if a == 2 => b <= 2,
            (true, false) => a >= 3 && self.is_aligned(1, a)?,
            (false, true) => b >= 3 && self.is_aligned(0, b)?,
            (false, false) => false,
        })
    }

    /// True if a Reshape copies the rows' extent, or infers it from rows of a length that does not change.
    fn reshapes_rows(&self) -> Option<bool> {
        let target = self.numbers(1)?;
        let copies = self.node.int("allowzero").unwrap_or(0) == 0;
        let shape = self.proof.shape(&self.node.inputs[0])?;
        match target.split_first()? {
            (0, _) => Some(copies),
            (-1, rest) => {
                let fixed = |dim: &Dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None };
                let wanted = |(at, &n): (usize, &i64)| match n {
                    0 if copies => fixed(shape.get(at + 1)?),
                    n => usize::try_from(n).ok(),
                };
                let row = product(shape[1..].iter().map(fixed))?;
                Some(row > 0 && product(rest.iter().enumerate().map(wanted))? == row)
            }
            _ => Some(false),
        }
    }

    /// True if a Pad adds nothing along the first axis.
    fn pads_no_rows(&self, rank: usize) -> Option<bool> {
        let pads = self.numbers(1)?;
        let axes = match self.node.inputs.get(3).filter(|name| !name.is_empty()) {
            Some(_) => self.numbers(3)?,
            None => (0..i64::try_from(rank).ok()?).collect(),
        };
        let along = |at: usize| axis(axes[at], rank).is_none_or(|a| a == 0);
        let none = |at: usize| !along(at) || (pads[at] == 0 && pads[at + axes.len()] == 0);
        Some(pads.len() == 2 * axes.len() && (0..axes.len()).all(none))
    }

    fn apart(&self, at: usize) -> bool {
        let name = self.node.inputs.get(at);
        name.is_some_and(|name| self.proof.facts.get(&name[..]) == Some(&Fact::Apart))
    }

    fn only_first_apart(&self) -> bool {
        self.apart(0) && (1..self.node.inputs.len()).all(|at| !self.apart(at))
    }

    /// Apart and of this rank, or the same and broadcast over the rows.
    fn is_aligned(&self, at: usize, rank: usize) -> Option<bool> {
        let shape = self.proof.shape(&self.node.inputs[at])?;
        Some(match self.apart(at) {
            true => shape.len() == rank,
            false => shape.len() < rank || (shape.len() == rank && shape[0] == Dim::Fixed(1)),
        })
    }

    /// [`Self::is_aligned`] for every input from `from` on.
    fn are_aligned(&self, from: usize, rank: usize) -> bool {
        let mut given = (from..self.node.inputs.len()).filter(|&at| !self.node.inputs[at].is_empty());
        given.all(|at| self.is_aligned(at, rank).unwrap_or(false))
    }

    /// True if the axis that an attribute names is none of the rows', and only the first input has any.
    fn is_behind_rows(&self, attribute: &str, default: i64) -> bool {
        self.only_first_apart() && self.behind_rows(self.node.int(attribute).unwrap_or(default), 0)
    }

    /// True for an axis of input `at` behind the rows'.
    fn behind_rows(&self, axis: i64, at: usize) -> bool {
        self.are_behind_rows(&[axis], at)
    }

    fn are_behind_rows(&self, axes: &[i64], at: usize) -> bool {
        self.rank(at).is_some_and(|rank| axes.iter().all(|&a| axis(a, rank).is_some_and(|a| a > 0)))
    }

    /// The axes, from an input or, as older operator sets had it, from the attribute; `Some(None)` if all are meant, `None` if
    /// they are not known.
    fn axes(&self, at: usize) -> Option<Option<Vec<i64>>> {
        let axes = match self.node.inputs.get(at).filter(|name| !name.is_empty()) {
            Some(_) => self.numbers(at)?,
            None => match self.node.attributes.get("axes") {
                None => Vec::new(),
                Some(Attribute::Ints(axes)) => axes.clone(),
                Some(_) => return None,
            },
        };
        let nothing = self.node.int("noop_with_empty_axes").unwrap_or(0) != 0;
        Some((!axes.is_empty() || nothing).then_some(axes))
    }

    fn rank(&self, at: usize) -> Option<usize> {
        Some(self.proof.shape(self.node.inputs.get(at)?)?.len())
    }

    fn numbers(&self, at: usize) -> Option<Vec<i64>> {
        self.proof.numbers(self.node.inputs.get(at)?)
    }
}
