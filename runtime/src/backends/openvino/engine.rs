//! From an engine to sessions.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use v2l_openvino::{Borrowed, Compiled, Core, Model};

use super::embed::embed;
use super::error::OvError;
use super::opened_graph::{self, OvGraph};
use super::precision::{Arithmetic, NoBf16, Processor, decide};
use crate::backends::backend::OpenReport;
use crate::backends::device_weights::{DeviceWeights, Host, State};
use crate::backends::graph_session::GraphSession;
use crate::backends::interface::Interface;
use crate::backends::precomputed::Precomputed;
use crate::backends::weights::private_bytes;
use crate::engine::Engine;
use crate::engine::manifest::{Graph, OpenVinoGraph, Slot};
use crate::engine::session::Port;
use crate::io::raw::aligned;
use crate::lora::adapter::Adapter;
use crate::lora::fuse::{self, CancelCheck, FuseReport, FuseTarget};
use crate::lora::{Weighted, borrowed};
use crate::options::{OpenOptions, RunLimits, WeightMode};

/// A graph of an engine on OpenVINO.
pub type OpenVinoSession = GraphSession<OvGraph>;

/// What [`OpenVinoEngine::set_adapters`] replaced.
pub struct FusedState {
    state: Arc<State>,
    graphs: Option<(IndexMap<String, Bytes>, HashMap<String, Compiled>)>,
    report: FuseReport,
    private_bytes: u64,
}

impl FusedState {
    /// True if vectors in the graphs are others now: sessions that are open still have the former ones.
    pub fn graphs_change(&self) -> bool {
        self.graphs.is_some()
    }
}

/// An engine whose graphs run on OpenVINO, over weights that all sessions share.
pub struct OpenVinoEngine {
    engine: Arc<Engine>,
    core: Core,
    arithmetic: Arithmetic,
    threads: Option<NonZero<usize>>,
    limits: Option<RunLimits>,
    device_weights: Arc<DeviceWeights>,
    /// Vectors that adapters change, which lie in the graphs.
    vectors: IndexMap<String, Bytes>,
    /// Graphs that were opened, by name: sessions share them.
    compiled: HashMap<String, Compiled>,
    report: OpenReport,
}

impl OpenVinoEngine {
    /// Finds OpenVINO. Graphs are compiled when a session is asked for.
    ///
    /// # Errors
    /// [`OvError`]: no library, or an engine that was not compiled for it.
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, OvError> {
        let mut weights = Vec::new();
        for graph in engine.manifest().graphs.iter().flat_map(Graph::parts) {
            weights.extend(form(&engine, graph)?.weights.iter().map(String::as_str));
        }
        let core = Core::open(options.openvino.library.as_deref()).map_err(OvError::Library)?;
        let processor = Processor::of(&core).map_err(OvError::Library)?;
        let decided = decide(processor, engine.manifest(), options.openvino.precision);
        let (arithmetic, why) = decided.or_else(|NoBf16| {
            let cpu = core.device_name().map_err(OvError::Library)?;
            Err(OvError::NoBf16 { cpu: cpu.trim().to_owned() })
        })?;
        let weight = |name: &str| {
            let view = engine.weight(name)?;
            Ok((view.dtype, aligned(view.dtype, view.data)))
        };
        let host = Host::new(options.memory, true).keeping(options.fused_cache.clone(), engine.fingerprint());
        let device_weights = DeviceWeights::new(&engine, Arc::new(host), &weights, weight)?;
        let report = OpenReport {
            mode: WeightMode::Stored,
            reason: format!("OpenVINO {} takes them as they are stored, and computes in {why}", core.version()),
            private_bytes: 0,
            fused: FuseReport::default(),
        };
        Ok(Self {
            core,
            arithmetic,
            threads: options.threads.and_then(NonZero::new),
            limits: options.limits,
            device_weights: Arc::new(device_weights.beside_graphs()),
            vectors: IndexMap::new(),
            compiled: HashMap::new(),
            report,
            engine,
        })
    }

    /// What was decided, and why.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Replaces the adapters that are fused, none being the base, and gives what to pass to [`Self::restore`]. Open sessions take the new
    /// weights with their next run; where [`FusedState::graphs_change`] says so, they must be opened again.
    ///
    /// Private memory: the fused weights, in the type that they are stored in, and once more until sessions have let the former ones go.
    ///
    /// # Errors
    /// [`OvError`]: too little memory, an adapter that does not fit, or cancelled; the former adapters then stay.
    pub fn set_adapters(&mut self, adapters: &[Weighted], cancelled: CancelCheck<'_>) -> Result<FusedState, OvError> {
        let in_graphs = self.in_graphs(adapters);
        let vectors = fuse::fuse(&self.engine, &borrowed(&in_graphs), FuseTarget::Storage)?;
        let (state, mut report) = self.device_weights.set_adapters(&self.engine, &borrowed(adapters), cancelled)?;
        report.slots.extend(vectors.report.slots);
        let private_bytes = match report.kept {
            // Matrices lie in a map.
            Some(true) => vectors.weights.values().map(|weight| weight.len() as u64).sum(),
            _ => private_bytes(&self.engine, WeightMode::Stored, adapters)?,
        };
        let changed = vectors.weights != self.vectors;
        let before = FusedState {
            state,
            graphs: changed
                .then(|| (std::mem::replace(&mut self.vectors, vectors.weights), std::mem::take(&mut self.compiled))),
            report: std::mem::replace(&mut self.report.fused, report),
            private_bytes: std::mem::replace(&mut self.report.private_bytes, private_bytes),
        };
        Ok(before)
    }

