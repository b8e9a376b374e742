//! How far two results lie apart: what `--verify` and the tests measure, and what calibration will optimise.

mod compare;

pub use compare::{Comparison, compare};
