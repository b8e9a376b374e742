//! Encoders of text and images that several families share: a file and a line each.

use super::family::Architecture;

pub mod clip;
pub mod t5;

/// The encoders.
pub(super) static ENCODERS: &[&dyn Architecture] =
    &[&t5::T5::Shared, &t5::T5::Own, &clip::Clip::Plain, &clip::Clip::Projected];
