//! What schedulers of flow-matching models share: the shift, the grids of σ, the checks of a configuration.
//!
//! A sample with noise level σ is `x = (1 - σ)·x₀ + σ·ε`, and the model predicts `v = ε - x₀`; so `x₀ = x - σ·v`. Every grid
//! starts from even levels u and moves them towards noise: `σ = s·u / (1 + (s - 1)·u)` with the shift s.

use std::fmt;

use ndarray::{ArrayD, Zip};
use serde_json::Value;

use super::scheduler::{Schedule, Scheduler, SchedulerError};

/// Largest training schedule that is read.
const MAX_TRAIN_TIMESTEPS: u64 = 100_000;
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
            Some(found) => match found.as_u64() {
                Some(train @ 2..=MAX_TRAIN_TIMESTEPS) => train as usize,
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

/// A scheduler that is a shift, a grid and how steps are taken, with what `S` says of that.
#[derive(Clone, Debug)]
pub(super) struct Flow<S = ()> {
    pub(super) config: Config,
    pub(super) grid: Grid,
    pub(super) solver: S,
    pub(super) begin: fn(Levels, &S) -> Box<dyn Schedule>,
}

impl<S: Clone + fmt::Debug + Send + Sync + 'static> Scheduler for Flow<S> {
    fn begin(&self, steps: usize) -> Result<Box<dyn Schedule>, SchedulerError> {
        Ok((self.begin)(self.grid.levels(self.config, steps)?, &self.solver))
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

/// The levels of one video.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Levels {
    /// What the model is told.
    pub(super) timesteps: Vec<f64>,
    /// σ of each step, and 0 at the end.
    pub(super) sigmas: Vec<f32>,
}

impl Grid {
    /// The levels of `steps` steps.
    pub(super) fn levels(self, config: Config, steps: usize) -> Result<Levels, SchedulerError> {
        let train = config.train as f64;
        if steps == 0 || steps > config.train {
            return Err(SchedulerError::Steps { found: steps, max: config.train });
        }
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
        Ok(Levels { timesteps, sigmas })
    }
}

/// The first `take` of `numpy.linspace(start, end, n)`.
fn linspace(start: f64, end: f64, n: usize, take: usize) -> impl Iterator<Item = f64> {
    let step = if n > 1 { (end - start) / (n - 1) as f64 } else { 0.0 };
    (0..take).map(move |i| if i > 0 && i + 1 == n { end } else { i as f64 * step + start })
}

impl Levels {
    /// Checks a step's arguments.
    pub(super) fn check(
        &self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
    ) -> Result<(), SchedulerError> {
        let steps = self.timesteps.len();
        if index >= steps {
            return Err(SchedulerError::Step { index, steps });
        }
        if prediction.shape() != sample.shape() {
            let (expected, found) = (sample.shape().to_vec(), prediction.shape().to_vec());
            return Err(SchedulerError::Shape { expected, found });
        }
        Ok(())
    }

    /// `ln(1 - σ) - ln(σ)` of a level, half of the logarithm of its signal-to-noise ratio.
    pub(super) fn lambda(&self, at: usize) -> f32 {
        let sigma = self.sigmas[at];
        (1.0 - sigma).ln() - sigma.ln()
    }

    /// The clean sample `x - σ·v` at step `index`.
    pub(super) fn clean(&self, prediction: &ArrayD<f32>, index: usize, sample: &ArrayD<f32>) -> ArrayD<f32> {
        let sigma = self.sigmas[index];
        Zip::from(sample).and(prediction).map_collect(|&x, &v| x - sigma * v)
    }
}

/// Refuses a file that sets one of these keys to anything else than the value beside it, which is also what an absent or null
/// key means.
pub(super) fn only(value: &Value, supported: &[(&'static str, Value)]) -> Result<(), SchedulerError> {
    for (key, expected) in supported {
        match value.get(key) {
            None | Some(Value::Null) => {}
            Some(found) if found == expected => {}
            Some(found) => {
                let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                let supported = expected.as_str().map_or_else(|| expected.to_string(), str::to_owned);
                return Err(SchedulerError::Unsupported { key, found, supported });
            }
        }
    }
    Ok(())
}

/// Refuses a file that does not set one of these keys to the value beside it.
pub(super) fn must_be(value: &Value, required: &[(&'static str, Value)]) -> Result<(), SchedulerError> {
    let missing = required.iter().find(|(key, _)| value.get(key).is_none_or(Value::is_null));
    match missing {
        None => only(value, required),
        Some((key, expected)) => {
            let supported = expected.as_str().map_or_else(|| expected.to_string(), str::to_owned);
            Err(SchedulerError::Unsupported { key, found: "missing".to_owned(), supported })
        }
    }
}
