//! Operators that divide by statistics of what they read: norms, softmax; and dropout.

use super::entry::{BOOL, Kind, MANY, Operator, Out, Random, RowRule, ShapeRule, known, op};
use super::rows::Reads;

/// A norm with so many inputs.
const fn norm(name: &'static str, since: i64, min: usize, max: usize) -> Operator {
    op(name, since, min, max).kind(Kind::Normalization).shape(ShapeRule::Like(0)).narrow()
}

/// A softmax along an axis.
const fn softmax(name: &'static str) -> Operator {
    op(name, 1, 1, 1).shape(ShapeRule::Like(0)).rows(SOFTMAX_ROWS).narrow()
}

const SOFTMAX_ROWS: RowRule = RowRule::By(|reads, _| Some(reads.is_behind_rows("axis", -1)));
/// Each sample by itself.
const SAMPLES: RowRule = RowRule::By(|reads, rank| Some(reads.only_first_apart() && rank >= 2));

pub(super) static OPERATORS: &[Operator] = &[
    op("BatchNormalization", 1, 5, 5)
        .outputs(1, 3)
        .shape(ShapeRule::Like(0))
        .rows(RowRule::By(batch_norm_keeps_rows))
        .narrow(),
    op("Dropout", 1, 1, 3)
        .outputs(1, 2)
        .others(BOOL)
        .shape(ShapeRule::Each(|facts, node| vec![facts.partial(node, 0); 2]))
        .rows(RowRule::FirstInput)
        .narrow()
        // With a third input it may be in training mode.
        .random(Random::WithInput(2)),
    norm("GroupNormalization", 18, 3, 3).same(0, MANY).required(&["num_groups"]).rows(SAMPLES),
    known("Hardmax", 1).rows(SOFTMAX_ROWS),
    norm("InstanceNormalization", 1, 3, 3).same(0, MANY).rows(SAMPLES),
    known("LRN", 1),
    norm("LayerNormalization", 17, 2, 3).outputs(1, 3).rows(RowRule::By(norm_keeps_rows)),
    softmax("LogSoftmax"),
    known("LpNormalization", 1),
    known("MeanVarianceNormalization", 9),
    norm("RMSNormalization", 23, 2, 2).result(Out::Like(1)).rows(RowRule::By(norm_keeps_rows)),
    softmax("Softmax"),
];

fn norm_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let behind = reads.behind_rows(reads.node.int("axis").unwrap_or(-1), 0);
    Some(reads.apart(0) && behind && reads.are_aligned(1, rank))
}

/// By what was found in training.
fn batch_norm_keeps_rows(reads: &Reads<'_>, rank: usize) -> Option<bool> {
    let found = reads.node.int("training_mode").unwrap_or(0) == 0;
    Some(reads.only_first_apart() && rank >= 2 && found)
}
