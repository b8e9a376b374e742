//! Sizes of a network: what its configuration and its tensors say.

use serde::Deserialize;

use super::super::package::Package;
use crate::ExportError;

/// `config.json`. The sizes are also in the tensors, and must agree.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) p: usize,
    pub(super) d: usize,
    pub(super) heads: usize,
    pub(super) blocks: usize,
    pub(super) rank: usize,
    /// Blocks of the second stage that are followed by attention to the first stage's features; the first is 0.
    pub(super) inject: Vec<usize>,
    /// Types of layers, in the order of the table of types, as Wan's authors call them.
    pub(super) types: Vec<String>,
    /// Rows of the table of depths.
    pub(super) depths: usize,
}

/// Sizes of the network.
pub(super) struct Sizes {
    pub(super) patch: usize,
    pub(super) d: usize,
    pub(super) heads: usize,
    pub(super) blocks: usize,
    pub(super) rank: usize,
    /// Patches along a side of a weight.
    pub(super) grid: usize,
    /// Extent of the square weights.
    pub(super) width: usize,
    pub(super) context: usize,
    pub(super) depths: usize,
    pub(super) types: usize,
    pub(super) inject: Vec<usize>,
}

impl Sizes {
    pub(super) fn read(package: &Package, config: &Config) -> Result<Self, ExportError> {
        let shape = |name: &str| package.checkpoint.shape(name).unwrap_or_default().to_vec();
        let patches = shape("stage1.patch_embed.proj.weight");
        let [d, 1, patch, across] = patches[..] else {
            return Err(
                package.misfit(format!("`stage1.patch_embed.proj.weight` is {patches:?}; expected [d, 1, p, p]"))
            );
        };
        let extent = |name: &str, axis: usize| shape(name).get(axis).copied().unwrap_or_default();
        let grid = extent("stage1.pos.row", 1);
        let width = grid.saturating_mul(patch);
        let head = extent("stage1.blocks.0.self_attn.q_norm.weight", 0).max(1);
        let count = |prefix: &str| {
            let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
            let mut found: Vec<usize> = package.checkpoint.names().filter_map(number).collect();
            found.sort_unstable();
            found.dedup();
            found
        };
        let rank = extent("stage2.head_A.bias", 0) / width.max(1);
        let sizes = Self {
            patch,
            d,
            heads: d / head,
            blocks: count("stage1.blocks.").len(),
            rank,
            grid,
            width,
            context: extent("stage1.text_proj.weight", 1),
            depths: extent("stage1.depth_embed.weight", 0),
            types: extent("stage1.type_embed.weight", 0),
            inject: count("stage2.cross_attn_blocks."),
        };
        for (name, said, found) in [
            ("p", config.p, sizes.patch),
            ("p", config.p, across),
            ("d", config.d, sizes.d),
            ("heads", config.heads, sizes.heads),
            ("blocks", config.blocks, sizes.blocks),
            ("rank", config.rank, sizes.rank),
            ("depths", config.depths, sizes.depths),
            ("types", config.types.len(), sizes.types),
        ] {
            if said != found || found == 0 {
                return Err(package.misfit(format!("`{name}` is {said}, and the tensors say {found}")));
            }
        }
        let mut inject = config.inject.clone();
        inject.sort_unstable();
        if inject != sizes.inject {
            let found = &sizes.inject;
            return Err(package.misfit(format!("`inject` is {inject:?}, and there are tensors for {found:?}")));
        }
        Ok(sizes)
    }
}
