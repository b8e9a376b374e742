//! From an engine to sessions: how weights are held, what is fused into them, and how ONNX Runtime is set up.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use ort::environment::Environment;
use ort::session::builder::SessionBuilder;

use super::bounded::within;
use super::builder::configured;
use super::opened_graph::OrtGraph;
use super::options::{Arithmetic, DeviceWeightChoice, Provider};
use super::promote::{Promoted, promote};
use super::provider;
use super::scratch::Scratch;
use super::session::OrtSession;
use super::shared::{SharedWeights, WeightSet};
use super::weight_decision::{WeightDecision, check_memory, weight_mode};
use super::weighted::WeightedBuilder;
use super::{NAME, OrtError};
use crate::backends::backend::OpenReport;
use crate::backends::device_weights::{Cuda, Device, DeviceWeights, Host, State};
use crate::backends::interface::Interface;
use crate::backends::precomputed::Precomputed;
use crate::backends::weights::graph_weights;
use crate::engine::Engine;
use crate::engine::manifest::{Graph, TypedGraph};
use crate::engine::session::Port;
use crate::io::library;
use crate::io::raw;
use crate::lora::fuse::{self, CancelCheck, FuseOptions, FuseReport, FuseTarget, FusedCache, FusedKey, Pool};
use crate::lora::{Weighted, borrowed};
use crate::memory::available_memory;
use crate::options::{OpenOptions, RunLimits, WeightMode};
use crate::tensor::Dtype;
use crate::wording::PROVIDER_CUDA;

/// Fused weights that were replaced.
#[derive(Clone, Debug)]
pub struct FusedState {
    weights: Replaced,
    report: FuseReport,
    private_bytes: u64,
}

#[derive(Clone, Debug)]
enum Replaced {
    Buffers(Arc<WeightSet>),
    DeviceWeights(Arc<State>),
}

/// An engine whose graphs can be opened on ONNX Runtime. Graphs share f32 and fused weights.
pub struct OrtEngine {
    engine: Arc<Engine>,
    environment: Environment,
    threads: Option<usize>,
    profile: bool,
    arithmetic: Arithmetic,
    report: OpenReport,
    /// Weights that are not the pristine ones, in the type that the graphs take.
    overrides: HashMap<String, Bytes>,
    /// Weights that adapters are fused into; they come before the overrides.
    fused: Arc<WeightSet>,
    /// What other engines hold, too.
    shared: Option<SharedWeights>,
    /// Their memory, used again by the next adapters.
    pool: Pool,
    memory: Option<u64>,
    fused_cache: Option<FusedCache>,
    limits: Option<RunLimits>,
    any_backend: bool,
    /// Pristine weights in private f32 buffers.
    f32_copies: HashMap<String, Bytes>,
    provider: Provider,
    device_weights: Option<Arc<DeviceWeights>>,
}

impl OrtEngine {
    /// Decides how to hold the weights. f32 copies are made when a graph wants them.
    ///
    /// # Errors
    /// [`OrtError`]: no library, or too little memory (before anything is allocated).
    pub fn open(engine: Arc<Engine>, options: &OpenOptions) -> Result<Self, OrtError> {
        let environment = library::onnxruntime(options.ort.library.as_deref())?;
        let device: Option<Arc<dyn Device>> = match options.ort.provider {
            Provider::Cuda { device } => Some(Arc::new(Cuda::new(provider::open_gpu(device)?))),
            Provider::Cpu => match options.ort.device_weights {
                DeviceWeightChoice::None => None,
                chosen => Some(Arc::new(Host::new(options.memory, chosen == DeviceWeightChoice::All))),
            },
        };
        Self::open_in(environment, engine, options, device)
    }

    /// Opens an engine with the weights of its slots on this device.
    #[cfg(test)]
    pub(in crate::backends) fn open_on(
        engine: Arc<Engine>,
        options: &OpenOptions,
        device: Option<Arc<dyn Device>>,
    ) -> Result<Self, OrtError> {
        Self::open_in(library::onnxruntime(options.ort.library.as_deref())?, engine, options, device)
    }

