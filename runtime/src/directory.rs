//! An engine directory: `pipeline.json`, the tokenizer, and one engine per component, opened when it is needed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backends::{BackendError, Fused, OpenEngine, OpenReport, held_weights, needs};
use crate::components::{
    ComponentError, Components, KeptTexts, Needs, StepGraph, TRANSFORMER, TRANSFORMER_2, is_transformer,
};
use crate::engine::footprint::Shapes;
use crate::engine::manifest::BRANCH_SUFFIX;
use crate::engine::session::Session;
use crate::engine::{Engine, EngineError};
use crate::error::{Classified, ErrorClass};
use crate::io::ahead::ReadAhead;
use crate::io::map::read_member;
use crate::lora::adapter::{Adapter, by_expert, of_second, parts_for};
use crate::lora::branch;
use crate::lora::fuse::{CancelCheck, FuseError, FuseReport};
use crate::options::{OpenOptions, OrtWeights, WeightMode};
use crate::pipeline::config::{ComponentFiles, ConfigError, PipelineConfig, resolve};
use crate::pipeline::tokenizer::MAX_FILE;

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

/// Adapters that are fused into a transformer, each with its strength.
pub type FusedAdapters = Arc<Vec<(Adapter, f32)>>;

/// The engines of a pipeline.
///
/// Opening reads `pipeline.json` only; an engine is mapped, and its sessions made, when first used.
pub struct EngineDirectory {
    folder: PathBuf,
    config: PipelineConfig,
    options: OpenOptions,
    adapters: [FusedAdapters; 2],
    /// What is fused for the negative prompt, where that is something else.
    negative: Option<[FusedAdapters; 2]>,
    /// What fusing them did.
    fused: FuseReport,
    engines: HashMap<String, Arc<Engine>>,
    open: HashMap<String, OpenComponent>,
    /// Transformers with weights of their own for the negative prompt.
    negative_open: HashMap<String, OpenComponent>,
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
    /// Reads `folder/pipeline.json`. `options.adapters` is ignored: see [`Self::set_adapters`].
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
            adapters: Default::default(),
            negative: None,
            fused: FuseReport::default(),
            engines: HashMap::new(),
            open: HashMap::new(),
            negative_open: HashMap::new(),
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

    /// What is fused into the transformer and, of a model with two, into the second, each with its strength.
    pub fn adapters(&self) -> &[FusedAdapters; 2] {
        &self.adapters
    }

    /// Sets what is fused into the transformer, each with its strength, and fuses it now; none is the base model.
    ///
    /// Sessions of the transformer that are open are replaced by sessions over the new weights or, where there are device weights or in
    /// plans, take those with their next run. On ONNX Runtime the fused weights of both are in memory while that goes on.
    ///
    /// Prompt and negative prompt see the same weights from now on.
    ///
    /// In a model with two transformers, layers called `transformer_2.<slot>` are fused into the second. It is fused once to find out
    /// whether it can be, let go, and fused again when it is next opened, so that fused weights of the two are not in memory together.
    ///
    /// # Errors
    /// [`DirectoryError::Backend`] if an adapter does not fit, memory does not suffice, or `cancelled`, which is asked now and then on any
    /// thread, says so. Adapters and sessions are then the earlier ones, as they were, but for what the error names.
    pub fn set_adapters(
        &mut self,
        adapters: Vec<(Adapter, f32)>,
        cancelled: CancelCheck<'_>,
    ) -> Result<&OpenReport, DirectoryError> {
        let [first, second] = if self.has(TRANSFORMER_2) { by_expert(adapters) } else { [adapters, Vec::new()] };
        self.set_parts([Arc::new(first), Arc::new(second)], cancelled)
    }

