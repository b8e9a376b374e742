//! Operators that join, part, repeat and pad tensors.

use super::arguments::{Args, spread};
use super::entry::{Argument, IntegerRule, Kind, MANY, Operator, Out, RowRule, ShapeRule, known, op};
use super::extents::{broadcast, extents, number, same};
use super::rows::Reads;
use crate::Node;
use crate::symbolic::{Expr, Facts, Partial, Symbols};
use crate::tensor::{self, Tensor, axis, result_count, strides, walk};

/// Ends from here on mean the end of the axis.
const FAR: i64 = i32::MAX as i64;

/// A mover of elements with so many inputs.
const fn moves(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    op(name, since, min, max).kind(Kind::Move)
}

pub(super) static OPERATORS: &[Operator] = &[
    known("CenterCropPad", 18).arguments(&[(1, Argument::Extent)]),
    moves("Concat", 1, 1, MANY)
        .same(0, MANY)
        .required(&["axis"])
        .shape(ShapeRule::First(concat_shape))
        .integers(IntegerRule::Joined)
        .evaluate(concat)
        .rows(RowRule::By(concat_keeps_rows)),
    moves("Expand", 8, 2, 2)
        .arguments(&[(1, Argument::Extent)])
        .shape(ShapeRule::First(expand_shape))
        .integers(IntegerRule::Moved)
        .evaluate(expand)
        .rows(RowRule::By(expand_keeps_rows))
        .idle(),
    moves("Pad", 1, 2, 4)
        .arguments(&[(1, Argument::Step), (3, Argument::Axis)])
        .integral()
        .shape(ShapeRule::First(pad_shape))
        .rows(RowRule::By(|reads, rank| Some(reads.only_first_apart() && pads_no_rows(reads, rank)?))),
    moves("Slice", 1, 3, 5)
        .arguments(&[(1, Argument::Start), (2, Argument::Extent), (3, Argument::Axis), (4, Argument::Step)])
        .shape(ShapeRule::First(slice_shape))
        .integers(IntegerRule::Moved)
        .evaluate(slice)
        .rows(RowRule::By(slice_keeps_rows)),
    moves("Split", 1, 1, 2)
        .arguments(&[(1, Argument::Extent)])
        .outputs(1, MANY)
        .others(Out::Like(0))
        .shape(ShapeRule::Each(|facts, node| split_shapes(facts, node).unwrap_or_default()))
        .rows(RowRule::By(|reads, _| Some(reads.is_behind_rows("axis", 0)))),
    moves("Tile", 1, 2, 2)
        .arguments(&[(1, Argument::Extent)])
        .shape(ShapeRule::First(tile_shape))
        .rows(RowRule::By(|reads, _| Some(reads.only_first_apart() && reads.numbers(1)?.first() == Some(&1))))
        .idle(),
    moves("Trilu", 14, 1, 2).arguments(&[(1, Argument::Start)]).shape(ShapeRule::Like(0)),
];

fn concat_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let parts = (0..node.inputs.len()).map(|i| facts.partial(node, i)).collect::<Option<Vec<_>>>()?;
    let rank = parts.first()?.len();
    let at = axis(node.int("axis")?, rank)?;
    if parts.iter().any(|p| p.len() != rank) {
        return None;
    }
    let extent = |a: usize| {
        let mut extents = parts.iter().map(|p| p[a].clone());
        if a == at { extents.try_fold(Expr::from(0), |sum, e| sum.add(&e?)) } else { same(&mut facts.symbols, extents) }
    };
    Some((0..rank).map(extent).collect())
}

fn concat(args: &Args<'_>) -> Option<Tensor> {
    let parts: Vec<&Tensor> = args.inputs.iter().copied().collect::<Option<_>>()?;
    let first = parts.first()?;
    let at = axis(args.node.int("axis")?, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[at] = 0;
    for part in &parts {
        let same = |a: usize| a == at || part.shape[a] == first.shape[a];
        if part.dtype != first.dtype || part.shape.len() != shape.len() || !(0..shape.len()).all(same) {
            return None;
        }
        shape[at] = shape[at].checked_add(part.shape[at])?;
    }
    if result_count(&shape, first.dtype)? == 0 {
        return first.pick(&[], shape);
    }
    // One after the other in memory, then picked so that the parts alternate along `axis`.
    let inner: usize = shape[at + 1..].iter().product();
    let outer: usize = shape[..at].iter().product();
    let mut starts = Vec::with_capacity(parts.len());
    let mut total = 0;
    for part in &parts {
        starts.push(total);
        total += part.len();
    }
    let mut sources = Vec::with_capacity(total);
    for o in 0..outer {
        for (part, start) in parts.iter().zip(&starts) {
            let block = part.shape[at] * inner;
            sources.extend(start + o * block..start + (o + 1) * block);
        }
    }
    Tensor::chained(&parts, vec![total])?.pick(&sources, shape)
}

fn concat_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let all = (0..reads.node.inputs.len()).all(|at| reads.apart(at) && reads.rank(at) == Some(rank));
    Some(all && reads.behind_rows(reads.node.int("axis")?, 0))
}

