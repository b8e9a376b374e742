//! Products of matrices and what is made of them: linear layers, contractions, attention, recurrent layers.

use super::entry::{Kind, MANY, Operator, RowRule, ShapeRule, known, op};
use super::extents::{broadcast, number};
use super::rows::Reads;
use crate::Node;
use crate::symbolic::{Facts, Partial};

pub(super) static OPERATORS: &[Operator] = &[
    op("Attention", 23, 3, 7).same(0, 3).outputs(1, 4).kind(Kind::Product).narrow(),
    known("Det", 11),
    op("Einsum", 12, 1, MANY).same(0, MANY).required(&["equation"]).kind(Kind::Product).narrow(),
    known("GRU", 1).kind(Kind::Product),
    op("Gemm", 1, 2, 3)
        .same(0, MANY)
        .kind(Kind::Layer)
        .shape(ShapeRule::First(gemm_shape))
        .rows(RowRule::By(gemm_keeps_rows))
        .narrow()
        .weight_rank(|input, rank| match input {
            0 | 1 if rank != 2 => Some("two extents"),
            2 if rank > 2 => Some("at most two extents"),
            _ => None,
        }),
    known("LSTM", 1).kind(Kind::Product),
    known("LinearAttention", 27),
    op("MatMul", 1, 2, 2)
        .same(0, MANY)
        .kind(Kind::Layer)
        .shape(ShapeRule::First(matmul_shape))
        .rows(RowRule::By(|reads, _| matmul_keeps_rows(reads)))
        .narrow()
        .weight_rank(|_, rank| (rank == 0).then_some("at least one extent")),
    known("RNN", 1).kind(Kind::Product),
    known("RotaryEmbedding", 23),
];

fn matmul_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (mut a, mut b) = (facts.partial(node, 0)?, facts.partial(node, 1)?);
    let (row, column) = (a.len() == 1, b.len() == 1);
    if row {
        a.insert(0, number(1));
    }
    if column {
        b.push(number(1));
    }
    let (inner, rows) = (a.pop()?, a.pop()?);
    let (columns, depth) = (b.pop()?, b.pop()?);
    if let (Some(inner), Some(depth)) = (&inner, &depth) {
        facts.symbols.must_equal(inner, depth);
    }
    let mut shape = broadcast(&mut facts.symbols, &a, &b);
    shape.extend((!row).then_some(rows));
    shape.extend((!column).then_some(columns));
    Some(shape)
}

/// The rows must not be what is summed over, and must lie along the first axis of the product.
fn matmul_keeps_rows(reads: &Reads<'_>) -> Option<bool> {
    let (a, b) = (reads.rank(0)?, reads.rank(1)?);
    Some(match (reads.apart(0), reads.apart(1)) {
        // Matrices of each row, and those of the other, one for each row or the same for all.
        (true, true) => a == b && a >= 3,
        (true, false) if a == 2 => b <= 2,
        (true, false) => a >= 3 && reads.is_aligned(1, a)?,
        (false, true) => b >= 3 && reads.is_aligned(0, b)?,
        (false, false) => false,
    })
}

fn gemm_shape(facts: &mut Facts<'_>, node: &Node) -> Option<Partial> {
    let (a, b) = (facts.partial(node, 0)?, facts.partial(node, 1)?);
    let transposed = |name: &str| usize::from(node.int(name).unwrap_or(0) != 0);
    let rows = a.get(transposed("transA"))?;
    let columns = b.get(1 - transposed("transB"))?;
    Some(vec![rows.clone(), columns.clone()])
}

fn gemm_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let plain = reads.node.int("transA").unwrap_or(0) == 0 && reads.apart(0) && !reads.apart(1);
    Some(plain && reads.are_aligned(2, rank))
}
