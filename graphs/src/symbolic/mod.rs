//! Extents and small integers as polynomials over the extents that a graph's inputs name.
//!
//! ```text
//! expr     polynomials
//! symbols  what a symbol stands for, its bounds, its name
//! ints     small integer tensors of polynomials
//! facts    what is known of each value of a graph
//! ```

mod expr;
mod facts;
mod ints;
mod symbols;

pub(crate) use expr::{Expr, Symbol};
pub(crate) use facts::{Facts, Partial};
pub(crate) use ints::{Ints, MAX_ELEMENTS};
pub(crate) use symbols::{Meaning, Symbols};
