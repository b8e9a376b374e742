//! TensorRT plans of strongly typed graphs.

mod probe;
mod refittable;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use indexmap::{IndexMap, IndexSet};
use v2l_graphs::passes::{lower_for_tensorrt, settle_extents};
use v2l_graphs::{Dim, Model, ValueInfo};
use v2l_runtime::atomic::write_file;
use v2l_runtime::engine::manifest::{Profile, RANK_SUFFIX, RESERVED_PREFIX, ShapeRange, Slot, TrtPlan};
use v2l_runtime::interrupt;
use v2l_runtime::map::read_file;
use v2l_trt::builder::{Built, Child, Range, Refit, Request};
use v2l_trt::library::Library;
use v2l_trt::{Capability, Flavour};

pub(super) use self::probe::probe;
use self::refittable::refittable;
use super::variants::encode_weightless;
use super::weights::StoredWeight;
use crate::check::profile_extents;
use crate::engine_writer::EngineBlob;
use crate::{ExportError, Progress};

/// How to compile for TensorRT.
#[derive(Clone, Debug)]
pub struct TensorRtOptions {
    /// Which.
    pub flavour: Flavour,
    /// The library or the folder of it; found as [`v2l_trt::search`] says if not given.
    pub library: Option<PathBuf>,
    /// GPUs to build for; none: that of this machine, which TensorRT-RTX can do without.
    pub capabilities: Vec<Capability>,
    /// Keep the values of all weights in the plan, none of which can be replaced then: to compare with.
    pub plain: bool,
    /// Where plans are built.
    pub builder: PlanBuilder,
    /// File of what TensorRT learns of how long kernels take, which it takes up if it is there, and adds to. TensorRT-RTX has none.
    pub timing_cache: Option<PathBuf>,
}

/// Where plans are built.
#[derive(Clone, Debug, Default)]
pub enum PlanBuilder {
    /// In this process. A plan's bytes may then differ from one build to the next, though not its size.
    #[default]
    InProcess,
    /// In a process of this program, which begins with [`v2l_trt::builder::serve_if_asked`]: equal input gives equal bytes.
    Program(PathBuf),
}

/// One plan of an [`EngineReport`](super::EngineReport).
#[derive(Clone, Debug)]
pub struct PlanReport {
    /// The graph.
    pub graph: String,
    /// The kind of GPU that it is for; `None`: the one of this machine.
    pub capability: Option<Capability>,
    /// Bytes of the plan.
    pub bytes: u64,
    /// Bytes of the graph's weights in their storage types.
    pub weight_bytes: u64,
    /// Of those, bytes of weights that can be set.
    pub refittable_bytes: u64,
    /// Slots whose weight cannot be set, so that no adapter changes them.
    pub fixed_slots: Vec<String>,
    /// True if, with placeholders, its bytes are the same when it is built again.
    pub reproducible: bool,
    /// What building took.
    pub time: Duration,
    /// TensorRT's warnings, and why there is no probe, if there is none.
    pub warnings: Vec<String>,
}

/// A loaded TensorRT and what to build with it.
pub(super) struct TensorRt<'a> {
    library: Library,
    /// Folder for files that are there while a plan is built.
    scratch: PathBuf,
    options: &'a TensorRtOptions,
}

/// A plan and what the engine says of it.
pub(super) struct BuiltPlan {
    pub(super) plan: TrtPlan,
    pub(super) blob: EngineBlob,
    pub(super) report: PlanReport,
}

impl<'a> TensorRt<'a> {
    /// `output` is what is compiled; its folder has room for the weights, or the engine would not fit there either.
    pub(super) fn open(options: &'a TensorRtOptions, output: &Path) -> Result<Self, ExportError> {
        let library = Library::open(options.flavour, options.library.as_deref())?;
        let folder = output.parent().filter(|folder| *folder != Path::new(""));
        Ok(Self { library, scratch: folder.unwrap_or(Path::new(".")).to_owned(), options })
    }

