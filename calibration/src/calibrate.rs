//! Running real inputs through a model and recording what values it takes.

use indexmap::IndexMap;
use v2l_graphs::Model;

use crate::Executor;
use crate::planning::float_values;
use crate::ranges::Ranges;
use crate::walk::{Limits, WalkError, walk};

/// Runs `model` in float32 on `inputs`, block by block, and adds every floating-point value to `ranges` under `label`: inputs,
/// intermediate values and outputs. Gives the outputs.
///
/// Memory for the values of one block. One executor per strength of adapters: with weights of its own.
///
/// # Errors
/// [`WalkError`], naming the input or the nodes.
pub fn calibrate<E: Executor>(
    ranges: &mut Ranges,
    label: &str,
    (executor, model): (&mut E, &Model),
    inputs: &IndexMap<String, E::Value>,
    limits: Limits,
) -> Result<IndexMap<String, E::Value>, WalkError<E::Error>> {
    ranges.begin(label);
    let floats = float_values(model);
    for input in model.graph.inputs.iter().filter(|input| floats.contains(&input.name)) {
        if let Some(values) = inputs.get(&input.name).and_then(E::floats) {
            ranges.observe(&input.name, &values);
        }
    }
    walk(executor, model, inputs, limits, &|name| floats.contains(name), &mut |name, value| {
        if let Some(values) = E::floats(value) {
            ranges.observe(name, &values);
        }
    })
}
