//! What the shape rules of several operators share.

use crate::symbolic::{Expr, Facts, Partial, Symbols};
use crate::tensor::axis;
use crate::{Attribute, Node};

/// More extents than any real value has.
const MAX_RANK: usize = 64;

pub(super) fn number(n: i64) -> Option<Expr> {
    Some(n.into())
}

/// The shape that the elements of an input give; an element that may be negative is left open.
pub(super) fn extents(facts: &Facts<'_>, node: &Node, input: usize) -> Option<Partial> {
    if let Some(list) = facts.ints(node, input).and_then(|v| v.list()) {
        let natural = |e: &Expr| facts.symbols.low(e).is_some_and(|low| low >= 0);
        return Some(list.iter().map(|e| natural(e).then(|| e.clone())).collect());
    }
    match facts.shape(node, input)? {
        [rank] => Some(vec![None; usize::try_from(rank.number()?).ok().filter(|&rank| rank <= MAX_RANK)?]),
        _ => None,
    }
}

/// The node's axes, from input `input` or, as older operator sets had it, from the attribute; `Some(None)` if neither
/// is given.
pub(super) fn axes(facts: &Facts<'_>, node: &Node, input: usize, rank: usize) -> Option<Option<Vec<usize>>> {
    let numbers = if node.has_input(input) {
        facts.numbers(node, input)?
    } else {
        match node.attributes.get("axes") {
            None => return Some(None),
            Some(Attribute::Ints(v)) => v.clone(),
            Some(_) => return None,
        }
    };
    let mut axes: Vec<usize> = numbers.into_iter().map(|a| axis(a, rank)).collect::<Option<_>>()?;
    axes.sort_unstable();
    axes.windows(2).all(|w| w[0] != w[1]).then_some(Some(axes))
}

/// The shape that NumPy's rules broadcast to. Extents of which one is certainly not 1 must be equal.
pub(crate) fn broadcast(symbols: &mut Symbols, a: &Partial, b: &Partial) -> Partial {
    let rank = a.len().max(b.len());
    let extent =
        |s: &Partial, axis: usize| (axis + s.len()).checked_sub(rank).map_or_else(|| number(1), |i| s[i].clone());
    let mut join = |a: Option<Expr>, b: Option<Expr>| match (a, b) {
        (Some(x), Some(y)) if x == y => Some(x),
        (Some(x), y) if x.number() == Some(1) => y,
        (x, Some(y)) if y.number() == Some(1) => x,
        (Some(x), Some(y)) if x.number().is_some() || y.number().is_some() => {
            symbols.must_equal(&x, &y);
            Some(if x.number().is_some() { x } else { y })
        }
        (Some(x), _) if x.number().is_some() => Some(x),
        (_, Some(y)) if y.number().is_some() => Some(y),
        (Some(x), Some(y)) => {
            symbols.must_equal(&x, &y);
            let above_one = |e: &Expr| symbols.low(e).is_some_and(|low| low > 1);
            match (above_one(&x), above_one(&y)) {
                // It is not 1, so the other is 1 or the same.
                (true, _) => Some(x),
                (_, true) => Some(y),
                _ => symbols.larger(&x, &y),
            }
        }
        _ => None,
    };
    (0..rank).map(|axis| join(extent(a, axis), extent(b, axis))).collect()
}

/// One extent for several that must be equal: a number if there is one, else the last that is known.
pub(super) fn same(symbols: &mut Symbols, extents: impl Iterator<Item = Option<Expr>>) -> Option<Expr> {
    extents.flatten().reduce(|kept, next| {
        symbols.must_equal(&kept, &next);
        if kept.number().is_some() { kept } else { next }
    })
}
