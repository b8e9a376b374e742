//! What diffusers' schedulers of the DDIM kind share: configuration, betas, timesteps.
//!
//! `DDIMScheduler` keeps f32 tables, `CogVideoXDDIMScheduler` f64 ones unless its betas are `linear`; PyTorch's
//! cumulative product sums in f64 in either case. The same types are used here, so that tables agree to the last few
//! bits.

use ndarray::{ArrayD, Zip};
use serde::Deserialize;

use super::scheduler::{
    At, Draw, MAX_TRAIN_TIMESTEPS, Prediction, SchedulerError, Solver, Steps, check_count, never_null,
};

/// How inference steps are spread over the training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    /// Multiples of an integer stride from 0, plus an offset.
    Leading,
    /// Counted back from the last training step.
    Trailing,
    /// Evenly from the first to the last training step.
    Linspace,
}

/// How the training betas run from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their square roots evenly.
    ScaledLinear,
}

/// The checked configuration; field names are diffusers'.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    /// Length of the training schedule, 2 to 100 000.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Shape of the betas.
    pub beta_schedule: BetaSchedule,
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
}

/// The file, before defaults: unknown keys are ignored.
#[derive(Deserialize)]
struct Raw {
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    trained_betas: Option<serde_json::Value>,
    thresholding: Option<bool>,
    set_alpha_to_one: Option<bool>,
    steps_offset: Option<usize>,
    prediction_type: Option<String>,
    timestep_spacing: Option<String>,
    rescale_betas_zero_snr: Option<bool>,
}

/// Keys of every class of the kind that are never null.
pub(super) const NEVER_NULL: [&str; 9] = [
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "prediction_type",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
];

pub(super) fn unsupported(key: &'static str, found: &str, supported: &str) -> SchedulerError {
    SchedulerError::Unsupported { key, found: found.to_owned(), supported: supported.to_owned() }
}

pub(super) const fn out_of_range(key: &'static str, found: f64, expected: &'static str) -> SchedulerError {
    SchedulerError::OutOfRange { key, found, expected }
}

/// One step of a solver that keeps nothing, element by element.
pub(super) trait Update: Send {
    /// The next sample, from the model's output `m` and the sample `x`.
    fn apply(&self, m: f32, x: f32) -> f32;
}

/// An update for each step.
impl<T: Update> Solver for Vec<T> {
    fn next(&mut self, at: &At<'_>, _: &mut Draw<'_>) -> ArrayD<f32> {
        let update = &self[at.index];
        Zip::from(at.prediction).and(at.sample).map_collect(|&m, &x| update.apply(m, x))
    }
}

/// Where a step goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    /// Where it begins.
    pub(super) timestep: i64,
    /// ᾱ there.
    pub(super) now: f64,
    /// ᾱ of the timestep after.
    pub(super) next: f64,
    /// True if that lies beyond the training schedule.
    pub(super) is_last: bool,
}

impl Config {
    /// Reads and checks a `scheduler_config.json`; the betas' defaults are the class's.
    pub(super) fn read(
        value: &serde_json::Value,
        beta_start: f64,
        beta_end: f64,
        beta_schedule: BetaSchedule,
    ) -> Result<Self, SchedulerError> {
        never_null(value, &NEVER_NULL)?;
        let raw = Raw::deserialize(value)?;
        if raw.trained_betas.is_some_and(|v| !v.is_null()) {
            return Err(unsupported("trained_betas", "a list", "null"));
        }
        if raw.thresholding == Some(true) {
            return Err(unsupported("thresholding", "true", "false"));
        }
        let config = Self {
            num_train_timesteps: raw.num_train_timesteps.unwrap_or(1000),
            beta_start: raw.beta_start.unwrap_or(beta_start),
            beta_end: raw.beta_end.unwrap_or(beta_end),
            beta_schedule: match raw.beta_schedule.as_deref() {
                None => beta_schedule,
                Some("linear") => BetaSchedule::Linear,
                Some("scaled_linear") => BetaSchedule::ScaledLinear,
                Some(other) => return Err(unsupported("beta_schedule", other, "linear, scaled_linear")),
            },
            set_alpha_to_one: raw.set_alpha_to_one.unwrap_or(true),
            steps_offset: raw.steps_offset.unwrap_or(0),
            prediction_type: match raw.prediction_type.as_deref().unwrap_or("epsilon") {
                "epsilon" => Prediction::Epsilon,
                "sample" => Prediction::Sample,
                "v_prediction" => Prediction::V,
                other => return Err(unsupported("prediction_type", other, "epsilon, sample, v_prediction")),
            },
            timestep_spacing: match raw.timestep_spacing.as_deref().unwrap_or("leading") {
                "leading" => Spacing::Leading,
                "trailing" => Spacing::Trailing,
                "linspace" => Spacing::Linspace,
                other => return Err(unsupported("timestep_spacing", other, "leading, trailing, linspace")),
            },
            rescale_betas_zero_snr: raw.rescale_betas_zero_snr.unwrap_or(false),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), SchedulerError> {
        let steps = self.num_train_timesteps;
        if !(2..=MAX_TRAIN_TIMESTEPS).contains(&steps) {
            return Err(out_of_range("num_train_timesteps", steps as f64, "2 to 100000"));
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(out_of_range(key, beta, "more than 0 and less than 1"));
            }
        }
        if self.steps_offset >= steps {
            return Err(out_of_range("steps_offset", self.steps_offset as f64, "less than num_train_timesteps"));
        }
        Ok(())
    }

