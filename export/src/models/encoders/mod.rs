//! Text encoders that several families share: a file and a line each.

use super::family::Architecture;

pub mod t5;

/// The text encoders.
pub(super) static ENCODERS: &[&dyn Architecture] = &[&t5::T5::Shared, &t5::T5::Own];
