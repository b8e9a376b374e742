//! TensorRT as a backend.

use std::sync::Arc;

use v2l_trt::Flavour;

use super::device;
use super::engine::TrtEngine;
use crate::backends::backend::{Backend, BackendEngine, Fused, OpenReport, Reopen};
use crate::backends::error::BackendError;
use crate::components::Needs;
use crate::engine::footprint::Shapes;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::lora::Weighted;
use crate::lora::fuse::CancelCheck;
use crate::options::{OpenOptions, WeightMode};

/// TensorRT of one flavour: it runs engines that are compiled for it.
pub struct TensorRt(pub Flavour);

impl Backend for TensorRt {
    fn name(&self) -> &'static str {
        self.0.backend()
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Flavour::Rtx => "TensorRT-RTX (built with `cargo build --features tensorrt`)",
            Flavour::TensorRt => "TensorRT (built with `cargo build --features tensorrt`)",
        }
    }

    fn suits(&self, engine: &Engine, _: &OpenOptions) -> bool {
        engine.manifest().graphs.iter().any(|graph| graph.backend == self.name())
    }

    fn on_this_machine(&self, options: &OpenOptions) -> (bool, String) {
        match device::open(self.0, &options.trt) {
            Ok(gpu) => {
                let (name, capability) = gpu.describe();
                (true, format!("{name}, compute capability {capability}"))
            }
            Err(error) => (false, error.to_string()),
        }
    }

    fn held_weights(&self, _: &Engine, _: &OpenOptions) -> Result<(WeightMode, String), EngineError> {
        Ok((WeightMode::Plan, "TensorRT's plans hold them".to_owned()))
    }

    fn needs(
        &self,
        _: &Engine,
        _: &str,
        _: &OpenOptions,
        _: Fused<'_>,
        _: &Shapes,
        _: usize,
    ) -> Result<Option<Needs>, EngineError> {
        Ok(None)
    }

    fn cache_key(&self, options: &OpenOptions) -> String {
        options.trt.device.to_string()
    }

    fn open(&self, engine: Arc<Engine>, options: &OpenOptions) -> Result<Box<dyn BackendEngine>, BackendError> {
        Ok(Box::new(TrtEngine::open(engine, self.0, options)?))
    }
}

impl BackendEngine for TrtEngine {
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
        _: Reopen<'_>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), BackendError> {
        Ok(self.set_adapters(adapters, cancelled)?)
    }
}
