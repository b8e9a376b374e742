//! What an entry of the table says of an operator.

use super::arguments::Args;
use super::rows::Reads;
use crate::symbolic::{Expr, Facts, Ints, Partial, Symbols};
use crate::tensor::Tensor;
use crate::{DataType, Node};

/// An operator, and what is known of it. What an entry does not say is not known, and nothing is then done with the
/// operator.
#[derive(Clone, Copy)]
pub(crate) struct Operator {
    pub(crate) name: &'static str,
    /// `""` is ONNX's own.
    pub(crate) domain: &'static str,
    /// The operator set of its domain in which it came.
    pub(crate) since: i64,
    pub(crate) kind: Kind,
    /// How it may be called, from operator set 13 on.
    pub(crate) signature: Option<Signature>,
    /// Element type of the first output.
    pub(crate) result: Out,
    /// Element type of every further output.
    pub(crate) others: Out,
    pub(crate) shape: ShapeRule,
    pub(crate) integers: IntegerRule,
    /// What inputs are for whose values are more than numbers to compute with, in the order of the inputs.
    pub(crate) arguments: &'static [(usize, Argument)],
    /// Of integers it makes integers of a similar size.
    pub(crate) integral: bool,
    /// Of integers that are not below zero, it makes only such.
    pub(crate) natural: bool,
    /// Its value over constants; `None` if in doubt.
    pub(crate) evaluate: Option<fn(&Args<'_>) -> Option<Tensor>>,
    pub(crate) rows: RowRule,
    /// It has a 16-bit form that is the same function of its inputs.
    pub(crate) has_narrow_form: bool,
    /// Inputs from this one on are float32 whatever the type of the node.
    pub(crate) float32_from: usize,
    pub(crate) buffer: Buffer,
    /// The first inputs that it holds once more while it runs, where they have three extents.
    pub(crate) copies: usize,
    /// It only repeats or renames what it reads, or counts: its result is never worth keeping.
    pub(crate) is_idle: bool,
    pub(crate) random: Random,
    /// What number of extents an input must have, in words, if a weight of so many does not fit.
    pub(crate) weight_rank: fn(usize, usize) -> Option<&'static str>,
}

/// What an operator does, as far as a pass asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every element of the result is one of the inputs'.
    Move,
    /// A [`Kind::Move`] that looks up elements or slices of its first input.
    Lookup,
    /// It looks at extents alone and takes any type as it comes.
    Extents,
    /// It makes what its attributes say.
    Constant,
    /// It changes the element type.
    Convert,
    /// It computes each element by itself, of inputs that may broadcast.
    Elementwise,
    /// A product whose second input is a layer's weight.
    Layer,
    /// Another product of its inputs.
    Product,
    /// It accumulates over axes.
    Accumulation,
    /// It divides by statistics of what it reads.
    Normalization,
    /// It runs the graphs in its attributes.
    Control,
    /// Anything else.
    Other,
}

/// What the values of an input are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Numbers of axes.
    Axis,
    /// Where something begins.
    Start,
    /// A stride, a distance, or a number of places.
    Step,
    /// An extent or a count, with which a result grows.
    Extent,
    /// Factors of extents, the last two of which count.
    Factor,
    /// What is divided by.
    Divisor,
    /// Places in the first input.
    Row,
}

/// How an operator may be called.
#[derive(Clone, Copy)]
pub(crate) struct Signature {
    /// Fewest and most inputs.
    pub(crate) inputs: (usize, usize),
    /// How many of the first inputs may be left out by an empty name.
    pub(crate) optional: usize,
    /// Fewest and most outputs.
    pub(crate) outputs: (usize, usize),
    /// Attributes that must be there.
    pub(crate) required: &'static [&'static str],
    /// The inputs from the first number up to the second that must agree in type.
    pub(crate) same: (usize, usize),
}

/// Element type of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    /// That of an input.
    Like(usize),
    /// Always this one.
    Is(DataType),
    /// The one that attribute `to` names.
    To,
    /// That of a constant in the attributes; this one if there is none.
    Constant(Option<DataType>),
    /// Not known here.
    Open,
}

