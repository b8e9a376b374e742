//! Bringing a graph into other floating-point types, node by node.

mod apply;
mod casts;
mod emulate;
mod raise;
mod tables;
#[cfg(test)]
mod tests;
mod types;

pub use apply::{apply_precision, lower_precision, matrix_types};
pub use casts::{count_casts, save_casts};
pub use emulate::emulate_precision;
pub use raise::{computes_in_16_bits, raise_precision, uses_narrow_floats};
pub use tables::tables;
pub(crate) use types::value_types_within;
pub use types::{Freedom, freedom, is_movement, node_labels, value_types};
