//! Does an engine still compute what its source computes? Measured, not argued.
//!
//! ```text
//! options    what to check on, and how strictly
//! report     what was found
//! inputs     given tensors, or made ones; `uses` says what made ones must know
//! reference  the source as it stands
//! made       runs of the reference on made inputs; `rows` adds those that timestep rows must stand
//! runs       what an engine is compared on
//! compare    two runs' outputs
//! locate     where the difference arises
//! engine     the check itself
//! ```

mod compare;
mod engine;
pub mod inputs;
pub(crate) mod locate;
pub(crate) mod made;
mod options;
pub(crate) mod reference;
mod report;
mod rows;
mod runs;
mod uses;

pub use v2l_calibration::{BlockError, Comparison, NodeError, Trace};

pub(crate) use self::engine::{Source, check_engine, check_inputs_used};
pub use self::options::CheckOptions;
pub use self::report::{Checks, Failed, GraphCheck, GraphTimes, OutputCheck, Tolerance, Unchecked};