/// The shapes of the outputs.
#[derive(Clone, Copy)]
pub(crate) enum ShapeRule {
    /// Not known here.
    Open,
    /// The first output has the shape of this input.
    Like(usize),
    /// The first output has the shape that all inputs broadcast to.
    Broadcast,
    /// That of the first output; `None` where even the rank is unknown.
    First(fn(&mut Facts<'_>, &Node) -> Option<Partial>),
    /// Those of all outputs in order.
    Each(fn(&mut Facts<'_>, &Node) -> Vec<Option<Partial>>),
    /// What the branches agree on.
    Branches,
}

/// What the operator makes of small integers that are expressions.
#[derive(Clone, Copy)]
pub(crate) enum IntegerRule {
    Unknown,
    /// Elements of the first input, as its evaluation says.
    Moved,
    /// Elements of all inputs, as its evaluation says.
    Joined,
    /// One of all inputs, pair by pair, each of two elements that broadcast.
    Folded(fn(&mut Symbols, &Node, &Expr, &Expr) -> Option<Expr>),
    /// What its evaluation gives if all are numbers.
    Evaluated,
    By(fn(&mut Facts<'_>, &Node, DataType) -> Option<Ints>),
}

/// What keeps the rows of the first axis apart: each row of the outputs depends on the same row of the inputs.
#[derive(Clone, Copy)]
pub(crate) enum RowRule {
    /// Nothing is proven.
    Mixed,
    /// Each row is by itself; inputs but the first have no rows.
    FirstInput,
    /// Inputs broadcast to the rows.
    Aligned,
    /// True if a run on one row gives this row of a run on all of them. It is given the rank of the first output.
    By(fn(&Reads<'_>, usize) -> Option<bool>),
}

/// Where ONNX Runtime puts the first output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffer {
    /// In memory of its own.
    Own,
    /// Where the first input lies.
    View,
    /// In place of an input of the same type and shape that nothing else reads.
    InPlace,
}

/// Whether the operator may give another result each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Random {
    Never,
    Always,
    /// If it has this input.
    WithInput(usize),
}

pub(super) const MANY: usize = usize::MAX;
pub(super) const BOOL: Out = Out::Is(DataType::Bool);
pub(super) const INT64: Out = Out::Is(DataType::Int64);
const NONE: (usize, usize) = (0, 0);

/// An operator of ONNX's own of which only its first operator set is known.
pub(super) const fn known(name: &'static str, since: i64) -> Operator {
    Operator {
        name,
        domain: "",
        since,
        kind: Kind::Other,
        signature: None,
        result: Out::Open,
        others: Out::Open,
        shape: ShapeRule::Open,
        integers: IntegerRule::Unknown,
        arguments: &[],
        integral: false,
        natural: false,
        evaluate: None,
        rows: RowRule::Mixed,
        has_narrow_form: false,
        float32_from: usize::MAX,
        buffer: Buffer::Own,
        copies: 0,
        is_idle: false,
        random: Random::Never,
        weight_rank: |_, _| None,
    }
}

/// An operator of ONNX's own with so many inputs and one output of the first input's type.
pub(super) const fn op(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    let signature = Signature { inputs: (min, max), optional: 0, outputs: (1, 1), required: &[], same: NONE };
    Operator { signature: Some(signature), result: Out::Like(0), ..known(name, since) }
}

impl Operator {
    /// The signature, to be changed.
    const fn called(&self) -> Signature {
        match self.signature {
            Some(signature) => signature,
            None => Signature { inputs: (0, MANY), optional: 0, outputs: (1, MANY), required: &[], same: NONE },
        }
    }

    pub(super) const fn outputs(self, min: usize, max: usize) -> Self {
        Self { signature: Some(Signature { outputs: (min, max), ..self.called() }), ..self }
    }

    pub(super) const fn optional(self, optional: usize) -> Self {
        Self { signature: Some(Signature { optional, ..self.called() }), ..self }
    }

    pub(super) const fn required(self, required: &'static [&'static str]) -> Self {
        Self { signature: Some(Signature { required, ..self.called() }), ..self }
    }

    /// Inputs from `from` up to `to` must agree in type.
    pub(super) const fn same(self, from: usize, to: usize) -> Self {
        Self { signature: Some(Signature { same: (from, to), ..self.called() }), ..self }
    }

    pub(super) const fn domain(self, domain: &'static str) -> Self {
        Self { domain, ..self }
    }

    pub(super) const fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub(super) const fn result(self, result: Out) -> Self {
        Self { result, ..self }
    }

    pub(super) const fn others(self, others: Out) -> Self {
        Self { others, ..self }
    }

    pub(super) const fn shape(self, shape: ShapeRule) -> Self {
        Self { shape, ..self }
    }

    pub(super) const fn integers(self, integers: IntegerRule) -> Self {
        Self { integers, ..self }
    }

    pub(super) const fn arguments(self, arguments: &'static [(usize, Argument)]) -> Self {
        Self { arguments, ..self }
    }

    pub(super) const fn integral(self) -> Self {
        Self { integral: true, ..self }
    }

    pub(super) const fn natural(self) -> Self {
        Self { natural: true, ..self }
    }

    pub(super) const fn evaluate(self, evaluate: fn(&Args<'_>) -> Option<Tensor>) -> Self {
        Self { evaluate: Some(evaluate), ..self }
    }

    pub(super) const fn rows(self, rows: RowRule) -> Self {
        Self { rows, ..self }
    }

    pub(super) const fn narrow(self) -> Self {
        Self { has_narrow_form: true, ..self }
    }

    pub(super) const fn float32_from(self, input: usize) -> Self {
        Self { float32_from: input, ..self }
    }

    pub(super) const fn buffer(self, buffer: Buffer) -> Self {
        Self { buffer, ..self }
    }

    pub(super) const fn copies(self, inputs: usize) -> Self {
        Self { copies: inputs, ..self }
    }

    pub(super) const fn idle(self) -> Self {
        Self { is_idle: true, ..self }
    }

    pub(super) const fn random(self, random: Random) -> Self {
        Self { random, ..self }
    }

    pub(super) const fn weight_rank(self, check: fn(usize, usize) -> Option<&'static str>) -> Self {
        Self { weight_rank: check, ..self }
    }

    /// True if every element of the result is one of the inputs'.
    pub(crate) const fn is_move(&self) -> bool {
        matches!(self.kind, Kind::Move | Kind::Lookup)
    }

    /// True if it computes no number of its own: it moves, converts, asks for extents, or runs other graphs.
    pub(crate) const fn computes_nothing(&self) -> bool {
        self.is_move() || matches!(self.kind, Kind::Extents | Kind::Constant | Kind::Convert | Kind::Control)
    }
}