    /// The backend's name.
    pub(super) fn backend(&self) -> &'static str {
        self.options.flavour.backend()
    }

    /// Builds the plans of a strongly typed graph, its weights in their storage types, after the rewrites that TensorRT needs: one for
    /// each kind of GPU, since TensorRT-RTX puts placeholders into plans for one kind only.
    pub(super) fn build(
        &self,
        (component, graph, model): (&str, &str, &Model),
        profiles: &[Profile],
        slots: &[Slot],
        weights: &BTreeMap<String, StoredWeight>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<BuiltPlan>, ExportError> {
        let ranges = ranges(graph, model, profiles)?;
        let mut model = model.clone();
        lower_for_tensorrt(&mut model);
        let model = &model;
        let bytes = encode_weightless(graph, model)?;
        let external = model.graph.initializers.iter().filter(|(_, w)| w.external).map(|(name, _)| name);
        let data: Vec<(String, Bytes)> = external
            .map(|name| Ok((name.clone(), weights[name].data.to_bytes().map_err(ExportError::io(name))?)))
            .collect::<Result<_, ExportError>>()?;
        let data: Vec<(String, &[u8])> = data.iter().map(|(name, data)| (name.clone(), &data[..])).collect();
        let subject = Subject { graph, model, bytes: &bytes, ranges: &ranges, weights: &data, slots };
        let mut build = |capability| {
            progress(Progress::Building { name: component, graph, capability });
            self.build_for(capability, &subject, progress)
        };
        match &self.options.capabilities[..] {
            [] => Ok(vec![build(None)?]),
            capabilities => capabilities.iter().map(|capability| build(Some(*capability))).collect(),
        }
    }

    fn build_for(
        &self,
        capability: Option<Capability>,
        subject: &Subject<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<BuiltPlan, ExportError> {
        let slot_tensors = subject.slot_tensors();
        let refit = match self.options.flavour {
            _ if self.options.plain => Refit::None,
            Flavour::Rtx => Refit::Placeholders,
            Flavour::TensorRt => Refit::Marked(&slot_tensors),
        };
        let Subject { graph, model, bytes, ranges, weights, .. } = *subject;
        let learned = self.options.timing_cache.as_deref().map(read_timing_cache).transpose()?;
        let (capabilities, timing_cache) = (capability.as_slice(), learned.as_deref());
        let request = Request { model: bytes, weights, profiles: ranges, capabilities, refit, timing_cache };
        let begin = Instant::now();
        let failed = |source| ExportError::TensorRt { graph: graph.to_owned(), source };
        let built = match &self.options.builder {
            PlanBuilder::InProcess => self.library.build(&request, &mut |_| true),
            PlanBuilder::Program(program) => {
                self.library.build_in(Child { program, scratch: &self.scratch }, &request, &mut |step| {
                    progress(Progress::Phase { name: step.phase, done: step.done, of: step.of });
                    !interrupt::requested()
                })
            }
        };
        let Built { plan, reproducible, refittable: offered, warnings, timing_cache } = built.map_err(failed)?;
        if let (Some(path), Some(learned)) = (&self.options.timing_cache, timing_cache) {
            write_file(path, &learned).map_err(ExportError::io(path))?;
        }
        let time = begin.elapsed();
        let settable = match refit {
            Refit::None => Vec::new(),
            Refit::Placeholders => refittable(graph, model, &offered)?,
            Refit::Marked(names) => names.to_vec(),
        };
        let bytes_of = |wanted: &dyn Fn(&String) -> bool| -> u64 {
            weights.iter().filter(|(name, _)| wanted(name)).map(|(_, data)| data.len() as u64).sum()
        };
        let report = PlanReport {
            graph: graph.to_owned(),
            capability,
            bytes: plan.len() as u64,
            weight_bytes: bytes_of(&|_| true),
            refittable_bytes: bytes_of(&|name| settable.contains(name)),
            fixed_slots: subject.slots_outside(&settable),
            reproducible,
            time,
            warnings,
        };
        let gpu = capability.map_or_else(String::new, |capability| format!("-{capability}"));
        let file = format!("{RESERVED_PREFIX}plans/{graph}/{}{gpu}.plan", self.backend());
        let stored = TrtPlan {
            file: file.clone(),
            version: self.library.version().to_string(),
            compute_capability: capability.map(|capability| capability.to_string()),
            weights: settable,
            placeholders: refit == Refit::Placeholders,
        };
        let blob = EngineBlob { name: file, data: Bytes::from_owner(plan) };
        Ok(BuiltPlan { plan: stored, blob, report })
    }
}

/// The model with low-rank branches of this one rank each: TensorRT gets factors that are padded with zeros.
pub(super) fn of_one_rank(model: &Model, rank: usize) -> Model {
    let mut model = model.clone();
    let graph = &mut model.graph;
    for info in graph.inputs.iter_mut().chain(&mut graph.outputs).chain(&mut graph.value_info) {
        for dim in info.ty.iter_mut().filter_map(|ty| ty.shape.as_mut()).flatten() {
            if matches!(dim, Dim::Symbol(name) if name.ends_with(RANK_SUFFIX)) {
                *dim = Dim::Fixed(rank);
            }
        }
    }
    model
}

/// Largest timing cache that is read, in bytes.
const MAX_TIMING_CACHE: u64 = 1 << 30;

/// The bytes of a timing cache, none if there is no such file yet.
fn read_timing_cache(path: &Path) -> Result<Vec<u8>, ExportError> {
    match read_file(path, MAX_TIMING_CACHE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(ExportError::io(path)),
    }
}

/// What plans are built of.
struct Subject<'a> {
    graph: &'a str,
    model: &'a Model,
    /// The model without its weights.
    bytes: &'a [u8],
    ranges: &'a [Vec<Range>],
    weights: &'a [(String, &'a [u8])],
    slots: &'a [Slot],
}

