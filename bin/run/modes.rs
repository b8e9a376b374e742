//! `--fuse-mode`: how adapters get into a graph.

use v2l_cli::Failure;
use v2l_runtime::engine::manifest::{Graph, Manifest, SIDE_SUFFIX};
use v2l_runtime::engine_directory::DirectoryError;
use v2l_runtime::fuse::FuseError;
use v2l_runtime::memory::machine_memory;
use v2l_runtime::ort_backend::OrtError;

use crate::args::FuseMode;

/// A way to apply adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Into the weights.
    Fuse,
    /// As inputs of low-rank branches.
    Side,
}

/// The way to begin with, and why; refuses what the engine was not compiled for. `graph` is a name without `.side`.
pub(crate) fn decide(asked: FuseMode, manifest: &Manifest, graph: &str) -> anyhow::Result<(Way, &'static str)> {
    let (fuse, side) = (manifest.graph(graph).is_some(), has_branches(manifest, graph));
    let quantized = manifest.slots.iter().any(|slot| slot.quantized.is_some());
    match asked {
        FuseMode::Side if !side => Err(Failure::usage(
            "the engine has no low-rank branches for --fuse-mode side; compile with --lora-rank MAX",
        )),
        FuseMode::Fuse if !fuse => Err(Failure::usage(
            "the engine takes adapters in low-rank branches only; use --fuse-mode side, or compile with --fuse-modes fuse,side",
        )),
        FuseMode::Side => Ok((Way::Side, "asked for")),
        FuseMode::Fuse => Ok((Way::Fuse, "asked for")),
        FuseMode::Auto if !fuse && side => Ok((Way::Side, "the engine has no other")),
        FuseMode::Auto if quantized && side => Ok((Way::Side, "weights in 8 bits stay as they are")),
        FuseMode::Auto => Ok((Way::Fuse, "nothing speaks against it")),
    }
}

/// True if there is a variant of `graph` with low-rank branches.
pub(crate) fn has_branches(manifest: &Manifest, graph: &str) -> bool {
    manifest.graph(&format!("{graph}{SIDE_SUFFIX}")).is_some_and(|graph| graph.lora_rank.is_some())
}

/// The graph that a variant with low-rank branches was made of; any other graph is its own.
pub(crate) fn base(graph: &Graph) -> &str {
    graph.name.strip_suffix(SIDE_SUFFIX).filter(|_| graph.lora_rank.is_some()).unwrap_or(&graph.name)
}

/// True for failures of a fuse that low-rank branches do not have, and that this machine has every time: what is free at the
/// moment decides nothing.
pub(crate) fn branches_may_help(error: &DirectoryError) -> bool {
    match error {
        DirectoryError::Ort(OrtError::Fuse(FuseError::Overflow { .. })) => true,
        DirectoryError::Ort(OrtError::Memory { needed, .. }) => machine_memory().is_some_and(|all| *needed > all),
        _ => false,
    }
}
