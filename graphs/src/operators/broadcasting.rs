//! Operators on each element of several inputs that broadcast: arithmetic, comparison, logic, choice.

use std::cmp::Ordering;

use super::arguments::{Args, pair, spread, zip};
use super::entry::{Argument, BOOL, Buffer, IntegerRule, Kind, MANY, Operator, Out, RowRule, ShapeRule, known, op};
use crate::symbolic::{Expr, Symbols};
use crate::tensor::{Numbers, Tensor, broadcast};
use crate::{DataType, Node};

/// An operator on so many inputs that broadcast to one shape.
const fn broadcasting(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    let shared = op(name, since, min, max).kind(Kind::Elementwise).same(0, MANY);
    shared.shape(ShapeRule::Broadcast).rows(RowRule::Aligned)
}

/// Arithmetic of two operands.
const fn arithmetic(name: &'static str) -> Operator {
    broadcasting(name, 1, 2, 2).narrow()
}

/// A truth about two operands.
const fn truth(name: &'static str, since: i64) -> Operator {
    broadcasting(name, since, 2, 2).result(BOOL)
}

pub(super) static OPERATORS: &[Operator] = &[
    arithmetic("Add")
        .integral()
        .buffer(Buffer::InPlace)
        .natural()
        .integers(IntegerRule::Folded(|_, _, a, b| a.add(b)))
        .evaluate(|args| computed(args, i64::checked_add, |a, b| Some(a + b))),
    truth("And", 1).evaluate(|args| logic(args, |a, b| a && b)),
    known("BitShift", 11).arguments(&[(1, Argument::Step)]),
    known("BitwiseAnd", 18),
    known("BitwiseOr", 18),
    known("BitwiseXor", 18),
    arithmetic("Div")
        .arguments(&[(1, Argument::Divisor)])
        .integral()
        .buffer(Buffer::InPlace)
        .natural()
        .integers(IntegerRule::Folded(quotient))
        .evaluate(|args| computed(args, i64::checked_div, |a, b| (b != 0.0).then(|| a / b))),
    truth("Equal", 1).evaluate(equal),
    truth("Greater", 1).evaluate(|args| compare(args, Ordering::is_gt)),
    truth("GreaterOrEqual", 12).evaluate(|args| compare(args, Ordering::is_ge)),
    truth("Less", 1).evaluate(|args| compare(args, Ordering::is_lt)),
    truth("LessOrEqual", 12).evaluate(|args| compare(args, Ordering::is_le)),
    broadcasting("Max", 1, 1, MANY)
        .integral()
        .narrow()
        .natural()
        .integers(IntegerRule::Folded(|symbols, _, a, b| symbols.larger(a, b)))
        .evaluate(|args| extremum(args, true)),
    broadcasting("Mean", 1, 1, MANY).integral().narrow(),
    broadcasting("Min", 1, 1, MANY)
        .integral()
        .narrow()
        .integers(IntegerRule::Folded(|symbols, _, a, b| symbols.smaller(a, b)))
        .evaluate(|args| extremum(args, false)),
    broadcasting("Mod", 10, 2, 2)
        .arguments(&[(1, Argument::Divisor)])
        .integral()
        .integers(IntegerRule::Folded(remainder))
        .evaluate(modulo),
    arithmetic("Mul")
        .integral()
        .buffer(Buffer::InPlace)
        .natural()
        .integers(IntegerRule::Folded(|_, _, a, b| a.mul(b)))
        .evaluate(|args| computed(args, i64::checked_mul, |a, b| Some(a * b))),
    truth("Or", 1).evaluate(|args| logic(args, |a, b| a || b)),
    arithmetic("PRelu").shape(ShapeRule::Like(0)),
    // The exponent may be of another type.
    arithmetic("Pow").same(0, 0),
    arithmetic("Sub")
        .integral()
        .buffer(Buffer::InPlace)
        .integers(IntegerRule::Folded(|_, _, a, b| a.sub(b)))
        .evaluate(|args| computed(args, i64::checked_sub, |a, b| Some(a - b))),
    broadcasting("Sum", 1, 1, MANY).narrow(),
    broadcasting("Where", 9, 3, 3).integral().kind(Kind::Move).same(1, 3).result(Out::Like(1)).evaluate(select),
    truth("Xor", 1),
];

/// ONNX rounds towards zero: the same as down only if nothing is negative.
fn quotient(symbols: &mut Symbols, _: &Node, a: &Expr, b: &Expr) -> Option<Expr> {
    match a.div_exact(b) {
        Some(quotient) => Some(quotient),
        None if symbols.low(a)? >= 0 => symbols.floor_div(a, b.number()?),
        None => None,
    }
}

fn remainder(symbols: &mut Symbols, node: &Node, a: &Expr, b: &Expr) -> Option<Expr> {
    if node.int("fmod").unwrap_or(0) == 0 { symbols.modulo(a, b.number()?) } else { None }
}

