//! DPM-Solver++ (2M, midpoint) for flow-matching models.
//!
//! Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2; diffusers 0.42
//! `schedulers/scheduling_dpmsolver_multistep.py` with `use_flow_sigmas`; Wan's own code differs in the grid only.

use ndarray::{ArrayD, Zip};

use super::flow::{Grid, Method, Options, Step, scheduler};
use super::scheduler::{Class, Draw, Kind};

pub(super) const CLASS: Class = Class {
    names: &["DPMSolverMultistepScheduler"],
    sampler: "dpmpp_2m",
    kind: Kind::Flow,
    read: |value| scheduler(value, &OPTIONS, Grid::DpmSolver, Dpm::default()),
};

/// On the grid of Wan's own code.
pub(super) const WAN: Class = Class {
    names: &[],
    sampler: "dpmpp_2m_wan",
    kind: Kind::Flow,
    read: |value| scheduler(value, &ANY, Grid::WanDpm, Dpm::default()),
};

pub(super) const OPTIONS: Options = Options {
    shift: ["flow_shift", "shift"],
    class: Some("DPMSolverMultistepScheduler"),
    never_null: &[
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
    ],
    required: r#"{"use_flow_sigmas": true, "prediction_type": "flow_prediction"}"#,
    only: &[r#"{"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "thresholding": false, "use_karras_sigmas": false, "use_lu_lambdas": false,
        "use_exponential_sigmas": false, "use_beta_sigmas": false, "use_dynamic_shifting": false, "final_sigmas_type": "zero"}"#],
};

/// A file of the class may ask for another method, which Wan's own code would not follow either.
const ANY: Options = Options { never_null: &[], required: "{}", only: &[], ..OPTIONS };

#[derive(Clone, Debug, Default)]
struct Dpm {
    /// The clean sample that the step before predicted.
    before: Option<ArrayD<f32>>,
}

impl Method for Dpm {
    fn next(&mut self, step: &Step<'_>, _: &mut Draw<'_>) -> ArrayD<f32> {
        let (clean, index) = (step.clean(), step.index);
        let (now, next) = step.ends();
        if next == 0.0 {
            return clean;
        }
        let (lambda, lambda_next) = (step.lambda(index), step.lambda(index + 1));
        let h = lambda_next - lambda;
        let (keep, change) = (next / now, (1.0 - next) * ((-h).exp() - 1.0));
        let mut sum = Zip::from(step.sample).and(&clean).map_collect(|&x, &m| keep * x - change * m);
        if let Some(before) = self.before.as_ref().filter(|_| index > 0) {
            // 0 after a level without signal, where λ is -∞.
            let slope = 1.0 / ((lambda - step.lambda(index - 1)) / h);
            Zip::from(&mut sum).and(&clean).and(before).for_each(|x, &m, &b| *x -= 0.5 * change * (slope * (m - b)));
        }
        self.before = Some(clean);
        sum
    }
}
