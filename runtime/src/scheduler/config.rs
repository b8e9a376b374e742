//! What a diffusers `scheduler_config.json` says, checked.

use serde::{Deserialize, Serialize};

use super::SchedulerError;

/// Which of diffusers' two DDIM samplers: they build their tables and take their steps differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerKind {
    /// `DDIMScheduler`: f32 tables, zero-SNR rescaling of the betas, optional clipping, no SNR shift.
    Ddim,
    /// `CogVideoXDDIMScheduler`: f64 tables, SNR shift, rescaling of the cumulative alphas, no clipping.
    CogVideoxDdim,
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

/// How inference steps are spread over the training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of an integer stride from 0, plus an offset.
    Leading,
    /// Counted back from the last training step.
    Trailing,
    /// Evenly from the first to the last training step.
    Linspace,
}

/// How the training betas run from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their square roots evenly.
    ScaledLinear,
}

/// The checked configuration; field names are diffusers'.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Which sampler.
    pub kind: SchedulerKind,
    /// Length of the training schedule, 2 to 100 000.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Shape of the betas.
    pub beta_schedule: BetaSchedule,
    /// Clamp the predicted clean sample to ± this ([`SchedulerKind::Ddim`] only).
    pub clip_sample_range: Option<f64>,
    /// After the last step the cumulative alpha is 1 (true) or that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Added to every timestep with [`Spacing::Leading`].
    pub steps_offset: usize,
    /// What the model predicts.
    pub prediction_type: Prediction,
    /// Spread of the inference steps.
    pub timestep_spacing: Spacing,
    /// Rescale so that the last timestep holds no signal.
    pub rescale_betas_zero_snr: bool,
    /// SNR shift ([`SchedulerKind::CogVideoxDdim`] only), 1 for none.
    pub snr_shift_scale: f64,
}

/// The file, before defaults: unknown keys are ignored.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    trained_betas: Option<serde_json::Value>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    set_alpha_to_one: Option<bool>,
    steps_offset: Option<usize>,
    prediction_type: Option<String>,
    thresholding: Option<bool>,
    timestep_spacing: Option<String>,
    rescale_betas_zero_snr: Option<bool>,
    snr_shift_scale: Option<f64>,
}

const MAX_TRAIN_TIMESTEPS: usize = 100_000;

fn unsupported(key: &'static str, found: impl Into<String>, supported: &'static str) -> SchedulerError {
    SchedulerError::Unsupported { key, found: found.into(), supported }
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`.
    ///
    /// `kind` overrides the file's `_class_name`; without it `DDIMScheduler` is itself and every other class
    /// (`CogVideoXDPMScheduler`, …) is read as `CogVideoXDDIMScheduler`, because official code samples with DDIM
    /// whatever the folder names. Absent keys take the defaults of the class that is used.
    ///
    /// # Errors
    /// [`SchedulerError::Json`] if a key has the wrong type; [`SchedulerError::Unsupported`] for trained betas,
    /// thresholding, a flow-matching class, or an unknown schedule, prediction or spacing;
    /// [`SchedulerError::OutOfRange`] for a number that makes no sense.
    pub fn from_value(value: &serde_json::Value, kind: Option<SchedulerKind>) -> Result<Self, SchedulerError> {
        let raw = Raw::deserialize(value)?;
        let class = raw.class_name.as_deref().unwrap_or("");
        if class.starts_with("FlowMatch") {
            return Err(unsupported("_class_name", class, "the DDIM family (DDIMScheduler, CogVideoXDDIMScheduler)"));
        }
        let kind = kind.unwrap_or(match class {
            "DDIMScheduler" => SchedulerKind::Ddim,
            _ => SchedulerKind::CogVideoxDdim,
        });
        let ddim = kind == SchedulerKind::Ddim;
        if raw.trained_betas.is_some_and(|v| !v.is_null()) {
            return Err(unsupported("trained_betas", "a list", "null"));
        }
        if raw.thresholding == Some(true) {
            return Err(unsupported("thresholding", "true", "false"));
        }
        let default_schedule = if ddim { "linear" } else { "scaled_linear" };
        let beta_schedule = match raw.beta_schedule.as_deref().unwrap_or(default_schedule) {
            "linear" => BetaSchedule::Linear,
            "scaled_linear" => BetaSchedule::ScaledLinear,
            other => return Err(unsupported("beta_schedule", other, "linear, scaled_linear")),
        };
        let prediction_type = match raw.prediction_type.as_deref().unwrap_or("epsilon") {
            "epsilon" => Prediction::Epsilon,
            "sample" => Prediction::Sample,
            "v_prediction" => Prediction::V,
            other => return Err(unsupported("prediction_type", other, "epsilon, sample, v_prediction")),
        };
        let timestep_spacing = match raw.timestep_spacing.as_deref().unwrap_or("leading") {
            "leading" => Spacing::Leading,
            "trailing" => Spacing::Trailing,
            "linspace" => Spacing::Linspace,
            other => return Err(unsupported("timestep_spacing", other, "leading, trailing, linspace")),
        };
        let clip = ddim && raw.clip_sample.unwrap_or(true);
        let config = Self {
            kind,
            num_train_timesteps: raw.num_train_timesteps.unwrap_or(1000),
            beta_start: raw.beta_start.unwrap_or(if ddim { 0.0001 } else { 0.00085 }),
            beta_end: raw.beta_end.unwrap_or(if ddim { 0.02 } else { 0.0120 }),
            beta_schedule,
            clip_sample_range: clip.then(|| raw.clip_sample_range.unwrap_or(1.0)),
            set_alpha_to_one: raw.set_alpha_to_one.unwrap_or(true),
            steps_offset: raw.steps_offset.unwrap_or(0),
            prediction_type,
            timestep_spacing,
            rescale_betas_zero_snr: raw.rescale_betas_zero_snr.unwrap_or(false),
            snr_shift_scale: if ddim { 1.0 } else { raw.snr_shift_scale.unwrap_or(3.0) },
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), SchedulerError> {
        let steps = self.num_train_timesteps;
        let range = |key, found: f64, expected| SchedulerError::OutOfRange { key, found, expected };
        if !(2..=MAX_TRAIN_TIMESTEPS).contains(&steps) {
            return Err(range("num_train_timesteps", steps as f64, "2 to 100000"));
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(range(key, beta, "more than 0 and less than 1"));
            }
        }
        if !(self.snr_shift_scale > 0.0 && self.snr_shift_scale.is_finite()) {
            return Err(range("snr_shift_scale", self.snr_shift_scale, "more than 0"));
        }
        if let Some(clip) = self.clip_sample_range
            && !(clip > 0.0 && clip.is_finite())
        {
            return Err(range("clip_sample_range", clip, "more than 0"));
        }
        if self.steps_offset >= steps {
            return Err(range("steps_offset", self.steps_offset as f64, "less than num_train_timesteps"));
        }
        Ok(())
    }
}
