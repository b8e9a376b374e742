//! Any engine on named tensors.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::json;
use v2l_cli::{Failure, Output, shown};
use v2l_runtime::backends::{Fused, OpenEngine, needs};
use v2l_runtime::components::{TRANSFORMER_2, is_transformer};
use v2l_runtime::decisions::{Decisions, HeldWeights};
use v2l_runtime::directory::EngineDirectory;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::footprint::Shapes;
use v2l_runtime::engine::manifest::{Graph, Manifest};
use v2l_runtime::generator::Generator;
use v2l_runtime::io::weights::{read_tensors, write_tensors};
use v2l_runtime::lora::mode::{Way, choose, with_branches, without_branches};
use v2l_runtime::lora::{Weighted, borrowed, branch};
use v2l_runtime::memory::available_memory;
use v2l_runtime::memory::check_room;
use v2l_runtime::options::{OpenOptions, OrtWeights};
use v2l_runtime::pipeline::PhaseMemory;
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::adapters;
use super::args::{Args, FuseMode};

/// Runs one graph once.
pub(crate) fn run(args: &Args, inputs: &Path, output: &mut Output) -> anyhow::Result<()> {
    let outputs = args.outputs.as_ref().ok_or_else(|| Failure::usage("--inputs needs --outputs FILE"))?;
    let tensors = read_tensors(inputs)?;
    let (path, options) = (args.engine()?, args.open_options());
    let mut generator = path.is_dir().then(|| Generator::without_text(path, &args.options())).transpose()?;
    let engine = match &mut generator {
        Some(generator) => choose_engine(args, generator.directory(), &tensors)?,
        None => Arc::new(Engine::open(path)?),
    };
    if args.verify_hashes {
        engine.verify_hashes()?;
    }
    let graph = choose_graph(engine.manifest(), args.graph.as_deref(), &tensors)?.to_owned();
    let component = engine.manifest().component.clone();
    let two = is_transformer(&component)
        && generator.as_mut().is_some_and(|generator| generator.directory().has(TRANSFORMER_2));
    let mut fused = match &mut generator {
        Some(generator) if two => adapters::load_part(&args.lora, &component, args.allow_partial, generator, output)?,
        other => {
            let layers = (&*engine).into();
            adapters::load_for(&args.lora, layers, args.allow_partial, other.as_mut(), output)?
        }
    };
    let predicted = super::predictor::even(super::predictor::predict(args, Some(&engine), output)?)?;
    fused.extend(predicted.map(|adapter| (Arc::new(adapter), args.strength)));
    let mut fused = adapters::compose(fused, args.compose, output)?;
    let (mut tensors, mut graph, mut beside) = (tensors, graph, 0);
    let base = without_branches(engine.graph(&graph)?).to_owned();
    let asked_by_name = args.graph.is_some() && args.fuse_mode == FuseMode::Auto;
    let branches = if asked_by_name {
        graph != base
    } else {
        choose(args.fuse_mode.into(), engine.manifest(), &base)?.0 == Way::Branch || graph != base
    };
    if branches {
        graph = with_branches(&base);
        let stored = engine.graph(&graph)?;
        let given = tensors.keys().find(|name| is_factor(stored, name));
        if let (Some(factor), false, false) = (given, fused.is_empty(), args.fuse_mode == FuseMode::Fuse) {
            return Err(Failure::usage(format!(
                "--inputs holds `{factor}`, a factor of a low-rank branch, and --lora gives adapters for the same branches; \
                 leave one of them out, or fuse the adapters with --fuse-mode fuse"
            )));
        }
        if given.is_none() {
            tensors.extend(branch::inputs(&engine, stored, &borrowed(&fused))?);
            beside = fused.len();
            fused.clear();
        }
    }
    let adapters = fused.len() + beside;
    let options = OpenOptions { record: None, ..options };
    check_memory(&engine, &graph, (&options, &fused), &tensors, output)?;
    let mut backend = OpenEngine::open(Arc::clone(&engine), &options)?;
    if !fused.is_empty() {
        backend.set_adapters(&fused, std::iter::empty(), Some(&v2l_cli::interrupted))?;
    }
    let report = backend.report();
    output.event("opened", json!({ "weights": report.mode.to_string(), "reason": report.reason }));
    adapters::report(&report.fused, output);
    let mut session = backend.session(&graph)?;
    let inputs: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let results = session.run_unless(&inputs, &v2l_cli::interrupted)?;
    let report = backend.report();
    let (weights, reason) = (report.mode.to_string(), report.reason.clone());
    let held = HeldWeights { component: engine.manifest().component.clone(), weights, reason };
    let way = (adapters > 0).then_some(if branches { Way::Branch } else { Way::Fuse });
    write_tensors(outputs, &results, &Decisions { weights: vec![held], way }.metadata())?;
    let shapes: IndexMap<&String, &[usize]> = results.iter().map(|(name, t)| (name, t.shape())).collect();
    output.result("outputs", json!({ "path": shown(outputs), "graph": graph, "shapes": shapes }), || {
        let lines: Vec<String> = shapes.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
        format!("{}: {}", outputs.display(), lines.join(", "))
    });
    Ok(())
}

