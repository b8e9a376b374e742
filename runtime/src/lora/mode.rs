//! How adapters get into a graph: fused into its weights, or in low-rank branches beside them.

use std::fmt;

use serde::Serialize;

use crate::engine::manifest::{BRANCH_SUFFIX, Graph, Manifest};
use crate::error::{Classified, ErrorClass};
use crate::wording::BRANCH;

/// How adapters are applied, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterMode {
    /// Fused, unless the engine holds its weights in 8 bits, fusing fails, or rounding would lose a noticeable part, and the
    /// engine has branches for these ranks.
    #[default]
    Auto,
    /// Fused: costs the fuse, then nothing.
    Fuse,
    /// In branches: costs a little in every step, loses nothing, and swaps at once.
    Branch,
}

/// How adapters are applied, as decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Into the weights.
    #[default]
    Fuse,
    /// As inputs of low-rank branches.
    Branch,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fuse => "fuse",
            Self::Branch => "branch",
        })
    }
}

/// The engine was not compiled for the way that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// It has no branches.
    #[error("the engine has no low-rank branches for `{BRANCH}`; compile it with `v2l-compile --lora-rank MAX`")]
    NoBranches,
    /// It has nothing else.
    #[error(
        "the engine takes adapters in low-rank branches only; use `{BRANCH}`, or compile it with \
         `v2l-compile --fuse-modes fuse,branch`"
    )]
    OnlyBranches,
}

impl Classified for ModeError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Usage
    }
}

/// The way to begin with, and why. `graph` is the name of a graph without branches.
///
/// # Errors
/// [`ModeError`] if the engine was not compiled for what is asked.
pub fn choose(asked: AdapterMode, manifest: &Manifest, graph: &str) -> Result<(Way, &'static str), ModeError> {
    let (fuse, branch) = (manifest.graph(graph).is_some(), has_branches(manifest, graph));
    let quantized = manifest.slots.iter().any(|slot| slot.quantized.is_some());
    match asked {
        AdapterMode::Branch if !branch => Err(ModeError::NoBranches),
        AdapterMode::Fuse if !fuse => Err(ModeError::OnlyBranches),
        AdapterMode::Branch => Ok((Way::Branch, "asked for")),
        AdapterMode::Fuse => Ok((Way::Fuse, "asked for")),
        AdapterMode::Auto if !fuse && branch => Ok((Way::Branch, "the engine has no other")),
        AdapterMode::Auto if quantized && branch => Ok((Way::Branch, "weights in 8 bits stay as they are")),
        AdapterMode::Auto => Ok((Way::Fuse, "nothing speaks against it")),
    }
}

/// True if there is a variant of `graph` with low-rank branches.
pub fn has_branches(manifest: &Manifest, graph: &str) -> bool {
    manifest.graph(&with_branches(graph)).is_some_and(|graph| graph.lora_rank.is_some())
}

/// The name of a graph's variant with low-rank branches.
pub fn with_branches(graph: &str) -> String {
    format!("{graph}{BRANCH_SUFFIX}")
}

/// The graph that a variant with low-rank branches was made of; any other graph is its own.
pub fn without_branches(graph: &Graph) -> &str {
    graph.name.strip_suffix(BRANCH_SUFFIX).filter(|_| graph.lora_rank.is_some()).unwrap_or(&graph.name)
}
