//! Which node computes in which type: decided by rules and measured values, and checked.
//!
//! A model is run in float32 on calibration inputs, with adapters at several strengths; what was seen and the rules
//! make a plan. The plan is tried on the same inputs by emulation: a float32 graph that rounds where the plan does.
//! With an accuracy target, blocks are taken out of 16 bits until it is met.

mod blocks;
mod int8;
mod measure;
mod options;
mod plan;
mod report;
mod search;
mod types;

pub use v2l_calibration::{Exception, GraphPlan, PlanError, Precision, PrecisionPlan, RangeRow, Request};

pub use self::blocks::blocks;
pub(crate) use self::int8::fit_int8;
pub use self::options::PrecisionOptions;
pub use self::plan::read_plan;
pub(crate) use self::plan::{Planned, plan_component};
pub use self::report::{BlockSensitivity, Int8Report, PrecisionPlanCheck, PrecisionReport};
pub(crate) use self::types::{arithmetic, branch_types};
pub use crate::execute::adapted::AdaptedError;