    /// [`Self::set_adapters`] with those for the first and those for the second transformer, each under its own slots' names.
    ///
    /// # Errors
    /// As there.
    pub fn set_parts(
        &mut self,
        adapters: [FusedAdapters; 2],
        cancelled: CancelCheck<'_>,
    ) -> Result<&OpenReport, DirectoryError> {
        let tried = self.try_second(&adapters[1], cancelled)?;
        let own = &adapters[0];
        if let Some(component) = self.open.get_mut(TRANSFORMER) {
            component.backend.set_adapters(own, component.sessions.iter_mut(), cancelled)?;
            component.negative_sessions.clear();
        } else {
            // Not kept if it fails: the earlier adapters are fused when the component is opened the next time.
            let mut backend = self.backend(TRANSFORMER, &[])?;
            backend.set_adapters(own, std::iter::empty(), cancelled)?;
            self.open.insert(TRANSFORMER.to_owned(), OpenComponent::new(backend));
        }
        self.open.remove(TRANSFORMER_2);
        self.adapters = adapters;
        self.forget_negative();
        match self.open.get(TRANSFORMER) {
            Some(component) => {
                let report = component.backend.report();
                self.fused = report.fused.clone();
                self.fused.slots.extend(tried.slots);
                Ok(report)
            }
            None => unreachable!("opened above"),
        }
    }

    /// What is fused for the negative prompt, where that is something else than [`Self::adapters`].
    pub fn negative_adapters(&self) -> Option<&[FusedAdapters; 2]> {
        self.negative.as_ref()
    }

    /// Gives the negative prompt transformers of its own, into which these adapters are fused, each with its strength. They take as much
    /// memory again as the others. They are fused once now to find out whether they can be; the first transformer's are kept.
    ///
    /// # Errors
    /// As [`Self::set_adapters`]; what the negative prompt saw before, it then sees still.
    pub fn set_negative_adapters(
        &mut self,
        adapters: Vec<(Adapter, f32)>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), DirectoryError> {
        let [first, second] = if self.has(TRANSFORMER_2) { by_expert(adapters) } else { [adapters, Vec::new()] };
        self.set_negative_parts(Some([Arc::new(first), Arc::new(second)]), cancelled)
    }

    /// [`Self::set_negative_adapters`] with those for the first and those for the second transformer; `None` gives the negative prompt the
    /// weights of the prompt again.
    ///
    /// # Errors
    /// As there.
    pub fn set_negative_parts(
        &mut self,
        adapters: Option<[FusedAdapters; 2]>,
        cancelled: CancelCheck<'_>,
    ) -> Result<(), DirectoryError> {
        let Some(adapters) = adapters else {
            self.forget_negative();
            return Ok(());
        };
        self.try_second(&adapters[1], cancelled)?;
        let mut backend = self.backend(TRANSFORMER, &[])?;
        backend.set_adapters(&adapters[0], std::iter::empty(), cancelled)?;
        self.forget_negative();
        self.negative_open.insert(TRANSFORMER.to_owned(), OpenComponent::new(backend));
        self.negative = Some(adapters);
        Ok(())
    }

    /// What fusing for the negative prompt did in the first transformer, if it has weights of its own that are in memory.
    pub fn negative_fused(&self) -> Option<&FuseReport> {
        Some(&self.negative_open.get(TRANSFORMER)?.backend.report().fused)
    }

    fn forget_negative(&mut self) {
        self.negative = None;
        self.negative_open.clear();
    }

    /// What the last [`Self::set_adapters`] did, in both transformers of a model with two.
    pub fn fused(&self) -> &FuseReport {
        &self.fused
    }

    /// Fuses what is for the second transformer, and keeps nothing of it.
    fn try_second(
        &mut self,
        adapters: &[(Adapter, f32)],
        cancelled: CancelCheck<'_>,
    ) -> Result<FuseReport, DirectoryError> {
        if adapters.is_empty() {
            return Ok(FuseReport::default());
        }
        let mut backend = self.backend(TRANSFORMER_2, &[])?;
        backend.set_adapters(adapters, std::iter::empty(), cancelled)?;
        let mut report = backend.report().fused.clone();
        for slot in &mut report.slots {
            slot.slot = of_second(&slot.slot);
        }
        Ok(report)
    }

