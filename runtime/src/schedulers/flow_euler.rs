//! Euler's method for flow-matching models: `x ← x + (σ' - σ)·v`.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_flow_match_euler_discrete.py`. Its grid ends inside the schedule, which suits many
//! steps; adapters distilled to few steps want `euler_simple`.

use ndarray::{ArrayD, Zip};
use serde_json::{Value, json};

use super::flow::{Config, Flow, Grid, Levels, only};
use super::scheduler::{Class, Draw, Kind, Schedule, Scheduler, SchedulerError};

pub(super) const CLASS: Class = Class {
    names: &["FlowMatchEulerDiscreteScheduler"],
    sampler: "euler",
    kind: Kind::Flow,
    read: |value| read(value, Grid::FlowMatch),
};

/// On ComfyUI's "simple" grid.
pub(super) const SIMPLE: Class =
    Class { names: &[], sampler: "euler_simple", kind: Kind::Flow, read: |value| read(value, Grid::Simple) };

/// Options of diffusers' flow-matching classes that would change the levels.
pub(super) fn plain_levels() -> [(&'static str, Value); 6] {
    [
        ("use_dynamic_shifting", json!(false)),
        ("use_karras_sigmas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
        ("use_beta_sigmas", json!(false)),
        ("invert_sigmas", json!(false)),
        ("shift_terminal", json!(null)),
    ]
}

fn read(value: &Value, grid: Grid) -> Result<Box<dyn Scheduler>, SchedulerError> {
    only(value, &plain_levels())?;
    only(value, &[("stochastic_sampling", json!(false))])?;
    let config = Config::read(value, ["shift", "flow_shift"])?;
    Ok(Box::new(Flow { config, grid, solver: (), begin: |levels, ()| Box::new(Steps { levels }) }))
}

struct Steps {
    levels: Levels,
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
        let change = self.levels.sigmas[index + 1] - self.levels.sigmas[index];
        Ok(Zip::from(sample).and(prediction).map_collect(|&x, &v| x + change * v))
    }
}
