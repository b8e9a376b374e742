//! Operators that move elements.

use super::{axes, broadcast, extents, like, number, same};
use crate::passes::infer_shapes::expr::Expr;
use crate::passes::infer_shapes::symbols::Symbols;
use crate::passes::infer_shapes::{Inference, Partial};
use crate::passes::tensor::axis;
use crate::{Attribute, Node};

/// Ends from here on mean the end of the axis.
const FAR: i64 = i32::MAX as i64;

pub(super) fn concat(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let parts = (0..node.inputs.len()).map(|i| like(cx, node, i)).collect::<Option<Vec<_>>>()?;
    let rank = parts.first()?.len();
    let at = axis(node.int("axis")?, rank)?;
    if parts.iter().any(|p| p.len() != rank) {
        return None;
    }
    let extent = |a: usize| {
        let mut extents = parts.iter().map(|p| p[a].clone());
        if a == at { extents.try_fold(Expr::from(0), |sum, e| sum.add(&e?)) } else { same(&mut cx.symbols, extents) }
    };
    Some((0..rank).map(extent).collect())
}

pub(super) fn expand(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let (shape, wanted) = (like(cx, node, 0)?, extents(cx, node, 1)?);
    Some(broadcast(&mut cx.symbols, &shape, &wanted))
}

pub(super) fn tile(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let (shape, repeats) = (like(cx, node, 0)?, extents(cx, node, 1)?);
    (shape.len() == repeats.len())
        .then(|| shape.iter().zip(&repeats).map(|(e, n)| e.as_ref()?.mul(n.as_ref()?)).collect())
}

pub(super) fn flatten(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let shape = like(cx, node, 0)?;
    let rank = i64::try_from(shape.len()).ok()?;
    let at = node.int("axis").unwrap_or(1);
    let at = if at < 0 { at.checked_add(rank)? } else { at };
    let (rows, columns) = shape.split_at_checked(usize::try_from(at).ok()?)?;
    Some(vec![product(rows), product(columns)])
}

fn product(extents: &[Option<Expr>]) -> Option<Expr> {
    extents.iter().try_fold(Expr::from(1), |n, e| n.mul(e.as_ref()?))
}

pub(super) fn gather(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let (shape, indices) = (like(cx, node, 0)?, like(cx, node, 1)?);
    let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
    Some([&shape[..at], &indices, &shape[at + 1..]].concat())
}

pub(super) fn squeeze(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let shape = like(cx, node, 0)?;
    let one = |e: &Option<Expr>| e.as_ref().and_then(Expr::number).map(|n| n == 1);
    let dropped = match axes(cx, node, 1, shape.len())? {
        Some(axes) => axes,
        // Which extents are 1 has to be known of all.
        None => {
            let ones: Vec<bool> = shape.iter().map(one).collect::<Option<_>>()?;
            (0..shape.len()).filter(|&a| ones[a]).collect()
        }
    };
    Some(shape.into_iter().enumerate().filter(|(a, _)| !dropped.contains(a)).map(|(_, e)| e).collect())
}

pub(super) fn unsqueeze(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let shape = like(cx, node, 0)?;
    let count = match node.attributes.get("axes") {
        Some(Attribute::Ints(v)) => v.len(),
        _ => cx.numbers(node, 1)?.len(),
    };
    let rank = shape.len() + count;
    let added = axes(cx, node, 1, rank)??;
    let mut kept = shape.into_iter();
    (0..rank).map(|a| if added.contains(&a) { Some(number(1)) } else { kept.next() }).collect()
}

/// `0` copies an extent, and one `-1` takes what is left.
pub(super) fn reshape(cx: &Inference<'_>, node: &Node) -> Option<Partial> {
    let Some(wanted) = cx.ints(node, 1).and_then(|v| v.list()) else { return extents(cx, node, 1) };
    let from = like(cx, node, 0);
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
            _ => cx.symbols.low(e).is_some_and(|low| low >= 0).then(|| e.clone()),
        });
    }
    if let Some(at) = open {
        shape[at] = rest(from.as_ref(), &shape);
    }
    Some(shape)
}

/// What all extents of `from` together are, divided by those of `shape`. Equal ones are left out first, so that products
/// stay small and open extents do not matter where they are copied.
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

pub(super) fn split(cx: &mut Inference<'_>, node: &Node) -> Vec<Option<Partial>> {
    let parts = || {
        let shape = like(cx, node, 0)?;
        let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
        let count = node.outputs.len();
        let sizes: Vec<Option<Expr>> = if Inference::given(node, 1) {
            let sizes = extents(cx, node, 1)?;
            (0..count).map(|i| sizes.get(i).cloned().flatten()).collect()
        } else if let Some(sizes) = node.ints("split") {
            (0..count).map(|i| sizes.get(i).map(|&n| n.into())).collect()
        } else {
            equal_parts(shape[at].as_ref(), count)
        };
        let part = |size: Option<Expr>| {
            let mut part = shape.clone();
            part[at] = size;
            Some(part)
        };
        Some(sizes.into_iter().map(part).collect())
    };
    parts().unwrap_or_default()
}

/// All equal, but for a smaller last one if a number does not divide.
fn equal_parts(extent: Option<&Expr>, count: usize) -> Vec<Option<Expr>> {
    let sizes = || {
        let parts = i64::try_from(count).ok()?;
        let Some(whole) = extent?.number() else {
            return Some(vec![Some(extent?.div_exact(&parts.into())?); count]);
        };
        let size = whole.checked_add(parts - 1)?.checked_div(parts)?;
        let last = whole.checked_sub(size.checked_mul(parts - 1)?)?;
        let mut sizes = vec![number(size); count];
        *sizes.last_mut()? = (last >= 0).then(|| last.into());
        Some(sizes)
    };
    sizes().unwrap_or_else(|| vec![None; count])
}

pub(super) fn slice(cx: &mut Inference<'_>, node: &Node) -> Option<Partial> {
    let mut shape = like(cx, node, 0)?;
    let list = |cx: &Inference<'_>, input: usize| Some(cx.ints(node, input)?.list()?.to_vec());
    let chosen: Vec<usize> = if Inference::given(node, 3) {
        cx.numbers(node, 3)?.into_iter().map(|a| axis(a, shape.len())).collect::<Option<_>>()?
    } else {
        let count = match cx.shape(node, 1)? {
            [n] => usize::try_from(n.number()?).ok()?,
            _ => return None,
        };
        (0..count.min(shape.len())).collect()
    };
    let (starts, ends) = (list(cx, 1), list(cx, 2));
    let steps = if Inference::given(node, 4) { cx.numbers(node, 4) } else { Some(vec![1; chosen.len()]) };
    for (i, &at) in chosen.iter().enumerate() {
        let bound = |bounds: &Option<Vec<Expr>>| bounds.as_ref().and_then(|b| b.get(i)).cloned();
        let step = steps.as_ref().and_then(|s| s.get(i)).copied();
        let length = match (&shape[at], bound(&starts), bound(&ends), step) {
            (Some(extent), Some(start), Some(end), Some(step)) => sliced(&mut cx.symbols, extent, &start, &end, step),
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
