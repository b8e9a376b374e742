//! Do the weights compute what they shall? What was recorded when the engine was compiled, and ONNX Runtime, say so.

use std::sync::Arc;

use super::TrtError;
use super::fusing::Fusing;
use super::plan::{Input, Plan};
use crate::backends::onnxruntime::{OrtEngine, OrtError, OrtOptions};
use crate::engine::inputs::{bind, laid_out, views};
use crate::engine::manifest::Graph;
use crate::engine::profiles;
use crate::engine::session::{Session, SessionError};
use crate::engine::{Engine, EngineError};
use crate::io::weights::WeightFile;
use crate::lora::Weighted;
use crate::lora::fuse::CancelCheck;
use crate::options::{OpenOptions, OrtWeights};
use crate::tensor::{NamedTensors, Tensor};

/// Before the name of an input in the file of a probe.
pub const PROBE_INPUT: &str = "input.";
/// Before the name of an output in the file of a probe.
pub const PROBE_OUTPUT: &str = "output.";

/// Inputs of a graph, and what it gives for them with its pristine weights.
pub(super) struct Probe {
    inputs: NamedTensors,
    outputs: NamedTensors,
    /// Largest distance, relative L2.
    tolerance: f64,
}

impl Probe {
    /// The graph's probe, if one was recorded.
    pub(super) fn read(engine: &Engine, graph: &Graph) -> Result<Option<Self>, TrtError> {
        let Some(probe) = &graph.probe else { return Ok(None) };
        let damaged = |found: String| EngineError::Structure {
            path: engine.path().to_owned(),
            what: format!("probe of graph `{}`", graph.name),
            expected: "named tensors for its inputs and outputs".to_owned(),
            found,
        };
        let file = WeightFile::from_bytes(engine.path(), &engine.blob(&probe.file)?).map_err(EngineError::Weights)?;
        let (mut inputs, mut outputs) = (NamedTensors::new(), NamedTensors::new());
        for name in file.names() {
            let tensor = file.get(&name).map_err(EngineError::Weights)?.to_tensor();
            let tensor = tensor.ok_or_else(|| damaged(format!("`{name}`, which cannot be read")))?;
            match (name.strip_prefix(PROBE_INPUT), name.strip_prefix(PROBE_OUTPUT)) {
                (Some(input), _) => drop(inputs.insert(input.to_owned(), tensor)),
                (_, Some(output)) => drop(outputs.insert(output.to_owned(), tensor)),
                _ => return Err(damaged(format!("`{name}`")).into()),
            }
        }
        if let Some(missing) = graph.outputs.iter().find(|port| !outputs.contains_key(&port.name)) {
            return Err(damaged(format!("no output `{}`", missing.name)).into());
        }
        Ok(Some(Self { inputs, outputs, tolerance: probe.tolerance }))
    }

    /// Runs the plan on the probe's inputs and compares: with what was recorded, or, if adapters change its weights, with ONNX Runtime
    /// on the same fused weights.
    ///
    /// # Errors
    /// [`TrtError::Differs`], [`TrtError::Reference`], or what running the plan says.
    pub(super) fn check(
        &self,
        (engine, graph): (&Arc<Engine>, &Graph),
        plan: &mut Plan,
        fusing: &Fusing,
        options: &OpenOptions,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), TrtError> {
        let inputs: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
        let laid_out = laid_out(&inputs);
        let given = views(&laid_out);
        let unfit = |error: SessionError| {
            TrtError::Failed(format!(
                "graph `{}`: its probe does not fit: {error}; compile the model again",
                graph.name
            ))
        };
        let profile = profiles::choose(&graph.profiles, &given).map_err(unfit)?;
        let bound = bind(&graph.inputs.iter().collect::<Vec<_>>(), &given).map_err(unfit)?;
        let bound: Vec<Input<'_>> = bound.iter().map(|input| Input::Given(input.view())).collect();
        let found = plan.run(profile, &bound)?;
        if !plan.is_changed_by(fusing) {
            return self.compare(graph, &found, &self.outputs, "what was recorded when it was compiled");
        }
        let expected = reference(engine, graph, &inputs, &fusing.adapters(), options, cancelled)?;
        self.compare(graph, &found, &expected, "ONNX Runtime with the same fused weights")
    }

    fn compare(
        &self,
        graph: &Graph,
        found: &NamedTensors,
        expected: &NamedTensors,
        reference: &'static str,
    ) -> Result<(), TrtError> {
        let distances = graph.outputs.iter().map(|port| {
            let pair = found.get(&port.name).zip(expected.get(&port.name));
            (&port.name, pair.map_or(f64::INFINITY, |(found, expected)| distance(found, expected)))
        });
        match distances.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
            Some((output, distance)) if distance > self.tolerance => Err(TrtError::Differs {
                graph: graph.name.clone(),
                output: output.clone(),
                distance,
                tolerance: self.tolerance,
                reference,
            }),
            _ => Ok(()),
        }
    }
}

/// How ONNX Runtime is opened on the CPU, in float32, where engines are opened with `options`.
pub(super) fn reference_options(options: &OpenOptions) -> OpenOptions {
    OpenOptions {
        threads: options.threads,
        memory: options.memory,
        // Held so, weights are rounded to the storage type when they are fused, as those of the plan are.
        weights: OrtWeights::Stored,
        ort: OrtOptions { library: options.ort.library.clone(), any_backend: true, ..OrtOptions::default() },
        ..OpenOptions::default()
    }
}

/// What ONNX Runtime gives with the same fused weights.
fn reference(
    engine: &Arc<Engine>,
    graph: &Graph,
    inputs: &[(&str, &Tensor)],
    adapters: &[Weighted],
    options: &OpenOptions,
    cancelled: CancelCheck<'_>,
) -> Result<NamedTensors, TrtError> {
    let run = || -> Result<NamedTensors, OrtError> {
        let mut ort = OrtEngine::open(Arc::clone(engine), options)?;
        ort.set_adapters(adapters, cancelled)?;
        let mut session = ort.session(&graph.name)?;
        let message = |error: SessionError| OrtError::Backend { graph: graph.name.clone(), message: error.to_string() };
        session.run(inputs).map_err(message)
    };
    run().map_err(|error| TrtError::Reference { graph: graph.name.clone(), reason: Box::new(error) })
}

/// `‖found − expected‖₂ / ‖expected‖₂`; infinite if shapes differ or values are undefined.
pub(super) fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    let (Some(found), Some(expected)) = (found.to_f32(), expected.to_f32()) else {
        return if found == expected { 0.0 } else { f64::INFINITY };
    };
    if found.shape() != expected.shape() {
        return f64::INFINITY;
    }
    let square = |value: f64| value * value;
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    let distance = if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
    // What is undefined is as far off as can be.
    if distance.is_nan() { f64::INFINITY } else { distance }
}