fn expand_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (shape, wanted) = (facts.partial(node, 0)?, extents(facts, node, 1)?);
    Some(broadcast(&mut facts.symbols, &shape, &wanted))
}

fn expand(args: &Args<'_>) -> Option<Tensor> {
    let [x, wanted] = args.exactly()?;
    let wanted: Vec<usize> = wanted.indices()?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    spread(x, &tensor::broadcast(&x.shape, &wanted)?)
}

fn expand_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let shape = reads.numbers(1)?;
    let adds_no_row = shape.len() < rank || (shape.len() == rank && shape[0] == 1 && reads.rank(0) == Some(rank));
    Some(reads.only_first_apart() && adds_no_row)
}

fn tile_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (shape, repeats) = (facts.partial(node, 0)?, extents(facts, node, 1)?);
    (shape.len() == repeats.len())
        .then(|| shape.iter().zip(&repeats).map(|(e, n)| e.as_ref()?.mul(n.as_ref()?)).collect())
}

fn split_shapes(facts: &mut Facts<'_>, node: &Node) -> Option<Vec<Option<Partial>>> {
    let shape = facts.partial(node, 0)?;
    let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
    let count = node.outputs.len();
    let sizes: Vec<Option<Expr>> = if node.has_input(1) {
        let sizes = extents(facts, node, 1)?;
        (0..count).map(|i| sizes.get(i).cloned().flatten()).collect()
    } else if let Some(sizes) = node.ints("split") {
        (0..count).map(|i| sizes.get(i).map(|&n| n.into())).collect()
    } else {
        equal_parts(shape[at].as_ref(), count).unwrap_or_else(|| vec![None; count])
    };
    let part = |size: Option<Expr>| {
        let mut part = shape.clone();
        part[at] = size;
        Some(part)
    };
    Some(sizes.into_iter().map(part).collect())
}

/// All equal, but for a smaller last one if a number does not divide.
fn equal_parts(extent: Option<&Expr>, count: usize) -> Option<Vec<Option<Expr>>> {
    let parts = i64::try_from(count).ok()?;
    let Some(whole) = extent?.number() else {
        return Some(vec![Some(extent?.div_exact(&parts.into())?); count]);
    };
    let size = whole.checked_add(parts - 1)?.checked_div(parts)?;
    let last = whole.checked_sub(size.checked_mul(parts - 1)?)?;
    let mut sizes = vec![number(size); count];
    *sizes.last_mut()? = (last >= 0).then(|| last.into());
    Some(sizes)
}

fn slice_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let mut shape = facts.partial(node, 0)?;
    let list = |facts: &Facts<'_>, input: usize| Some(facts.ints(node, input)?.list()?.to_vec());
    let chosen: Vec<usize> = if node.has_input(3) {
        facts.numbers(node, 3)?.into_iter().map(|a| axis(a, shape.len())).collect::<Option<_>>()?
    } else {
        let count = match facts.shape(node, 1)? {
            [n] => usize::try_from(n.number()?).ok()?,
            _ => return None,
        };
        (0..count.min(shape.len())).collect()
    };
    let (starts, ends) = (list(facts, 1), list(facts, 2));
    let steps = if node.has_input(4) { facts.numbers(node, 4) } else { Some(vec![1; chosen.len()]) };
    for (i, &at) in chosen.iter().enumerate() {
        let bound = |bounds: &Option<Vec<Expr>>| bounds.as_ref().and_then(|b| b.get(i)).cloned();
        let step = steps.as_ref().and_then(|s| s.get(i)).copied();
        let length = match (&shape[at], bound(&starts), bound(&ends), step) {
            (Some(extent), Some(start), Some(end), Some(step)) => {
                sliced(&mut facts.symbols, extent, &start, &end, step)
            }
            _ => None,
        };
        shape[at] = length;
    }
    Some(shape)
}

