//! What was planned, and how it was found to do.

use std::path::PathBuf;

use serde::Serialize;
use v2l_calibration::{Comparison, PrecisionPlan, Ranges};

/// What was planned for a component, and how it was found to do.
#[derive(Clone, Debug, Default)]
pub struct PrecisionReport {
    /// The plan, its graphs called `component/graph`.
    pub plan: PrecisionPlan,
    /// Outputs of the emulated plan against float32, by graph, inputs and strength.
    pub checks: Vec<PrecisionPlanCheck>,
    /// What each block does, if that was measured.
    pub sensitivity: Vec<BlockSensitivity>,
    /// What was seen, by graph.
    pub ranges: Vec<(String, Ranges)>,
    /// Calibration files that no graph of the component uses, and why the first graph does not take them.
    pub unused: Vec<(PathBuf, String)>,
    /// Graphs that could not be run, and why: planned by the rules alone, and not checked.
    pub skipped: Vec<(String, String)>,
}

/// How far a plan's outputs lie from float32.
#[derive(Clone, Debug)]
pub struct PrecisionPlanCheck {
    /// `component/graph`.
    pub graph: String,
    /// Inputs, and the strength of adapters.
    pub run: String,
    /// The output that is furthest off, and how far.
    pub output: String,
    /// The distance.
    pub error: Comparison,
    /// True if every output is within the tolerance.
    pub passed: bool,
}

/// What an accuracy target left in 8 bits.
#[derive(Clone, Debug)]
pub struct Int8Report {
    /// Inputs to a scale.
    pub block: usize,
    /// Matrices in 8 bits.
    pub matrices: usize,
    /// Matrices that could be, and that the target keeps as they were.
    pub left_out: usize,
    /// What each block does with its matrices in 8 bits; empty without a target.
    pub sensitivity: Vec<BlockSensitivity>,
    /// Calibration files that no graph of the component uses, and why the first graph does not take them.
    pub unused: Vec<(PathBuf, String)>,
}

/// What one block does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockSensitivity {
    /// `component/graph`.
    pub graph: String,
    /// The block.
    pub block: String,
    /// Its nodes.
    pub nodes: usize,
    /// Largest relative L2 error of an output when only this block is as planned, the rest in float32; `None` if the
    /// outputs are then not finite.
    pub error: Option<f64>,
    /// Bytes that the plan saves in it: of weights, and of the values that it makes on one input if they were measured.
    pub saved_bytes: u64,
    /// True if it stays as planned; false if the target keeps it as it was.
    pub kept: bool,
}
