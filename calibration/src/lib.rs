//! How far two results lie apart, and running models block by block to see why.

mod compare;
mod execute;
mod trace;
mod walk;

pub use compare::{Comparison, compare};
pub use execute::Executor;
pub use trace::{BlockError, NodeError, Trace, trace};
pub use walk::{Limits, WalkError, blocks, walk};
