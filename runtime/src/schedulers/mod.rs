//! Samplers: each diffusers scheduler class that v2l knows has a file here and a line in `CLASSES`.
//!
//! A [`Scheduler`] is what a `scheduler_config.json` describes; it never changes. [`Scheduler::begin`] gives the
//! [`Schedule`] of one video, which may keep state from step to step.

mod cogvideox_ddim;
mod ddim;
mod diffusion;
mod scheduler;

use scheduler::Class;
pub use scheduler::{Prediction, Schedule, Scheduler, SchedulerError};

/// Every scheduler.
const CLASSES: [Class; 2] = [cogvideox_ddim::CLASS, ddim::CLASS];

/// Reads a `scheduler_config.json`.
///
/// `sampler` is a name of `pipeline.json` and decides instead of the file's `_class_name`, which must be known even so. A
/// file without a class name is read
/// as `CogVideoXDDIMScheduler`. Absent keys take the defaults of the class that is used.
///
/// # Errors
/// [`SchedulerError::Unsupported`] for a class, sampler or option that is not implemented, [`SchedulerError::Json`] if a
/// key has the wrong type, [`SchedulerError::OutOfRange`] for a number that makes no sense.
pub fn read(value: &serde_json::Value, sampler: Option<&str>) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let list = |names: Vec<&str>| names.join(", ");
    let mut class = &CLASSES[0];
    if let Some(name) = value.get("_class_name") {
        let named = |class: &&Class| name.as_str().is_some_and(|name| class.names.contains(&name));
        class = CLASSES.iter().find(named).ok_or_else(|| SchedulerError::Unsupported {
            key: "_class_name",
            found: name.as_str().map_or_else(|| name.to_string(), str::to_owned),
            supported: list(CLASSES.iter().flat_map(|class| class.names).copied().collect()),
        })?;
    }
    if let Some(sampler) = sampler {
        class = CLASSES.iter().find(|class| class.sampler == sampler).ok_or_else(|| {
            let supported = list(CLASSES.iter().map(|class| class.sampler).collect());
            SchedulerError::Unsupported { key: "sampler", found: sampler.to_owned(), supported }
        })?;
    }
    (class.read)(value)
}

#[cfg(test)]
mod tests;