    /// Brings the adapters back that [`Self::set_adapters`] replaced.
    pub fn restore(&mut self, before: FusedState) {
        self.device_weights.restore(&before.state);
        if let Some((vectors, compiled)) = before.graphs {
            (self.vectors, self.compiled) = (vectors, compiled);
        }
        self.report.fused = before.report;
        self.report.private_bytes = before.private_bytes;
    }

    /// The parts of adapters that change what lies in the graphs.
    fn in_graphs(&self, adapters: &[Weighted]) -> Vec<Weighted> {
        let lies_there = |slot: &&Slot| self.device_weights.held(&slot.tensor).is_none();
        let names: HashSet<&str> =
            self.engine.parameters().iter().filter(lies_there).map(|slot| &slot.name[..]).collect();
        let part = |(adapter, strength): &Weighted| {
            let layers = adapter.layers.iter().filter(|(name, _)| names.contains(&name[..]));
            let layers = layers.map(|(name, update)| (name.clone(), Arc::clone(update))).collect();
            (Arc::new(Adapter { name: adapter.name.clone(), layers }), *strength)
        };
        adapters.iter().map(part).filter(|(part, _)| !part.layers.is_empty()).collect()
    }

    /// Opens a graph, and the precomputed graphs that come before it. Nothing is computed yet.
    ///
    /// # Errors
    /// [`OvError`] if there is no such graph or OpenVINO refuses it.
    pub fn session(&mut self, graph: &str) -> Result<OpenVinoSession, OvError> {
        let engine = Arc::clone(&self.engine);
        let graph = engine.graph(graph)?;
        let precomputed = graph.precomputed.as_ref();
        let own = precomputed.map_or(&graph.inputs, |precomputed| &precomputed.inputs);
        let main = self.part(graph, own, self.arithmetic)?;
        let precompute = precomputed.and_then(|precomputed| precomputed.precompute.as_ref());
        let precompute = precompute.map(|part| self.part(part, &part.inputs, self.arithmetic)).transpose()?;
        let timestep_rows = match precomputed.and_then(|precomputed| precomputed.timestep_rows.as_ref()) {
            // In float32, whatever is asked for: in bfloat16 the timestep itself would be rounded.
            Some(timestep_rows) => Some((
                self.part(&timestep_rows.graph, &timestep_rows.graph.inputs, Arithmetic::F32)?,
                timestep_rows.rows.clone(),
            )),
            None => None,
        };
        let precomputed = precomputed.map(|_| Precomputed::new(precompute, timestep_rows));
        let session = GraphSession::new(graph.inputs.clone(), graph.profiles.clone(), main, precomputed);
        Ok(session.with_device_weights(Some(Arc::clone(&self.device_weights))).with_memory_check(
            &engine,
            &graph.name,
            true,
        ))
    }

    /// Opens a stored graph, without its precomputed graphs.
    fn part(&mut self, graph: &Graph, inputs: &[Port], arithmetic: Arithmetic) -> Result<OvGraph, OvError> {
        let engine = Arc::clone(&self.engine);
        let form = form(&engine, graph)?;
        if !self.compiled.contains_key(&graph.name) {
            let failed = |source| OvError::Graph { graph: graph.name.clone(), source };
            let bytes = engine.blob(&form.file)?;
            let bytes = match self.vectors.is_empty() {
                true => Cow::Borrowed(&bytes[..]),
                false => Cow::Owned(embed(&bytes, &self.vectors).map_err(|what| {
                    let graph = graph.name.clone();
                    OvError::Interface { graph, what }
                })?),
            };
            let constants = form.constants.iter().map(|name| Ok((&name[..], constant(&engine, graph, name)?)));
            let constants = constants.collect::<Result<Vec<_>, OvError>>()?;
            let model = Model::over_constants(&self.core, &bytes, &constants).map_err(failed)?;
            let compiled = self.core.compile(&model, &arithmetic.options(self.threads)).map_err(failed)?;
            let names = inputs.iter().map(|port| &port.name).chain(&form.weights).map(String::as_str);
            self.compiled.insert(graph.name.clone(), compiled.with_input_names(names));
        }
        let compiled = &self.compiled[&graph.name];
        let (name, outputs) = (graph.name.clone(), graph.outputs.clone());
        let interface = Interface { name, inputs: inputs.to_vec(), outputs };
        OvGraph::new(interface, &form.weights, (compiled, &self.device_weights), self.limits)
    }
}

/// A graph's form for OpenVINO.
fn form<'a>(engine: &Engine, graph: &'a Graph) -> Result<&'a OpenVinoGraph, OvError> {
    graph.files.openvino.as_ref().ok_or_else(|| {
        let (component, graph) = (engine.manifest().component.clone(), graph.name.clone());
        OvError::NoForm { component, graph }
    })
}

/// A weight of the engine that is a constant of a graph.
fn constant(engine: &Engine, graph: &Graph, name: &str) -> Result<Borrowed, OvError> {
    let view = engine.weight(name)?;
    let data = aligned(view.dtype, view.data);
    opened_graph::borrowed(view.dtype, view.shape, data)
        .map_err(|source| OvError::Graph { graph: graph.name.clone(), source })
}
