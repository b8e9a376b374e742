//! Plans for this card: built, given their weights, run, compared with ONNX Runtime, and timed.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use ndarray::Array2;
use serde_json::json;
use v2l_calibration::compare;
use v2l_cli::{Exit, Failure, Output};
use v2l_cuda::{Driver, GpuInfo};
use v2l_export::check::CheckOptions;
use v2l_export::precision::{PrecisionOptions, Request};
use v2l_export::trt::builder::BuildError;
use v2l_export::trt::{Capability, Flavour};
use v2l_export::{CompileOptions, ExportError, ExportOptions, PlanBuilder, TensorRtOptions};
use v2l_runtime::backends::onnxruntime::{OrtEngine, OrtOptions};
use v2l_runtime::backends::tensorrt::{PROBE_INPUT, TrtEngine, TrtOptions};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::{Graph, Profile, ShapeRange, Slot};
use v2l_runtime::engine::session::Session;
use v2l_runtime::io::weights::WeightFile;
use v2l_runtime::lora::Weighted;
use v2l_runtime::lora::adapter::{Adapter, LowRank};
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use crate::cases::CASES;
use crate::checkpoint::Checkpoint;
use crate::kernel::numbers;
use crate::median;
use crate::models::Model;

/// Layers of the transformer of full width.
const LAYERS: usize = 2;
/// Rank of the adapters.
const RANK: usize = 16;

/// Builds the miniature's graphs and a transformer of full width for the card, and runs them there.
pub(crate) fn check(
    model: &Path,
    info: &GpuInfo,
    driver: &Arc<dyn Driver>,
    rounds: usize,
    output: &mut Output,
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("bundle");
    let predictor = Some((model.join("hypernetwork.safetensors"), model.join("checkpoint-checkpoint-100.safetensors")));
    v2l_export::export(model, &bundle, &ExportOptions { predictor, ..ExportOptions::default() }, &mut |_| {})?;
    let (major, minor) = info.capability;
    let card =
        Card { capability: Capability { major, minor }, driver, rounds, engine: &folder.path().join("trt.engine") };
    for case in CASES {
        let graph = bundle.join(format!("{}.onnx", case.graph));
        for (request, dynamic) in [(Request::Bf16, false), (Request::Fp16, false), (Request::Bf16, true)] {
            let name = if dynamic { format!("{}, smallest of free shapes", case.graph) } else { case.graph.to_owned() };
            if !card.check(&name, &graph, &case.profile(&graph, dynamic)?, request, output)? {
                return Ok(());
            }
        }
    }
    let (source, bundle) = (folder.path().join("model"), folder.path().join("wide"));
    Checkpoint::new(Model::Cogvideox, LAYERS).write(&source)?;
    v2l_export::export(&source, &bundle, &ExportOptions::default(), &mut |_| {})?;
    let name = format!("{LAYERS} layers of width 3072");
    card.check(&name, &bundle.join("transformer/step.onnx"), &wide(), Request::Bf16, output)?;
    Ok(())
}

/// 17 frames of 240 × 360 pixels: 5 × 30 × 45 latents, 1650 tokens and those of the text.
fn wide() -> Profile {
    let inputs: [(&str, &[usize]); 6] = [
        ("hidden_states", &[1, 5, 16, 30, 45]),
        ("inpaint_latents", &[1, 5, 17, 30, 45]),
        ("encoder_hidden_states", &[1, 226, 4096]),
        ("timestep", &[1]),
        ("image_rotary_emb_cos", &[1650, 64]),
        ("image_rotary_emb_sin", &[1650, 64]),
    ];
    let range = |(name, shape): (&str, &[usize])| {
        let shape = shape.to_vec();
        (name.to_owned(), ShapeRange { min: shape.clone(), opt: shape.clone(), max: shape })
    };
    inputs.into_iter().map(range).collect()
}

struct Card<'a> {
    capability: Capability,
    driver: &'a Arc<dyn Driver>,
    rounds: usize,
    /// Where engines are written, one after another.
    engine: &'a Path,
}

