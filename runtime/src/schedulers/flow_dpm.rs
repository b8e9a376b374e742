//! DPM-Solver++ (2M, midpoint) for flow-matching models.
//!
//! Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2; diffusers 0.42
//! `schedulers/scheduling_dpmsolver_multistep.py` with `use_flow_sigmas`; Wan's own code differs in the grid only.

use ndarray::{ArrayD, Zip};
use serde_json::{Value, json};

use super::flow::{Config, Flow, Grid, Levels, must_be, only};
use super::scheduler::{Class, Draw, Kind, Schedule, Scheduler, SchedulerError, never_null};

pub(super) const CLASS: Class = Class {
    names: &["DPMSolverMultistepScheduler"],
    sampler: "dpmpp_2m",
    kind: Kind::Flow,
    read: |value| {
        if value.get("_class_name") == Some(&json!("DPMSolverMultistepScheduler")) {
            never_null(value, &NEVER_NULL)?;
            must_be(value, &[("use_flow_sigmas", json!(true)), ("prediction_type", json!("flow_prediction"))])?;
            only(value, &options())?;
        }
        scheduler(value, Grid::DpmSolver)
    },
};

/// On the grid of Wan's own code.
pub(super) const WAN: Class =
    Class { names: &[], sampler: "dpmpp_2m_wan", kind: Kind::Flow, read: |value| scheduler(value, Grid::WanDpm) };

/// Keys that are never null.
pub(super) const NEVER_NULL: [&str; 10] = [
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "final_sigmas_type",
    "lower_order_final",
    "prediction_type",
    "solver_order",
    "solver_type",
    "timestep_spacing",
];

fn options() -> [(&'static str, Value); 10] {
    [
        ("solver_order", json!(2)),
        ("algorithm_type", json!("dpmsolver++")),
        ("solver_type", json!("midpoint")),
        ("thresholding", json!(false)),
        ("use_karras_sigmas", json!(false)),
        ("use_lu_lambdas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
        ("use_beta_sigmas", json!(false)),
        ("use_dynamic_shifting", json!(false)),
        ("final_sigmas_type", json!("zero")),
    ]
}

fn scheduler(value: &Value, grid: Grid) -> Result<Box<dyn Scheduler>, SchedulerError> {
    let config = Config::read(value, ["flow_shift", "shift"])?;
    Ok(Box::new(Flow { config, grid, solver: (), begin: |levels, ()| Box::new(Steps { levels, before: None }) }))
}

struct Steps {
    levels: Levels,
    /// The clean sample that the step before predicted.
    before: Option<ArrayD<f32>>,
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
        let levels = &self.levels;
        levels.check(prediction, index, sample)?;
        let clean = levels.clean(prediction, index, sample);
        let (now, next) = (levels.sigmas[index], levels.sigmas[index + 1]);
        if next == 0.0 {
            return Ok(clean);
        }
        let (lambda, lambda_next) = (levels.lambda(index), levels.lambda(index + 1));
        let h = lambda_next - lambda;
        let (keep, change) = (next / now, (1.0 - next) * ((-h).exp() - 1.0));
        let mut sum = Zip::from(sample).and(&clean).map_collect(|&x, &m| keep * x - change * m);
        if let Some(before) = self.before.as_ref().filter(|_| index > 0) {
            // 0 after a level without signal, where λ is -∞.
            let slope = 1.0 / ((lambda - levels.lambda(index - 1)) / h);
            Zip::from(&mut sum).and(&clean).and(before).for_each(|x, &m, &b| *x -= 0.5 * change * (slope * (m - b)));
        }
        self.before = Some(clean);
        Ok(sum)
    }
}