impl Subject<'_> {
    fn reads(&self, tensor: &str) -> bool {
        self.weights.iter().any(|(name, _)| name == tensor)
    }

    /// The graph's weights that adapters may change.
    fn slot_tensors(&self) -> Vec<String> {
        let is_slot = |name: &String| self.slots.iter().any(|slot| slot.tensor == *name);
        self.weights.iter().map(|(name, _)| name).filter(|name| is_slot(name)).cloned().collect()
    }

    /// Slots of the graph whose weight is not among `settable`.
    fn slots_outside(&self, settable: &[String]) -> Vec<String> {
        let outside = |slot: &&Slot| self.reads(&slot.tensor) && !settable.contains(&slot.tensor);
        self.slots.iter().filter(outside).map(|slot| slot.name.clone()).collect()
    }
}

/// The extents of an input.
fn shape(input: &ValueInfo) -> &[Dim] {
    input.ty.as_ref().and_then(|ty| ty.shape.as_deref()).unwrap_or_default()
}

/// Each profile's ranges of the inputs with a free extent: those that it names, and those that follow from them.
fn ranges(graph: &str, model: &Model, profiles: &[Profile]) -> Result<Vec<Vec<Range>>, ExportError> {
    let is_free = |input: &&ValueInfo| shape(input).iter().any(|dim| !matches!(dim, Dim::Fixed(_)));
    let free: Vec<&ValueInfo> = model.graph.inputs.iter().filter(is_free).collect();
    if free.is_empty() {
        return Ok(Vec::new());
    }
    let none = [Profile::new()];
    let profiles = if profiles.is_empty() { &none[..] } else { profiles };
    profiles.iter().map(|profile| completed(graph, model, &free, profile)).collect()
}

/// Ranges of the inputs `free`: the profile's, and what the graph says of others for its smallest, preferred and largest shapes.
fn completed(graph: &str, model: &Model, free: &[&ValueInfo], profile: &Profile) -> Result<Vec<Range>, ExportError> {
    let whole = free.iter().all(|input| profile.contains_key(&input.name));
    let levels: [fn(&ShapeRange) -> &Vec<usize>; 3] = [|range| &range.min, |range| &range.opt, |range| &range.max];
    let mut found: [IndexMap<String, usize>; 3] = Default::default();
    for (level, extents) in levels.into_iter().zip(&mut found).filter(|_| !whole) {
        let given = profile_extents(&model.graph, profile, level, IndexMap::new());
        let missing = RefCell::new(IndexSet::new());
        *extents = settle_extents(model, &given, &|input, _, _| {
            missing.borrow_mut().insert(input.to_owned());
            1
        });
        let missing = missing.into_inner();
        if !missing.is_empty() {
            let missing = free.iter().filter(|input| missing.contains(&input.name)).map(|input| {
                let extents: Vec<String> = shape(input).iter().map(Dim::to_string).collect();
                format!("{}:{}", input.name, extents.join("x"))
            });
            let inputs = missing.collect::<Vec<_>>().join(", ");
            return Err(ExportError::FreeExtents { graph: graph.to_owned(), inputs });
        }
    }
    let range = |input: &&ValueInfo| {
        let extents = |level: usize| -> Vec<i64> {
            let extent = |(axis, dim): (usize, &Dim)| match dim {
                Dim::Fixed(n) => *n,
                Dim::Symbol(name) if !name.is_empty() => found[level][name],
                _ => found[level][&format!("{}.{axis}", input.name)],
            };
            match profile.get(&input.name) {
                Some(range) => levels[level](range).iter().map(|n| *n as i64).collect(),
                None => shape(input).iter().enumerate().map(extent).map(|n| n as i64).collect(),
            }
        };
        Range { input: input.name.clone(), min: extents(0), opt: extents(1), max: extents(2) }
    };
    Ok(free.iter().map(range).collect())
}
