//! Schedulers of flow-matching models: the shift, the grids of σ, the checks of a configuration. A file for each method has
//! only its step, a [`Method`], and what a configuration of its class may say, [`Options`].
//!
//! A sample with noise level σ is `x = (1 - σ)·x₀ + σ·ε`, and the model predicts `v = ε - x₀`; so `x₀ = x - σ·v`. Every grid
//! starts from even levels u and moves them towards noise: `σ = s·u / (1 + (s - 1)·u)` with the shift s.

use std::fmt;
use std::ops::Deref;

use indexmap::IndexMap;
use ndarray::{ArrayD, Zip};
use serde_json::Value;

use super::scheduler::{
    At, Draw, MAX_TRAIN_TIMESTEPS, Schedule, Scheduler, SchedulerError, Solver, Steps, check_count, never_null,
};

/// Largest shift that makes sense: published ones go up to 16.
const MAX_SHIFT: f64 = 1e4;
/// diffusers' UniPC keeps the first σ this far from 1, where ln(1 - σ) is not finite.
const BELOW_ONE: f64 = 1e-6;

/// What every configuration says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Config {
    /// Length of the training schedule: timesteps are σ times this.
    pub(super) train: usize,
    /// The shift s.
    pub(super) shift: f64,
}

fn is_shift(shift: f64) -> bool {
    shift > 0.0 && shift <= MAX_SHIFT
}

impl Config {
    /// Reads `num_train_timesteps` and the shift. diffusers calls the shift `flow_shift` in some classes and `shift` in others;
    /// the first of `keys` that is there counts.
    pub(super) fn read(value: &Value, keys: [&'static str; 2]) -> Result<Self, SchedulerError> {
        let train = match value.get("num_train_timesteps") {
            None => 1000,
            Some(found) => match found.as_u64().and_then(|train| usize::try_from(train).ok()) {
                Some(train @ 2..=MAX_TRAIN_TIMESTEPS) => train,
                _ => {
                    let found = found.as_f64().unwrap_or(f64::NAN);
                    let expected = "a whole number from 2 to 100000";
                    return Err(SchedulerError::OutOfRange { key: "num_train_timesteps", found, expected });
                }
            },
        };
        let named = keys.into_iter().find_map(|key| Some((key, value.get(key)?)));
        let (key, shift) = named.map_or((keys[0], Some(1.0)), |(key, found)| (key, found.as_f64()));
        let shift = shift.unwrap_or(f64::NAN);
        if is_shift(shift) {
            return Ok(Self { train, shift });
        }
        Err(SchedulerError::OutOfRange { key, found: shift, expected: "more than 0, at most 10000" })
    }

    fn shift(self, u: f64) -> f64 {
        self.shift * u / (1.0 + (self.shift - 1.0) * u)
    }
}

/// How the levels of noise are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// diffusers' `UniPCMultistepScheduler`: from 1 to 1/N in n + 1 levels, without the last.
    UniPc,
    /// The UniPC of Wan's own code: `0.999·(1 - k/n)`, whose 0.999 is float32.
    WanUniPc,
    /// diffusers' `DPMSolverMultistepScheduler`: `1 - a` for a from 1 to 1/N in n + 1 levels, without the lowest.
    DpmSolver,
    /// The DPM-Solver++ of Wan's own code: `1 - k/n`.
    WanDpm,
    /// ComfyUI's "simple", which distilled adapters are trained on: `1 - k/n`, and the model sees fractions.
    Simple,
    /// diffusers' `FlowMatchEulerDiscreteScheduler`: even levels between the ends of the shifted training schedule, shifted once
    /// more.
    FlowMatch,
}

/// A scheduler that is a shift, a grid and a method.
#[derive(Clone, Debug)]
struct Flow<M> {
    config: Config,
    grid: Grid,
    method: M,
}

/// How steps are taken from level to level. A clone of one that has taken none begins a video.
pub(super) trait Method: Clone + fmt::Debug + Send + Sync + 'static {
    /// The next sample.
    fn next(&mut self, step: &Step<'_>, draw: &mut Draw<'_>) -> ArrayD<f32>;
}

/// One step, and the levels that it is one of.
pub(super) struct Step<'a> {
    /// σ of each step, and 0 at the end.
    pub(super) sigmas: &'a [f32],
    at: &'a At<'a>,
}

impl<'a> Deref for Step<'a> {
    type Target = At<'a>;

    fn deref(&self) -> &At<'a> {
        self.at
    }
}

impl Step<'_> {
    /// σ at the start and at the end.
    pub(super) fn ends(&self) -> (f32, f32) {
        (self.sigmas[self.index], self.sigmas[self.index + 1])
    }

    /// `ln(1 - σ) - ln(σ)` of a level, half of the logarithm of its signal-to-noise ratio.
    pub(super) fn lambda(&self, at: usize) -> f32 {
        let sigma = self.sigmas[at];
        (1.0 - sigma).ln() - sigma.ln()
    }

    /// The clean sample `x - σ·v`.
    pub(super) fn clean(&self) -> ArrayD<f32> {
        let sigma = self.sigmas[self.index];
        Zip::from(self.sample).and(self.prediction).map_collect(|&x, &v| x - sigma * v)
    }
}

