//! What a graph's plans are verified by when their weights were set: inputs, and what the typed graph gives for them.

use std::collections::HashSet;

use v2l_calibration::{Limits, compare, walk};
use v2l_graphs::{DataType, Dim, Model, apply_precision, emulate_precision};
use v2l_runtime::backends::tensorrt::{PROBE_INPUT, PROBE_OUTPUT};
use v2l_runtime::engine::manifest::{Probe, RANK_SUFFIX, RESERVED_PREFIX};
use v2l_runtime::io::weights::encode_tensors;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::ExportError;
use crate::check::inputs::{FACTOR_RANK, generate, profile_extents};
use crate::check::{CheckOptions, Unchecked};
use crate::compile::targets::target::GraphTask;
use crate::engine_writer::EngineBlob;
use crate::execute::OrtExecutor;
use crate::stored::stored_variant;
use crate::types::from_runtime;

/// How many times further off than its own roundings a plan may be: TensorRT fuses, and rounds elsewhere.
const SLACK: f64 = 4.0;
/// What is allowed in any case: sums in another order.
const LEAST: f64 = 1e-3;
/// What is allowed at most: what 16 bits let expect of a sound plan.
const MOST: f64 = 1e-1;

/// Makes inputs of the first profile's smallest shapes and computes what a plan of the graph shall give for them: what
/// the graph gives that rounds where the plan does, on ONNX Runtime. Why there is none if that is missing, or no inputs
/// can be made that run and give numbers, and `check` does not insist.
pub(super) fn probe(
    task: &GraphTask<'_>,
    types: &[DataType],
    check: &CheckOptions,
) -> Result<Result<(Probe, EngineBlob), String>, ExportError> {
    let GraphTask { name: graph, whole, weights, .. } = *task;
    let stored = |name: &str| from_runtime(weights[name].dtype);
    let exact = stored_variant(whole, &stored);
    let mut rounded = whole.clone();
    apply_precision(&mut rounded, types, &|name, _| stored(name));
    emulate_precision(&mut rounded);
    let extents = check.extents.clone();
    let mut extents = match task.profiles.first() {
        Some(profile) => profile_extents(&whole.graph, profile, |range| &range.min, extents),
        None => extents,
    };
    let named = whole.graph.inputs.iter().filter_map(|input| input.ty.as_ref()?.shape.as_ref()).flatten();
    for dim in named {
        if let (Dim::Symbol(name), Some(rank)) = (dim, task.lora_rank)
            && name.ends_with(RANK_SUFFIX)
        {
            extents.insert(name.clone(), rank.min(FACTOR_RANK));
        }
    }
    let run = |model: &Model, inputs: &NamedTensors| {
        let mut executor = OrtExecutor { options: check.ort.clone(), ..OrtExecutor::default() };
        let ran = walk(&mut executor, model, inputs, Limits::default(), &|_| false, &mut |_, _| {});
        ran.map_err(|error| error.to_string())
    };
    let mut reason = "no inputs can be made for it".to_owned();
    for set in generate(whole, &extents, &HashSet::new(), check.seed) {
        let set = set.map(|set| set.tensors.into_iter().map(factor).collect::<NamedTensors>());
        let ran = set.and_then(|inputs| Ok((run(&rounded, &inputs)?, run(&exact, &inputs)?, inputs)));
        match ran.and_then(|(outputs, unrounded, inputs)| recorded(graph, &inputs, &outputs, &unrounded)) {
            Ok(probe) => return Ok(Ok(probe)),
            Err(error) => reason = error,
        }
    }
    match check.thorough {
        true => Err(ExportError::NotChecked(Unchecked::on_inputs(graph, reason))),
        false => Ok(Err(reason)),
    }
}

/// An input; factors of low-rank branches, which were drawn as any other, so that they change what a layer gives by
/// about a tenth.
fn factor((name, tensor): (String, Tensor)) -> (String, Tensor) {
    let scale = match tensor.shape() {
        [rank, inner] if name.ends_with(".lora_down") => ((*inner * *rank) as f32).sqrt().recip(),
        [_, _] if name.ends_with(".lora_up") => 0.1,
        _ => return (name, tensor),
    };
    match tensor {
        Tensor::F32(values) => (name, Tensor::F32(values * scale)),
        other => (name, other),
    }
}

/// The probe, if all its values are numbers.
fn recorded(
    graph: &str,
    inputs: &NamedTensors,
    outputs: &NamedTensors,
    unrounded: &NamedTensors,
) -> Result<(Probe, EngineBlob), String> {
    let mut roundings: f64 = 0.0;
    for (name, rounded) in outputs {
        let values = |tensor: &Tensor| tensor.to_f32().map(|values| values.iter().copied().collect::<Vec<_>>());
        let (Some(rounded), Some(exact)) = (values(rounded), unrounded.get(name).and_then(values)) else { continue };
        if rounded.iter().chain(&exact).any(|value| !value.is_finite()) {
            return Err(format!("output `{name}` is not finite on made inputs"));
        }
        roundings = roundings.max(compare(&rounded, &exact).map_or(0.0, |error| error.relative_l2));
    }
    let named = |prefix: &'static str, tensors: &NamedTensors| -> Vec<(String, Tensor)> {
        tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
    };
    let tensors = named(PROBE_INPUT, inputs).into_iter().chain(named(PROBE_OUTPUT, outputs)).collect();
    let file = format!("{RESERVED_PREFIX}probes/{graph}.safetensors");
    let data = encode_tensors(&tensors)?;
    let probe = Probe { file: file.clone(), tolerance: tolerance(roundings) };
    Ok((probe, EngineBlob { name: file, data: data.into() }))
}

/// What is allowed where roundings change the result by so much: two digits of it, rounded up.
fn tolerance(roundings: f64) -> f64 {
    let allowed = (SLACK * roundings).clamp(LEAST, MOST);
    let digit = 10f64.powf(allowed.log10().floor() - 1.0);
    ((allowed / digit - 1e-9).ceil() * digit).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_is_a_multiple_of_the_roundings_within_bounds() {
        for (roundings, expected) in [
            (0.0, 1e-3),
            (1e-4, 1e-3),
            (2.51e-3, 1.1e-2),
            (6.1e-3, 2.5e-2),
            (0.02, 0.08),
            (0.3, 0.1),
            (f64::INFINITY, 0.1),
        ] {
            assert!((tolerance(roundings) - expected).abs() < 1e-12, "{roundings}: {}", tolerance(roundings));
        }
    }
}