    fn open_in(
        environment: Environment,
        engine: Arc<Engine>,
        options: &OpenOptions,
        device: Option<Arc<dyn Device>>,
    ) -> Result<Self, OrtError> {
        let available = available_memory().into_iter().chain(options.memory).min();
        let decision = WeightDecision::new(&engine, weight_mode(&engine, options)?, &[])?;
        check_memory(decision.mode, decision.private, available)?;
        let report = OpenReport {
            mode: decision.mode,
            reason: decision.reason,
            private_bytes: decision.private,
            fused: FuseReport::default(),
        };
        let mut this = Self {
            engine,
            environment,
            threads: options.threads,
            profile: options.ort.profile,
            arithmetic: options.ort.arithmetic,
            report,
            overrides: HashMap::new(),
            fused: Arc::default(),
            shared: options.ort.shared.clone(),
            pool: options
                .memory
                .map_or_else(Pool::default, |limit| Pool::with_limit(usize::try_from(limit).unwrap_or(usize::MAX))),
            memory: options.memory,
            fused_cache: options.fused_cache.clone(),
            limits: options.limits,
            any_backend: options.ort.any_backend || options.backend.name() == Some(NAME),
            f32_copies: HashMap::new(),
            provider: options.ort.provider,
            device_weights: None,
        };
        if let Some(device) = device {
            this.device_weights = Some(this.bring(device)?);
        }
        // The set of the base is shared, too.
        this.fuse(&[], None)?;
        Ok(this)
    }

    /// Brings the slots' weights to a device, all if it needs them.
    fn bring(&mut self, device: Arc<dyn Device>) -> Result<Arc<DeviceWeights>, OrtError> {
        let engine = Arc::clone(&self.engine);
        let weight = |name: &str| {
            let view = engine.weight(name)?;
            let dtype = self.graph_dtype(view.dtype);
            Ok((dtype, pristine(view.dtype, dtype, view.data)))
        };
        let graphs = engine.manifest().graphs.iter();
        let lists: Vec<&Vec<String>> = match self.arithmetic {
            Arithmetic::Plan => graphs.filter_map(|graph| Some(&graph.files.typed.as_ref()?.weights)).collect(),
            Arithmetic::Fp32 => graphs.flat_map(Graph::parts).map(|part| &part.weights).collect(),
        };
        let all: Vec<&str> = lists.into_iter().flatten().map(String::as_str).collect();
        Ok(Arc::new(DeviceWeights::new(&engine, device, &all, weight)?))
    }

    /// True if open sessions take other adapters without being opened again.
    pub fn has_device_weights(&self) -> bool {
        self.device_weights.is_some()
    }

    /// Replaces the adapters that are fused, none being the base, and gives what to pass to [`Self::restore`].
    ///
    /// The weights are held as before. Sessions that are open keep what they have or, where there are device weights, take the new ones
    /// with their next run. `cancelled` is asked now and then, on any
    /// thread. Private memory: the fused weights and, once sessions are opened again, ONNX Runtime's packed copies, once
    /// more until the earlier sessions are gone.
    ///
    /// # Errors
    /// [`OrtError`]: too little memory (before anything is allocated), an adapter that does not fit, or cancelled; the
    /// earlier adapters then stay.
    pub fn set_adapters(&mut self, adapters: &[Weighted], cancelled: CancelCheck<'_>) -> Result<FusedState, OrtError> {
        let mode = self.report.mode;
        let decision = WeightDecision::new(&self.engine, (mode, self.report.reason.clone()), adapters)?;
        if self.device_weights.is_none() {
            let (needed, held) = self.growth(adapters)?;
            let laid_out = fuse::packed_bytes(&self.engine, adapters.iter().map(|(adapter, _)| &**adapter));
            let needed = needed.saturating_add(laid_out);
            let free = self.pool.free() as u64;
            check_memory(mode, needed.saturating_sub(free), available_memory())?;
            check_memory(mode, needed.saturating_add(held), self.memory)?;
        }
        let before = self.fuse(adapters, cancelled)?;
        self.report.private_bytes = decision.private.saturating_sub(self.spared(adapters));
        self.f32_copies.retain(|name, _| !self.fused.weights.contains_key(name));
        Ok(before)
    }

