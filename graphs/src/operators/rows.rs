//! What the rules ask that tell whether an operator keeps rows apart.

use crate::tensor::axis;
use crate::{Attribute, Dim, Node};

/// What is known of values some of which have a row for each timestep.
pub(crate) trait Known {
    /// Rank and numbers hold for any number of rows.
    fn shape(&self, value: &str) -> Option<&[Dim]>;

    /// The elements of a small integer tensor that is the same in every run.
    fn numbers(&self, value: &str) -> Option<Vec<i64>>;

    /// True if each row of the value is decided by its own timestep; false if it is the same for all rows.
    fn is_apart(&self, value: &str) -> bool;
}

/// A node, some of whose inputs are apart and the others the same.
pub(crate) struct Reads<'a> {
    pub(crate) known: &'a dyn Known,
    pub(crate) node: &'a Node,
}

impl Reads<'_> {
    pub(super) fn apart(&self, at: usize) -> bool {
        self.node.inputs.get(at).is_some_and(|name| self.known.is_apart(name))
    }

    pub(crate) fn only_first_apart(&self) -> bool {
        self.apart(0) && (1..self.node.inputs.len()).all(|at| !self.apart(at))
    }

    /// Apart and of this rank, or the same and broadcast over the rows.
    pub(super) fn is_aligned(&self, at: usize, rank: usize) -> Option<bool> {
        let shape = self.shape(at)?;
        Some(match self.apart(at) {
            true => shape.len() == rank,
            false => shape.len() < rank || (shape.len() == rank && shape[0] == Dim::Fixed(1)),
        })
    }

    /// [`Self::is_aligned`] for every input from `from` on.
    pub(crate) fn are_aligned(&self, from: usize, rank: usize) -> bool {
        let mut given = (from..self.node.inputs.len()).filter(|&at| !self.node.inputs[at].is_empty());
        given.all(|at| self.is_aligned(at, rank).unwrap_or(false))
    }

    /// True if the axis that an attribute names is none of the rows', and only the first input has any.
    pub(super) fn is_behind_rows(&self, attribute: &str, default: i64) -> bool {
        self.only_first_apart() && self.behind_rows(self.node.int(attribute).unwrap_or(default), 0)
    }

    /// True for an axis of input `at` behind the rows'.
    pub(super) fn behind_rows(&self, axis: i64, at: usize) -> bool {
        self.are_behind_rows(&[axis], at)
    }

    pub(super) fn are_behind_rows(&self, axes: &[i64], at: usize) -> bool {
        self.rank(at).is_some_and(|rank| axes.iter().all(|&a| axis(a, rank).is_some_and(|a| a > 0)))
    }

    /// The axes, from an input or, as older operator sets had it, from the attribute; `Some(None)` if all are meant,
    /// `None` if they are not known.
    pub(super) fn axes(&self, at: usize) -> Option<Option<Vec<i64>>> {
        let axes = if self.node.has_input(at) {
            self.numbers(at)?
        } else {
            match self.node.attributes.get("axes") {
                None => Vec::new(),
                Some(Attribute::Ints(axes)) => axes.clone(),
                Some(_) => return None,
            }
        };
        let nothing = self.node.int("noop_with_empty_axes").unwrap_or(0) != 0;
        Some((!axes.is_empty() || nothing).then_some(axes))
    }

    pub(super) fn shape(&self, at: usize) -> Option<&[Dim]> {
        self.known.shape(self.node.inputs.get(at)?)
    }

    pub(super) fn rank(&self, at: usize) -> Option<usize> {
        Some(self.shape(at)?.len())
    }

    pub(super) fn numbers(&self, at: usize) -> Option<Vec<i64>> {
        self.known.numbers(self.node.inputs.get(at)?)
    }
}
