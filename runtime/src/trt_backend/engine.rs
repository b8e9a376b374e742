//! From an engine to sessions: plans are loaded when they are needed, and adapters change all of them or none.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use v2l_trt::Flavour;

use super::TrtError;
use super::device::{self, Gpu};
use super::fusing::Fusing;
use super::plan::{Plan, lock};
use super::session::TrtSession;
use super::verify::Probe;
use crate::adapter::Adapter;
use crate::engine::Engine;
use crate::engine::manifest::Graph;
use crate::fuse::{Cancelled, FuseReport};
use crate::ort_backend::{OpenOptions, OpenReport, WeightMode};

/// A plan that sessions share, one run or change of weights at a time.
type Shared = Arc<Mutex<Plan>>;

/// An engine whose graphs run on TensorRT, each with weights of its own.
pub struct TrtEngine {
    engine: Arc<Engine>,
    gpu: Arc<dyn Gpu>,
    options: OpenOptions,
    /// The adapters that are fused.
    fusing: Arc<Fusing>,
    open: IndexMap<String, Shared>,
    report: OpenReport,
}

impl TrtEngine {
    /// Finds TensorRT and the GPU. Graphs that [`OpenOptions::adapters`] change are loaded now, others when a session is asked for.
    ///
    /// # Errors
    /// [`TrtError`].
    pub fn open(engine: Arc<Engine>, flavour: Flavour, options: &OpenOptions) -> Result<Self, TrtError> {
        let expected = flavour.backend();
        if let Some(graph) = engine.manifest().graphs.iter().find(|graph| graph.backend != expected) {
            let (graph, found) = (graph.name.clone(), graph.backend.clone());
            return Err(TrtError::WrongBackend { graph, expected, found });
        }
        let gpu = device::open(flavour, &options.trt)?;
        Self::open_on(engine, gpu, options)
    }

    pub(super) fn open_on(engine: Arc<Engine>, gpu: Arc<dyn Gpu>, options: &OpenOptions) -> Result<Self, TrtError> {
        let (name, capability) = gpu.describe();
        let title = gpu.flavour().title();
        let report = OpenReport {
            mode: WeightMode::Plan,
            reason: format!("{title} on {name}, compute capability {capability}; {}", verified(&engine, options)),
            private_bytes: 0,
            fused: FuseReport::default(),
        };
        let fusing = Arc::new(Fusing::new(&engine, &[])?);
        let mut this = Self { engine, gpu, options: options.clone(), fusing, open: IndexMap::new(), report };
        let adapters = std::mem::take(&mut this.options.adapters);
        if !adapters.is_empty() {
            this.set_adapters(&adapters, None)?;
        }
        Ok(this)
    }

    /// What was decided, and why.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Replaces the adapters that are fused, none being the base. Open sessions take the new weights with their next run; only
    /// weights whose value changes are set. `cancelled` is asked now and then, on any thread.
    ///
    /// Private memory: a copy of the factors, and the fused weights that wait for the GPU, at most 512 MiB or the largest of them.
    ///
    /// # Errors
    /// [`TrtError`]; every graph then has its former weights, unless the error says that one is gone.
    pub fn set_adapters(&mut self, adapters: &[(Adapter, f32)], cancelled: Cancelled<'_>) -> Result<(), TrtError> {
        let fusing = Arc::new(Fusing::new(&self.engine, adapters)?);
        fusing.inherit(&self.fusing);
        let mut changed = Vec::new();
        match self.change(&fusing, adapters, cancelled, &mut changed) {
            Ok(opened) => {
                self.open.extend(opened);
                self.report.fused = fusing.report();
                self.fusing = fusing;
                Ok(())
            }
            Err(error) => {
                for plan in changed {
                    let former = lock(&plan).set(&self.fusing, None);
                    if let Err(lost) = former {
                        let graph = lock(&plan).graph().to_owned();
                        let reason = format!("{error}; and its former weights could not be set again: {lost}");
                        return Err(TrtError::Refit { graph, reason });
                    }
                }
                Err(error)
            }
        }
    }

    /// Gives the open graphs, and those that adapters change, their weights, and gives those that were opened for it. `changed` are
    /// those that have other weights than before.
    fn change(
        &self,
        fusing: &Arc<Fusing>,
        adapters: &[(Adapter, f32)],
        cancelled: Cancelled<'_>,
        changed: &mut Vec<Shared>,
    ) -> Result<Vec<(String, Shared)>, TrtError> {
        let manifest = self.engine.manifest();
        let tensors: HashSet<&str> = manifest.slots.iter().map(|slot| &slot.tensor[..]).collect();
        // Graphs with low-rank branches are for those that do not fuse.
        let for_fusing =
            |graph: &Graph| graph.lora_rank.is_none() && graph.weights.iter().any(|name| tensors.contains(&name[..]));
        let mut opened = Vec::new();
        for graph in &manifest.graphs {
            match self.open.get(&graph.name) {
                Some(plan) => {
                    let applied = lock(plan).set(fusing, cancelled)?;
                    if applied.refits > 0 {
                        changed.push(Arc::clone(plan));
                        self.verify(graph, &mut lock(plan), adapters)?;
                    }
                }
                None if !adapters.is_empty() && for_fusing(graph) => {
                    opened.push((graph.name.clone(), self.load(graph, fusing, adapters, cancelled)?));
                }
                None => {}
            }
        }
        Ok(opened)
    }

    /// Loads a graph's plan with its weights, and verifies it.
    fn load(
        &self,
        graph: &Graph,
        fusing: &Arc<Fusing>,
        adapters: &[(Adapter, f32)],
        cancelled: Cancelled<'_>,
    ) -> Result<Shared, TrtError> {
        let mut plan = Plan::open(&self.engine, graph, &self.gpu, fusing, cancelled)?;
        self.verify(graph, &mut plan, adapters)?;
        Ok(Arc::new(Mutex::new(plan)))
    }

    fn verify(&self, graph: &Graph, plan: &mut Plan, adapters: &[(Adapter, f32)]) -> Result<(), TrtError> {
        if !self.options.trt.verify {
            return Ok(());
        }
        let probe = Probe::read(&self.engine, graph)?;
        probe.map_or(Ok(()), |probe| probe.check(&self.engine, graph, plan, adapters, &self.options))
    }

    /// A session of a graph, which is loaded if it was not, and verified.
    ///
    /// # Errors
    /// [`TrtError`].
    pub fn session(&mut self, graph: &str) -> Result<TrtSession, TrtError> {
        let engine = Arc::clone(&self.engine);
        let graph = engine.graph(graph)?;
        let plan = match self.open.get(&graph.name) {
            Some(plan) => Arc::clone(plan),
            None => {
                let plan = self.load(graph, &self.fusing, &self.fusing.adapters(), None)?;
                self.open.insert(graph.name.clone(), Arc::clone(&plan));
                plan
            }
        };
        Ok(TrtSession::new(self.gpu.flavour().backend(), graph, plan))
    }
}

/// Whether weights are verified when they are set, in words.
fn verified(engine: &Engine, options: &OpenOptions) -> &'static str {
    let probed = engine.manifest().graphs.iter().all(|graph| graph.probe.is_some());
    match (options.trt.verify, probed) {
        (true, true) => "weights are verified when they are set",
        (true, false) => "weights are not verified: it was compiled with --no-verify",
        (false, _) => "weights are not verified, as asked for",
    }
}