/// Says what a run will take, and refuses it if there is too little memory, before anything is loaded.
fn check_memory(
    engine: &Engine,
    graph: &str,
    (options, adapters): (&OpenOptions, &[Weighted]),
    tensors: &NamedTensors,
    output: &mut Output,
) -> anyhow::Result<()> {
    let shapes: Shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let Some(needs) = needs(engine, graph, options, Fused::These(adapters), (&shapes, 1))? else {
        return Ok(());
    };
    let phase =
        PhaseMemory { name: "run", weights: needs.weights, activations: needs.run.activations, data: needs.run.data() };
    let (bytes, complete) = (phase.total(), needs.run.complete);
    let fields = json!({ "bytes": bytes, "free": available_memory(), "phases": [phase], "complete": complete });
    output.event("memory", fields);
    let stored = OpenOptions { weights: OrtWeights::Stored, ..options.clone() };
    check_room("this run", bytes, 0, |available| {
        let found = with_stored(engine, graph, (&stored, adapters), &shapes);
        let helps = found.is_some_and(|bytes| bytes <= available);
        let ways = helps.then(|| "--ort-weights stored".to_owned()).into_iter();
        ways.chain(["smaller inputs".to_owned()]).collect()
    })?;
    Ok(())
}

/// Bytes that a run takes with weights as they are stored.
fn with_stored(
    engine: &Engine,
    graph: &str,
    (options, adapters): (&OpenOptions, &[Weighted]),
    shapes: &Shapes,
) -> Option<u64> {
    let needs = needs(engine, graph, options, Fused::These(adapters), (shapes, 1)).ok()??;
    Some(needs.weights.saturating_add(needs.run.activations).saturating_add(needs.run.data()))
}

/// The component asked for, or the only one with a graph that takes these inputs.
fn choose_engine(args: &Args, directory: &mut EngineDirectory, tensors: &NamedTensors) -> anyhow::Result<Arc<Engine>> {
    if let Some(component) = &args.component {
        return Ok(directory.engine(component)?);
    }
    let names: Vec<String> = directory.config().components.keys().cloned().collect();
    let mut fitting = Vec::new();
    for name in &names {
        let engine = directory.engine(name)?;
        if names.len() == 1 || engine.manifest().graphs.iter().any(|g| takes(g, tensors)) {
            fitting.push(engine);
        }
    }
    match &fitting[..] {
        [only] => Ok(Arc::clone(only)),
        _ => {
            let given: Vec<&str> = tensors.keys().map(String::as_str).collect();
            Err(Failure::usage(format!(
                "{} components take the inputs {}; choose with --component ({})",
                fitting.len(),
                given.join(", "),
                names.join(", ")
            )))
        }
    }
}

/// True if `tensors` are the graph's inputs; the factors of low-rank branches may be left out, for adapters to give.
fn takes(graph: &Graph, tensors: &NamedTensors) -> bool {
    tensors.keys().all(|name| graph.inputs.iter().any(|port| port.name == *name))
        && graph.inputs.iter().all(|port| tensors.contains_key(&port.name) || is_factor(graph, &port.name))
}

/// True for a factor of one of the graph's low-rank branches.
fn is_factor(graph: &Graph, input: &str) -> bool {
    graph.lora_rank.is_some() && (input.ends_with(".lora_down") || input.ends_with(".lora_up"))
}

/// The graph asked for, or the one that takes exactly these inputs.
fn choose_graph<'a>(manifest: &'a Manifest, name: Option<&str>, tensors: &NamedTensors) -> anyhow::Result<&'a str> {
    let list = || {
        let graphs = manifest.graphs.iter().map(|g| {
            let is_factor = |name: &str| name.ends_with(".lora_down") || name.ends_with(".lora_up");
            let own = g.inputs.iter().map(|p| p.name.as_str()).filter(|name| !is_factor(name));
            let factors = if g.lora_rank.is_some() { " and factors of every slot" } else { "" };
            format!("{} takes {}{factors}", g.name, own.collect::<Vec<_>>().join(", "))
        });
        graphs.collect::<Vec<_>>().join("; ")
    };
    if let Some(name) = name {
        return manifest
            .graphs
            .iter()
            .find(|g| g.name == name)
            .map(|g| g.name.as_str())
            .ok_or_else(|| Failure::usage(format!("there is no graph `{name}`: {}", list())));
    }
    if let [only] = &manifest.graphs[..] {
        return Ok(&only.name);
    }
    manifest.graphs.iter().find(|g| takes(g, tensors)).map(|g| g.name.as_str()).ok_or_else(|| {
        let given: Vec<&str> = tensors.keys().map(String::as_str).collect();
        Failure::usage(format!("no graph takes {}: {}; choose with --graph", given.join(", "), list()))
    })
}