impl Card<'_> {
    /// False if TensorRT-RTX refuses the card, which is then said.
    fn check(
        &self,
        name: &str,
        model: &Path,
        profile: &Profile,
        request: Request,
        output: &mut Output,
    ) -> anyhow::Result<bool> {
        match self.compile(model, profile, request) {
            Err(error @ ExportError::TensorRt { source: BuildError::Capability { .. }, .. }) => {
                let message = error.to_string();
                output.result("tensorrt_refused", json!({ "message": message }), || format!("TensorRT-RTX: {message}"));
                return Ok(false);
            }
            compiled => drop(compiled?),
        }
        let engine = Arc::new(Engine::open(self.engine)?);
        let graph = &engine.manifest().graphs[0];
        let inputs = probe_inputs(&engine, graph)?;
        let slots = &engine.manifest().slots;

        // Verified when the weights are set: the base by the probe, the adapter by ONNX Runtime.
        let adapters = [(Arc::new(adapter(slots, usize::MAX)), 1.0)];
        let mut trt = TrtEngine::open(Arc::clone(&engine), Flavour::Rtx, &OpenOptions::default())?;
        let mut session = trt.session(&graph.name)?;
        let base = run(&mut session, &inputs)?;
        let distance = distance(&base, &reference(&engine, graph, &inputs)?)?;
        if !slots.is_empty() {
            trt.set_adapters(&adapters, None)?;
            trt.set_adapters(&[], None)?;
            if run(&mut session, &inputs)? != base {
                let message = format!("{name}: the base does not come back bit for bit");
                return Err(Failure { exit: Exit::Numeric, message }.into());
            }
        }
        drop((session, trt));

        // Timed without that.
        let trusting =
            OpenOptions { trt: TrtOptions { verify: false, ..TrtOptions::default() }, ..OpenOptions::default() };
        let free = self.driver.free_memory()?;
        let start = Instant::now();
        let mut trt = TrtEngine::open(Arc::clone(&engine), Flavour::Rtx, &trusting)?;
        let mut session = trt.session(&graph.name)?;
        let first = milliseconds(start);
        run(&mut session, &inputs)?;
        let memory = free.saturating_sub(self.driver.free_memory()?);
        let step = self.median(|| run(&mut session, &inputs).map(drop))?;
        let mut fields = json!({
            "graph": name, "precision": graph.precision, "relative_l2": distance, "open_ms": first, "step_ms": step,
            "memory": memory,
        });
        let mut text = format!(
            "TensorRT-RTX, {name}, {}: {distance:.1e} from ONNX Runtime in float32 (relative L2); loaded with its weights in {first:.0} ms, a \
             step takes {step:.2} ms, memory {:.1} MB",
            graph.precision,
            memory as f64 / 1e6
        );
        if !slots.is_empty() {
            let one = [(Arc::new(adapter(slots, 1)), 1.0)];
            let mut swap = |adapters: &[Weighted]| {
                self.median(|| {
                    trt.set_adapters(&[], None)?;
                    Ok(trt.set_adapters(adapters, None)?)
                })
            };
            let (all, single) = (swap(&adapters)? / 2.0, swap(&one)? / 2.0);
            fields["swap_ms"] = json!(all);
            fields["swap_one_ms"] = json!(single);
            text += &format!(
                "; adapters of rank {RANK} for {} slots are set in {all:.1} ms, for one in {single:.2} ms",
                slots.len()
            );
        }
        output.result("tensorrt", fields, || text);
        Ok(true)
    }

    fn compile(&self, model: &Path, profile: &Profile, request: Request) -> Result<(), ExportError> {
        let options = CompileOptions {
            precision: PrecisionOptions { request: Some(request), rules_only: true, ..PrecisionOptions::default() },
            profiles: vec![profile.clone()],
            target: Arc::new(TensorRtOptions {
                flavour: Flavour::Rtx,
                library: None,
                capabilities: vec![self.capability],
                plain: false,
                builder: PlanBuilder::Program("/proc/self/exe".into()),
                timing_cache: None,
            }),
            check: Some(CheckOptions { thorough: true, ..CheckOptions::default() }),
            ..CompileOptions::default()
        };
        v2l_export::compile(model, self.engine, &options, &mut |_| {}).map(drop)
    }

    /// Of the rounds' milliseconds, after one that does not count.
    fn median(&self, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        work()?;
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            let start = Instant::now();
            work()?;
            times.push(milliseconds(start));
        }
        Ok(median(times))
    }
}

fn milliseconds(start: Instant) -> f64 {
    1e3 * start.elapsed().as_secs_f64()
}

/// What the engine was probed with when it was compiled: inputs of the shapes that it is for.
fn probe_inputs(engine: &Engine, graph: &Graph) -> anyhow::Result<NamedTensors> {
    let probe = graph.probe.as_ref().context("the engine has no probe")?;
    let file = WeightFile::from_bytes(engine.path(), &engine.blob(&probe.file)?)?;
    let mut inputs = NamedTensors::new();
    for port in &graph.inputs {
        let tensor = file.get(&format!("{PROBE_INPUT}{}", port.name))?.to_tensor().context("a damaged probe")?;
        inputs.insert(port.name.clone(), tensor);
    }
    Ok(inputs)
}

/// An adapter for the first `most` slots.
fn adapter(slots: &[Slot], most: usize) -> Adapter {
    let factor = |shape: (usize, usize), scale: f32| {
        let numbers = numbers(shape.0 * shape.1).into_iter().map(|number| scale * number).collect();
        Array2::from_shape_vec(shape, numbers).unwrap_or_default()
    };
    let layer = |slot: &Slot| {
        let down = factor((RANK, slot.in_features), (slot.in_features as f32).sqrt().recip());
        let up = factor((slot.out_features, RANK), (RANK as f32).sqrt().recip());
        (slot.name.clone(), LowRank { down, up, alpha: RANK as f32 }.into())
    };
    Adapter { name: "made".to_owned(), layers: slots.iter().take(most).map(layer).collect() }
}

fn run(session: &mut dyn Session, inputs: &NamedTensors) -> anyhow::Result<NamedTensors> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (&name[..], tensor)).collect();
    Ok(session.run(&inputs)?)
}

/// ONNX Runtime on the CPU, in float32, with the same weights.
fn reference(engine: &Arc<Engine>, graph: &Graph, inputs: &NamedTensors) -> anyhow::Result<NamedTensors> {
    let open = OpenOptions {
        weights: OrtWeights::Stored,
        ort: OrtOptions { any_backend: true, ..OrtOptions::default() },
        ..OpenOptions::default()
    };
    run(&mut OrtEngine::open(Arc::clone(engine), &open)?.session(&graph.name)?, inputs)
}

/// The largest relative L2 distance of an output.
fn distance(found: &NamedTensors, expected: &NamedTensors) -> anyhow::Result<f64> {
    let mut worst: f64 = 0.0;
    for (name, expected) in expected {
        let values = |tensor: &Tensor| tensor.to_f32().map(|values| values.iter().copied().collect::<Vec<f32>>());
        let pair = found.get(name).and_then(values).zip(values(expected));
        let error = pair.and_then(|(found, expected)| compare(&found, &expected));
        worst = worst.max(error.with_context(|| format!("output `{name}` differs in shape"))?.relative_l2);
    }
    Ok(worst)
}