    /// What is fused into a component, or for the negative prompt into its own.
    fn adapters_of(&self, component: &str, negative: bool) -> FusedAdapters {
        let adapters = self.negative.as_ref().filter(|_| negative).unwrap_or(&self.adapters);
        match component {
            TRANSFORMER => Arc::clone(&adapters[0]),
            TRANSFORMER_2 => Arc::clone(&adapters[1]),
            _ => Arc::default(),
        }
    }

    /// The transformer's step with low-rank branches, and the inputs that stand for these adapters, each with its
    /// strength. No session is rebuilt for other adapters or strengths; what is fused counts besides.
    ///
    /// # Errors
    /// [`DirectoryError::Branch`] if the step was compiled without branches, or an adapter does not fit.
    pub fn branch_step(&mut self, adapters: &[(&Adapter, f32)]) -> Result<StepGraph, DirectoryError> {
        let graph = format!("{}{BRANCH_SUFFIX}", StepGraph::default().graph);
        if !self.has(TRANSFORMER_2) {
            let engine = self.engine(TRANSFORMER)?;
            let inputs = branch::inputs(&engine, engine.graph(&graph)?, adapters)?;
            return Ok(StepGraph { graph, inputs, ..StepGraph::default() });
        }
        let mut inputs_of = |component| {
            let (engine, parts) = (self.engine(component)?, parts_for(adapters, component));
            let parts: Vec<(&Adapter, f32)> = parts.iter().map(|(adapter, strength)| (adapter, *strength)).collect();
            Ok::<_, DirectoryError>(branch::inputs(&engine, engine.graph(&graph)?, &parts)?)
        };
        let (inputs, second) = (inputs_of(TRANSFORMER)?, inputs_of(TRANSFORMER_2)?);
        Ok(StepGraph { graph, inputs, second, negative: None })
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
        Some(self.open.get(component)?.backend.report())
    }

    fn backend(&mut self, component: &str, adapters: &[(Adapter, f32)]) -> Result<OpenEngine, DirectoryError> {
        let engine = self.engine(component)?;
        Ok(OpenEngine::open(engine, &OpenOptions { adapters: adapters.to_vec(), ..self.options.clone() })?)
    }

    fn graph_needs(
        &mut self,
        component: &str,
        graph: &str,
        shapes: &Shapes,
        (runs, adapters, stored_weights): (usize, bool, bool),
    ) -> Result<Option<Needs>, DirectoryError> {
        let engine = self.engine(component)?;
        let parts = self.adapters_of(component, false);
        let fused = if adapters && is_transformer(component) && !graph.ends_with(BRANCH_SUFFIX) {
            Fused::All
        } else {
            Fused::These(&parts)
        };
        let options = OpenOptions {
            weights: if stored_weights { OrtWeights::Stored } else { self.options.weights },
            ..OpenOptions { adapters: Vec::new(), ..self.options.clone() }
        };
        Ok(needs(&engine, graph, &options, fused, (shapes, runs))?)
    }

    fn open_session(
        &mut self,
        component: &str,
        graph: &str,
        negative: bool,
    ) -> Result<&mut dyn Session, DirectoryError> {
        let own_weights = negative && self.negative.is_some();
        let opened = if own_weights { &self.negative_open } else { &self.open };
        if !opened.contains_key(component) {
            let backend = self.backend(component, &self.adapters_of(component, own_weights))?;
            let opened = if own_weights { &mut self.negative_open } else { &mut self.open };
            opened.insert(component.to_owned(), OpenComponent::new(backend));
        }
        let opened = if own_weights { &mut self.negative_open } else { &mut self.open };
        match opened.get_mut(component) {
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
        let of = |(component, open): (&String, &OpenComponent)| {
            let arenas: u64 =
                open.sessions.keys().filter_map(|graph| self.expected.get(&(component.clone(), graph.clone()))).sum();
            open.backend.report().private_bytes.saturating_add(arenas)
        };
        self.open.iter().chain(&self.negative_open).map(of).fold(0, u64::saturating_add)
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
        self.open.remove(component);
        self.negative_open.remove(component);
        self.ahead = None;
    }
}
