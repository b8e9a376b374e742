//! An engine directory: `pipeline.json`, the tokenizer, and one engine per component, opened when it is needed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backends::{BackendError, Fused, OpenEngine, OpenReport, held_weights, needs};
use crate::components::{
    ComponentError, Components, KeptTexts, Needs, NegativeStep, StepGraph, TRANSFORMER, TRANSFORMER_2, is_transformer,
};
use crate::engine::footprint::Shapes;
use crate::engine::manifest::BRANCH_SUFFIX;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::error::{Classified, ErrorClass};
use crate::io::ahead::ReadAhead;
use crate::io::map::read_member;
use crate::lora::adapter::of_second;
use crate::lora::fuse::{self, CancelCheck, FuseError, FuseReport, SlotReport};
use crate::lora::mode::with_branches;
use crate::lora::{AdapterSet, Branch, Variant, Weighted, borrowed, branch};
use crate::memory::memory_limit;
use crate::options::{OpenOptions, OrtWeights, WeightMode};
use crate::pipeline::config::{ComponentFiles, ConfigError, PipelineConfig, resolve};
use crate::pipeline::tokenizer::MAX_FILE;
use crate::tensor::NamedTensors;

/// What adapters change.
const TRANSFORMERS: [&str; 2] = [TRANSFORMER, TRANSFORMER_2];

/// Why an engine directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// `pipeline.json` is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An engine is missing or wrong.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A backend cannot open an engine, or an adapter does not fit it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An adapter does not fit the low-rank branches.
    #[error(transparent)]
    Branch(#[from] FuseError),
    /// The directory lacks a component.
    #[error("{}: there is no component `{component}`; it has: {available}", folder.display())]
    Missing {
        /// The directory.
        folder: PathBuf,
        /// The component asked for.
        component: String,
        /// What there is.
        available: String,
    },
    /// The directory is a bundle.
    #[error("{}: component `{component}` is not compiled; run `v2l-compile {} -o ENGINE_DIR` first", folder.display(), folder.display())]
    NotCompiled {
        /// The directory.
        folder: PathBuf,
        /// The component.
        component: String,
    },
}

impl Classified for DirectoryError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Config(error) => error.class(),
            Self::Engine(error) => error.class(),
            Self::Backend(error) => error.class(),
            Self::Branch(error) => error.class(),
            Self::Missing { .. } | Self::NotCompiled { .. } => ErrorClass::Usage,
        }
    }
}

/// The engines of a pipeline.
///
/// Opening reads `pipeline.json` only; an engine is mapped, and its sessions made, when first used.
pub struct EngineDirectory {
    folder: PathBuf,
    config: PipelineConfig,
    options: OpenOptions,
    /// What is fused.
    adapters: AdapterSet,
    /// What fusing did in each copy of the weights. Of one that was not opened since, it is a sample.
    reports: BTreeMap<Variant, FuseReport>,
    engines: HashMap<String, Arc<Engine>>,
    /// Components that are open, by name; and the copies of transformers for the negative prompt alone.
    open: HashMap<(String, Branch), OpenComponent>,
    /// Component and graph → bytes that its runs were last said to compute with.
    expected: HashMap<(String, String), u64>,
    texts: KeptTexts,
    /// The component that is needed next, while its file is read.
    ahead: Option<ReadAhead>,
}

struct OpenComponent {
    backend: OpenEngine,
    sessions: HashMap<String, Box<dyn Session>>,
    /// Sessions over the same weights for the negative prompt alone.
    negative_sessions: HashMap<String, Box<dyn Session>>,
}

impl OpenComponent {
    fn new(backend: OpenEngine) -> Self {
        Self { backend, sessions: HashMap::new(), negative_sessions: HashMap::new() }
    }

    fn session(&mut self, graph: &str, negative: bool) -> Result<&mut dyn Session, DirectoryError> {
        let sessions = if negative { &mut self.negative_sessions } else { &mut self.sessions };
        Ok(&mut **match sessions.entry(graph.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.backend.session(graph)?),
        })
    }
}

