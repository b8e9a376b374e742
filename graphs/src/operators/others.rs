//! Operators that exist and of which nothing is known: signals, text, images, losses.

use super::entry::{Argument, Operator, known};

pub(super) static OPERATORS: &[Operator] = &[
    known("DFT", 17).arguments(&[(1, Argument::Extent), (2, Argument::Axis)]),
    known("ImageDecoder", 20),
    known("NegativeLogLikelihoodLoss", 12).arguments(&[(1, Argument::Row)]),
    known("NonMaxSuppression", 10).arguments(&[(2, Argument::Extent)]),
    known("RegexFullMatch", 20),
    known("STFT", 17).arguments(&[(1, Argument::Step), (3, Argument::Extent)]),
    known("SoftmaxCrossEntropyLoss", 12).arguments(&[(1, Argument::Row)]),
    known("StringConcat", 20),
    known("StringNormalizer", 10),
    known("StringSplit", 20),
    known("TfIdfVectorizer", 9),
];
