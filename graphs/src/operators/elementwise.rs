//! Operators that compute each element of their first input by itself: functions, activations, tests.

use super::arguments::Args;
use super::entry::{BOOL, Buffer, IntegerRule, Kind, MANY, Operator, RowRule, ShapeRule, known, op};
use crate::symbolic::{Expr, Facts, Ints};
use crate::tensor::{Numbers, Tensor};
use crate::{DataType, Node};

/// An operator on each element of the first of so many inputs.
const fn each(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    op(name, since, min, max).kind(Kind::Elementwise).shape(ShapeRule::Like(0)).rows(RowRule::FirstInput)
}

/// A function of one input that has a 16-bit form.
const fn unary(name: &'static str, since: i64) -> Operator {
    each(name, since, 1, 1).narrow()
}

/// A function of one input of which nothing but that is known.
const fn by_rows(name: &'static str, since: i64) -> Operator {
    known(name, since).kind(Kind::Elementwise).rows(RowRule::FirstInput)
}

pub(super) static OPERATORS: &[Operator] = &[
    unary("Abs", 1).integral().buffer(Buffer::InPlace),
    known("Acos", 7),
    known("Acosh", 9),
    known("Asin", 7),
    known("Asinh", 9),
    known("Atan", 7),
    known("Atanh", 9),
    known("BitwiseNot", 18),
    unary("Ceil", 1).integral().buffer(Buffer::InPlace),
    known("Celu", 12),
    each("Clip", 1, 1, 3).integral().same(0, MANY).narrow().buffer(Buffer::InPlace),
    unary("Cos", 7),
    known("Cosh", 9),
    unary("Elu", 1).buffer(Buffer::InPlace),
    unary("Erf", 9),
    unary("Exp", 1).buffer(Buffer::InPlace),
    unary("Floor", 1).integral().buffer(Buffer::InPlace),
    unary("Gelu", 20),
    unary("HardSigmoid", 1).buffer(Buffer::InPlace),
    unary("HardSwish", 14),
    each("IsInf", 10, 1, 1).result(BOOL),
    each("IsNaN", 9, 1, 1).result(BOOL),
    unary("LeakyRelu", 1).buffer(Buffer::InPlace),
    unary("Log", 1).buffer(Buffer::InPlace),
    unary("Mish", 18),
    unary("Neg", 1).integral().buffer(Buffer::InPlace).integers(IntegerRule::By(negated)).evaluate(neg),
    each("Not", 1, 1, 1).result(BOOL).evaluate(not),
    unary("Reciprocal", 1).buffer(Buffer::InPlace),
    unary("Relu", 1).buffer(Buffer::InPlace),
    unary("Round", 11),
    by_rows("Selu", 1),
    known("Shrink", 9),
    unary("Sigmoid", 1).buffer(Buffer::InPlace),
    unary("Sign", 9),
    unary("Sin", 7),
    known("Sinh", 9),
    unary("Softplus", 1).buffer(Buffer::InPlace),
    by_rows("Softsign", 1),
    unary("Sqrt", 1).buffer(Buffer::InPlace),
    known("SwiGLU", 28),
    by_rows("Swish", 24),
    by_rows("Tan", 7),
    unary("Tanh", 1).buffer(Buffer::InPlace),
    by_rows("ThresholdedRelu", 10),
];

fn negated(facts: &mut Facts<'_>, node: &Node, dtype: DataType) -> Option<Ints> {
    let x = facts.ints(node, 0)?.clone();
    let items = x.items.iter().map(|e| Expr::from(0).sub(e)).collect::<Option<_>>()?;
    Ints::new(dtype, x.shape, items)
}

fn neg(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly()?;
    let numbers = match x.numbers()? {
        Numbers::Int(v) => Numbers::Int(v.into_iter().map(i64::checked_neg).collect::<Option<_>>()?),
        Numbers::Float(v) => Numbers::Float(v.into_iter().map(|n| -n).collect()),
        Numbers::Bool(_) => return None,
    };
    Tensor::from_numbers(x.dtype, x.shape.clone(), &numbers)
}

fn not(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly()?;
    let Numbers::Bool(v) = x.numbers()? else { return None };
    Tensor::from_numbers(DataType::Bool, x.shape.clone(), &Numbers::Bool(v.into_iter().map(|b| !b).collect()))
}