impl EngineDirectory {
    /// Reads `folder/pipeline.json`.
    ///
    /// # Errors
    /// [`DirectoryError::Config`].
    pub fn open(folder: impl Into<PathBuf>, options: OpenOptions) -> Result<Self, DirectoryError> {
        let folder = folder.into();
        let config = PipelineConfig::read(&folder)?;
        Ok(Self {
            folder,
            config,
            options,
            adapters: AdapterSet::default(),
            reports: BTreeMap::new(),
            engines: HashMap::new(),
            open: HashMap::new(),
            expected: HashMap::new(),
            texts: KeptTexts::default(),
            ahead: None,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its `pipeline.json`.
    pub fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// The bytes of its `tokenizer.json`, if it has one.
    ///
    /// # Errors
    /// [`DirectoryError::Config`] if the file cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Vec<u8>>, DirectoryError> {
        let Some(tokenizer) = &self.config.tokenizer else { return Ok(None) };
        let path = resolve(&self.folder, "tokenizer.file", &tokenizer.file)?;
        let bytes = read_member(&path, MAX_FILE).map_err(|source| ConfigError::Io { path, source })?;
        Ok(Some(bytes))
    }

    /// True if there is such a component.
    pub fn has(&self, component: &str) -> bool {
        self.config.components.contains_key(component)
    }

    /// The engine of a component, mapped on first use.
    ///
    /// # Errors
    /// [`DirectoryError`] if there is none, or it is not intact.
    pub fn engine(&mut self, component: &str) -> Result<Arc<Engine>, DirectoryError> {
        if let Some(engine) = self.engines.get(component) {
            return Ok(Arc::clone(engine));
        }
        let path = match self.config.components.get(component) {
            Some(ComponentFiles::Engine(files)) => resolve(&self.folder, component, &files.engine)?,
            Some(ComponentFiles::Graphs(_)) => {
                return Err(DirectoryError::NotCompiled {
                    folder: self.folder.clone(),
                    component: component.to_owned(),
                });
            }
            None => {
                let names: Vec<&str> = self.config.components.keys().map(String::as_str).collect();
                return Err(DirectoryError::Missing {
                    folder: self.folder.clone(),
                    component: component.to_owned(),
                    available: names.join(", "),
                });
            }
        };
        let engine = Arc::new(Engine::open(path)?);
        self.engines.insert(component.to_owned(), Arc::clone(&engine));
        Ok(engine)
    }

    /// What is fused into the transformers.
    pub fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    /// Sets what is fused into the transformers; none is the base model. Whole or not at all.
    ///
    /// All of it is looked at before anything changes: names, shapes, numbers, and the memory that fused weights take. It is then fused
    /// into the first transformer, for each copy of its weights. The second is fused once, when it is next opened, so that fused weights
    /// of the two are not in memory together; till then a few of its tensors say what rounding does to it.
    ///
    /// Sessions of the transformer that are open are replaced by sessions over the new weights or, where there are device weights or in
    /// plans, take those with their next run. On ONNX Runtime the fused weights of both are in memory while that goes on.
    ///
    /// # Errors
    /// [`DirectoryError`] if an adapter does not fit, memory does not suffice, or `cancelled`, which is asked now and then on any thread,
    /// says so. Adapters and sessions are then the earlier ones, as they were, but for what the error names.
    pub fn set_adapters(&mut self, set: &AdapterSet, cancelled: CancelCheck<'_>) -> Result<(), DirectoryError> {
        let mut reports = BTreeMap::new();
        for (variant, adapters) in set.variants().filter(|(variant, _)| variant.component != TRANSFORMER) {
            reports.insert(variant, self.look_at(variant.component, adapters)?);
        }
        // What the negative prompt had before is fused again if this fails and it is needed.
        self.open.retain(|(_, branch), _| *branch == Branch::All);
        let mut negative = None;
        if set.is_guided() {
            let (backend, report) = self.backend(TRANSFORMER, set.of(TRANSFORMER, Branch::Negative), cancelled)?;
            reports.insert(Variant { component: TRANSFORMER, branch: Branch::Negative }, report);
            negative = Some(OpenComponent::new(backend));
        }
        let own = set.of(TRANSFORMER, Branch::All);
        let key = (TRANSFORMER.to_owned(), Branch::All);
        let report = match self.open.get_mut(&key) {
            Some(component) => {
                component.backend.set_adapters(own, component.sessions.iter_mut(), cancelled)?;
                component.negative_sessions.clear();
                component.backend.report().fused.clone()
            }
            None => {
                // Not kept if it fails: the earlier adapters are fused when the component is opened the next time.
                let (backend, report) = self.backend(TRANSFORMER, own, cancelled)?;
                self.open.insert(key, OpenComponent::new(backend));
                report
            }
        };
        reports.insert(Variant { component: TRANSFORMER, branch: Branch::All }, report);
        self.open.remove(&(TRANSFORMER_2.to_owned(), Branch::All));
        if let Some(component) = negative {
            self.open.insert((TRANSFORMER.to_owned(), Branch::Negative), component);
        }
        (self.adapters, self.reports) = (set.clone(), reports);
        Ok(())
    }

    /// Refuses adapters that a component could not have fused, and says what rounding does to a few of its tensors.
    fn look_at(&mut self, component: &str, adapters: &[Weighted]) -> Result<FuseReport, DirectoryError> {
        let adapters_of = borrowed(adapters);
        if !self.has(component) {
            let layer = adapters_of.iter().find_map(|(adapter, _)| Some((adapter, adapter.layers.keys().next()?)));
            let Some((adapter, layer)) = layer else { return Ok(FuseReport::default()) };
            return Err(FuseError::UnknownSlot { adapter: adapter.name.clone(), slot: of_second(layer) }.into());
        }
        let engine = self.engine(component)?;
        fuse::check(&engine, &adapters_of)?;
        // An engine may have the step with low-rank branches alone.
        let step = StepGraph::default().graph;
        let names = [with_branches(&step), step];
        let graph = names.iter().rev().find(|name| engine.manifest().graph(name).is_some());
        let needs =
            graph.map(|graph| needs(&engine, graph, &self.options, Fused::These(adapters), (&Shapes::default(), 1)));
        if let Some(needs) = needs.transpose()?.flatten() {
            let most = memory_limit().into_iter().chain(self.options.memory).min();
            if let Some(most) = most.filter(|&most| needs.weights > most) {
                let source = io::Error::new(io::ErrorKind::OutOfMemory, format!("there are {most} bytes in all"));
                let needed = usize::try_from(needs.weights).unwrap_or(usize::MAX);
                return Err(FuseError::Memory { needed, source }.into());
            }
        }
        match held_weights(&engine, &self.options)?.0 {
            // Nothing is lost but the last bit.
            WeightMode::F32 => Ok(FuseReport::default()),
            WeightMode::Stored | WeightMode::Plan => Ok(fuse::sampled(&engine, &adapters_of)?),
        }
    }

    /// What fusing did to the weights that the prompt's prediction reads, in both transformers of a model with two.
    pub fn fused(&self) -> FuseReport {
        let of = |component| self.reports.get(&Variant { component, branch: Branch::All }).cloned().unwrap_or_default();
        let (mut report, second) = (of(TRANSFORMER), of(TRANSFORMER_2));
        report.slots.extend(second.slots.into_iter().map(|slot| SlotReport { slot: of_second(&slot.slot), ..slot }));
        report
    }

    /// What fusing did to the first transformer's weights for the negative prompt, if there are such.
    pub fn negative_fused(&self) -> Option<&FuseReport> {
        self.reports.get(&Variant { component: TRANSFORMER, branch: Branch::Negative })
    }

    /// The transformer's step with low-rank branches, and the inputs that stand for these adapters. No session is rebuilt for other
    /// adapters or strengths; what is fused counts besides.
    ///
    /// # Errors
    /// [`DirectoryError::Branch`] if the step was compiled without branches, or an adapter does not fit.
    pub fn branch_step(&mut self, set: &AdapterSet) -> Result<StepGraph, DirectoryError> {
        let graph = format!("{}{BRANCH_SUFFIX}", StepGraph::default().graph);
        let mut inputs_of = |component: &str, branch| {
            let adapters = set.of(component, branch);
            if !self.has(component) {
                return self.look_at(component, adapters).map(|_| NamedTensors::new());
            }
            let engine = self.engine(component)?;
            Ok::<_, DirectoryError>(branch::inputs(&engine, engine.graph(&graph)?, &borrowed(adapters))?)
        };
        let mut both =
            |branch| Ok::<_, DirectoryError>((inputs_of(TRANSFORMER, branch)?, inputs_of(TRANSFORMER_2, branch)?));
        let (inputs, second) = both(Branch::All)?;
        let mut negative = None;
        if set.is_guided() {
            let (inputs, second) = both(Branch::Negative)?;
            negative = Some(Box::new(NegativeStep { inputs, second, own_weights: false }));
        }
        Ok(StepGraph { graph, inputs, second, negative })
    }

    /// How a component's weights are or will be held, and why, in words.
    ///
    /// # Errors
    /// [`DirectoryError`] if there is no such component, or its engine is not intact.
    pub fn held_weights(&mut self, component: &str) -> Result<(WeightMode, String), DirectoryError> {
        let engine = self.engine(component)?;
        Ok(held_weights(&engine, &self.options)?)
    }

    /// How a component that is open holds its weights.
    pub fn report(&self, component: &str) -> Option<&OpenReport> {
        Some(self.open.get(&(component.to_owned(), Branch::All))?.backend.report())
    }

    /// Opens a component with these adapters fused, and says what that did.
    fn backend(
        &mut self,
        component: &str,
        adapters: &[Weighted],
        cancelled: CancelCheck<'_>,
    ) -> Result<(OpenEngine, FuseReport), DirectoryError> {
        let mut backend = OpenEngine::open(self.engine(component)?, &self.options)?;
        if !adapters.is_empty() {
            backend.set_adapters(adapters, std::iter::empty(), cancelled)?;
        }
        let report = backend.report().fused.clone();
        Ok((backend, report))
    }

    fn graph_needs(
        &mut self,
        component: &str,
        graph: &str,
        shapes: &Shapes,
        (runs, adapters, stored_weights): (usize, bool, bool),
    ) -> Result<Option<Needs>, DirectoryError> {
        let engine = self.engine(component)?;
        let parts = self.adapters.of(component, Branch::All);
        let fused = if adapters && is_transformer(component) && !graph.ends_with(BRANCH_SUFFIX) {
            Fused::All
        } else {
            Fused::These(parts)
        };
        let options = OpenOptions {
            weights: if stored_weights { OrtWeights::Stored } else { self.options.weights },
            ..self.options.clone()
        };
        Ok(needs(&engine, graph, &options, fused, (shapes, runs))?)
    }

    fn open_session(
        &mut self,
        component: &str,
        graph: &str,
        negative: bool,
    ) -> Result<&mut dyn Session, DirectoryError> {
        let own_weights = negative && self.adapters.is_guided();
        let branch = if own_weights { Branch::Negative } else { Branch::All };
        let key = (component.to_owned(), branch);
        if !self.open.contains_key(&key) {
            let adapters = self.adapters.of(component, branch).to_vec();
            let (backend, report) = self.backend(component, &adapters, None)?;
            if let Some(component) = TRANSFORMERS.iter().find(|name| **name == component) {
                self.reports.insert(Variant { component, branch }, report);
            }
            self.open.insert(key.clone(), OpenComponent::new(backend));
        }
        match self.open.get_mut(&key) {
            Some(open) => open.session(graph, negative && !own_weights),
            None => unreachable!("opened above"),
        }
    }

    fn named_session(
        &mut self,
        component: &str,
        graph: &str,
        negative: bool,
    ) -> Result<&mut dyn Session, ComponentError> {
        let known = self.has(component);
        let names = self.config.components.keys().cloned().collect::<Vec<_>>().join(", ");
        self.open_session(component, graph, negative).map_err(|e| {
            let (component, graph) = (component.to_owned(), graph.to_owned());
            if known {
                ComponentError::Open { component, graph, source: e.into() }
            } else {
                ComponentError::Missing { component, graph, available: names }
            }
        })
    }
}

impl Components for EngineDirectory {
    fn session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        self.named_session(component, graph, false)
    }

    fn negative_session(&mut self, component: &str, graph: &str) -> Result<&mut dyn Session, ComponentError> {
        self.named_session(component, graph, true)
    }

    fn needs(
        &mut self,
        component: &str,
        graph: &str,
        shapes: &Shapes,
        how: (usize, bool, bool),
    ) -> Result<Option<Needs>, ComponentError> {
        if !self.has(component) {
            return Ok(None);
        }
        let found = self.graph_needs(component, graph, shapes, how).map_err(|source| ComponentError::Open {
            component: component.to_owned(),
            graph: graph.to_owned(),
            source: source.into(),
        })?;
        let key = (component.to_owned(), graph.to_owned());
        self.expected.insert(key, found.as_ref().map_or(0, |needs| needs.run.activations));
        Ok(found)
    }

    fn held(&self) -> u64 {
        let of = |((component, _), open): (&(String, Branch), &OpenComponent)| {
            let arenas: u64 =
                open.sessions.keys().filter_map(|graph| self.expected.get(&(component.clone(), graph.clone()))).sum();
            open.backend.report().private_bytes.saturating_add(arenas)
        };
        self.open.iter().map(of).fold(0, u64::saturating_add)
    }

    fn announce(&mut self, component: &str) {
        // Who opens it says what is wrong with it.
        self.ahead = self.engine(component).ok().and_then(|engine| ReadAhead::start(engine.path()));
    }

    fn kept_texts(&mut self) -> Option<&mut KeptTexts> {
        // Every run is recorded that would take place without the others.
        self.options.record.is_none().then_some(&mut self.texts)
    }

    fn release(&mut self, component: &str) {
        self.open.retain(|(open, _), _| open != component);
        self.ahead = None;
    }
}
