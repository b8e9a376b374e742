//! Operators that arrange the elements of one input anew: shapes, axes, orders.

use super::arguments::Args;
use super::entry::{Argument, Buffer, IntegerRule, Kind, Operator, RowRule, ShapeRule, known, op};
use super::extents::{axes, extents, number};
use super::rows::Reads;
use crate::symbolic::{Expr, Facts, Partial};
use crate::tensor::{Tensor, axis, result_count, strides, walk};
use crate::{Attribute, Dim, Node};

/// A mover of elements with so many inputs.
const fn moves(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    op(name, since, min, max).kind(Kind::Move)
}

pub(super) static OPERATORS: &[Operator] = &[
    moves("DepthToSpace", 1, 1, 1).required(&["blocksize"]),
    moves("Flatten", 1, 1, 1)
        .shape(ShapeRule::First(flatten_shape))
        .rows(RowRule::By(flatten_keeps_rows))
        .buffer(Buffer::View),
    moves("Identity", 1, 1, 1)
        .shape(ShapeRule::Like(0))
        .integers(IntegerRule::Moved)
        .evaluate(|args| args.get(0).cloned())
        .rows(RowRule::FirstInput)
        .buffer(Buffer::View)
        .idle(),
    moves("Reshape", 1, 2, 2)
        .arguments(&[(1, Argument::Extent)])
        .shape(ShapeRule::First(reshape_shape))
        .integers(IntegerRule::Moved)
        .evaluate(reshape)
        .rows(RowRule::By(|reads, _| Some(reads.only_first_apart() && reshape_keeps_rows(reads)?)))
        .buffer(Buffer::View)
        .idle(),
    known("ReverseSequence", 10).arguments(&[(1, Argument::Extent)]),
    moves("SpaceToDepth", 1, 1, 1).required(&["blocksize"]),
    moves("Squeeze", 1, 1, 2)
        .arguments(&[(1, Argument::Axis)])
        .shape(ShapeRule::First(squeeze_shape))
        .integers(IntegerRule::Moved)
        .evaluate(squeeze)
        .rows(RowRule::By(|reads, _| Some(reads.only_first_apart() && reads.are_behind_rows(&reads.axes(1)??, 0))))
        .buffer(Buffer::View)
        .idle(),
    moves("Transpose", 1, 1, 1)
        .shape(ShapeRule::First(transpose_shape))
        .integers(IntegerRule::Moved)
        .evaluate(transpose)
        .rows(RowRule::By(transpose_keeps_rows)),
    moves("Unsqueeze", 1, 2, 2)
        .arguments(&[(1, Argument::Axis)])
        .shape(ShapeRule::First(unsqueeze_shape))
        .integers(IntegerRule::Moved)
        .evaluate(unsqueeze)
        .rows(RowRule::By(unsqueeze_keeps_rows))
        .buffer(Buffer::View)
        .idle(),
];

fn product(extents: &[Option<Expr>]) -> Option<Expr> {
    extents.iter().try_fold(Expr::from(1), |n, e| n.mul(e.as_ref()?))
}

fn flatten_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    let rank = i64::try_from(shape.len()).ok()?;
    let at = node.int("axis").unwrap_or(1);
    let at = if at < 0 { at.checked_add(rank)? } else { at };
    let (rows, columns) = shape.split_at_checked(usize::try_from(at).ok()?)?;
    Some(vec![product(rows), product(columns)])
}

/// Behind the last axis it would be a column for each row: another one than the first.
fn flatten_keeps_rows(reads: &Reads<'_>, _: usize) -> Option<bool> {
    let first = reads.only_first_apart();
    Some(first && matches!(reads.node.int("axis").unwrap_or(1), a if a == 1 || axis(a, reads.rank(0)?) == Some(1)))
}

/// `0` copies an extent, and one `-1` takes what is left.
fn reshape_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let Some(wanted) = facts.ints(node, 1).and_then(|v| v.list()) else { return extents(facts, node, 1) };
    let from = facts.partial(node, 0);
    let copies = node.int("allowzero").unwrap_or(0) == 0;
    let mut open = None;
    let mut shape: Partial = Vec::with_capacity(wanted.len());
    for (at, e) in wanted.iter().enumerate() {
        shape.push(match e.number() {
            Some(0) if copies => from.as_ref().and_then(|from| from.get(at)).cloned().flatten(),
            Some(-1) if open.is_none() => {
                open = Some(at);
                number(1)
            }
            _ => facts.symbols.low(e).is_some_and(|low| low >= 0).then(|| e.clone()),
        });
    }
    if let Some(at) = open {
        shape[at] = rest(from.as_ref(), &shape);
    }
    Some(shape)
}

/// What all extents of `from` together are, divided by those of `shape`. Equal ones are left out first, so that
/// products stay small and open extents do not matter where they are copied.
fn rest(from: Option<&Partial>, shape: &Partial) -> Option<Expr> {
    let mut from = from?.clone();
    let mut divisors = Vec::new();
    for extent in shape {
        match from.iter().position(|e| e.is_some() && e == extent) {
            Some(at) => drop(from.swap_remove(at)),
            None => divisors.push(extent.clone()),
        }
    }
    product(&from)?.div_exact(&product(&divisors)?)
}

fn reshape(args: &Args<'_>) -> Option<Tensor> {
    let [x, wanted] = args.exactly()?;
    let shape = reshaped_extents(args.node, &wanted.indices()?, &x.shape, x.len())?;
    x.reshaped(shape)
}

