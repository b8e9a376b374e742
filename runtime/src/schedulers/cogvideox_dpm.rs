//! diffusers' `CogVideoXDPMScheduler`: DPM-Solver++ (2M) with noise in each step, over the tables of `CogVideoXDDIMScheduler`.
//!
//! A step goes from ᾱ to ᾱ', which lie h apart in the logarithm of the signal-to-noise ratio, λ:
//! `x ← √((1 - ᾱ')/(1 - ᾱ))·e^-h·x - (e^-2h - 1)·√ᾱ'·D + √((1 - ᾱ')·(1 - e^-2h))·ε`.
//! D is the clean sample that the model predicts. From the second step on it is drawn away from that of the step before, by
//! 1/(2r) of what they differ in, where r is the part that the last move is of this one. A step to the end is of first order.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_dpm_cogvideox.py`. From its second step on diffusers draws twice and uses the
//! second draw; here each step draws once. A step that adds no noise draws none.

use ndarray::{ArrayD, Zip};

use super::cogvideox_ddim::CogVideoxDdim;
use super::scheduler::{At, Class, Draw, Kind, Prediction, Schedule, Scheduler, SchedulerError, Solver, Steps};

pub(super) const CLASS: Class = Class {
    names: &["CogVideoXDPMScheduler"],
    sampler: "cogvideox_dpm",
    kind: Kind::Diffusion,
    read: |value| Ok(Box::new(CogVideoxDpm(CogVideoxDdim::read(value)?))),
};

/// The tables, which are those of the other class.
#[derive(Debug)]
struct CogVideoxDpm(CogVideoxDdim);

impl Scheduler for CogVideoxDpm {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        let round = if self.0.single() { as_f32 } else { as_f64 };
        let mut before = None;
        let Steps { timesteps, solver } = self.0.steps(steps, |prediction, at| {
            let last = before.replace(at.now).filter(|_| !at.is_last);
            Update::new(prediction, (last, at.now, at.next), round)
        })?;
        Ok(Box::new(Steps { timesteps, solver: Dpm { updates: solver, before: None } }))
    }
}

/// PyTorch's numbers where the tables are f32.
fn as_f32(value: f64) -> f64 {
    f64::from(value as f32)
}

/// PyTorch's numbers where the tables are f64.
fn as_f64(value: f64) -> f64 {
    value
}

/// The numbers of one step, rounded as PyTorch rounds them.
struct Update {
    prediction: Prediction,
    /// √ᾱ and √(1-ᾱ) at this timestep.
    now: (f32, f32),
    /// Factor of the sample.
    keep: f32,
    /// Factor of the clean sample, which is subtracted.
    clean: f32,
    /// Factor of the noise.
    noise: f32,
    /// Factors of the clean samples of this step and of the step before, where both count.
    second: Option<(f32, f32)>,
}

impl Update {
    /// From the ᾱ of the step before, if it counts, of this step, and of the next.
    fn new(prediction: Prediction, (last, now, next): (Option<f64>, f64, f64), round: fn(f64) -> f64) -> Self {
        let rest = |alpha: f64| round(1.0 - alpha);
        let root = |value: f64| round(value.sqrt());
        let lambda = |alpha: f64| round(root(round(alpha / rest(alpha))).ln());
        let h = round(lambda(next) - lambda(now));
        let keep = round(root(round(rest(next) / rest(now))) * round((-h).exp()));
        let clean = round(round((-2.0 * h).exp_m1()) * root(next));
        let noise = round(root(rest(next)) * root(round(1.0 - round((-2.0 * h).exp()))));
        let second = last.map(|last| {
            let ratio = round(round(lambda(now) - lambda(last)) / h);
            let slope = round(1.0 / (2.0 * ratio));
            (round(1.0 + slope) as f32, slope as f32)
        });
        let now = (root(now) as f32, root(rest(now)) as f32);
        Self { prediction, now, keep: keep as f32, clean: clean as f32, noise: noise as f32, second }
    }
}

struct Dpm {
    updates: Vec<Update>,
    /// The clean sample that the step before predicted.
    before: Option<ArrayD<f32>>,
}

impl Solver for Dpm {
    fn next(&mut self, at: &At<'_>, draw: &mut Draw<'_>) -> ArrayD<f32> {
        let At { index, prediction, sample } = *at;
        let update = &self.updates[index];
        let clean = Zip::from(prediction).and(sample).map_collect(|&m, &x| update.prediction.clean(m, x, update.now));
        let mut next = match (update.second, &self.before) {
            (Some((own, last)), Some(before)) if index > 0 => Zip::from(sample)
                .and(&clean)
                .and(before)
                .map_collect(|&x, &m, &b| update.keep * x - update.clean * (own * m - last * b)),
            _ => Zip::from(sample).and(&clean).map_collect(|&x, &m| update.keep * x - update.clean * m),
        };
        if update.noise != 0.0 {
            let noise = draw(sample.shape());
            Zip::from(&mut next).and(&noise).for_each(|x, &e| *x += update.noise * e);
        }
        self.before = Some(clean);
        next
    }
}