    /// Bytes that swapping takes until the earlier sessions are gone, and those that are held before it, free ones not
    /// counted.
    fn growth(&self, adapters: &[Weighted]) -> Result<(u64, u64), OrtError> {
        let touched = fuse::touched_tensors(&self.engine, adapters.iter().map(|(adapter, _)| &**adapter));
        let (mut needed, mut packed) = (0u64, 0u64);
        for (name, weight) in graph_weights(&self.engine)? {
            if self.report.mode == WeightMode::Stored {
                needed += if touched.contains(name) { weight.stored } else { 0 };
                continue;
            }
            let there = weight.stored_wide || self.f32_copies.contains_key(name);
            needed += if touched.contains(name) || !there { weight.f32_bytes } else { 0 };
            packed += if weight.matrix { weight.f32_bytes } else { 0 };
        }
        let copied: u64 = self.f32_copies.values().map(|weight| weight.len() as u64).sum();
        let used = (self.pool.held() - self.pool.free()) as u64;
        Ok((needed + packed, copied + used + packed))
    }

    /// Brings the adapters back that [`Self::set_adapters`] replaced. Costs nothing.
    pub fn restore(&mut self, before: FusedState) {
        match (before.weights, &self.device_weights) {
            (Replaced::DeviceWeights(state), Some(device_weights)) => device_weights.restore(&state),
            (Replaced::Buffers(weights), _) => self.fused = weights,
            (Replaced::DeviceWeights(_), None) => {}
        }
        self.report.fused = before.report;
        self.report.private_bytes = before.private_bytes;
    }

    fn fuse(&mut self, adapters: &[Weighted], cancelled: CancelCheck<'_>) -> Result<FusedState, OrtError> {
        let target = match self.report.mode {
            WeightMode::F32 => FuseTarget::F32,
            WeightMode::Stored | WeightMode::Plan => FuseTarget::Storage,
        };
        let adapters = borrowed(adapters);
        if let Some(device_weights) = &self.device_weights {
            let (before, report) = device_weights.set_adapters(&self.engine, &adapters, cancelled)?;
            return Ok(FusedState {
                weights: Replaced::DeviceWeights(before),
                report: std::mem::replace(&mut self.report.fused, report),
                private_bytes: self.report.private_bytes,
            });
        }
        let options = FuseOptions { pool: Some(&self.pool), cancelled, ..FuseOptions::new(target) };
        let fuse = || match &self.fused_cache {
            Some(cache) => fuse::fuse_kept(&self.engine, &adapters, &options, cache),
            None => fuse::fuse_with(&self.engine, &adapters, &options),
        };
        let fused = match &self.shared {
            Some(shared) => shared.set(FusedKey::of(&self.engine, &adapters, target)?, fuse)?,
            None => Arc::new(WeightSet::from(fuse()?)),
        };
        let report = fused.report.clone();
        Ok(FusedState {
            weights: Replaced::Buffers(std::mem::replace(&mut self.fused, fused)),
            report: std::mem::replace(&mut self.report.fused, report),
            private_bytes: self.report.private_bytes,
        })
    }

    /// Bytes that these adapters do not take because their weights lie in a map, kept from an earlier fuse.
    fn spared(&self, adapters: &[Weighted]) -> u64 {
        if self.report.fused.kept != Some(true) {
            return 0;
        }
        let laid_out = fuse::packed_bytes(&self.engine, adapters.iter().map(|(adapter, _)| &**adapter));
        self.fused.weights.values().map(|weight| weight.len() as u64).fold(laid_out, u64::saturating_add)
    }

