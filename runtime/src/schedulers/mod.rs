//! Samplers: each diffusers scheduler class that v2l knows has a file here and a line in `CLASSES`.
//!
//! A [`Scheduler`] is what a `scheduler_config.json` describes; it never changes. [`Scheduler::begin`] gives the
//! [`Schedule`] of one video, which may keep state from step to step.

mod cogvideox_ddim;
mod cogvideox_dpm;
mod ddim;
mod diffusion;
mod flow;
mod flow_dpm;
mod flow_euler;
mod flow_lcm;
mod flow_unipc;
mod scheduler;
#[cfg(test)]
mod toy;

use scheduler::Class;
pub use scheduler::{Draw, Kind, Prediction, Schedule, Scheduler, SchedulerError};

/// Every scheduler. A line each.
static CLASSES: &[Class] = &[
    cogvideox_ddim::CLASS,
    cogvideox_dpm::CLASS,
    ddim::CLASS,
    flow_unipc::CLASS,
    flow_unipc::WAN,
    flow_euler::CLASS,
    flow_euler::SIMPLE,
    flow_dpm::CLASS,
    flow_dpm::WAN,
    flow_lcm::CLASS,
    flow_lcm::SIMPLE,
    #[cfg(test)]
    toy::CLASS,
];

/// Reads a `scheduler_config.json`.
///
/// `sampler` is a name of `pipeline.json` and decides instead of the file's `_class_name`. An option that is not implemented is
/// refused where the class that is used reads it, as diffusers' `from_config` would take the file. A file of a class that is not
/// known, or without one, is refused whichever sampler is used. Absent keys take the defaults of the class that is used.
///
/// # Errors
/// [`SchedulerError::Unsupported`] for a class, sampler or option that is not implemented, [`SchedulerError::Json`] if a
/// key has the wrong type, [`SchedulerError::OutOfRange`] for a number that makes no sense.
pub fn read(value: &serde_json::Value, sampler: Option<&str>) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let class = class_of(value)?;
    let Some(sampler) = sampler else { return (class.read)(value) };
    let found = for_models_of(class).find(|class| class.sampler == sampler).ok_or_else(|| {
        let supported = list(for_models_of(class).map(|class| class.sampler));
        SchedulerError::Unsupported { key: "sampler", found: sampler.to_owned(), supported }
    })?;
    (found.read)(value)
}

/// Reads a `scheduler_config.json` for a request that asks for a scheduler by one of its names, its own or diffusers', and
/// else as [`read`] does.
///
/// # Errors
/// [`SchedulerError::Unknown`] if no scheduler for this model has that name; else as [`read`].
pub fn read_for(
    value: &serde_json::Value,
    sampler: Option<&str>,
    asked: Option<&str>,
) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let Some(asked) = asked else { return read(value, sampler) };
    let class = class_of(value)?;
    let found = for_models_of(class).find(|class| class.sampler == asked || class.names.contains(&asked));
    let found = found.ok_or_else(|| {
        let supported = list(for_models_of(class).map(|class| class.sampler));
        SchedulerError::Unknown { found: asked.to_owned(), supported }
    })?;
    (found.read)(value)
}

/// Checks that the class which a `scheduler_config.json` names samples models of this kind.
///
/// # Errors
/// [`SchedulerError::Unsupported`] for any other.
pub fn check_kind(value: &serde_json::Value, kind: Kind) -> Result<(), SchedulerError> {
    match class_of(value) {
        Ok(class) if class.kind == kind => Ok(()),
        _ => Err(unknown_class(value.get("_class_name"), CLASSES.iter().filter(|class| class.kind == kind))),
    }
}

/// True if two names, of samplers or of diffusers' classes, are of one scheduler.
pub fn same_sampler(one: &str, other: &str) -> bool {
    let class = |name: &str| CLASSES.iter().find(|class| class.sampler == name || class.names.contains(&name));
    one == other || class(one).zip(class(other)).is_some_and(|(one, other)| one.sampler == other.sampler)
}

/// The names of all samplers.
pub fn samplers() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().map(|class| class.sampler)
}

/// The class that a file names.
fn class_of(value: &serde_json::Value) -> Result<&'static Class, SchedulerError> {
    let name = value.get("_class_name");
    let text = name.and_then(serde_json::Value::as_str);
    let named = |class: &&Class| text.is_some_and(|text| class.names.contains(&text));
    CLASSES.iter().find(named).ok_or_else(|| unknown_class(name, CLASSES.iter()))
}

fn unknown_class<'a>(name: Option<&serde_json::Value>, known: impl Iterator<Item = &'a Class>) -> SchedulerError {
    let text = |name: &serde_json::Value| name.as_str().map_or_else(|| name.to_string(), str::to_owned);
    let found = name.map_or_else(|| "missing".to_owned(), text);
    SchedulerError::Unsupported {
        key: "_class_name",
        found,
        supported: list(known.flat_map(|class| class.names).copied()),
    }
}

/// The schedulers that sample what this one samples.
fn for_models_of(class: &Class) -> impl Iterator<Item = &'static Class> {
    let kind = class.kind;
    CLASSES.iter().filter(move |class| class.kind == kind)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod tests;
