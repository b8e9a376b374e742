//! diffusers' `CogVideoXDDIMScheduler`: f64 tables unless its betas are linear, SNR shift, rescaling of the cumulative
//! alphas, no clipping.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddim_cogvideox.py`.

use serde::Deserialize;

use super::diffusion::{self, BetaSchedule, Config, Move};
use super::scheduler::{Class, Kind, Prediction, Schedule, Scheduler, SchedulerError, Steps, never_null};

pub(super) const CLASS: Class = Class {
    names: &["CogVideoXDDIMScheduler"],
    sampler: "cogvideox_ddim",
    kind: Kind::Diffusion,
    read: |value| Ok(Box::new(CogVideoxDdim::read(value)?)),
};

#[derive(Debug)]
pub(super) struct CogVideoxDdim {
    pub(super) config: Config,
    /// Cumulative alphas.
    pub(super) alphas: Vec<f64>,
}

/// Keys that only this class has.
#[derive(Deserialize)]
struct Keys {
    snr_shift_scale: Option<f64>,
}

impl CogVideoxDdim {
    pub(super) fn read(value: &serde_json::Value) -> Result<Self, SchedulerError> {
        never_null(value, &["snr_shift_scale"])?;
        let keys = Keys::deserialize(value)?;
        let config = Config::read(value, 0.00085, 0.0120, BetaSchedule::ScaledLinear)?;
        let shift = keys.snr_shift_scale.unwrap_or(3.0);
        if !(shift > 0.0 && shift.is_finite()) {
            return Err(diffusion::out_of_range("snr_shift_scale", shift, "more than 0"));
        }
        let alphas = match config.beta_schedule {
            BetaSchedule::Linear => table_f32(&config, shift),
            BetaSchedule::ScaledLinear => table_f64(&config, shift),
        };
        Ok(Self { config, alphas })
    }

    /// True if the tables are f32.
    pub(super) fn single(&self) -> bool {
        self.config.beta_schedule == BetaSchedule::Linear
    }

    /// A schedule of what `update` makes of each move.
    ///
    /// # Errors
    /// As [`Scheduler::begin`].
    pub(super) fn steps<T>(
        &self,
        steps: usize,
        mut update: impl FnMut(Prediction, Move) -> T,
    ) -> Result<Steps<Vec<T>>, SchedulerError> {
        let prediction = self.config.prediction_type;
        self.config.steps(&self.alphas, steps, |at| {
            if at.now == 1.0 || prediction == Prediction::Epsilon && at.now == 0.0 {
                return Err(SchedulerError::Undefined { prediction, timestep: at.timestep });
            }
            Ok(update(prediction, at))
        })
    }
}

impl Scheduler for CogVideoxDdim {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        let update = if self.single() { Update::f32 } else { Update::f64 };
        let steps = self.steps(steps, |prediction, at| update(prediction, at.now, at.next))?;
        Ok(Box::new(steps))
    }
}

/// The numbers of one step, rounded as PyTorch rounds them.
struct Update {
    prediction: Prediction,
    /// √ᾱ and √(1-ᾱ) at this timestep.
    now: (f32, f32),
    /// Factors of the sample and of the clean sample.
    a: f32,
    b: f32,
}

impl diffusion::Update for Update {
    fn apply(&self, m: f32, x: f32) -> f32 {
        self.a * x + self.b * self.prediction.clean(m, x, self.now)
    }
}

impl Update {
    /// From f32 tables, with f32 roots.
    fn f32(prediction: Prediction, alpha: f64, previous: f64) -> Self {
        let (alpha, previous) = (alpha as f32, previous as f32);
        let a = ((1.0 - previous) / (1.0 - alpha)).sqrt();
        Self { prediction, now: (alpha.sqrt(), (1.0 - alpha).sqrt()), a, b: previous.sqrt() - alpha.sqrt() * a }
    }

    /// From f64 tables, with f64 roots that are rounded when they meet the f32 sample.
    fn f64(prediction: Prediction, alpha: f64, previous: f64) -> Self {
        let a = ((1.0 - previous) / (1.0 - alpha)).sqrt();
        let b = previous.sqrt() - alpha.sqrt() * a;
        Self { prediction, now: (alpha.sqrt() as f32, (1.0 - alpha).sqrt() as f32), a: a as f32, b: b as f32 }
    }
}

fn table_f32(config: &Config, shift: f64) -> Vec<f64> {
    let (scale, complement) = (shift as f32, (1.0 - shift) as f32);
    let shifted: Vec<f32> = diffusion::cumprod_f32(diffusion::betas_f32(config).into_iter().map(|b| 1.0 - b))
        .into_iter()
        .map(|a| a / (scale + complement * a))
        .collect();
    let table = if config.rescale_betas_zero_snr { diffusion::zero_snr_f32(&shifted) } else { shifted };
    table.into_iter().map(f64::from).collect()
}

fn table_f64(config: &Config, shift: f64) -> Vec<f64> {
    let mut product = 1.0;
    let roots = diffusion::linspace_f64(config.beta_start.sqrt(), config.beta_end.sqrt(), config.num_train_timesteps);
    let mut table: Vec<f64> = roots
        .into_iter()
        .map(|root| {
            product *= 1.0 - root * root;
            product / (shift + (1.0 - shift) * product)
        })
        .collect();
    if config.rescale_betas_zero_snr {
        let (first, last) = (table[0].sqrt(), table[table.len() - 1].sqrt());
        let scale = first / (first - last);
        for alpha in &mut table {
            let root = (alpha.sqrt() - last) * scale;
            *alpha = root * root;
        }
    }
    table
}
