//! In place of ONNX Runtime: every output is a checksum of each of the graph's weights, as fused, times the sum of the inputs.

use std::sync::Arc;

use v2l_runtime::backends::OpenReport;
use v2l_runtime::backends::onnxruntime::OrtError;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::session::{Port, Session, SessionError};
use v2l_runtime::io::raw::widen;
use v2l_runtime::lora::fuse::{FuseOptions, FuseTarget, Fused, Pool, fuse_with};
use v2l_runtime::lora::{Weighted, borrowed};
use v2l_runtime::options::{OpenOptions, WeightMode};
use v2l_runtime::tensor::{NamedTensors, Tensor, TensorView};

/// As `OrtEngine`, as far as this crate uses it.
pub(crate) struct StandIn {
    engine: Arc<Engine>,
    fused: Arc<Fused>,
    pool: Pool,
    report: OpenReport,
}

impl StandIn {
    pub(crate) fn open(engine: Arc<Engine>, _: &OpenOptions) -> Result<Self, OrtError> {
        let report = OpenReport {
            mode: WeightMode::F32,
            reason: "the stand-in has no other".to_owned(),
            private_bytes: 0,
            fused: Default::default(),
        };
        let pool = Pool::default();
        let fused = Arc::new(fuse_with(&engine, &[], &FuseOptions::new(FuseTarget::F32))?);
        Ok(Self { engine, fused, pool, report })
    }

    pub(crate) fn report(&self) -> &OpenReport {
        &self.report
    }

    pub(crate) fn set_adapters(
        &mut self,
        adapters: &[Weighted],
        cancelled: Option<&(dyn Fn() -> bool + Sync)>,
    ) -> Result<Arc<Fused>, OrtError> {
        let options = FuseOptions { pool: Some(&self.pool), cancelled, ..FuseOptions::new(FuseTarget::F32) };
        let fused = fuse_with(&self.engine, &borrowed(adapters), &options)?;
        self.report.fused = fused.report.clone();
        Ok(std::mem::replace(&mut self.fused, Arc::new(fused)))
    }

    pub(crate) fn restore(&mut self, before: Arc<Fused>) {
        self.report.fused = before.report.clone();
        self.fused = before;
    }

    pub(crate) fn session(&mut self, graph: &str) -> Result<StandInSession, OrtError> {
        let (engine, fused) = (Arc::clone(&self.engine), Arc::clone(&self.fused));
        let graph = engine.graph(graph)?;
        let (inputs, outputs, weights) = (graph.inputs.clone(), graph.outputs.clone(), graph.weights.clone());
        Ok(StandInSession { engine, fused, inputs, outputs, weights })
    }
}

/// See [`StandIn`].
pub(crate) struct StandInSession {
    engine: Arc<Engine>,
    fused: Arc<Fused>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    weights: Vec<String>,
}

impl StandInSession {
    fn checksum(&self, name: &str) -> Result<f32, SessionError> {
        let fail = |message: String| SessionError::Backend { backend: "stand-in", message };
        let view = self.engine.weight(name).map_err(|e| fail(e.to_string()))?;
        let values = match self.fused.weights.get(name) {
            Some(fused) => widen(v2l_runtime::tensor::Dtype::F32, fused),
            None => widen(view.dtype, &view.data),
        };
        let values = values.ok_or_else(|| fail(format!("`{name}` is no floating-point weight")))?;
        Ok(values.iter().zip((1..=7).cycle()).map(|(value, factor)| value * factor as f32).sum())
    }
}

impl Session for StandInSession {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<NamedTensors, SessionError> {
        let views: Vec<_> = inputs.iter().filter_map(|(name, tensor)| Some((*name, tensor.view()?))).collect();
        self.run_views(&views)
    }

    fn run_views(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<NamedTensors, SessionError> {
        let sum: f32 = inputs.iter().flat_map(|(_, view)| view.data()).map(|&byte| f32::from(byte)).sum();
        let checksums: Result<Vec<f32>, SessionError> =
            self.weights.iter().map(|name| Ok(self.checksum(name)? * sum)).collect();
        let checksums = ndarray::Array1::from(checksums?).into_dyn();
        Ok(self.outputs.iter().map(|port| (port.name.clone(), Tensor::F32(checksums.clone()))).collect())
    }
}
