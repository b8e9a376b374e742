//! What was compiled.

use std::path::PathBuf;
use std::time::Duration;

use v2l_runtime::tensor::Dtype;
use v2l_trt::Capability;

use super::explain::GraphReport;
use super::slots::SlotReport;
use crate::check::Checks;
use crate::precision::{Int8Report, PrecisionReport};

/// Engines that were written.
#[derive(Clone, Debug)]
pub struct CompileReport {
    /// One per component.
    pub engines: Vec<EngineReport>,
}

/// One engine of a [`CompileReport`].
#[derive(Clone, Debug)]
pub struct EngineReport {
    /// The component.
    pub component: String,
    /// Where the engine lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Type in which its matrices are stored.
    pub storage: Dtype,
    /// Its graphs.
    pub graphs: Vec<String>,
    /// What adapters may change in it.
    pub slots: usize,
    /// The precision plan that it was compiled by, and what was measured for it.
    pub precision: Option<PrecisionReport>,
    /// What of it is in 8 bits.
    pub int8: Option<Int8Report>,
    /// How far its outputs lie from the source's.
    pub checks: Checks,
    /// What the passes did to each graph of the source.
    pub passes: Vec<GraphReport>,
    /// What is missing or uncertain of slots; `None` without
    /// [`CompileOptions::weights`](crate::CompileOptions::weights) where nothing is to be said.
    pub named: Option<SlotReport>,
    /// For TensorRT: the plans of each graph.
    pub plans: Vec<TrtPlanReport>,
}

/// One plan of an [`EngineReport`].
#[derive(Clone, Debug)]
pub struct TrtPlanReport {
    /// The graph.
    pub graph: String,
    /// The kind of GPU that it is for; `None`: the one of this machine.
    pub capability: Option<Capability>,
    /// Bytes of the plan.
    pub bytes: u64,
    /// Bytes of the graph's weights in their storage types.
    pub weight_bytes: u64,
    /// Of those, bytes of weights that can be set.
    pub refittable_bytes: u64,
    /// Slots whose weight cannot be set, so that no adapter changes them.
    pub fixed_slots: Vec<String>,
    /// True if, with placeholders, its bytes are the same when it is built again.
    pub reproducible: bool,
    /// What building took.
    pub time: Duration,
    /// TensorRT's warnings, and why there is no probe, if there is none.
    pub warnings: Vec<String>,
}
