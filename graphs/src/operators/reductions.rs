//! Operators that take elements along axes together.

use super::arguments::Args;
use super::entry::{Argument, INT64, IntegerRule, Kind, Operator, RowRule, ShapeRule, known, op};
use super::extents::{axes, number};
use super::rows::Reads;
use crate::Node;
use crate::symbolic::{Facts, Partial};
use crate::tensor::{Numbers, Tensor, axis, broadcast_sources, result_count};

/// A reduction over the axes that its second input or an attribute names.
const fn reduction(name: &'static str) -> Operator {
    let reduced = op(name, 1, 1, 2).arguments(&[(1, Argument::Axis)]).shape(ShapeRule::First(reduce_shape)).narrow();
    reduced.rows(RowRule::By(|reads, _| Some(reads.only_first_apart() && reduce_keeps_rows(reads)?)))
}

/// A reduction that adds or multiplies.
const fn accumulation(name: &'static str) -> Operator {
    reduction(name).kind(Kind::Accumulation)
}

/// The place of the largest or smallest element along an axis.
const fn place(name: &'static str) -> Operator {
    let place = op(name, 1, 1, 1).result(INT64).shape(ShapeRule::First(place_shape));
    place.rows(RowRule::By(|reads, _| Some(reads.is_behind_rows("axis", 0))))
}

pub(super) static OPERATORS: &[Operator] =
    &[
        place("ArgMax"),
        place("ArgMin"),
        known("CumProd", 26).arguments(&[(1, Argument::Axis)]),
        op("CumSum", 11, 2, 2).arguments(&[(1, Argument::Axis)]).integral().shape(ShapeRule::Like(0)).rows(
            RowRule::By(|reads, _| Some(reads.only_first_apart() && reads.are_behind_rows(&reads.numbers(1)?, 0))),
        ),
        accumulation("ReduceL1"),
        accumulation("ReduceL2"),
        accumulation("ReduceLogSum"),
        accumulation("ReduceLogSumExp"),
        reduction("ReduceMax").integral(),
        accumulation("ReduceMean"),
        reduction("ReduceMin").integral(),
        accumulation("ReduceProd")
            .integral()
            .integers(IntegerRule::Evaluated)
            .evaluate(|args| reduce(args, 1, i64::checked_mul)),
        accumulation("ReduceSum")
            .integral()
            .integers(IntegerRule::Evaluated)
            .evaluate(|args| reduce(args, 0, i64::checked_add)),
        accumulation("ReduceSumSquare"),
    ];

fn place_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    let reduced = axis(node.int("axis").unwrap_or(0), shape.len())?;
    Some(without(node, shape, &[reduced]))
}

fn reduce_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    let reduced: Vec<usize> = match axes(facts, node, 1, shape.len())? {
        Some(axes) if !axes.is_empty() => axes,
        _ if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
        _ => (0..shape.len()).collect(),
    };
    Some(without(node, shape, &reduced))
}

/// The shape with the axes reduced to 1, or gone.
fn without(node: &Node, shape: Partial, reduced: &[usize]) -> Partial {
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let kept = shape.into_iter().enumerate().filter_map(|(at, e)| match reduced.contains(&at) {
        true if keep => Some(number(1)),
        true => None,
        false => Some(e),
    });
    kept.collect()
}

fn reduce(args: &Args<'_>, start: i64, with: impl Fn(i64, i64) -> Option<i64>) -> Option<Tensor> {
    let x = args.get(0)?;
    let Numbers::Int(values) = x.numbers()? else { return None };
    let axes = args.axes(1)?.filter(|a| !a.is_empty());
    if axes.is_none() && args.int("noop_with_empty_axes", 0)? != 0 {
        return Some(x.clone());
    }
    let mut reduced = vec![axes.is_none(); x.shape.len()];
    for a in axes.into_iter().flatten() {
        reduced[axis(a, x.shape.len())?] = true;
    }
    let keep = args.int("keepdims", 1)? != 0;
    let ones: Vec<usize> = x.shape.iter().zip(&reduced).map(|(&d, &r)| if r { 1 } else { d }).collect();
    let mut results = vec![start; result_count(&ones, x.dtype)?];
    result_count(&x.shape, x.dtype)?;
    for (&value, &target) in values.iter().zip(&broadcast_sources(&ones, &x.shape)?) {
        let result = results.get_mut(target)?;
        *result = with(*result, value)?;
    }
    let shape = if keep { ones } else { x.shape.iter().zip(&reduced).filter(|(_, r)| !**r).map(|(&d, _)| d).collect() };
    Tensor::from_numbers(x.dtype, shape, &Numbers::Int(results))
}

fn reduce_keeps_rows(reads: &Reads<'_>) -> Option<bool> {
    Some(reads.axes(1)?.is_some_and(|axes| reads.are_behind_rows(&axes, 0)))
}
