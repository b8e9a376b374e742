//! Range: since 27 it takes 16-bit floats, and says in which type it then counts.

use super::site::{Site, Step};
use crate::Node;

/// Floats of 16 bits were raised, and for other types the attribute says nothing.
pub(super) fn range(node: &mut Node, _: &mut Site<'_>) -> Step {
    node.attributes.shift_remove("stash_type");
    Step::Older
}
