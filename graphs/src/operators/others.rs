//! Operators that exist and of which nothing is known: signals, text, images, losses.

use super::entry::{Operator, known};

pub(super) static OPERATORS: &[Operator] = &[
    known("DFT", 17),
    known("ImageDecoder", 20),
    known("NegativeLogLikelihoodLoss", 12),
    known("NonMaxSuppression", 10),
    known("RegexFullMatch", 20),
    known("STFT", 17),
    known("SoftmaxCrossEntropyLoss", 12),
    known("StringConcat", 20),
    known("StringNormalizer", 10),
    known("StringSplit", 20),
    known("TfIdfVectorizer", 9),
];
