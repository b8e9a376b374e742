//! ONNX Runtime as a backend.

use std::sync::Arc;

use super::NAME;
use super::open::OrtEngine;
use super::options::{OrtOptions, Provider};
use super::weight_decision::weight_mode;
use crate::backends::backend::{Backend, BackendEngine, Fused, OpenReport, Reopen};
use crate::backends::error::BackendError;
use crate::backends::weights::weight_bytes;
use crate::components::Needs;
use crate::engine::footprint::{Demand, Shapes};
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::io::library;
use crate::lora::Weighted;
use crate::lora::fuse::CancelCheck;
use crate::options::{OpenOptions, WeightMode};

/// One part in so many of what a graph computes with is lost in the arena's gaps, about (`docs/memory.md` has measurements).
const ARENA_GAPS: u64 = 4;

/// Bytes that the system's allocator keeps at most, about.
const ALLOCATOR_KEEPS: u64 = 160 << 20;

/// ONNX Runtime: every engine holds a form for it.
pub struct OnnxRuntime;

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "ONNX Runtime; engines compiled for TensorRT hold a form for it, too"
    }

    fn suits(&self, _: &Engine, _: &OpenOptions) -> bool {
        true
    }

    fn on_this_machine(&self, options: &OpenOptions) -> (bool, String) {
        match library::onnxruntime(options.ort.library.as_deref()) {
            Ok(_) => (true, library::onnxruntime_path().map_or_else(String::new, |path| path.display().to_string())),
            Err(error) => (false, error.to_string()),
        }
    }

    fn held_weights(&self, engine: &Engine, options: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
        weight_mode(engine, options)
    }

    fn needs(
        &self,
        engine: &Engine,
        graph: &str,
        options: &OpenOptions,
        fused: Fused<'_>,
        shapes: &Shapes,
        runs: usize,
    ) -> Result<Option<Needs>, EngineError> {
        let (mode, _) = weight_mode(engine, options)?;
        if options.ort.provider != Provider::Cpu {
            return Ok(None);
        }
        let graph = engine.graph(graph)?;
        let (weights, fused) = weight_bytes(engine, graph, mode, fused)?;
        let stored_weights = mode == WeightMode::Stored;
        let run = with_overhead(graph.demand(stored_weights, !stored_weights, shapes, runs), stored_weights);
        Ok(Some(Needs { weights, fused, run }))
    }

    fn cache_key(&self, options: &OpenOptions) -> String {
        let OrtOptions { arithmetic, provider, device_weights, .. } = &options.ort;
        format!("{arithmetic:?} {provider:?} {device_weights:?}")
    }

    fn open(&self, engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn BackendEngine>, BackendError> {
        Ok(Box::new(OrtEngine::open(engine, options)?))
    }
}

/// ONNX Runtime's arena has gaps; stored weights go without it, and the system's allocator keeps some of what was freed.
fn with_overhead(run: Demand, stored_weights: bool) -> Demand {
    let over = if stored_weights {
        run.activations.saturating_mul(2).min(ALLOCATOR_KEEPS)
    } else {
        run.activations / ARENA_GAPS
    };
    let activations = run.activations.saturating_add(over);
    Demand { activations, ..run }
}

impl BackendEngine for OrtEngine {
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
        if self.has_device_weights() {
            return Ok(());
        }
        let reopened = reopen(self);
        if reopened.is_err() {
            self.restore(before);
        }
        reopened
    }
}
