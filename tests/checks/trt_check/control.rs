//! The control: a weight that does not feed its layer directly stays in a placeholder plan.

use std::path::Path;

use anyhow::{Context, ensure};
use v2l_export::TrtPlanReport;
use v2l_export::trt::builder::{Refit, Request as BuildRequest};
use v2l_export::trt::library::Library;
use v2l_export::trt::{Capability, Flavour};
use v2l_graphs::{Attribute, DataType, Location, Model, Node, ReadOptions, encode_model, read_model};
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::WEIGHTS_PLACEHOLDER;
use v2l_runtime::io::map::map_file;

/// Larger than any weight here.
const LARGEST: u64 = 512 << 20;
/// What else a plan may hold more or less of with a constant in a placeholder's place, as a share of the weight. The weight's product takes
/// another kernel: tens of kilobytes, where the weight has tens of megabytes.
const CODE: f64 = 0.01;

/// Builds an engine's graph with its largest slot behind a Cast, and compares with its plan.
pub(crate) fn run(engine: &Path, direct: &TrtPlanReport, folder: &Path) -> anyhow::Result<()> {
    let engine = Engine::open(engine)?;
    let graph = &engine.manifest().graphs[0];
    let typed = graph.files.typed.as_ref().context("no typed graph")?;
    let mut model = decode(folder, &engine.blob(&typed.file)?)?;
    let size = |name: &str| engine.weight(name).map_or(0, |weight| weight.data.len() as u64);
    let slot = engine.manifest().slots.iter().max_by_key(|slot| size(&slot.tensor)).context("no slots")?;
    hide(&mut model, &slot.tensor);
    let hidden = plan_bytes(&engine, &typed.weights, &model)?;
    let (grown, expected) = (hidden.saturating_sub(direct.bytes), size(&slot.tensor));
    println!("control: `{}` ({expected} bytes) behind a Cast: the plan grows by {grown} bytes", slot.name);
    let most = CODE * expected as f64;
    ensure!(grown.abs_diff(expected) as f64 <= most, "expected growth by the weight's bytes, give or take {most}");
    Ok(())
}

/// A stored graph; its weights come from elsewhere.
fn decode(folder: &Path, bytes: &[u8]) -> anyhow::Result<Model> {
    let path = folder.join("control.onnx");
    std::fs::write(&path, bytes)?;
    std::fs::File::create(folder.join(WEIGHTS_PLACEHOLDER))?.set_len(LARGEST)?;
    Ok(read_model(&path, &ReadOptions { open: &|path| map_file(path) })?)
}

/// Puts a Cast to the weight's own type between it and its readers.
fn hide(model: &mut Model, weight: &str) {
    let hidden = format!("{weight}.hidden");
    let inputs = model.graph.nodes.iter_mut().flat_map(|node| &mut node.inputs);
    inputs.filter(|name| *name == weight).for_each(|name| hidden.clone_into(name));
    let to = Attribute::Int(DataType::Bfloat16.onnx().into());
    let cast = Node {
        name: format!("{weight}/Cast"),
        op_type: "Cast".into(),
        inputs: vec![weight.to_owned()],
        outputs: vec![hidden],
        attributes: [("to".to_owned(), to)].into_iter().collect(),
        ..Node::default()
    };
    model.graph.nodes.insert(0, cast);
}

/// Bytes of the placeholder plan of a graph without free extents over an engine's weights.
fn plan_bytes(engine: &Engine, names: &[String], model: &Model) -> anyhow::Result<u64> {
    let views: Vec<_> = names.iter().map(|name| engine.weight(name)).collect::<Result<_, _>>()?;
    let weights: Vec<(String, &[u8])> =
        names.iter().zip(&views).map(|(name, view)| (name.clone(), &view.data[..])).collect();
    let location = |name: &str| {
        let length = model.graph.initializers.get(name)?.expected_len()? as u64;
        Some(Location { file: WEIGHTS_PLACEHOLDER.into(), offset: 0, length })
    };
    let bytes = encode_model(model, &location)?;
    let request = BuildRequest {
        model: &bytes,
        weights: &weights,
        profiles: &[],
        capabilities: &[Capability { major: 8, minor: 9 }],
        refit: Refit::Placeholders,
        timing_cache: None,
    };
    Ok(Library::open(Flavour::Rtx, None)?.build(&request, &mut |_| true)?.plan.len() as u64)
}
