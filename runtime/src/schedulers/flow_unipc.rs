//! UniPC for flow-matching models: a predictor of order 2 and a corrector that uses the model's answer at the new level, too.
//!
//! Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", with B(h) = e^h - 1
//! (bh2); diffusers 0.42 `schedulers/scheduling_unipc_multistep.py`. Coefficients are float32, computed in its order.

use ndarray::{ArrayD, Zip};
use serde::Deserialize;
use serde_json::{Value, json};

use super::flow::{Config, Flow, Grid, Levels, must_be, only};
use super::scheduler::{Class, Draw, Kind, Schedule, Scheduler, SchedulerError, never_null};

pub(super) const CLASS: Class = Class {
    names: &["UniPCMultistepScheduler"],
    sampler: "unipc",
    kind: Kind::Flow,
    read: |value| read(value, Grid::UniPc),
};

/// On the grid of Wan's own code.
pub(super) const WAN: Class =
    Class { names: &[], sampler: "unipc_wan", kind: Kind::Flow, read: |value| read(value, Grid::WanUniPc) };

/// Keys that are never null.
pub(super) const NEVER_NULL: [&str; 11] = [
    "beta_end",
    "beta_schedule",
    "beta_start",
    "disable_corrector",
    "final_sigmas_type",
    "lower_order_final",
    "predict_x0",
    "prediction_type",
    "solver_order",
    "solver_type",
    "timestep_spacing",
];

/// How the steps are taken.
#[derive(Clone, Debug, PartialEq)]
struct Solver {
    /// 1 or 2.
    order: usize,
    /// Steps that the next one does not correct.
    uncorrected: Vec<usize>,
}

/// Keys of the solver, before defaults.
#[derive(Deserialize)]
struct Keys {
    solver_order: Option<usize>,
    lower_order_final: Option<bool>,
    disable_corrector: Option<Vec<usize>>,
}

fn read(value: &Value, grid: Grid) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let config = Config::read(value, ["flow_shift", "shift"])?;
    // Another class's file names other things by the solver's keys.
    let own = value.get("_class_name").is_some_and(|name| CLASS.names.iter().any(|own| name == own));
    let solver = if own { Solver::read(value)? } else { Solver::default() };
    let begin: fn(Levels, &Solver) -> Box<dyn Schedule> =
        |levels, solver| Box::new(Steps { levels, solver: solver.clone(), last: None, clean: [None, None] });
    Ok(Box::new(Flow { config, grid, solver, begin }))
}

impl Default for Solver {
    fn default() -> Self {
        Self { order: 2, uncorrected: Vec::new() }
    }
}

impl Solver {
    fn read(value: &Value) -> Result<Self, SchedulerError> {
        never_null(value, &NEVER_NULL)?;
        must_be(value, &[("use_flow_sigmas", json!(true)), ("prediction_type", json!("flow_prediction"))])?;
        only(
            value,
            &[
                ("predict_x0", json!(true)),
                ("thresholding", json!(false)),
                ("solver_p", json!(null)),
                ("use_karras_sigmas", json!(false)),
                ("use_exponential_sigmas", json!(false)),
                ("use_beta_sigmas", json!(false)),
                ("use_dynamic_shifting", json!(false)),
                ("shift_terminal", json!(null)),
                // With bh1 the last step, to a level without noise, is not finite.
                ("solver_type", json!("bh2")),
                ("final_sigmas_type", json!("zero")),
            ],
        )?;
        let keys = Keys::deserialize(value)?;
        let unsupported = |key, found: String, supported: &str| {
            Err(SchedulerError::Unsupported { key, found, supported: supported.to_owned() })
        };
        let order = keys.solver_order.unwrap_or(2);
        if !(1..=2).contains(&order) {
            return unsupported("solver_order", order.to_string(), "1, 2");
        }
        if keys.lower_order_final == Some(false) && order > 1 {
            // The last level holds no noise, and a step of order 2 to it is not finite.
            return unsupported("lower_order_final", "false".to_owned(), "true");
        }
        Ok(Self { order, uncorrected: keys.disable_corrector.unwrap_or_default() })
    }
}

