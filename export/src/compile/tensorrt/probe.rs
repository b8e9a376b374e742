//! What a graph's plans are verified by when their weights were set: inputs, and what the typed graph gives for them.

use std::collections::{BTreeMap, HashSet};

use v2l_calibration::{Limits, compare, walk};
use v2l_graphs::{DataType, Dim, Model, apply_precision, emulate_precision};
use v2l_runtime::engine::manifest::{Probe, Profile, RANK_SUFFIX, RESERVED_PREFIX};
use v2l_runtime::tensor::{NamedTensors, Tensor};
use v2l_runtime::trt_backend::{PROBE_INPUT, PROBE_OUTPUT};
use v2l_runtime::weights::encode_tensors;

use crate::ExportError;
use crate::check::inputs::generate;
use crate::check::{CheckOptions, FACTOR_RANK, profile_extents};
use crate::compile::types::from_runtime;
use crate::compile::variants::stored_variant;
use crate::compile::weights::StoredWeight;
use crate::engine_writer::EngineBlob;
use crate::execute::OrtExecutor;

/// How many times further off than its own roundings a plan may be: TensorRT fuses, and rounds elsewhere.
const SLACK: f64 = 4.0;
/// What is allowed in any case: sums in another order.
const LEAST: f64 = 1e-3;

/// Makes inputs of the first profile's smallest shapes and computes what a plan of the graph shall give for them: what the graph
/// gives that rounds where the plan does, on ONNX Runtime. `None` if that is missing, or no inputs can be made that run, and `check`
/// does not insist.
pub(in crate::compile) fn probe(
    (graph, whole, types): (&str, &Model, &[DataType]),
    weights: &BTreeMap<String, StoredWeight>,
    profiles: &[Profile],
    lora_rank: Option<usize>,
    check: &CheckOptions,
) -> Result<Option<(Probe, EngineBlob)>, ExportError> {
    let stored = |name: &str| from_runtime(weights[name].dtype);
    let exact = stored_variant(whole, &stored);
    let mut rounded = whole.clone();
    apply_precision(&mut rounded, types, &|name, _| stored(name));
    emulate_precision(&mut rounded);
    let extents = check.extents.clone();
    let mut extents = match profiles.first() {
        Some(profile) => profile_extents(&whole.graph, profile, |range| &range.min, extents),
        None => extents,
    };
    let named = whole.graph.inputs.iter().filter_map(|input| input.ty.as_ref()?.shape.as_ref()).flatten();
    for dim in named {
        if let (Dim::Symbol(name), Some(rank)) = (dim, lora_rank)
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
        match ran {
            Ok((outputs, unrounded, inputs)) => return recorded(graph, &inputs, &outputs, &unrounded).map(Some),
            Err(error) => reason = error,
        }
    }
    match check.thorough {
        true => Err(ExportError::NotChecked { graph: graph.to_owned(), reason }),
        false => Ok(None),
    }
}

/// An input; factors of low-rank branches, which were drawn as any other, so that they change what a layer gives by about a tenth.
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

fn recorded(
    graph: &str,
    inputs: &NamedTensors,
    outputs: &NamedTensors,
    unrounded: &NamedTensors,
) -> Result<(Probe, EngineBlob), ExportError> {
    let mut roundings: f64 = 0.0;
    for (name, rounded) in outputs {
        let values = |tensor: &Tensor| tensor.to_f32().map(|values| values.iter().copied().collect::<Vec<_>>());
        let pair = values(rounded).zip(unrounded.get(name).and_then(values));
        let error = pair.and_then(|(rounded, exact)| compare(&rounded, &exact));
        roundings = roundings.max(error.map_or(0.0, |error| error.relative_l2));
    }
    let named = |prefix: &'static str, tensors: &NamedTensors| -> Vec<(String, Tensor)> {
        tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
    };
    let tensors = named(PROBE_INPUT, inputs).into_iter().chain(named(PROBE_OUTPUT, outputs)).collect();
    let file = format!("{RESERVED_PREFIX}probes/{graph}.safetensors");
    let data = encode_tensors(&tensors).map_err(|reason| ExportError::Graph { graph: graph.to_owned(), reason })?;
    let probe = Probe { file: file.clone(), tolerance: (SLACK * roundings).max(LEAST) };
    Ok((probe, EngineBlob { name: file, data: data.into() }))
}
