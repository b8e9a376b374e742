//! Sampling of consistency-distilled flow-matching models: each step predicts the clean sample and adds new noise,
//! `x ← (1 - σ')·x₀ + σ'·ε`. The last step returns the clean sample.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_flow_match_lcm.py`; ComfyUI's `lcm`. Wan2GP's "lcm" is another method: Euler without
//! noise.

use ndarray::{ArrayD, Zip};
use serde_json::Value;

use super::flow::{Config, Flow, Grid, Levels, only};
use super::flow_euler::plain_levels;
use super::scheduler::{Class, Draw, Kind, Schedule, Scheduler, SchedulerError};

pub(super) const CLASS: Class = Class {
    names: &["FlowMatchLCMScheduler"],
    sampler: "lcm",
    kind: Kind::Flow,
    read: |value| read(value, Grid::FlowMatch),
};

/// On ComfyUI's "simple" grid.
pub(super) const SIMPLE: Class =
    Class { names: &[], sampler: "lcm_simple", kind: Kind::Flow, read: |value| read(value, Grid::Simple) };

fn read(value: &Value, grid: Grid) -> Result<Box<dyn Scheduler>, SchedulerError> {
    only(value, &plain_levels())?;
    only(value, &[("scale_factors", Value::Null), ("upscale_mode", "bicubic".into())])?;
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
        draw: &mut Draw<'_>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        self.levels.check(prediction, index, sample)?;
        let clean = self.levels.clean(prediction, index, sample);
        let sigma = self.levels.sigmas[index + 1];
        if sigma == 0.0 {
            return Ok(clean);
        }
        let noise = draw(sample.shape());
        Ok(Zip::from(&clean).and(&noise).map_collect(|&x, &e| (1.0 - sigma) * x + sigma * e))
    }
}
