//! Attention: lengths of what is not padding and masks that are too short came with 24, windows with 25.

use super::site::{Site, Step};
use crate::Node;

/// Place of the keys.
const KEYS: usize = 1;
/// Place of the mask.
const MASK: usize = 3;
/// Place of the keys of what went before.
const PAST: usize = 4;
/// Place of the lengths.
const LENGTHS: usize = 6;

pub(super) fn without_lengths(node: &mut Node, site: &mut Site<'_>) -> Step {
    if node.has_input(LENGTHS) || node.has_input(MASK) && !is_whole_mask(node, site) {
        return Step::Stays;
    }
    node.inputs.truncate(LENGTHS);
    Step::Older
}

/// True if the mask is known to have a column for each key. From 24 on a mask with fewer columns leaves the other keys out; 23 has
/// no such rule.
fn is_whole_mask(node: &Node, site: &Site<'_>) -> bool {
    let last = |at: usize, before: usize| site.extent(node, at, site.rank(node, at)?.checked_sub(before)?);
    let past = if node.has_input(PAST) { last(PAST, 2) } else { Some(0) };
    let keys = last(KEYS, 2).zip(past).and_then(|(keys, past)| keys.checked_add(past));
    keys.is_some() && last(MASK, 1) == keys
}

pub(super) fn without_windows(node: &mut Node, _: &mut Site<'_>) -> Step {
    let sides = ["left_window_size", "right_window_size"];
    if sides.iter().any(|side| node.attributes.contains_key(*side) && node.int(side) != Some(-1)) {
        return Step::Stays;
    }
    for side in sides {
        node.attributes.shift_remove(side);
    }
    Step::Older
}
