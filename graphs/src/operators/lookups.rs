//! Operators that read or write elements at places that other elements name.

use super::arguments::Args;
use super::entry::{Argument, INT64, IntegerRule, Kind, Operator, Out, RowRule, ShapeRule, known, op};
use super::rows::Reads;
use crate::Node;
use crate::symbolic::{Facts, Partial};
use crate::tensor::{Tensor, axis, result_count};

/// An operator that looks up elements of its first input where its second says.
const fn lookup(name: &'static str, since: i64) -> Operator {
    op(name, since, 2, 2).kind(Kind::Lookup)
}

/// An operator that writes its third input into its first where its second says.
const fn scatter(name: &'static str, since: i64) -> Operator {
    op(name, since, 3, 3).kind(Kind::Move).shape(ShapeRule::Like(0))
}

pub(super) static OPERATORS: &[Operator] = &[
    known("Compress", 9),
    lookup("Gather", 1)
        .arguments(&[(1, Argument::Row)])
        .shape(ShapeRule::First(gather_shape))
        .integers(IntegerRule::Moved)
        .evaluate(gather)
        .rows(RowRule::By(gather_keeps_rows)),
    lookup("GatherElements", 11)
        .arguments(&[(1, Argument::Row)])
        .shape(ShapeRule::Like(1))
        .rows(RowRule::By(gather_elements_keeps_rows)),
    lookup("GatherND", 11).arguments(&[(1, Argument::Row)]),
    op("NonZero", 9, 1, 1).result(INT64),
    op("OneHot", 9, 3, 3).arguments(&[(1, Argument::Extent)]).result(Out::Like(2)),
    known("Scatter", 9),
    scatter("ScatterElements", 11),
    scatter("ScatterND", 11),
    known("TensorScatter", 24),
    op("TopK", 1, 2, 2).arguments(&[(1, Argument::Extent)]).outputs(2, 2).others(INT64),
    known("Unique", 11),
];

fn gather_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (shape, indices) = (facts.partial(node, 0)?, facts.partial(node, 1)?);
    let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
    Some([&shape[..at], &indices, &shape[at + 1..]].concat())
}

fn gather(args: &Args<'_>) -> Option<Tensor> {
    let [x, indices] = args.exactly()?;
    let at = axis(args.int("axis", 0)?, x.shape.len())?;
    let rows: Vec<usize> = indices.indices()?.into_iter().map(|i| axis(i, x.shape[at])).collect::<Option<_>>()?;
    let (outer, inner) = (&x.shape[..at], &x.shape[at + 1..]);
    let shape = [outer, &indices.shape[..], inner].concat();
    let count = result_count(&shape, x.dtype)?;
    if count == 0 {
        return x.pick(&[], shape);
    }
    let block: usize = inner.iter().product();
    let blocks: usize = outer.iter().product();
    let mut sources = Vec::with_capacity(count);
    for o in 0..blocks {
        for &row in &rows {
            let start = (o * x.shape[at] + row) * block;
            sources.extend(start..start + block);
        }
    }
    x.pick(&sources, shape)
}

/// Rows of a table, one for each index; or columns of rows.
fn gather_keeps_rows(reads: &Reads<'_>, _: usize) -> Option<bool> {
    let at = reads.node.int("axis").unwrap_or(0);
    Some(match (reads.apart(0), reads.apart(1)) {
        (false, true) => axis(at, reads.rank(0)?) == Some(0),
        (true, false) => reads.behind_rows(at, 0),
        _ => false,
    })
}

fn gather_elements_keeps_rows(reads: &Reads<'_>, _: usize) -> Option<bool> {
    let all = reads.apart(0) && reads.apart(1) && reads.rank(0)? == reads.rank(1)?;
    Some(all && reads.behind_rows(reads.node.int("axis").unwrap_or(0), 0))
}