/// A scheduler of `method` over `grid`, with what a file says.
///
/// # Errors
/// As [`super::read`].
pub(super) fn scheduler(
    value: &Value,
    options: &Options,
    grid: Grid,
    method: impl Method,
) -> Result<Box<dyn Scheduler>, SchedulerError> {
    options.check(value)?;
    Ok(Box::new(Flow { config: Config::read(value, options.shift)?, grid, method }))
}

impl<M: Method> Scheduler for Flow<M> {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        let (timesteps, sigmas) = self.grid.levels(self.config, steps)?;
        Ok(Box::new(Steps { timesteps, solver: Descent { sigmas, method: self.method.clone() } }))
    }

    fn shift(&self) -> Option<f64> {
        Some(self.config.shift)
    }

    fn shifted(&self, shift: f64) -> Result<Box<dyn Scheduler>, SchedulerError> {
        if !is_shift(shift) {
            return Err(SchedulerError::Shift { found: shift });
        }
        Ok(Box::new(Self { config: Config { shift, ..self.config }, ..self.clone() }))
    }
}

/// One video's way down.
struct Descent<M> {
    /// σ of each step, and 0 at the end.
    sigmas: Vec<f32>,
    method: M,
}

impl<M: Method> Solver for Descent<M> {
    fn next(&mut self, at: &At<'_>, draw: &mut Draw<'_>) -> ArrayD<f32> {
        self.method.next(&Step { sigmas: &self.sigmas, at }, draw)
    }
}

impl Grid {
    /// What the model is told at each of `steps` steps, and their σ with 0 at the end.
    fn levels(self, config: Config, steps: usize) -> Result<(Vec<f64>, Vec<f32>), SchedulerError> {
        let train = config.train as f64;
        check_count(steps, config.train)?;
        let mut sigmas: Vec<f64> = match self {
            Self::UniPc => linspace(1.0, 1.0 / train, steps + 1, steps).map(|u| config.shift(u)).collect(),
            Self::WanUniPc => {
                let top = f64::from(1.0 - (1.0 / train) as f32);
                linspace(top, 0.0, steps + 1, steps).map(|u| config.shift(u)).collect()
            }
            Self::DpmSolver => {
                let alphas: Vec<f64> = linspace(1.0, 1.0 / train, steps + 1, steps + 1).collect();
                alphas[1..].iter().rev().map(|a| config.shift(1.0 - a)).collect()
            }
            Self::WanDpm | Self::Simple => linspace(1.0, 0.0, steps + 1, steps).map(|u| config.shift(u)).collect(),
            Self::FlowMatch => {
                // The training schedule is float32.
                let shift = config.shift as f32;
                let trained = |u: f32| f64::from(shift * u / (1.0 + (shift - 1.0) * u));
                let (top, bottom) = (trained(1.0), trained((1.0 / train) as f32));
                linspace(top * train, bottom * train, steps, steps).map(|t| config.shift(t / train)).collect()
            }
        };
        if let (Self::UniPc, Some(first)) = (self, sigmas.first_mut().filter(|first| (**first - 1.0).abs() < BELOW_ONE))
        {
            *first -= BELOW_ONE;
        }
        let timestep = |&sigma: &f64| match self {
            Self::UniPc | Self::WanUniPc | Self::DpmSolver | Self::WanDpm => (sigma * train).trunc(),
            // From the float32 σ, as float32.
            Self::Simple | Self::FlowMatch => f64::from(sigma as f32 * train as f32),
        };
        let timesteps = sigmas.iter().map(timestep).collect();
        let sigmas = sigmas.iter().map(|&sigma| sigma as f32).chain([0.0]).collect();
        Ok((timesteps, sigmas))
    }
}

/// The first `take` of `numpy.linspace(start, end, n)`.
fn linspace(start: f64, end: f64, n: usize, take: usize) -> impl Iterator<Item = f64> {
    let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
    (0..take).map(move |i| if i > 0 && i + 1 == n { end } else { i as f64 * step + start })
}

/// What a configuration of one class may say, besides its numbers. Values are JSON, in objects by key.
pub(super) struct Options {
    /// The shift's key, in the class and in the other classes.
    pub(super) shift: [&'static str; 2],
    /// The class whose files are checked; `None`: those of every class.
    pub(super) class: Option<&'static str>,
    /// Keys that are never null.
    pub(super) never_null: &'static [&'static str],
    /// Keys that a file must set to these values.
    pub(super) required: &'static str,
    /// Keys that have no other values than these, which absent or null keys mean, too.
    pub(super) only: &'static [&'static str],
}

impl Options {
    /// True if the class's own rules hold for this file: another class's names other things by the same keys.
    pub(super) fn apply(&self, value: &Value) -> bool {
        self.class.is_none_or(|class| value.get("_class_name").is_some_and(|name| name == class))
    }

    fn check(&self, value: &Value) -> Result<(), SchedulerError> {
        if !self.apply(value) {
            return Ok(());
        }
        never_null(value, self.never_null)?;
        let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        for (rules, required) in [(self.required, true)].into_iter().chain(self.only.iter().map(|only| (*only, false)))
        {
            for (key, expected) in serde_json::from_str::<IndexMap<&'static str, Value>>(rules)? {
                let found = match value.get(key).filter(|found| !found.is_null()) {
                    None if required => "missing".to_owned(),
                    None => continue,
                    Some(found) if *found == expected => continue,
                    Some(found) => words(found),
                };
                return Err(SchedulerError::Unsupported { key, found, supported: words(&expected) });
            }
        }
        Ok(())
    }
}
