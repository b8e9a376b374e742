//! diffusers' `DDIMScheduler` without added noise (eta 0): f32 tables, zero-SNR rescaling of the betas, optional clipping.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddim.py`.

use serde::Deserialize;

use super::diffusion::{self, BetaSchedule, Config, Move};
use super::scheduler::{Class, Kind, Prediction, Schedule, Scheduler, SchedulerError};

pub(super) const CLASS: Class = Class {
    names: &["DDIMScheduler"],
    sampler: "ddim",
    kind: Kind::Diffusion,
    read: |value| Ok(Box::new(Ddim::read(value)?)),
};

#[derive(Debug)]
pub(super) struct Ddim {
    pub(super) config: Config,
    /// Clamp the predicted clean sample to ± this.
    clip: Option<f64>,
    /// Cumulative alphas.
    pub(super) alphas: Vec<f64>,
}

/// Keys that only this class has.
#[derive(Deserialize)]
struct Keys {
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
}

impl Ddim {
    pub(super) fn read(value: &serde_json::Value) -> Result<Self, SchedulerError> {
        let keys = Keys::deserialize(value)?;
        let config = Config::read(value, 0.0001, 0.02, BetaSchedule::Linear)?;
        let clip = keys.clip_sample.unwrap_or(true).then(|| keys.clip_sample_range.unwrap_or(1.0));
        if let Some(clip) = clip.filter(|clip| !(*clip > 0.0 && clip.is_finite())) {
            return Err(diffusion::out_of_range("clip_sample_range", clip, "more than 0"));
        }
        let alphas = table(&config);
        Ok(Self { config, clip, alphas })
    }
}

impl Scheduler for Ddim {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        let prediction = self.config.prediction_type;
        let clip = self.clip.map(|clip| clip as f32);
        let steps = self.config.steps(&self.alphas, steps, |Move { timestep, now, next, .. }| {
            let undefined = match prediction {
                Prediction::Epsilon => now == 0.0,
                Prediction::Sample => now == 1.0,
                Prediction::V => false,
            };
            if undefined {
                return Err(SchedulerError::Undefined { prediction, timestep });
            }
            // PyTorch's tables are f32 here, and so are their roots.
            let roots = |alpha: f64| ((alpha as f32).sqrt(), (1.0 - alpha as f32).sqrt());
            Ok(Update { prediction, clip, now: roots(now), next: roots(next) })
        })?;
        Ok(Box::new(steps))
    }
}

/// The numbers of one step.
struct Update {
    prediction: Prediction,
    clip: Option<f32>,
    /// √ᾱ and √(1-ᾱ) at this timestep.
    now: (f32, f32),
    /// The same at the next one.
    next: (f32, f32),
}

impl diffusion::Update for Update {
    fn apply(&self, m: f32, x: f32) -> f32 {
        let (signal, noise) = self.now;
        let mut clean = self.prediction.clean(m, x, self.now);
        let epsilon = match self.prediction {
            Prediction::Epsilon => m,
            Prediction::Sample => (x - signal * clean) / noise,
            Prediction::V => signal * m + noise * x,
        };
        if let Some(clip) = self.clip {
            clean = clean.clamp(-clip, clip);
        }
        self.next.0 * clean + self.next.1 * epsilon
    }
}

fn table(config: &Config) -> Vec<f64> {
    let mut alphas: Vec<f32> = diffusion::betas_f32(config).into_iter().map(|b| 1.0 - b).collect();
    if config.rescale_betas_zero_snr {
        // Back from cumulative alphas to betas and forth again, as diffusers does.
        let rescaled = diffusion::zero_snr_f32(&diffusion::cumprod_f32(alphas.iter().copied()));
        alphas[0] = 1.0 - (1.0 - rescaled[0]);
        for i in 1..alphas.len() {
            alphas[i] = 1.0 - (1.0 - rescaled[i] / rescaled[i - 1]);
        }
    }
    diffusion::cumprod_f32(alphas.into_iter()).into_iter().map(f64::from).collect()
}