struct Steps {
    levels: Levels,
    solver: Solver,
    /// The sample that the last predictor started from, and its order.
    last: Option<(ArrayD<f32>, usize)>,
    /// Clean samples of the step before the last, and of the last.
    clean: [Option<ArrayD<f32>>; 2],
}

/// From one level to another: `x ← keep·x - scale·φ·(m₀ + Σ ρ·D)`.
struct Move {
    keep: f32,
    /// 1 - σ at the end.
    scale: f32,
    /// e^-h - 1, which is B(-h), too.
    phi: f32,
    /// -h.
    hh: f32,
}

impl Steps {
    fn move_to(&self, from: usize, to: usize) -> Move {
        let (start, end) = (self.levels.sigmas[from], self.levels.sigmas[to]);
        let hh = -(self.levels.lambda(to) - self.levels.lambda(from));
        let phi = hh.exp_m1();
        Move { keep: end / start, scale: 1.0 - end, phi, hh }
    }

    /// How far before `from` the level before it lies, in units of the move from `from` to `to`.
    fn ratio(&self, from: usize, to: usize) -> f32 {
        let lambda = |at| self.levels.lambda(at);
        (lambda(from - 1) - lambda(from)) / (lambda(to) - lambda(from))
    }

    /// The sample at step `index`, corrected by the clean sample that the model predicts there.
    fn corrected(&self, index: usize, clean: &ArrayD<f32>) -> Option<ArrayD<f32>> {
        let (before, order) = self.last.as_ref().filter(|_| !self.solver.uncorrected.contains(&(index - 1)))?;
        let [older, last] = &self.clean;
        let (older, last) = (older.as_ref().filter(|_| *order == 2), last.as_ref()?);
        let Move { keep, scale, phi, hh } = self.move_to(index - 1, index);
        let start = Zip::from(before).and(last).map_collect(|&x, &m| keep * x - scale * phi * m);
        let factor = scale * phi;
        let Some(older) = older else {
            return Some(Zip::from(&start).and(clean).and(last).map_collect(|&x, &m, &l| x - factor * (0.5 * (m - l))));
        };
        // ρ₁ + ρ₂ = b₁, r·ρ₁ + ρ₂ = b₂.
        let ratio = self.ratio(index - 1, index);
        let first = phi / hh - 1.0;
        let second = first / hh - 0.5;
        let (b1, b2) = (first / phi, second * 2.0 / phi);
        let rho1 = (b1 - b2) / (1.0 - ratio);
        let rho2 = b1 - rho1;
        Some(
            Zip::from(&start)
                .and(clean)
                .and(last)
                .and(older)
                .map_collect(|&x, &m, &l, &o| x - factor * (rho1 * ((o - l) / ratio) + rho2 * (m - l))),
        )
    }
}

impl Schedule for Steps {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn step(
        &mut self,
        prediction: &ArrayD<f32>,
        index: usize,
        sample: &ArrayD<f32>,
        _: &mut Draw<'_>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        self.levels.check(prediction, index, sample)?;
        if index == 0 {
            (self.last, self.clean) = (None, [None, None]);
        }
        let clean = self.levels.clean(prediction, index, sample);
        let sample = self.corrected(index, &clean).unwrap_or_else(|| sample.clone());
        let left = self.levels.timesteps.len() - index;
        let done = self.last.as_ref().map_or(0, |(_, order)| *order);
        let order = self.solver.order.min(left).min(done + 1);
        let next = if self.levels.sigmas[index + 1] == 0.0 {
            clean.clone()
        } else {
            let Move { keep, scale, phi, .. } = self.move_to(index, index + 1);
            let mut next = Zip::from(&sample).and(&clean).map_collect(|&x, &m| keep * x - scale * phi * m);
            if let (2, Some(last)) = (order, &self.clean[1]) {
                let ratio = self.ratio(index, index + 1);
                let factor = scale * phi;
                let add = |x: &mut f32, &m: &f32, &l: &f32| *x -= factor * (0.5 * ((l - m) / ratio));
                Zip::from(&mut next).and(&clean).and(last).for_each(add);
            }
            next
        };
        self.clean = [self.clean[1].take(), Some(clean)];
        self.last = Some((sample, order));
        Ok(next)
    }
}
