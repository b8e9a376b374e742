//! What an engine is checked on, and how strictly.

use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;
use v2l_runtime::memory::available_memory;
use v2l_runtime::options::{OpenOptions, RunLimits};

use super::report::Tolerance;

/// What an engine is checked on, and how strictly.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Safetensors files of named tensors, or folders of them; each is for the graphs whose inputs it names. A graph
    /// without any is checked on made inputs.
    pub inputs: Vec<PathBuf>,
    /// Sizes of named extents for made inputs.
    pub extents: IndexMap<String, usize>,
    /// Largest distance allowed; chosen by what the weights are stored in if not given.
    pub tolerance: Option<Tolerance>,
    /// Check every way to hold the weights, however much memory it takes, and fail if a graph cannot be checked.
    pub thorough: bool,
    /// Time what each graph spends a run on.
    pub times: bool,
    /// Seed of made inputs.
    pub seed: u64,
    /// What a run on made inputs may take; by default five minutes and half of the memory that is available. Beyond it
    /// the graph is not checked.
    pub limits: Option<RunLimits>,
    /// Library and threads.
    pub ort: OpenOptions,
}

impl CheckOptions {
    /// What a run on made inputs may take.
    pub(crate) fn run_limits(&self) -> RunLimits {
        let memory = || available_memory().map_or(UNKNOWN_MEMORY, |available| available / 2);
        self.limits.unwrap_or_else(|| RunLimits { time: MADE_RUN, memory: memory() })
    }
}

/// Longest run on made inputs.
const MADE_RUN: Duration = Duration::from_secs(300);

/// Bytes that a run on made inputs may take where the system does not say how much there is.
const UNKNOWN_MEMORY: u64 = 4 << 30;
