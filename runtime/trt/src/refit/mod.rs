//! Which weights go into an engine, in which order: decided without a GPU, carried out through a trait.
//!
//! The rules of TensorRT's refitter that shape this:
//! - a weight is set with exactly the type and element count of its prototype;
//! - TensorRT may have fused weights into a group of which it wants all or none: it lists those that are still missing;
//! - what is set must stay in memory until the refit returns;
//! - a refit that fails may have replaced some weights: the engine is then of no use any more.

mod apply;
mod plan;
#[cfg(test)]
mod tests;
mod weighted;

pub use self::apply::{Applied, ApplyError, Cause, Outcome, RefitError, Refitter, Staging, apply};
pub use self::plan::{
    Change, Content, Groups, Held, Prototype, RefitPlan, RefitPlanError, Request, Round, SlotWeight, plan,
};
pub use self::weighted::{Engines, Fixed, Weighted, WeightedError};
