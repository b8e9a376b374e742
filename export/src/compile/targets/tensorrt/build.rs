//! Building plans.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use v2l_graphs::passes::lower_for_tensorrt;
use v2l_graphs::{Dim, Model};
use v2l_runtime::engine::manifest::{RANK_SUFFIX, RESERVED_PREFIX, Slot, TrtPlan};
use v2l_runtime::interrupt;
use v2l_runtime::io::atomic::write_file;
use v2l_runtime::io::map::read_file;
use v2l_trt::builder::{Built, Child, Range, Refit, Request};
use v2l_trt::library::Library;
use v2l_trt::{Capability, Flavour};

use super::options::{PlanBuilder, TensorRtOptions};
use super::ranges::ranges;
use super::refittable::refittable;
use crate::compile::report::TrtPlanReport;
use crate::compile::targets::onnxruntime::encode_weightless;
use crate::compile::targets::target::GraphTask;
use crate::engine_writer::EngineBlob;
use crate::{ExportError, Progress};

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
    pub(super) report: TrtPlanReport,
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

    /// Builds the plans of a strongly typed graph, its weights in their storage types, after the rewrites that TensorRT
    /// needs: one for each kind of GPU, since TensorRT-RTX puts placeholders into plans for one kind only.
    pub(super) fn build(
        &self,
        task: &GraphTask<'_>,
        model: &Model,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<BuiltPlan>, ExportError> {
        let (component, graph, slots) = (task.component, task.name, task.slots);
        let ranges = ranges(graph, model, &task.profiles)?;
        let mut model = model.clone();
        lower_for_tensorrt(&mut model);
        let model = &model;
        let bytes = encode_weightless(graph, model)?;
        let external = model.graph.initializers.iter().filter(|(_, w)| w.external).map(|(name, _)| name);
        let data: Vec<(String, Bytes)> = external
            .map(|name| Ok((name.clone(), task.weights[name].data.to_bytes().map_err(ExportError::io(name))?)))
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
        let Subject { graph, model, weights, .. } = *subject;
        let begin = Instant::now();
        let Built { plan, reproducible, refittable: offered, warnings, .. } =
            self.built(capability, subject, refit, progress)?;
        let time = begin.elapsed();
        let settable = match refit {
            Refit::None => Vec::new(),
            Refit::Placeholders => refittable(graph, model, &offered)?,
            Refit::Marked(names) => names.to_vec(),
        };
        let bytes_of = |wanted: &dyn Fn(&String) -> bool| -> u64 {
            weights.iter().filter(|(name, _)| wanted(name)).map(|(_, data)| data.len() as u64).sum()
        };
        let report = TrtPlanReport {
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

    /// Lets TensorRT build, and keeps what it learned of times.
    fn built(
        &self,
        capability: Option<Capability>,
        subject: &Subject<'_>,
        refit: Refit<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Built, ExportError> {
        let Subject { graph, bytes, ranges, weights, .. } = *subject;
        let learned = self.options.timing_cache.as_deref().map(read_timing_cache).transpose()?;
        let (capabilities, timing_cache) = (capability.as_slice(), learned.as_deref());
        let request = Request { model: bytes, weights, profiles: ranges, capabilities, refit, timing_cache };
        let built = match &self.options.builder {
            PlanBuilder::InProcess => self.library.build(&request, &mut |_| true),
            PlanBuilder::Program(program) => {
                self.library.build_in(Child { program, scratch: &self.scratch }, &request, &mut |step| {
                    progress(Progress::Phase { name: step.phase, done: step.done, of: step.of });
                    !interrupt::requested()
                })
            }
        };
        let built = built.map_err(|source| ExportError::TensorRt { graph: graph.to_owned(), source })?;
        if let (Some(path), Some(learned)) = (&self.options.timing_cache, &built.timing_cache) {
            write_file(path, learned).map_err(ExportError::io(path))?;
        }
        Ok(built)
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