    /// The cumulative alpha after the last step.
    pub(super) fn final_alpha(&self, alphas: &[f64]) -> f64 {
        if self.set_alpha_to_one { 1.0 } else { alphas[0] }
    }

    /// The timesteps for `steps` inference steps, and what `update` makes of each move.
    ///
    /// The timestep after is `timestep - num_train_timesteps / steps` whatever the spacing, as in diffusers.
    pub(super) fn steps<T>(
        &self,
        alphas: &[f64],
        steps: usize,
        mut update: impl FnMut(Move) -> Result<T, SchedulerError>,
    ) -> Result<Steps<Vec<T>>, SchedulerError> {
        let timesteps = self.timesteps(steps)?;
        let stride = (self.num_train_timesteps / steps) as i64;
        let last = self.final_alpha(alphas);
        let alpha = |timestep: i64| usize::try_from(timestep).ok().and_then(|at| alphas.get(at)).copied();
        let solver = timesteps
            .iter()
            .map(|&timestep| {
                let error = SchedulerError::Timestep { found: timestep, last: alphas.len() - 1 };
                let (now, next) = (alpha(timestep).ok_or(error)?, alpha(timestep - stride));
                update(Move { timestep, now, next: next.unwrap_or(last), is_last: next.is_none() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Steps { timesteps: timesteps.into_iter().map(|timestep| timestep as f64).collect(), solver })
    }

    pub(super) fn timesteps(&self, steps: usize) -> Result<Vec<i64>, SchedulerError> {
        let train = self.num_train_timesteps;
        check_count(steps, train)?;
        let (n, total) = (steps as f64, train as f64);
        let round = |x: f64| x.round_ties_even() as i64;
        let timesteps: Vec<i64> = match self.timestep_spacing {
            // numpy.linspace: i * step, then reversed.
            Spacing::Linspace if steps == 1 => vec![0],
            Spacing::Linspace => {
                let step = (total - 1.0) / (n - 1.0);
                (0..steps)
                    .rev()
                    .map(|i| if i + 1 == steps { round(total - 1.0) } else { round(i as f64 * step) })
                    .collect()
            }
            Spacing::Leading => {
                let ratio = train / steps;
                (0..steps).rev().map(|i| (i * ratio + self.steps_offset) as i64).collect()
            }
            // numpy.arange(total, 0, -ratio): start + i * delta, where delta is the first difference.
            Spacing::Trailing => {
                let delta = (total - total / n) - total;
                (0..steps).map(|i| round(total + i as f64 * delta) - 1).collect()
            }
        };
        match timesteps.iter().find(|&&timestep| timestep < 0 || timestep as usize >= train) {
            Some(&found) => Err(SchedulerError::Timestep { found, last: train - 1 }),
            None => Ok(timesteps),
        }
    }
}

/// `torch.linspace` in f32: counted from the nearer end, with fused multiply-add.
fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    (0..n)
        .map(|i| if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, end) })
        .collect()
}

/// `torch.linspace` in f64.
pub(super) fn linspace_f64(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / (n - 1) as f64;
    (0..n)
        .map(|i| if i < n / 2 { step.mul_add(i as f64, start) } else { (-step).mul_add((n - 1 - i) as f64, end) })
        .collect()
}

pub(super) fn betas_f32(config: &Config) -> Vec<f32> {
    let n = config.num_train_timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => linspace_f32(config.beta_start, config.beta_end, n),
        BetaSchedule::ScaledLinear => {
            linspace_f32(config.beta_start.sqrt(), config.beta_end.sqrt(), n).into_iter().map(|b| b * b).collect()
        }
    }
}

/// `torch.cumprod` of f32 values: the running product is kept in f64.
pub(super) fn cumprod_f32(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    alphas
        .scan(1.0f64, |product, alpha| {
            *product *= f64::from(alpha);
            Some(*product as f32)
        })
        .collect()
}

/// √ᾱ shifted and scaled so that it ends at 0 and starts where it did; f32.
pub(super) fn zero_snr_f32(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|a| a.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    roots
        .into_iter()
        .map(|r| {
            let r = (r - last) * scale;
            r * r
        })
        .collect()
}
