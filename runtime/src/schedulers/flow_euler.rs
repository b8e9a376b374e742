//! Euler's method for flow-matching models: `x ← x + (σ' - σ)·v`.
//!
//! Source: diffusers 0.42 `schedulers/scheduling_flow_match_euler_discrete.py`. Its grid ends inside the schedule, which suits many
//! steps; adapters distilled to few steps want `euler_simple`.

use ndarray::{ArrayD, Zip};

use super::flow::{Grid, Method, Options, Step, scheduler};
use super::scheduler::{Class, Draw, Kind};

pub(super) const CLASS: Class = Class {
    names: &["FlowMatchEulerDiscreteScheduler"],
    sampler: "euler",
    kind: Kind::Flow,
    read: |value| scheduler(value, &OPTIONS, Grid::FlowMatch, Euler),
};

/// On ComfyUI's "simple" grid.
pub(super) const SIMPLE: Class = Class {
    names: &[],
    sampler: "euler_simple",
    kind: Kind::Flow,
    read: |value| scheduler(value, &OPTIONS, Grid::Simple, Euler),
};

const OPTIONS: Options = Options {
    shift: ["shift", "flow_shift"],
    class: None,
    never_null: &[],
    required: "{}",
    only: &[PLAIN_LEVELS, r#"{"stochastic_sampling": false}"#],
};

/// Options of diffusers' flow-matching classes that would change the levels.
pub(super) const PLAIN_LEVELS: &str = r#"{"use_dynamic_shifting": false, "use_karras_sigmas": false,
    "use_exponential_sigmas": false, "use_beta_sigmas": false, "invert_sigmas": false, "shift_terminal": null}"#;

#[derive(Clone, Debug)]
struct Euler;

impl Method for Euler {
    fn next(&mut self, step: &Step<'_>, _: &mut Draw<'_>) -> ArrayD<f32> {
        let (now, next) = step.ends();
        let change = next - now;
        Zip::from(step.sample).and(step.prediction).map_collect(|&x, &v| x + change * v)
    }
}
