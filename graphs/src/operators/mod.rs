//! The table of operators: one entry for each, and all that is known of it.
//!
//! Checks, shape inference, evaluation, precision and precomputing ask this table, by domain and name. A new operator is
//! one entry in the file of its family. Model-local functions are never in the table: [`crate::read_model`] refuses
//! calls of those in a domain of operators.
//!
//! ```text
//! table      lookup by domain and name, and what is asked of an entry
//! entry      what an entry says
//! domains    whose operators there are
//! extents    what shape rules share
//! arguments  what evaluation over constants is given
//! rows       what rules about rows ask
//! ```
//! Every other file is a family of operators: entries, and the functions that they name.

mod arguments;
mod broadcasting;
mod constants;
mod contrib;
mod control;
mod conversions;
mod domains;
mod elementwise;
mod entry;
mod extents;
mod lookups;
mod norms;
mod others;
mod pieces;
mod products;
mod reductions;
mod reshaping;
mod rows;
mod table;
#[cfg(test)]
mod tests;
mod windows;

pub(crate) use domains::{CONTRIB, has_operators, is_onnx};
pub use entry::{Argument, Kind};
pub(crate) use entry::{Buffer, IntegerRule, Operator, Out, RowRule, ShapeRule, Signature};
pub(crate) use extents::broadcast;
pub(crate) use reshaping::permutation;
pub(crate) use rows::{Known, Reads};
pub use table::{argument, kind, passes_on};
pub(crate) use table::{evaluate, is_random, onnx_names, operator, result_type};
