//! UniPC for flow-matching models: a predictor of order 2 and a corrector that uses the model's answer at the new level, too.
//!
//! Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", with B(h) = e^h - 1
//! (bh2); diffusers 0.42 `schedulers/scheduling_unipc_multistep.py`. Coefficients are float32, computed in its order.

use ndarray::{ArrayD, Zip};
use serde::Deserialize;
use serde_json::Value;

use super::flow::{Grid, Method, Options, Step, scheduler};
use super::scheduler::{Class, Draw, Kind, Scheduler, SchedulerError};

pub(super) const CLASS: Class = Class {
    names: &["UniPCMultistepScheduler"],
    sampler: "unipc",
    kind: Kind::Flow,
    read: |value| read(value, Grid::UniPc),
};

/// On the grid of Wan's own code.
pub(super) const WAN: Class =
    Class { names: &[], sampler: "unipc_wan", kind: Kind::Flow, read: |value| read(value, Grid::WanUniPc) };

pub(super) const OPTIONS: Options = Options {
    shift: ["flow_shift", "shift"],
    class: Some("UniPCMultistepScheduler"),
    never_null: &[
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
    ],
    required: r#"{"use_flow_sigmas": true, "prediction_type": "flow_prediction"}"#,
    // With bh1 the last step, to a level without noise, is not finite.
    only: &[r#"{"predict_x0": true, "thresholding": false, "solver_p": null, "use_karras_sigmas": false,
        "use_exponential_sigmas": false, "use_beta_sigmas": false, "use_dynamic_shifting": false,
        "shift_terminal": null, "solver_type": "bh2", "final_sigmas_type": "zero"}"#],
};

/// The configured method, and what the steps of one video leave.
#[derive(Clone, Debug)]
struct UniPc {
    /// 1 or 2.
    order: usize,
    /// Steps that the next one does not correct.
    uncorrected: Vec<usize>,
    /// The sample that the last predictor started from, and its order.
    last: Option<(ArrayD<f32>, usize)>,
    /// Clean samples of the step before the last, and of the last.
    clean: [Option<ArrayD<f32>>; 2],
}

/// Keys of the solver, before defaults.
#[derive(Default, Deserialize)]
struct Keys {
    solver_order: Option<usize>,
    lower_order_final: Option<bool>,
    disable_corrector: Option<Vec<usize>>,
}

fn read(value: &Value, grid: Grid) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let keys = if OPTIONS.apply(value) { Keys::deserialize(value)? } else { Keys::default() };
    let order = keys.solver_order.unwrap_or(2);
    let uncorrected = keys.disable_corrector.unwrap_or_default();
    let scheduler = scheduler(value, &OPTIONS, grid, UniPc { order, uncorrected, last: None, clean: [None, None] })?;
    let unsupported = |key, found: String, supported: &str| {
        Err(SchedulerError::Unsupported { key, found, supported: supported.to_owned() })
    };
    if !(1..=2).contains(&order) {
        return unsupported("solver_order", order.to_string(), "1, 2");
    }
    if keys.lower_order_final == Some(false) && order > 1 {
        // The last level holds no noise, and a step of order 2 to it is not finite.
        return unsupported("lower_order_final", "false".to_owned(), "true");
    }
    Ok(scheduler)
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

impl Move {
    fn new(step: &Step<'_>, from: usize, to: usize) -> Self {
        let (start, end) = (step.sigmas[from], step.sigmas[to]);
        let hh = -(step.lambda(to) - step.lambda(from));
        let phi = hh.exp_m1();
        Self { keep: end / start, scale: 1.0 - end, phi, hh }
    }
}

/// How far before `from` the level before it lies, in units of the move from `from` to `to`.
fn ratio(step: &Step<'_>, from: usize, to: usize) -> f32 {
    let lambda = |at| step.lambda(at);
    (lambda(from - 1) - lambda(from)) / (lambda(to) - lambda(from))
}

impl UniPc {
    /// The sample of a step, corrected by the clean sample that the model predicts there.
    fn corrected(&self, step: &Step<'_>, clean: &ArrayD<f32>) -> Option<ArrayD<f32>> {
        let index = step.index;
        let (before, order) = self.last.as_ref().filter(|_| !self.uncorrected.contains(&(index - 1)))?;
        let [older, last] = &self.clean;
        let (older, last) = (older.as_ref().filter(|_| *order == 2), last.as_ref()?);
        let Move { keep, scale, phi, hh } = Move::new(step, index - 1, index);
        let start = Zip::from(before).and(last).map_collect(|&x, &m| keep * x - scale * phi * m);
        let factor = scale * phi;
        let Some(older) = older else {
            return Some(Zip::from(&start).and(clean).and(last).map_collect(|&x, &m, &l| x - factor * (0.5 * (m - l))));
        };
        // ρ₁ + ρ₂ = b₁, r·ρ₁ + ρ₂ = b₂.
        let ratio = ratio(step, index - 1, index);
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

impl Method for UniPc {
    fn next(&mut self, step: &Step<'_>, _: &mut Draw<'_>) -> ArrayD<f32> {
        let index = step.index;
        if index == 0 {
            (self.last, self.clean) = (None, [None, None]);
        }
        let clean = step.clean();
        let sample = self.corrected(step, &clean).unwrap_or_else(|| step.sample.clone());
        let left = step.sigmas.len() - 1 - index;
        let done = self.last.as_ref().map_or(0, |(_, order)| *order);
        let order = self.order.min(left).min(done + 1);
        let next = if step.ends().1 == 0.0 {
            clean.clone()
        } else {
            let Move { keep, scale, phi, .. } = Move::new(step, index, index + 1);
            let mut next = Zip::from(&sample).and(&clean).map_collect(|&x, &m| keep * x - scale * phi * m);
            if let (2, Some(last)) = (order, &self.clean[1]) {
                let ratio = ratio(step, index, index + 1);
                let factor = scale * phi;
                let add = |x: &mut f32, &m: &f32, &l: &f32| *x -= factor * (0.5 * ((l - m) / ratio));
                Zip::from(&mut next).and(&clean).and(last).for_each(add);
            }
            next
        };
        self.clean = [self.clean[1].take(), Some(clean)];
        self.last = Some((sample, order));
        next
    }
}
