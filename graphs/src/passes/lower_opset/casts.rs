//! Cast and CastLike: to types of few bits, and how to round to them.

use super::low_types;
use super::site::{Site, Step};
use crate::Node;

/// How float8e8m0 rounds, which alone asks for it.
const ROUNDING: &str = "round_mode";

pub(super) fn cast(node: &mut Node, site: &mut Site<'_>) -> Step {
    let step = low_types::before(node, "to", site);
    if site.version == 24 && matches!(step, Step::Older) {
        node.attributes.shift_remove(ROUNDING);
    }
    step
}

/// The type is that of the second input; where it is not known, it may be one that rounds.
pub(super) fn cast_like(node: &mut Node, site: &mut Site<'_>) -> Step {
    if !node.attributes.contains_key(ROUNDING) {
        return Step::Older;
    }
    if site.dtype(node, 1).is_none() {
        return Step::Stays;
    }
    node.attributes.shift_remove(ROUNDING);
    Step::Older
}

/// BitCast came with 26, and may make types that came later than float64.
pub(super) fn bit_cast(node: &mut Node, site: &mut Site<'_>) -> Step {
    low_types::note(node, "to", site);
    Step::Stays
}
