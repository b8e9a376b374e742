//! What a check found.

use std::fmt;
use std::path::PathBuf;

use v2l_calibration::{Comparison, Trace};
use v2l_runtime::backends::onnxruntime::OperatorTimes;
use v2l_runtime::options::WeightMode;

use crate::remedy::Remedy;

/// How far an output may lie from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// `‖actual − expected‖₂ / ‖expected‖₂` is at most this.
    RelativeL2(f64),
    /// Every element: `|actual − expected| ≤ atol + rtol · |expected|`.
    Elementwise {
        /// Absolute.
        atol: f64,
        /// Relative to the reference's element.
        rtol: f64,
    },
}

impl Tolerance {
    /// What arithmetic in 16 bits lets expect of a sound plan.
    pub(crate) fn of_plan(bfloat16: bool) -> Self {
        Self::RelativeL2(if bfloat16 { 1e-1 } else { 2e-2 })
    }

    pub(crate) fn allows(&self, found: &Comparison, values: impl FnOnce() -> (Vec<f32>, Vec<f32>)) -> bool {
        match *self {
            Self::RelativeL2(most) => found.within(most),
            Self::Elementwise { atol, rtol } => {
                let (actual, expected) = values();
                let close = |(a, e): (&f32, &f32)| {
                    let (a, e) = (f64::from(*a), f64::from(*e));
                    let finite = a.is_finite() && e.is_finite();
                    a == e || (a.is_nan() && e.is_nan()) || (finite && (a - e).abs() <= atol + rtol * e.abs())
                };
                actual.len() == expected.len() && actual.iter().zip(&expected).all(close)
            }
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelativeL2(most) => write!(f, "relative L2 {most:.1e}"),
            Self::Elementwise { atol, rtol } => write!(f, "atol {atol:.1e}, rtol {rtol:.1e}"),
        }
    }
}

/// One output of a checked graph.
#[derive(Clone, Debug)]
pub struct OutputCheck {
    /// The output.
    pub name: String,
    /// Its distance from the reference; `None` if it is missing or has another shape. The tolerances that would have
    /// passed: its relative L2, or atol `max_abs`, or rtol `max_relative`.
    pub comparison: Option<Comparison>,
    /// True if its values must be equal, whatever the tolerance: integers of 32 and 64 bits, and truth values.
    pub exact: bool,
    /// True if it is within the tolerance.
    pub passed: bool,
}

/// One graph on one set of inputs.
#[derive(Clone, Debug)]
pub struct GraphCheck {
    /// The component.
    pub component: String,
    /// The graph.
    pub graph: String,
    /// How the weights were held.
    pub weights: WeightMode,
    /// What it ran on.
    pub inputs: String,
    /// What was allowed.
    pub tolerance: Tolerance,
    /// Every output.
    pub outputs: Vec<OutputCheck>,
}

impl GraphCheck {
    /// True if every output is within the tolerance.
    pub fn passed(&self) -> bool {
        self.outputs.iter().all(|output| output.passed)
    }

    /// The output that is furthest off, of those that are not within the tolerance if there are any.
    pub fn worst(&self) -> Option<&OutputCheck> {
        let wrong = |output: &OutputCheck| !output.passed;
        self.outputs.iter().max_by(|a, b| wrong(a).cmp(&wrong(b)).then(error(a).total_cmp(&error(b))))
    }
}

/// A check that failed, and where.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The check.
    pub check: GraphCheck,
    /// Where the error arises, if that could be found out.
    pub trace: Option<Trace>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = &self.check;
        write!(f, "{}, graph `{}`, weights {}: ", check.component, check.graph, check.weights)?;
        match check.worst() {
            Some(OutputCheck { name, comparison: Some(found), exact: true, .. }) => {
                write!(f, "output `{name}` differs from the source: {found}; expected equal integers")?;
            }
            Some(OutputCheck { name, comparison: Some(found), .. }) => {
                write!(f, "output `{name}` differs from the source: {found}; expected {}", check.tolerance)?;
            }
            Some(OutputCheck { name, .. }) => write!(f, "output `{name}` is missing or has another shape")?,
            None => write!(f, "every output is within {}", check.tolerance)?,
        }
        if let Some(node) = self.trace.as_ref().and_then(Trace::culprit) {
            write!(
                f,
                "; the error arises at node `{}` ({}), value `{}`: {}",
                node.node, node.op_type, node.value, node.error
            )?;
            write!(f, ", largest magnitude in the source {:.4e}", node.magnitude)?;
        }
        write!(f, "; inputs: {}", check.inputs)
    }
}

/// What was checked.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// By graph, way to hold the weights, and inputs.
    pub done: Vec<GraphCheck>,
    /// What a run of each graph spends its time on, if that was asked for.
    pub times: Vec<GraphTimes>,
    /// Graphs that could not be checked, and why.
    pub skipped: Vec<Unchecked>,
    /// Input files that no graph of the component uses, and why the first graph does not take them.
    pub unused: Vec<(PathBuf, String)>,
}

/// A graph that could not be checked.
#[derive(Clone, Debug)]
pub struct Unchecked {
    /// The graph.
    pub graph: String,
    /// Why.
    pub reason: String,
    /// What would let it be checked.
    pub remedies: Vec<Remedy>,
}

impl Unchecked {
    pub(crate) fn new(graph: &str, reason: impl Into<String>) -> Self {
        Self { graph: graph.to_owned(), reason: reason.into(), remedies: Vec::new() }
    }

    /// For want of inputs that fit.
    pub(crate) fn on_inputs(graph: &str, reason: impl Into<String>) -> Self {
        Self { remedies: vec![Remedy::OtherInputs], ..Self::new(graph, reason) }
    }
}

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph `{}` could not be checked: {}", self.graph, self.reason)
    }
}

/// Where one run of a graph, its precomputed graphs left out, spends its time.
#[derive(Clone, Debug)]
pub struct GraphTimes {
    /// The graph.
    pub graph: String,
    /// How the weights were held.
    pub weights: WeightMode,
    /// What it ran on.
    pub inputs: String,
    /// By operator.
    pub operators: OperatorTimes,
}

fn error(output: &OutputCheck) -> f64 {
    output.comparison.map_or(f64::INFINITY, |c| if c.non_finite > 0 { f64::INFINITY } else { c.relative_l2 })
}