/// What `Reshape` makes of `wanted` for an input of `from` with `count` elements.
fn reshaped_extents(node: &Node, wanted: &[i64], from: &[usize], count: usize) -> Option<Vec<usize>> {
    let allow_zero = node.int("allowzero").unwrap_or(0) != 0;
    let mut shape = Vec::with_capacity(wanted.len());
    let mut inferred = None;
    for (at, &extent) in wanted.iter().enumerate() {
        shape.push(match extent {
            0 if !allow_zero => *from.get(at)?,
            -1 if inferred.is_none() => {
                inferred = Some(at);
                1
            }
            n => usize::try_from(n).ok()?,
        });
    }
    if let Some(at) = inferred {
        let rest = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        shape[at] = count.checked_div(rest)?;
    }
    Some(shape)
}

/// True if a Reshape copies the rows' extent, or infers it from rows of a length that does not change.
fn reshape_keeps_rows(reads: &Reads<'_>) -> Option<bool> {
    let target = reads.numbers(1)?;
    let copies = reads.node.int("allowzero").unwrap_or(0) == 0;
    let shape = reads.shape(0)?;
    match target.split_first()? {
        (0, _) => Some(copies),
        (-1, rest) => {
            let fixed = |dim: &Dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None };
            let wanted = |(at, &n): (usize, &i64)| match n {
                0 if copies => fixed(shape.get(at + 1)?),
                n => usize::try_from(n).ok(),
            };
            let row = count(shape[1..].iter().map(fixed))?;
            Some(row > 0 && count(rest.iter().enumerate().map(wanted))? == row)
        }
        _ => Some(false),
    }
}

fn count(mut extents: impl Iterator<Item = Option<usize>>) -> Option<usize> {
    extents.try_fold(1usize, |product, extent| product.checked_mul(extent?))
}

fn squeeze_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    let one = |e: &Option<Expr>| e.as_ref().and_then(Expr::number).map(|n| n == 1);
    let dropped = match axes(facts, node, 1, shape.len())? {
        Some(axes) => axes,
        // Which extents are 1 has to be known of all.
        None => {
            let ones: Vec<bool> = shape.iter().map(one).collect::<Option<_>>()?;
            (0..shape.len()).filter(|&a| ones[a]).collect()
        }
    };
    Some(shape.into_iter().enumerate().filter(|(a, _)| !dropped.contains(a)).map(|(_, e)| e).collect())
}

fn squeeze(args: &Args<'_>) -> Option<Tensor> {
    let x = args.get(0)?;
    let drop: Vec<usize> = match args.axes(1)? {
        Some(axes) => axes.into_iter().map(|a| axis(a, x.shape.len())).collect::<Option<_>>()?,
        None => (0..x.shape.len()).filter(|&a| x.shape[a] == 1).collect(),
    };
    if drop.iter().any(|&a| x.shape[a] != 1) {
        return None;
    }
    x.reshaped((0..x.shape.len()).filter(|a| !drop.contains(a)).map(|a| x.shape[a]).collect())
}

fn unsqueeze_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    let count = match node.attributes.get("axes") {
        Some(Attribute::Ints(v)) => v.len(),
        _ => facts.numbers(node, 1)?.len(),
    };
    let rank = shape.len() + count;
    let added = axes(facts, node, 1, rank)??;
    let mut kept = shape.into_iter();
    (0..rank).map(|a| if added.contains(&a) { Some(number(1)) } else { kept.next() }).collect()
}

fn unsqueeze(args: &Args<'_>) -> Option<Tensor> {
    let x = args.get(0)?;
    let axes = args.axes(1)??;
    let rank = x.shape.len() + axes.len();
    let mut added = vec![false; rank];
    for a in axes {
        if std::mem::replace(&mut added[axis(a, rank)?], true) {
            return None;
        }
    }
    let mut kept = x.shape.iter().copied();
    x.reshaped(added.into_iter().map(|one| if one { Some(1) } else { kept.next() }).collect::<Option<_>>()?)
}

/// Axes are counted in the order of the result's.
fn unsqueeze_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let first = reads.only_first_apart();
    Some(first && reads.axes(1)??.iter().all(|&a| axis(a, rank).is_some_and(|a| a > 0)))
}

/// The permutation of a `Transpose` of `rank` extents.
pub(crate) fn permutation(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let perm: Vec<usize> = match node.attributes.get("perm") {
        None => (0..rank).rev().collect(),
        Some(Attribute::Ints(v)) => v.iter().map(|&a| usize::try_from(a).ok()).collect::<Option<_>>()?,
        Some(_) => return None,
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..rank).then_some(perm)
}

fn transpose_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let shape = facts.partial(node, 0)?;
    Some(permutation(node, shape.len())?.into_iter().map(|a| shape[a].clone()).collect())
}

fn transpose(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly()?;
    let perm = permutation(args.node, x.shape.len())?;
    let strides = strides(&x.shape);
    let shape: Vec<usize> = perm.iter().map(|&a| x.shape[a]).collect();
    result_count(&shape, x.dtype)?;
    let strides: Vec<i64> = perm.iter().map(|&a| strides[a]).collect();
    x.pick(&walk(&shape, &strides, 0)?, shape)
}

fn transpose_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let first = reads.only_first_apart();
    Some(match reads.node.ints("perm") {
        Some(perm) => first && perm.first() == Some(&0),
        None => first && rank == 1,
    })
}
