//! Sampling of consistency-distilled flow-matching models: each step predicts the clean sample and adds new noise,
//! `x ← (1 - σ')·x₀ + σ'·ε`. The last step returns the clean sample.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_flow_match_lcm.py`; ComfyUI's `lcm`. Wan2GP's "lcm" is another method: Euler without
//! noise.

use ndarray::{ArrayD, Zip};

use super::flow::{Grid, Method, Options, Step, scheduler};
use super::flow_euler::PLAIN_LEVELS;
use super::scheduler::{Class, Draw, Kind};

pub(super) const CLASS: Class = Class {
    names: &["FlowMatchLCMScheduler"],
    sampler: "lcm",
    kind: Kind::Flow,
    read: |value| scheduler(value, &OPTIONS, Grid::FlowMatch, Lcm),
};

/// On ComfyUI's "simple" grid.
pub(super) const SIMPLE: Class = Class {
    names: &[],
    sampler: "lcm_simple",
    kind: Kind::Flow,
    read: |value| scheduler(value, &OPTIONS, Grid::Simple, Lcm),
};

const OPTIONS: Options = Options {
    shift: ["shift", "flow_shift"],
    class: None,
    never_null: &[],
    required: "{}",
    only: &[PLAIN_LEVELS, r#"{"scale_factors": null, "upscale_mode": "bicubic"}"#],
};

#[derive(Clone, Debug)]
struct Lcm;

impl Method for Lcm {
    fn next(&mut self, step: &Step<'_>, draw: &mut Draw<'_>) -> ArrayD<f32> {
        let (clean, (_, sigma)) = (step.clean(), step.ends());
        if sigma == 0.0 {
            return clean;
        }
        let noise = draw(step.sample.shape());
        Zip::from(&clean).and(&noise).map_collect(|&x, &e| (1.0 - sigma) * x + sigma * e)
    }
}