/// The number of elements from `start` to `end`; backwards only for a whole axis.
fn sliced(symbols: &mut Symbols, extent: &Expr, start: &Expr, end: &Expr, step: i64) -> Option<Expr> {
    if step < 0 {
        let whole = (start.number() == Some(-1) || start.number()? >= FAR) && end.number()? <= -FAR;
        return (whole && step == -1).then(|| extent.clone());
    }
    let (start, end) = (bounded(symbols, extent, start)?, bounded(symbols, extent, end)?);
    let span = end.sub(&start)?;
    let span = if symbols.low(&span).is_some_and(|low| low >= 0) {
        span
    } else if symbols.at_least(&start, &end) {
        0.into()
    } else {
        return None;
    };
    symbols.floor_div(&span.add(&step.checked_sub(1)?.into())?, step)
}

/// A bound of a slice, counted from the start and within the axis.
fn bounded(symbols: &mut Symbols, extent: &Expr, bound: &Expr) -> Option<Expr> {
    match bound.number() {
        Some(n) if n >= FAR => return Some(extent.clone()),
        Some(n) if n <= -FAR => return Some(0.into()),
        Some(n) if n < 0 => {
            let from_end = extent.add(&n.into())?;
            return symbols.larger(&from_end, &0.into());
        }
        _ => {}
    }
    symbols.low(bound).filter(|low| *low >= 0)?;
    symbols.smaller(bound, extent)
}

fn slice(args: &Args<'_>) -> Option<Tensor> {
    let (x, starts, ends) = (args.get(0)?, args.get(1)?.indices()?, args.get(2)?.indices()?);
    let n = starts.len();
    let axes = args.get(3).map_or_else(|| Some((0..n as i64).collect()), Tensor::indices)?;
    let steps = args.get(4).map_or_else(|| Some(vec![1; n]), Tensor::indices)?;
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return None;
    }
    let (mut shape, mut strides, mut offset) = (x.shape.clone(), strides(&x.shape), 0i64);
    let mut seen = vec![false; shape.len()];
    for i in 0..n {
        let at = axis(axes[i], shape.len())?;
        if std::mem::replace(&mut seen[at], true) {
            return None;
        }
        let extent = i64::try_from(x.shape[at]).ok()?;
        let step = steps[i];
        let wrap = |v: i64| if v < 0 { v.saturating_add(extent) } else { v };
        let (low, high) = if step > 0 { (0, extent) } else { (-1, extent - 1) };
        let start = wrap(starts[i]).clamp(low.max(0), high.max(0));
        let end = wrap(ends[i]).clamp(low, high.max(low));
        let span = if step > 0 { end - start } else { start - end };
        let step_size = step.checked_abs().filter(|&s| s > 0)?;
        shape[at] = if span <= 0 || extent == 0 { 0 } else { usize::try_from((span - 1) / step_size + 1).ok()? };
        offset = offset.checked_add(start.checked_mul(strides[at])?)?;
        strides[at] = strides[at].checked_mul(step)?;
    }
    result_count(&shape, x.dtype)?;
    x.pick(&walk(&shape, &strides, offset)?, shape)
}

fn slice_keeps_rows(reads: &Reads<'_>, _: usize) -> Option<bool> {
    let node = reads.node;
    let axes = if node.inputs.len() > 1 { reads.numbers(3)? } else { node.ints("axes")?.to_vec() };
    Some(reads.only_first_apart() && reads.are_behind_rows(&axes, 0))
}

fn pad_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let mut shape = facts.partial(node, 0)?;
    let open = Some(vec![None; shape.len()]);
    let pads = if node.has_input(1) { facts.numbers(node, 1) } else { node.ints("pads").map(<[i64]>::to_vec) };
    let axes: Option<Vec<usize>> = if node.has_input(3) {
        facts.numbers(node, 3).and_then(|axes| axes.into_iter().map(|a| axis(a, shape.len())).collect())
    } else {
        Some((0..shape.len()).collect())
    };
    let (Some(pads), Some(axes)) = (pads, axes) else { return open };
    if pads.len() != 2 * axes.len() {
        return open;
    }
    for (i, &at) in axes.iter().enumerate() {
        let total = pads[i].checked_add(pads[i + axes.len()]);
        shape[at] = shape[at].as_ref().and_then(|e| e.add(&total?.into()));
    }
    Some(shape)
}

/// True if a Pad adds nothing along the first axis.
fn pads_no_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let pads = reads.numbers(1)?;
    let axes = match reads.node.has_input(3) {
        true => reads.numbers(3)?,
        false => (0..i64::try_from(rank).ok()?).collect(),
    };
    let along = |at: usize| axis(axes[at], rank).is_none_or(|a| a == 0);
    let none = |at: usize| !along(at) || (pads[at] == 0 && pads[at + axes.len()] == 0);
    Some(pads.len() == 2 * axes.len() && (0..axes.len()).all(none))
}