    /// What was decided, and why.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Replaces weights by buffers in the type that the graphs take: f32 or the storage type.
    /// Sessions that are open keep what they have.
    ///
    /// # Errors
    /// [`OrtError::Override`] if a length does not fit, [`OrtError::Engine`] if there is no such weight; nothing is
    /// then replaced.
    pub fn set_overrides(&mut self, overrides: IndexMap<String, Bytes>) -> Result<(), OrtError> {
        for (name, data) in &overrides {
            let view = self.engine.weight(name)?;
            let expected = raw::byte_len(self.graph_dtype(view.dtype), view.shape).unwrap_or(usize::MAX);
            if data.len() != expected {
                return Err(OrtError::Override { name: name.clone(), expected, found: data.len() });
            }
        }
        self.overrides.extend(overrides);
        Ok(())
    }

    /// Opens a graph, and the precomputed graphs that come before it. Nothing is computed yet; what they compute later stays with the
    /// session, and so belongs to the weights that it was opened with.
    ///
    /// # Errors
    /// [`OrtError`] if there is no such graph or ONNX Runtime refuses it.
    pub fn session(&mut self, graph: &str) -> Result<OrtSession, OrtError> {
        let session = self.unchecked_session(graph)?;
        if self.provider != Provider::Cpu {
            return Ok(session);
        }
        Ok(session.with_memory_check(&self.engine, graph, self.report.mode == WeightMode::Stored))
    }

    /// As [`Self::session`], of which runs are not held against the memory that there is.
    fn unchecked_session(&mut self, graph: &str) -> Result<OrtSession, OrtError> {
        let engine = Arc::clone(&self.engine);
        let graph = engine.graph(graph)?;
        let (inputs, profiles) = (graph.inputs.clone(), graph.profiles.clone());
        if self.arithmetic == Arithmetic::Plan {
            let typed = typed(graph, self.provider)?;
            let main = self.opened(&engine, graph, &typed.file, &typed.weights, inputs.clone())?;
            return Ok(OrtSession::new(inputs, profiles, main, None).with_device_weights(self.device_weights.clone()));
        }
        let main = self.part(&engine, graph)?;
        let Some(precomputed) = &graph.precomputed else {
            return Ok(OrtSession::new(inputs, profiles, main, None).with_device_weights(self.device_weights.clone()));
        };
        let precompute = precomputed.precompute.as_ref().map(|part| self.part(&engine, part)).transpose()?;
        let timestep_rows = match &precomputed.timestep_rows {
            Some(timestep_rows) => Some((self.part(&engine, &timestep_rows.graph)?, timestep_rows.rows.clone())),
            None => None,
        };
        let precomputed = Precomputed::new(precompute, timestep_rows);
        Ok(OrtSession::new(inputs, profiles, main, Some(precomputed)).with_device_weights(self.device_weights.clone()))
    }

    /// Opens a stored graph, without its precomputed graphs.
    fn part(&mut self, engine: &Engine, graph: &Graph) -> Result<OrtGraph, OrtError> {
        let file = match (self.report.mode, &graph.files.stored) {
            (WeightMode::Stored, Some(lazy)) => lazy,
            _ => &graph.files.f32,
        };
        let inputs = graph.precomputed.as_ref().map_or(&graph.inputs, |precomputed| &precomputed.inputs).clone();
        self.opened(engine, graph, file, &graph.weights, inputs)
    }

