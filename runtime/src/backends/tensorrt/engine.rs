//! From an engine to sessions: plans are loaded when they are needed, and adapters change all of them or none.

use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use v2l_trt::Flavour;
use v2l_trt::refit::RefitPlanError;

use super::TrtError;
use super::device::{self, Gpu};
use super::fusing::Fusing;
use super::plan::{Plan, choose, lock, reads};
use super::session::TrtSession;
use super::verify::{Probe, reference_options};
use crate::backends::backend::OpenReport;
use crate::engine::Engine;
use crate::engine::manifest::{Graph, slots_by_name};
use crate::lora::Weighted;
use crate::lora::fuse::{CancelCheck, FuseReport};
use crate::options::{OpenOptions, WeightMode};

/// A plan that sessions share, one run or change of weights at a time.
type Shared = Arc<Mutex<Plan>>;

/// An engine whose graphs run on TensorRT, each with weights of its own.
pub struct TrtEngine {
    engine: Arc<Engine>,
    gpu: Arc<dyn Gpu>,
    verify: bool,
    /// How ONNX Runtime is opened to verify adapters.
    reference: OpenOptions,
    /// The adapters that are fused.
    fusing: Arc<Fusing>,
    open: IndexMap<String, Shared>,
    report: OpenReport,
}

impl TrtEngine {
    /// Finds TensorRT and the GPU. Graphs are loaded when a session is asked for.
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
        let (verify, reference) = (options.trt.verify, reference_options(options));
        Ok(Self { engine, gpu, verify, reference, fusing, open: IndexMap::new(), report })
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
    /// weights whose value changes are set. Graphs that are not open get theirs when they are. `cancelled` is asked now and then, on
    /// any thread.
    ///
    /// Private memory: the fused weights that wait for the GPU, at most 512 MiB or the largest of them; to
    /// verify open graphs ([`TrtOptions::verify`](super::TrtOptions::verify)), what ONNX Runtime takes with the same adapters.
    ///
    /// # Errors
    /// [`TrtError`]; every graph then has its former weights, but for those that [`TrtError::Gone`] names.
    pub fn set_adapters(&mut self, adapters: &[Weighted], cancelled: CancelCheck<'_>) -> Result<(), TrtError> {
        let fusing = Arc::new(Fusing::new(&self.engine, adapters)?);
        self.check_slots(&fusing)?;
        fusing.inherit(&self.fusing);
        let mut changed = Vec::new();
        let done = self.change(&fusing, cancelled, &mut changed);
        if let Err(error) = done.and_then(|()| Ok(fusing.measure(cancelled)?)) {
            return Err(self.take_back(error, &changed));
        }
        self.report.fused = fusing.report();
        self.fusing = fusing;
        Ok(())
    }

    /// Refuses adapters for slots whose weights are constants of a plan.
    fn check_slots(&self, fusing: &Fusing) -> Result<(), TrtError> {
        let slots = slots_by_name(self.engine.changeable());
        for graph in &self.engine.manifest().graphs {
            let (reads, plan) = (reads(graph), choose(graph, self.gpu.as_ref())?);
            let mut tensors = fusing.changed().filter_map(|slot| Some((slot, &slots.get(slot)?.tensor)));
            let fixed = tensors.find(|(_, tensor)| reads.contains(&tensor[..]) && !plan.weights.contains(tensor));
            if let Some((slot, weight)) = fixed {
                let error = RefitPlanError::NotRefittable { slot: slot.to_owned(), weight: weight.clone() };
                return Err(TrtError::Refit { graph: graph.name.clone(), reason: error.to_string() });
            }
        }
        Ok(())
    }

    /// Gives the open graphs their weights. `changed` are those that have others than before. Nobody runs one before it is verified.
    fn change<'e>(
        &'e self,
        fusing: &Arc<Fusing>,
        cancelled: CancelCheck<'_>,
        changed: &mut Vec<(&'e Graph, Shared)>,
    ) -> Result<(), TrtError> {
        for graph in &self.engine.manifest().graphs {
            let Some(plan) = self.open.get(&graph.name) else { continue };
            let mut locked = lock(plan);
            if locked.set(fusing, cancelled)?.refits > 0 {
                changed.push((graph, Arc::clone(plan)));
                self.verify(graph, &mut locked, fusing, cancelled)?;
            }
        }
        Ok(())
    }

    /// Brings the former weights back, into plans that are loaded anew: how they were replaced may be what is wrong.
    fn take_back(&self, error: TrtError, changed: &[(&Graph, Shared)]) -> TrtError {
        let mut gone = Vec::new();
        for (graph, plan) in changed {
            let mut plan = lock(plan);
            let back = plan.reset(&self.fusing);
            let back = back
                .and_then(|()| self.verify(graph, &mut plan, &self.fusing, None).map_err(|error| error.to_string()));
            if let Err(reason) = back {
                plan.discard();
                gone.push(format!("`{}` ({reason})", graph.name));
            }
        }
        if gone.is_empty() {
            return error;
        }
        TrtError::Gone { cause: Box::new(error), graphs: gone.join(", ") }
    }

    /// Loads a graph's plan with its weights, and verifies it.
    fn load(&self, graph: &Graph) -> Result<Shared, TrtError> {
        let mut plan = Plan::open(&self.engine, graph, &self.gpu, &self.fusing, None)?;
        self.verify(graph, &mut plan, &self.fusing, None)?;
        Ok(Arc::new(Mutex::new(plan)))
    }

    fn verify(
        &self,
        graph: &Graph,
        plan: &mut Plan,
        fusing: &Fusing,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), TrtError> {
        if !self.verify {
            return Ok(());
        }
        match Probe::read(&self.engine, graph)? {
            Some(probe) => probe.check((&self.engine, graph), plan, fusing, &self.reference, cancelled),
            None => Ok(()),
        }
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
                let plan = self.load(graph)?;
                self.open.insert(graph.name.clone(), Arc::clone(&plan));
                plan
            }
        };
        Ok(TrtSession::new(self.gpu.flavour().backend(), graph, plan))
    }
}

/// Whether weights are verified when they are set, in words.
fn verified(engine: &Engine, options: &OpenOptions) -> String {
    let without = engine.manifest().graphs.iter().filter(|graph| graph.probe.is_none()).map(|graph| &graph.name[..]);
    let without: Vec<&str> = without.collect();
    match (options.trt.verify, without.is_empty()) {
        (true, true) => "weights are verified when they are set".to_owned(),
        (true, false) => format!("weights are not verified in {}: compiled without a probe", without.join(", ")),
        (false, _) => "weights are not verified, as asked for".to_owned(),
    }
}
