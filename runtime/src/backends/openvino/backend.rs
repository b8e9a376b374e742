//! OpenVINO as a backend.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::NAME;
use super::engine::OpenVinoEngine;
use super::loose;
use super::precision::Arithmetic;
use super::probe::Block;
use super::verdict::verdict;
use crate::backends::backend::{Backend, BackendEngine, Fused, OpenReport, Reopen};
use crate::backends::error::BackendError;
use crate::backends::interface::{GraphWeight, Interface};
use crate::backends::onnxruntime::{self, DeviceWeightChoice, OrtOptions, Provider};
use crate::backends::weights::weight_bytes;
use crate::components::Needs;
use crate::engine::footprint::Shapes;
use crate::engine::manifest::Graph;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::lora::Weighted;
use crate::lora::fuse::CancelCheck;
use crate::options::{OpenOptions, OrtWeights, WeightMode};

/// OpenVINO: it runs engines that hold a form for it.
pub struct OpenVino;

impl Backend for OpenVino {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "OpenVINO, on CPUs: engines of `v2l-compile --backend openvino`"
    }

    /// What is asked of ONNX Runtime alone is a choice of it.
    fn suits(&self, engine: &Engine, options: &OpenOptions) -> bool {
        let has_form = |graph: &Graph| graph.files.openvino.is_some();
        let OrtOptions { provider, arithmetic, device_weights, profile, .. } = options.ort;
        let graphs = &engine.manifest().graphs;
        !graphs.is_empty()
            && graphs.iter().flat_map(Graph::parts).all(has_form)
            && (provider, arithmetic, device_weights, profile)
                == (Provider::Cpu, onnxruntime::Arithmetic::Fp32, DeviceWeightChoice::None, false)
            && options.weights == OrtWeights::Auto
            && verdict(Block::of(engine.manifest()), options).takes
    }

    fn on_this_machine(&self, options: &OpenOptions) -> (bool, String) {
        let found = Block::ALL.map(|block| verdict(block, options));
        let reasons: Vec<&str> = found.iter().filter_map(|verdict| verdict.why.as_deref()).collect();
        let colon = if reasons.is_empty() { "" } else { ": " };
        let takes = found.iter().any(|verdict| verdict.takes);
        (takes, format!("{}{colon}{}", found[0].what, reasons.join("; ")))
    }

    fn held_weights(&self, _: &Engine, _: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
        Ok((WeightMode::Stored, "OpenVINO takes them as they are stored".to_owned()))
    }

    fn needs(
        &self,
        engine: &Engine,
        graph: &str,
        _: &OpenOptions,
        fused: Fused<'_>,
        shapes: &Shapes,
        runs: usize,
    ) -> Result<Option<Needs>, EngineError> {
        let graph = engine.graph(graph)?;
        let (_, fused) = weight_bytes(engine, graph, WeightMode::Stored, fused)?;
        let run = graph.demand(true, false, shapes, runs);
        let forms = || graph.parts().filter_map(|part| part.files.openvino.as_ref());
        // From compilation to the first run OpenVINO has room of its own for every weight that it will be given.
        let inputs = bytes_of(engine, forms().flat_map(|form| &form.weights))?;
        let constants = bytes_of(engine, forms().flat_map(|form| &form.constants))?.saturating_mul(COPIES);
        let beyond_run = inputs.saturating_sub(run.activations).saturating_add(constants);
        Ok(Some(Needs { weights: fused.saturating_add(beyond_run), fused, run }))
    }

    fn cache_key(&self, options: &OpenOptions) -> String {
        format!("{:?}", options.openvino.precision)
    }

    fn open(&self, engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn BackendEngine>, BackendError> {
        Ok(Box::new(OpenVinoEngine::open(engine, options)?))
    }

    fn open_graph(
        &self,
        interface: &Interface,
        onnx: &[u8],
        weights: &[GraphWeight],
        options: &OpenOptions,
    ) -> Option<Result<Box<dyn Session>, BackendError>> {
        let opened = loose::open(interface, onnx, weights, Arithmetic::F32, options);
        Some(opened.map(|session| Box::new(session) as _).map_err(Into::into))
    }
}

/// So many copies of a graph's constants there are before its first run is over: two while it is read and compiled, and what it runs on.
const COPIES: u64 = 3;

/// Bytes of these weights, each counted once.
fn bytes_of<'a>(engine: &Engine, names: impl Iterator<Item = &'a String>) -> Result<u64, EngineError> {
    let mut weights = BTreeMap::new();
    for name in names {
        weights.insert(name, engine.weight(name)?.data.len() as u64);
    }
    Ok(weights.into_values().sum())
}

impl BackendEngine for OpenVinoEngine {
    fn engine(&self) -> &Arc<Engine> {
        self.engine()
    }

    fn report(&self) -> &OpenReport {
        self.report()
    }

    fn session(&mut self, graph: &str) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(self.session(graph)?))
    }

    fn set_adapters(
        &mut self,
        adapters: &[Weighted],
        reopen: Reopen<'_>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), BackendError> {
        let before = self.set_adapters(adapters, cancelled)?;
        if !before.graphs_change() {
            return Ok(());
        }
        let reopened = reopen(self);
        if reopened.is_err() {
            self.restore(before);
        }
        reopened
    }
}