    /// Opens one of a graph's stored variants.
    fn opened(
        &mut self,
        engine: &Engine,
        graph: &Graph,
        file: &str,
        weights: &[String],
        inputs: Vec<Port>,
    ) -> Result<OrtGraph, OrtError> {
        if graph.backend != NAME && !self.any_backend {
            return Err(OrtError::WrongBackend { graph: graph.name.clone(), found: graph.backend.clone() });
        }
        let backend = |message: String| OrtError::refused(&graph.name, message);
        let builder = SessionBuilder::new(&self.environment).map_err(|e| backend(e.to_string()))?;
        // The first provider that has an operator gets it: the GPU's comes before the CPU's.
        let builder = provider::register(builder, self.provider, self.arithmetic == Arithmetic::Fp32)?;
        let builder = configured(builder, self.report.mode, self.threads).map_err(backend)?;
        let mut builder = within(self.limits, builder, &self.environment).map_err(backend)?;
        let profile = self.profile.then(|| Scratch::new(&[])).transpose()?;
        if let Some(folder) = &profile {
            builder = builder.with_profiling(folder.join("run")).map_err(|e| backend(e.to_string()))?;
        }
        // ONNX Runtime packs what it holds as initializers, and only where `configured` lets it.
        let packed = self.fused.packed.clone().filter(|_| self.report.mode == WeightMode::F32);
        if let Some(packed) = &packed {
            builder = builder.with_prepacked_weights(packed).map_err(|e| backend(e.to_string()))?;
        }
        let mut builder = WeightedBuilder::new(&graph.name, builder)?;
        let (mut promoted, mut names) = (Vec::new(), Vec::new());
        for name in weights {
            let view = engine.weight(name)?;
            let dtype = self.graph_dtype(view.dtype);
            if self.device_weights.as_ref().is_some_and(|device_weights| device_weights.held(name).is_some()) {
                promoted.push(Promoted { name, dtype, shape: view.shape });
                names.push(name.clone());
                continue;
            }
            let data = self.weight_data(name, view.dtype, dtype, view.data);
            builder = builder.add(name, dtype, view.shape, data)?;
        }
        let bytes = engine.blob(file)?;
        let interface = Interface { name: graph.name.clone(), inputs, outputs: graph.outputs.clone() };
        if let Some(device_weights) = self.device_weights.as_ref().filter(|_| !names.is_empty()) {
            let bytes = promote(&bytes, &promoted).map_err(backend)?;
            let (session, held) = builder.commit(&bytes)?;
            let part = OrtGraph::over(interface, session, held, Arc::clone(device_weights), names)?;
            return Ok(part.with_profile(profile).with_limits(self.limits).with_packed(packed));
        }
        let (session, held) = builder.commit(&bytes)?;
        Ok(OrtGraph::new(interface, session, held)?.with_profile(profile).with_limits(self.limits).with_packed(packed))
    }

    /// The type in which graphs take a weight that is stored as `stored`.
    fn graph_dtype(&self, stored: Dtype) -> Dtype {
        match self.report.mode {
            WeightMode::F32 if stored.is_float() => Dtype::F32,
            _ => stored,
        }
    }

    /// The bytes for ONNX Runtime: an override, the map, or a private copy that is widened or aligned.
    fn weight_data(&mut self, name: &str, stored: Dtype, wanted: Dtype, pristine: Bytes) -> Bytes {
        let replaced = self.fused.weights.get(name).or_else(|| self.overrides.get(name));
        if let Some(data) = replaced.or_else(|| self.f32_copies.get(name)) {
            return data.clone();
        }
        if stored == wanted && pristine.as_ptr().addr().is_multiple_of(stored.size()) {
            return pristine;
        }
        let make = || self::pristine(stored, wanted, pristine);
        let data = match &self.shared {
            Some(shared) => shared.copy(self.engine.fingerprint(), name, wanted, make),
            None => make(),
        };
        self.f32_copies.insert(name.to_owned(), data.clone());
        data
    }
}

/// A weight in the type that graphs take: in place, or a copy that is widened or aligned.
fn pristine(stored: Dtype, wanted: Dtype, bytes: Bytes) -> Bytes {
    if stored == wanted {
        return raw::aligned(stored, bytes);
    }
    raw::widen(stored, &bytes).map_or_else(|| raw::aligned_copy(&bytes), raw::vec_into_bytes)
}

/// The typed variant of a graph, if the provider runs it.
fn typed(graph: &Graph, provider: Provider) -> Result<&TypedGraph, OrtError> {
    let refused = |reason| OrtError::Arithmetic { graph: graph.name.clone(), reason };
    match (&graph.files.typed, graph.precision.as_str()) {
        (None, _) => Err(refused(
            "was compiled without a precision plan; compile it with `v2l-compile --precision fp16`".to_owned(),
        )),
        (Some(_), "bf16" | "mixed") if provider == Provider::Cpu => Err(refused(format!(
            "has nodes in bfloat16, for which ONNX Runtime has no arithmetic on the CPU; compile it with \
             `v2l-compile --precision fp16`, or use `{PROVIDER_CUDA}`"
        ))),
        (Some(typed), _) => Ok(typed),
    }
}
