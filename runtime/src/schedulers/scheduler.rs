//! What a sampler is.

use std::fmt;

use ndarray::ArrayD;

use crate::error::{Classified, ErrorClass};
use crate::wording::SHIFT;

/// A noise schedule with its solver, as one `scheduler_config.json` describes it.
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// The schedule for `steps` inference steps. Costs a few numbers for each step.
    ///
    /// # Errors
    /// [`SchedulerError::Steps`] for 0 or more steps than the training schedule has, [`SchedulerError::Timestep`]
    /// if a timestep lies outside it, [`SchedulerError::Undefined`] where a step would divide by zero.
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError>;

    /// How far levels of noise are moved towards noise, where the scheduler has such a number.
    fn shift(&self) -> Option<f64> {
        None
    }

    /// The same scheduler with another shift, more than 0.
    ///
    /// # Errors
    /// [`SchedulerError::NoShift`] where there is none, [`SchedulerError::Shift`] for one that makes no sense.
    fn shifted(&self, _shift: f64) -> Result<Box<dyn Scheduler>, SchedulerError> {
        Err(SchedulerError::NoShift)
    }
}

/// Standard normal values of a shape: new ones in each step.
pub type Draw<'a> = dyn FnMut(&[usize]) -> ArrayD<f32> + 'a;

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

    /// Step `index`: the sample and the model's `prediction` for it, of one shape, give the next sample. A scheduler that adds
    /// noise takes it from `draw`.
    ///
    /// Steps are taken in order, each once; step 0 begins again.
    ///
    /// # Errors
    /// [`SchedulerError::Shape`] if the shapes differ, [`SchedulerError::Step`] after the last step.
    fn step(
        &mut self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
        draw: &mut Draw<'_>,
    ) -> Result<ArrayD<f32>, SchedulerError>;
}

/// A schedule's timesteps, and what takes its steps.
pub(super) struct Steps<S> {
    pub(super) timesteps: Vec<f64>,
    pub(super) solver: S,
}

/// What takes the steps of a [`Schedule`], once their arguments are known to be right.
pub(super) trait Solver: Send {
    /// The next sample.
    fn next(&mut self, at: &At<'_>, draw: &mut Draw<'_>) -> ArrayD<f32>;
}

/// A step that there is, on arrays of one shape.
pub(super) struct At<'a> {
    /// The step, counted from 0.
    pub(super) index: usize,
    /// What the model says of the sample.
    pub(super) prediction: &'a ArrayD<f32>,
    /// The sample before the step.
    pub(super) sample: &'a ArrayD<f32>,
}

impl<S: Solver> Schedule for Steps<S> {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
        draw: &mut Draw<'_>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        check_step(self.timesteps.len(), prediction, index, sample)?;
        Ok(self.solver.next(&At { index, prediction, sample }, draw))
    }
}

/// Checks a step's arguments.
pub(super) fn check_step(
    steps: usize,
    prediction: &ArrayD<f32>,
    index: usize,
    sample: &ArrayD<f32>,
) -> Result<(), SchedulerError> {
    if index >= steps {
        return Err(SchedulerError::Step { index, steps });
    }
    if prediction.shape() != sample.shape() {
        let (expected, found) = (sample.shape().to_vec(), prediction.shape().to_vec());
        return Err(SchedulerError::Shape { expected, found });
    }
    Ok(())
}

/// Checks that a video has steps, and no more than the model was trained with.
pub(super) fn check_count(steps: usize, max: usize) -> Result<(), SchedulerError> {
    if (1..=max).contains(&steps) { Ok(()) } else { Err(SchedulerError::Steps { found: steps, max }) }
}

/// Largest training schedule that is read.
pub(super) const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// What a model is trained to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A diffusion process, by betas.
    Diffusion,
    /// A straight flow from noise to sample.
    Flow,
}

/// What the registry knows of a scheduler.
pub(super) struct Class {
    /// The `_class_name`s that are sampled with it.
    pub(super) names: &'static [&'static str],
    /// Its name in `pipeline.json`.
    pub(super) sampler: &'static str,
    /// The models that it samples.
    pub(super) kind: Kind,
    /// Reads its configuration.
    pub(super) read: fn(&serde_json::Value) -> Result<Box<dyn Scheduler>, SchedulerError>,
}

/// Refuses a file in which one of these keys is null: diffusers gives them other values where they are absent. A null is none of
/// their values: diffusers takes some of these for `false`, and fails on the others.
pub(super) fn never_null(value: &serde_json::Value, keys: &[&'static str]) -> Result<(), SchedulerError> {
    match keys.iter().find(|key| value.get(**key).is_some_and(serde_json::Value::is_null)) {
        None => Ok(()),
        Some(&key) => {
            let supported = "a value, or a file without this key".to_owned();
            Err(SchedulerError::Unsupported { key, found: "null".to_owned(), supported })
        }
    }
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
    /// A request names a scheduler that there is not, or that is not for this model.
    #[error("there is no scheduler `{found}` for this model; expected {supported}")]
    Unknown {
        /// What was asked for.
        found: String,
        /// What there is.
        supported: String,
    },
    /// A request gives a shift that makes no sense.
    #[error("`{SHIFT}` is {found}, expected more than 0, at most 10000")]
    Shift {
        /// The shift.
        found: f64,
    },
    /// A request gives a shift to a scheduler without one.
    #[error("this model's scheduler has no shift: that is for models of flow matching; leave `{SHIFT}` out")]
    NoShift,
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
            Self::Steps { .. } | Self::Unknown { .. } | Self::Shift { .. } | Self::NoShift => ErrorClass::Usage,
            _ => ErrorClass::BadModel,
        }
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::Unknown { .. } => Some("scheduler"),
            Self::Shift { .. } | Self::NoShift => Some("shift"),
            Self::Steps { .. } => Some("num_inference_steps"),
            _ => None,
        }
    }
}

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The clean sample.
    Sample,
    /// The velocity.
    V,
}

impl Prediction {
    /// The clean sample, from the model's output `m`, the sample `x`, and √ᾱ and √(1-ᾱ).
    pub(super) fn clean(self, m: f32, x: f32, (signal, noise): (f32, f32)) -> f32 {
        match self {
            Self::Epsilon => (x - noise * m) / signal,
            Self::Sample => m,
            Self::V => signal * x - noise * m,
        }
    }
}
