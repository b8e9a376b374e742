//! DDIM without added noise (eta 0), as diffusers' `DDIMScheduler` and `CogVideoXDDIMScheduler` compute it.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_ddim.py` and `scheduling_ddim_cogvideox.py`. `DDIMScheduler` keeps
//! f32 tables, `CogVideoXDDIMScheduler` f64 ones unless its betas are `linear`; PyTorch's cumulative product sums in
//! f64 in either case. The same types are used here, so that tables agree to the last few bits.

use ndarray::{ArrayD, Zip};

mod config;

pub use config::{BetaSchedule, Prediction, SchedulerConfig, SchedulerKind, Spacing};

/// Why a scheduler cannot be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The file is not what diffusers writes.
    #[error("scheduler_config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// An option that is not implemented.
    #[error("scheduler_config.json: `{key}` is {found}, supported: {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        supported: &'static str,
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

/// A noise schedule with its cumulative alphas.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f64>,
    final_alpha: f64,
}

/// A [`Scheduler`] cut to a number of inference steps.
#[derive(Clone, Debug)]
pub struct Schedule<'a> {
    scheduler: &'a Scheduler,
    timesteps: Vec<i64>,
    stride: i64,
}

impl Scheduler {
    /// Builds the tables.
    pub fn new(config: SchedulerConfig) -> Self {
        let alphas_cumprod = match config.kind {
            SchedulerKind::Ddim => ddim_table(&config),
            SchedulerKind::CogVideoxDdim => cogvideox_table(&config),
        };
        let final_alpha = if config.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Self { config, alphas_cumprod, final_alpha }
    }

