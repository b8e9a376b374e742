//! What models compute: how far two results lie apart, running models block by block to see why, the values they take, and
//! which node computes in which type.
//!
//! [`calibrate`] records [`Ranges`] on real inputs; [`plan_graph`] makes a [`GraphPlan`] of them and of the rules
//! ([`kept_in_fp32`]); [`PrecisionPlan`] is its file.

mod calibrate;
mod compare;
mod execute;
mod plan;
mod planning;
mod ranges;
mod rules;
mod trace;
mod walk;

pub use calibrate::calibrate;
pub use compare::{Comparison, compare};
pub use execute::Executor;
pub use plan::{Exception, GraphPlan, MAX_PLAN_BYTES, PlanError, Precision, PrecisionPlan, fingerprint};
pub use planning::{PlanOptions, Request, float_values, observe_weights, plan_graph};
pub use ranges::{FLOAT16_NORMAL, Range, RangeRow, Ranges};
pub use rules::{Rule, kept_in_fp32};
pub use trace::{BlockError, NodeError, Trace, trace};
pub use walk::{Limits, WalkError, blocks, walk};
