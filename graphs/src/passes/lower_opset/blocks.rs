//! SpaceToDepth: since 28 it says in which order depth and blocks come.

use super::made::Made;
use super::site::{Site, Step};
use crate::{Attribute, Node};

pub(super) fn space_to_depth(node: &mut Node, site: &mut Site<'_>) -> Step {
    let by_columns = match node.attributes.get("mode") {
        None => false,
        Some(Attribute::String(mode)) if mode[..] == b"DCR"[..] => false,
        Some(Attribute::String(mode)) if mode[..] == b"CRD"[..] => true,
        Some(_) => return Step::Stays,
    };
    if !by_columns {
        node.attributes.shift_remove("mode");
        return Step::Older;
    }
    let (Some(x), Some(block)) = (node.inputs.first(), node.int("blocksize")) else { return Step::Stays };
    let Some(squared) = block.checked_mul(block) else { return Step::Stays };
    // Blocks come before the depth there, and behind it here. The depth goes last, so that no extent has to be known.
    let mut made = Made::new(node);
    let perm = |order: &[i64]| [("perm", Attribute::Ints(order.to_vec()))];
    let split = made.op(site, "SpaceToDepth", &[x], &[("blocksize", Attribute::Int(block))]);
    let split = made.op(site, "Transpose", &[&split], &perm(&[2, 3, 0, 1]));
    let extents = made.ints(site, &[0, 0, 0, squared, -1]);
    let split = made.op(site, "Reshape", &[&split, &extents], &[]);
    let split = made.op(site, "Transpose", &[&split], &perm(&[0, 1, 2, 4, 3]));
    let extents = made.ints(site, &[0, 0, 0, -1]);
    let joined = made.op(site, "Reshape", &[&split, &extents], &[]);
    let joined = made.op(site, "Transpose", &[&joined], &perm(&[2, 3, 0, 1]));
    Step::Instead(made.instead_of(node, &[&joined]))
}