fn computed(
    args: &Args<'_>,
    int: impl Fn(i64, i64) -> Option<i64>,
    float: impl Fn(f32, f32) -> Option<f32>,
) -> Option<Tensor> {
    let (dtype, shape, x, y) = args.pair()?;
    let numbers = match (x, y) {
        (Numbers::Int(x), Numbers::Int(y)) => Numbers::Int(zip(&x, &y, int)?),
        (Numbers::Float(x), Numbers::Float(y)) => Numbers::Float(zip(&x, &y, float)?),
        _ => return None,
    };
    Tensor::from_numbers(dtype, shape, &numbers)
}

/// With the sign of the divisor, unless `fmod` asks for that of the dividend.
fn modulo(args: &Args<'_>) -> Option<Tensor> {
    let c_modulo = args.int("fmod", 0)? != 0;
    let int = |a: i64, b: i64| {
        let rest = a.checked_rem(b)?;
        Some(if !c_modulo && rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
    };
    computed(args, int, |_, _| None)
}

fn equal(args: &Args<'_>) -> Option<Tensor> {
    let (_, shape, x, y) = args.pair()?;
    let result = match (x, y) {
        (Numbers::Int(x), Numbers::Int(y)) => zip(&x, &y, |a, b| Some(a == b)),
        (Numbers::Float(x), Numbers::Float(y)) => zip(&x, &y, |a, b| Some(a == b)),
        (Numbers::Bool(x), Numbers::Bool(y)) => zip(&x, &y, |a, b| Some(a == b)),
        _ => None,
    }?;
    Tensor::from_numbers(DataType::Bool, shape, &Numbers::Bool(result))
}

/// NaN compares with nothing.
fn compare(args: &Args<'_>, holds: impl Fn(Ordering) -> bool) -> Option<Tensor> {
    let (_, shape, x, y) = args.pair()?;
    let holds = |order: Option<Ordering>| Some(order.is_some_and(&holds));
    let result = match (x, y) {
        (Numbers::Int(x), Numbers::Int(y)) => zip(&x, &y, |a, b| holds(a.partial_cmp(&b))),
        (Numbers::Float(x), Numbers::Float(y)) => zip(&x, &y, |a, b| holds(a.partial_cmp(&b))),
        _ => None,
    }?;
    Tensor::from_numbers(DataType::Bool, shape, &Numbers::Bool(result))
}

fn logic(args: &Args<'_>, of: impl Fn(bool, bool) -> bool) -> Option<Tensor> {
    let (_, shape, x, y) = args.pair()?;
    let (Numbers::Bool(x), Numbers::Bool(y)) = (x, y) else { return None };
    let result = zip(&x, &y, |a, b| Some(of(a, b)))?;
    Tensor::from_numbers(DataType::Bool, shape, &Numbers::Bool(result))
}

fn extremum(args: &Args<'_>, max: bool) -> Option<Tensor> {
    let mut inputs = args.inputs.iter().copied();
    let mut best = inputs.next()??.clone();
    for next in inputs {
        let (dtype, shape, x, y) = pair(&best, next?)?;
        let numbers = match (x, y) {
            (Numbers::Int(x), Numbers::Int(y)) => {
                Numbers::Int(zip(&x, &y, |a, b| Some(if max { a.max(b) } else { a.min(b) }))?)
            }
            (Numbers::Float(x), Numbers::Float(y)) => Numbers::Float(zip(&x, &y, |a, b| float_extremum(a, b, max))?),
            _ => return None,
        };
        best = Tensor::from_numbers(dtype, shape, &numbers)?;
    }
    Some(best)
}

/// `None` for NaN and for zeros of different sign, which backends order differently.
fn float_extremum(a: f32, b: f32, max: bool) -> Option<f32> {
    match a.partial_cmp(&b)? {
        Ordering::Equal => (a.to_bits() == b.to_bits()).then_some(a),
        Ordering::Less => Some(if max { b } else { a }),
        Ordering::Greater => Some(if max { a } else { b }),
    }
}

fn select(args: &Args<'_>) -> Option<Tensor> {
    let [condition, x, y] = args.exactly()?;
    if x.dtype != y.dtype {
        return None;
    }
    let shape = broadcast(&broadcast(&condition.shape, &x.shape)?, &y.shape)?;
    let Numbers::Bool(chosen) = spread(condition, &shape)?.numbers()? else { return None };
    let (x, y) = (spread(x, &shape)?, spread(y, &shape)?);
    let both = Tensor::chained(&[&x, &y], vec![x.len() + y.len()])?;
    let sources: Vec<usize> = chosen.iter().enumerate().map(|(i, &c)| if c { i } else { x.len() + i }).collect();
    both.pick(&sources, shape)
}
