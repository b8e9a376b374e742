//! Operators that run graphs in their attributes, and those on sequences and options.

use super::entry::{Argument, Kind, MANY, Operator, Out, ShapeRule, known, op};

pub(super) static OPERATORS: &[Operator] = &[
    known("ConcatFromSequence", 11),
    op("If", 1, 1, 1)
        .outputs(1, MANY)
        .required(&["then_branch", "else_branch"])
        .kind(Kind::Control)
        .result(Out::Open)
        .shape(ShapeRule::Branches),
    // Without a trip count it runs while its condition holds, without a condition it counts.
    op("Loop", 1, 2, MANY)
        .arguments(&[(0, Argument::Extent)])
        .outputs(1, MANY)
        .required(&["body"])
        .optional(2)
        .kind(Kind::Control)
        .result(Out::Open),
    known("Optional", 15),
    known("OptionalGetElement", 15),
    known("OptionalHasElement", 15),
    known("Scan", 8).kind(Kind::Control),
    known("SequenceAt", 11),
    known("SequenceConstruct", 11),
    known("SequenceEmpty", 11),
    known("SequenceErase", 11),
    known("SequenceInsert", 11),
    known("SequenceLength", 11),
    known("SequenceMap", 17),
    known("SplitToSequence", 11).arguments(&[(1, Argument::Extent)]),
];
