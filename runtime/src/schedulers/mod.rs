//! Samplers: each diffusers scheduler class that v2l knows has a file here and a line in `CLASSES`.
//!
//! A [`Scheduler`] is what a `scheduler_config.json` describes; it never changes. [`Scheduler::begin`] gives the
//! [`Schedule`] of one video, which may keep state from step to step.

use std::fmt;

use ndarray::ArrayD;

use crate::error::{Classified, ErrorClass};

mod cogvideox_ddim;
mod ddim;
mod diffusion;

pub use diffusion::Prediction;

/// A noise schedule with its solver, as one `scheduler_config.json` describes it.
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// The schedule for `steps` inference steps. Costs a few numbers for each step.
    ///
    /// # Errors
    /// [`SchedulerError::Steps`] for 0 or more steps than the training schedule has, [`SchedulerError::Timestep`]
    /// if a timestep lies outside it, [`SchedulerError::Undefined`] where a step would divide by zero.
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError>;
}

/// The steps of one video, from most to least noise.
pub trait Schedule: Send {
    /// What the model is told at each step, in units of training timesteps.
    fn timesteps(&self) -> &[f64];

    /// Standard deviation that the initial noise must have.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// What the model is given at step `index` for the latents `sample`, of any shape.
    fn scale_input(&self, sample: ArrayD<f32>, _index: usize) -> ArrayD<f32> {
        sample
    }

    /// Step `index`: the sample and the model's `prediction` for it, of one shape, give the next sample.
    ///
    /// Steps are taken in order, each once.
    ///
    /// # Errors
    /// [`SchedulerError::Shape`] if the shapes differ, [`SchedulerError::Step`] after the last step.
    fn step(
        &mut self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError>;
}

/// What the registry knows of a scheduler.
struct Class {
    /// The `_class_name`s that are sampled with it.
    names: &'static [&'static str],
    /// Its name in `pipeline.json`.
    sampler: &'static str,
    /// Reads its configuration.
    read: fn(&serde_json::Value) -> Result<Box<dyn Scheduler>, SchedulerError>,
}

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

/// Why a scheduler cannot be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The file is not what diffusers writes.
    #[error("scheduler_config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A class or an option that is not implemented.
    #[error("scheduler_config.json: `{key}` is {found}, supported: {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        supported: String,
    },
    /// A number that makes no sense.
    #[error("scheduler_config.json: `{key}` is {found}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        found: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// More steps than the model was trained with, or none.
    #[error("{found} inference steps, expected 1 to {max} (the scheduler's num_train_timesteps)")]
    Steps {
        /// Steps asked for.
        found: usize,
        /// Length of the training schedule.
        max: usize,
    },
    /// A timestep outside the training schedule.
    #[error(
        "timestep {found} lies outside the training schedule, expected 0 to {last}; check `steps_offset` and the number of steps"
    )]
    Timestep {
        /// The timestep.
        found: i64,
        /// The last one of the schedule.
        last: usize,
    },
    /// A step that the schedule does not have.
    #[error("step {index} was asked for, the schedule has {steps}")]
    Step {
        /// The step, counted from 0.
        index: usize,
        /// Number of steps.
        steps: usize,
    },
    /// Model output and sample disagree.
    #[error("the model's output has shape {found:?}, the sample {expected:?}")]
    Shape {
        /// Shape of the sample.
        expected: Vec<usize>,
        /// Shape of the model's output.
        found: Vec<usize>,
    },
    /// The step would divide by zero.
    #[error(
        "{prediction:?} prediction is undefined at timestep {timestep}, where the signal or the noise is zero; expected a model with v_prediction, or a scheduler without rescale_betas_zero_snr"
    )]
    Undefined {
        /// What the model predicts.
        prediction: Prediction,
        /// The timestep.
        timestep: i64,
    },
}

impl Classified for SchedulerError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Unsupported { .. } => ErrorClass::Unsupported,
            Self::Steps { .. } => ErrorClass::Usage,
            _ => ErrorClass::BadModel,
        }
    }
}

#[cfg(test)]
mod tests;