    /// Reads a `scheduler_config.json`; see [`SchedulerConfig::from_value`].
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::from_value`].
    pub fn from_value(value: &serde_json::Value, kind: Option<SchedulerKind>) -> Result<Self, SchedulerError> {
        SchedulerConfig::from_value(value, kind).map(Self::new)
    }

    /// The configuration it was built from.
    pub const fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Cumulative alpha per training timestep: 1 is signal only, 0 noise only.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Standard deviation that the initial noise must have.
    pub const fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// The timesteps for `steps` inference steps, from most to least noise.
    ///
    /// # Errors
    /// [`SchedulerError::Steps`] for 0 or more steps than the training schedule has, [`SchedulerError::Timestep`]
    /// if `steps_offset` pushes a timestep beyond it.
    pub fn schedule(&self, steps: usize) -> Result<Schedule<'_>, SchedulerError> {
        let train = self.config.num_train_timesteps;
        if steps == 0 || steps > train {
            return Err(SchedulerError::Steps { found: steps, max: train });
        }
        let (n, total) = (steps as f64, train as f64);
        let round = |x: f64| x.round_ties_even() as i64;
        let timesteps: Vec<i64> = match self.config.timestep_spacing {
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
                (0..steps).rev().map(|i| (i * ratio + self.config.steps_offset) as i64).collect()
            }
            // numpy.arange(total, 0, -ratio): start + i * delta, where delta is the first difference.
            Spacing::Trailing => {
                let delta = (total - total / n) - total;
                (0..steps).map(|i| round(total + i as f64 * delta) - 1).collect()
            }
        };
        if let Some(&found) = timesteps.iter().find(|&&t| t < 0 || t as usize >= train) {
            return Err(SchedulerError::Timestep { found, last: train - 1 });
        }
        Ok(Schedule { scheduler: self, timesteps, stride: (train / steps) as i64 })
    }

    fn alpha(&self, timestep: i64) -> Result<f64, SchedulerError> {
        let error = SchedulerError::Timestep { found: timestep, last: self.alphas_cumprod.len() - 1 };
        let index = usize::try_from(timestep)
            .map_err(|_| SchedulerError::Timestep { found: timestep, last: self.alphas_cumprod.len() - 1 })?;
        self.alphas_cumprod.get(index).copied().ok_or(error)
    }
}

impl Schedule<'_> {
    /// The timesteps, from most to least noise.
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// One step: the sample at `timestep`, of any shape, and the model's answer to it give the sample of the step after.
    ///
    /// The timestep after is `timestep - num_train_timesteps / steps` whatever the spacing, as in diffusers. Computed
    /// in f32 with coefficients rounded to f32.
    ///
    /// # Errors
    /// [`SchedulerError::Shape`] if the shapes differ, [`SchedulerError::Timestep`] for a timestep outside the training
    /// schedule, [`SchedulerError::Undefined`] where diffusers would divide by zero.
    pub fn step(
        &self,
        model_output: &ArrayD<f32>,
        timestep: i64,
        sample: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        if model_output.shape() != sample.shape() {
            return Err(SchedulerError::Shape {
                expected: sample.shape().to_vec(),
                found: model_output.shape().to_vec(),
            });
        }
        let scheduler = self.scheduler;
        let alpha = scheduler.alpha(timestep)?;
        let previous = timestep - self.stride;
        let alpha_previous = if previous >= 0 { scheduler.alpha(previous)? } else { scheduler.final_alpha };
        let step = Coefficients::new(&scheduler.config, timestep, alpha, alpha_previous)?;
        Ok(Zip::from(model_output).and(sample).map_collect(|&m, &x| step.apply(m, x)))
    }
}

/// The numbers of one step, rounded as PyTorch rounds them.
struct Coefficients {
    config_kind: SchedulerKind,
    prediction: Prediction,
    clip: Option<f32>,
    /// √ᾱ and √(1-ᾱ) at this timestep.
    signal: f32,
    noise: f32,
    /// [`SchedulerKind::Ddim`]: √ᾱ and √(1-ᾱ) at the next one; [`SchedulerKind::CogVideoxDdim`]: factors of x and x0.
    a: f32,
    b: f32,
}

impl Coefficients {
    fn new(config: &SchedulerConfig, timestep: i64, alpha: f64, previous: f64) -> Result<Self, SchedulerError> {
        let ddim = config.kind == SchedulerKind::Ddim;
        let undefined = match config.prediction_type {
            Prediction::Epsilon => alpha == 0.0,
            Prediction::Sample => ddim && alpha == 1.0,
            Prediction::V => false,
        } || (!ddim && alpha == 1.0);
        if undefined {
            return Err(SchedulerError::Undefined { prediction: config.prediction_type, timestep });
        }
        // f32 tables give f32 roots, f64 tables f64 roots that are rounded when they meet the f32 sample.
        let single = ddim || config.beta_schedule == BetaSchedule::Linear;
        let sqrt = |x: f64| if single { f64::from((x as f32).sqrt()) } else { x.sqrt() };
        let rest = |x: f64| if single { f64::from(1.0 - x as f32) } else { 1.0 - x };
        let (a, b) = if ddim {
            (sqrt(previous), sqrt(rest(previous)))
        } else if single {
            let a = (rest(previous) as f32 / rest(alpha) as f32).sqrt();
            (f64::from(a), f64::from(sqrt(previous) as f32 - sqrt(alpha) as f32 * a))
        } else {
            let a = (rest(previous) / rest(alpha)).sqrt();
            (a, previous.sqrt() - alpha.sqrt() * a)
        };
        Ok(Self {
            config_kind: config.kind,
            prediction: config.prediction_type,
            clip: config.clip_sample_range.map(|c| c as f32),
            signal: sqrt(alpha) as f32,
            noise: sqrt(rest(alpha)) as f32,
            a: a as f32,
            b: b as f32,
        })
    }

    /// `m` is the model's output, `x` the sample.
    fn apply(&self, m: f32, x: f32) -> f32 {
        let (signal, noise) = (self.signal, self.noise);
        let mut clean = match self.prediction {
            Prediction::Epsilon => (x - noise * m) / signal,
            Prediction::Sample => m,
            Prediction::V => signal * x - noise * m,
        };
        match self.config_kind {
            SchedulerKind::CogVideoxDdim => self.a * x + self.b * clean,
            SchedulerKind::Ddim => {
                let epsilon = match self.prediction {
                    Prediction::Epsilon => m,
                    Prediction::Sample => (x - signal * clean) / noise,
                    Prediction::V => signal * m + noise * x,
                };
                if let Some(clip) = self.clip {
                    clean = clean.clamp(-clip, clip);
                }
                self.a * clean + self.b * epsilon
            }
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
fn linspace_f64(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / (n - 1) as f64;
    (0..n)
        .map(|i| if i < n / 2 { step.mul_add(i as f64, start) } else { (-step).mul_add((n - 1 - i) as f64, end) })
        .collect()
}

fn betas_f32(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => linspace_f32(config.beta_start, config.beta_end, n),
        BetaSchedule::ScaledLinear => {
            linspace_f32(config.beta_start.sqrt(), config.beta_end.sqrt(), n).into_iter().map(|b| b * b).collect()
        }
    }
}

/// `torch.cumprod` of f32 values: the running product is kept in f64.
fn cumprod_f32(alphas: impl Iterator<Item = f32>) -> Vec<f32> {
    alphas
        .scan(1.0f64, |product, alpha| {
            *product *= f64::from(alpha);
            Some(*product as f32)
        })
        .collect()
}

/// √ᾱ shifted and scaled so that it ends at 0 and starts where it did; f32.
fn zero_snr_f32(alphas_cumprod: &[f32]) -> Vec<f32> {
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

fn ddim_table(config: &SchedulerConfig) -> Vec<f64> {
    let mut alphas: Vec<f32> = betas_f32(config).into_iter().map(|b| 1.0 - b).collect();
    if config.rescale_betas_zero_snr {
        // Back from cumulative alphas to betas and forth again, as diffusers does.
        let rescaled = zero_snr_f32(&cumprod_f32(alphas.iter().copied()));
        alphas[0] = 1.0 - (1.0 - rescaled[0]);
        for i in 1..alphas.len() {
            alphas[i] = 1.0 - (1.0 - rescaled[i] / rescaled[i - 1]);
        }
    }
    cumprod_f32(alphas.into_iter()).into_iter().map(f64::from).collect()
}

fn cogvideox_table(config: &SchedulerConfig) -> Vec<f64> {
    let shift = config.snr_shift_scale;
    if config.beta_schedule == BetaSchedule::Linear {
        let (scale, complement) = (shift as f32, (1.0 - shift) as f32);
        let shifted: Vec<f32> = cumprod_f32(betas_f32(config).into_iter().map(|b| 1.0 - b))
            .into_iter()
            .map(|a| a / (scale + complement * a))
            .collect();
        let table = if config.rescale_betas_zero_snr { zero_snr_f32(&shifted) } else { shifted };
        return table.into_iter().map(f64::from).collect();
    }
    let mut product = 1.0;
    let mut table: Vec<f64> =
        linspace_f64(config.beta_start.sqrt(), config.beta_end.sqrt(), config.num_train_timesteps)
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

#[cfg(test)]
mod tests {
    use ndarray::IxDyn;
    use serde_json::{Value, json};

    use super::*;

    fn fixture() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/scheduler/cases.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }

    fn array(values: &[f32]) -> ArrayD<f32> {
        ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap()
    }

    #[test]
    fn timesteps_of_every_golden_case_are_equal() {
        for case in fixture()["cases"].as_array().unwrap() {
            let scheduler = Scheduler::from_value(&case["config"], None).unwrap();
            for (steps, expected) in case["timesteps"].as_object().unwrap() {
                let expected: Vec<i64> = expected.as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect();
                let schedule = scheduler.schedule(steps.parse().unwrap()).unwrap();
                assert_eq!(schedule.timesteps(), expected, "{}", case["config"]);
            }
        }
    }

    #[test]
    fn alphas_of_every_golden_case_agree() {
        for case in fixture()["cases"].as_array().unwrap() {
            let scheduler = Scheduler::from_value(&case["config"], None).unwrap();
            for pair in case["alphas_cumprod"].as_array().unwrap() {
                let (index, expected) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
                let found = scheduler.alphas_cumprod()[index];
                assert!((found - expected).abs() <= 1e-7, "{index}: {found} {expected} {}", case["config"]);
            }
            assert!((scheduler.final_alpha - case["final_alpha_cumprod"].as_f64().unwrap()).abs() <= 1e-7);
        }
    }

    #[test]
    fn four_steps_of_every_golden_case_agree() {
        let fixture = fixture();
        let mut compared = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let scheduler = Scheduler::from_value(&case["config"], None).unwrap();
            let schedule = scheduler.schedule(4).unwrap();
            let mut sample = array(&floats(&fixture["initial"]));
            let Some(expected) = case["samples"].as_array() else {
                let first = schedule.step(&sample, schedule.timesteps()[0], &sample);
                assert!(matches!(first, Err(SchedulerError::Undefined { .. })), "{}", case["config"]);
                continue;
            };
            for (i, &timestep) in schedule.timesteps().iter().enumerate() {
                let output = array(&floats(&fixture["model_outputs"][i]));
                sample = schedule.step(&output, timestep, &sample).unwrap();
                let expected = floats(&expected[i]);
                let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                for (found, expected) in sample.iter().zip(&expected) {
                    assert!((found - expected).abs() <= 1e-6 * largest, "{found} {expected} {}", case["config"]);
                }
            }
            compared += 1;
        }
        assert!(compared > 20);
    }

    #[test]
    fn published_schedule_has_the_official_alphas() {
        let config = json!({"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true,
            "clip_sample": false, "timestep_spacing": "trailing"});
        let scheduler = Scheduler::from_value(&config, None).unwrap();
        let alphas = scheduler.alphas_cumprod();
        assert!((alphas[19] - 0.981_010_5).abs() < 1e-6 && (alphas[499] - 0.242_358_99).abs() < 1e-6);
        assert_eq!(alphas[999], 0.0);
        let schedule = scheduler.schedule(50).unwrap();
        assert_eq!((schedule.timesteps()[0], schedule.timesteps()[49]), (999, 19));
    }

    #[test]
    fn class_name_decides_kind_and_defaults() {
        let kind = |name: &str| SchedulerConfig::from_value(&json!({"_class_name": name}), None).unwrap();
        assert_eq!(kind("DDIMScheduler").beta_end, 0.02);
        assert_eq!(kind("CogVideoXDPMScheduler").kind, SchedulerKind::CogVideoxDdim);
        assert_eq!(kind("CogVideoXDPMScheduler").snr_shift_scale, 3.0);
        let value = json!({"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0});
        let overridden = SchedulerConfig::from_value(&value, Some(SchedulerKind::Ddim)).unwrap();
        assert_eq!((overridden.kind, overridden.snr_shift_scale), (SchedulerKind::Ddim, 1.0));
    }

    #[test]
    fn unsupported_options_are_refused_by_name() {
        for (key, value) in [
            ("beta_schedule", json!("squaredcos_cap_v2")),
            ("prediction_type", json!("flow_prediction")),
            ("timestep_spacing", json!("karras")),
            ("thresholding", json!(true)),
            ("trained_betas", json!([0.1, 0.2])),
            ("_class_name", json!("FlowMatchEulerDiscreteScheduler")),
        ] {
            let error = SchedulerConfig::from_value(&json!({ key: value }), None).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        for config in [json!({"num_train_timesteps": 0}), json!({"beta_end": 1.5}), json!({"beta_start": "x"})] {
            assert!(SchedulerConfig::from_value(&config, None).is_err(), "{config}");
        }
    }

    #[test]
    fn schedule_refuses_no_steps_and_too_many() {
        let scheduler = Scheduler::from_value(&json!({}), None).unwrap();
        assert!(matches!(scheduler.schedule(0), Err(SchedulerError::Steps { found: 0, max: 1000 })));
        assert!(matches!(scheduler.schedule(1001), Err(SchedulerError::Steps { .. })));
        assert!(scheduler.schedule(1000).is_ok());
    }

    #[test]
    fn every_step_count_gives_that_many_timesteps_in_range() {
        for spacing in ["trailing", "leading", "linspace"] {
            let scheduler = Scheduler::from_value(&json!({"timestep_spacing": spacing}), None).unwrap();
            for steps in 1..=1000 {
                let schedule = scheduler.schedule(steps).unwrap();
                assert_eq!(schedule.timesteps().len(), steps);
                assert!(schedule.timesteps().windows(2).all(|w| w[0] > w[1]));
            }
        }
    }

    #[test]
    fn step_refuses_shapes_that_differ() {
        let scheduler = Scheduler::from_value(&json!({}), None).unwrap();
        let schedule = scheduler.schedule(4).unwrap();
        let error = schedule.step(&array(&[1.0]), 0, &array(&[1.0, 2.0])).unwrap_err();
        assert!(matches!(error, SchedulerError::Shape { .. }));
    }
}
