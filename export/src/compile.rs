//! ONNX graphs to an engine: one component per file, weights once, graphs without weights.
//!
//! Each stage is a type, and a file:
//!
//! ```text
//! prepared  graphs, read, checked, optimised for any backend
//! slotted   what adapters may change in them
//! typed     in which type each node computes
//! lowered   the target's graphs, over one set of weights
//! staged    the engine beside its place, compared with its source
//! written   the engine in its place
//! ```

mod explain;
mod int8;
mod lowered;
mod options;
pub(crate) mod prepared;
pub(crate) mod profiles;
mod report;
pub(crate) mod slots;
mod slotted;
mod staged;
pub mod targets;
#[cfg(test)]
mod testing;
mod typed;
mod versions;
pub(crate) mod weights;
mod written;

use std::path::{Path, PathBuf};

use v2l_graphs::{ReadOptions, read_model};
use v2l_runtime::components::{TRANSFORMER, is_transformer};
use v2l_runtime::engine::manifest::Profile;
use v2l_runtime::io::atomic::{AtomicFolder, probe_file};
use v2l_runtime::io::map::read_member;
use v2l_runtime::pipeline::config::{ComponentFiles, EngineFiles, FILE_NAME, GraphFiles, PipelineConfig};
use v2l_runtime::pipeline::tokenizer::MAX_FILE as MAX_TOKENIZER;

use self::lowered::Lowered;
use self::prepared::{Prepared, graph_name};
use self::slotted::Slotted;
use self::staged::Staged;
use self::targets::GraphCompiler;
use self::typed::{Typed, unused};
use self::written::written;
use crate::check::inputs::{Unused, never_used};
use crate::check::{Checks, check_inputs_used};
use crate::engine_writer::EngineWriteError;
use crate::files::{new_folder, open_file};
use crate::remedy::Remedy;
use crate::{ExportError, Progress};

pub use self::explain::GraphReport;
pub use self::options::CompileOptions;
pub use self::report::{CompileReport, EngineReport, TrtPlanReport};
pub use self::slots::{AmbiguousSlot, SharedSlot, SlotReport};

/// Compiles a bundle to an engine directory, or a single ONNX file to an engine file.
///
/// Weights are streamed from the source's memory map; private memory does not depend on their size. `output` appears
/// whole or not at all, and equal input gives equal bytes.
///
/// # Errors
/// [`ExportError`], naming graph, node and tensor.
pub fn compile(
    input: &Path,
    output: &Path,
    options: &CompileOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CompileReport, ExportError> {
    if options.int8.is_some() && !options.target.takes_int8() {
        return Err(ExportError::Unsupported {
            what: format!("a matrix in 8 bits on {}", options.target.backend()),
            reason: "only ONNX Runtime and OpenVINO compute with such".to_owned(),
        });
    }
    // Before anything else: it may be missing.
    let target = options.target.open(output)?;
    let mut run = Run { options, target: &*target, progress };
    if input.is_dir() {
        return run.bundle(input, output);
    }
    probe_file(output).map_err(|source| EngineWriteError::Io { path: output.to_owned(), source })?;
    let graphs = vec![(graph_name(input), input.to_owned())];
    check_profile_inputs(&graphs, &options.profiles)?;
    Ok(CompileReport { engines: vec![run.component(None, &graphs, output, options)?] })
}

/// A compilation under way.
struct Run<'a> {
    options: &'a CompileOptions,
    target: &'a dyn GraphCompiler,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Run<'_> {
    /// Compiles all components of a bundle.
    fn bundle(&mut self, input: &Path, output: &Path) -> Result<CompileReport, ExportError> {
        let options = self.options;
        let config = |reason: &str| ExportError::config(input.join(FILE_NAME), reason);
        if options.weights.is_some() {
            let reason = "a bundle names its slots itself; a checkpoint is for a single ONNX file";
            return Err(config(reason).advised(&[Remedy::WithoutWeights]));
        }
        let mut pipeline = PipelineConfig::read(input).map_err(|e| ExportError::pipeline(input.join(FILE_NAME), e))?;
        if options.lora_rank.is_some() && !pipeline.components.contains_key(TRANSFORMER) {
            let reason = "it has no transformer, which alone can have low-rank branches";
            return Err(config(reason).advised(&[Remedy::WithoutLoraRank]));
        }
        let components = pipeline.components.iter().filter_map(|(_, files)| graphs_of(files));
        let graphs: Vec<_> = components.flat_map(|files| graph_files(input, files)).collect();
        check_profile_inputs(&graphs, &options.profiles)?;
        let dir = new_folder(output)?;
        let mut engines = Vec::new();
        for (name, files) in &mut pipeline.components {
            let bundle = graphs_of(files).ok_or_else(|| {
                config(&format!("component `{name}` is an engine already; expected the output of v2l-export"))
            })?;
            let file = format!("{name}.engine");
            let graphs = graph_files(input, bundle);
            let options = options_of(options, name);
            let mut report = self.component(Some(name), &graphs, &dir.path().join(&file), &options)?;
            report.path = output.join(&file);
            engines.push(report);
            *files = ComponentFiles::Engine(EngineFiles { engine: file });
        }
        let checks: Vec<&Checks> = engines.iter().map(|engine: &EngineReport| &engine.checks).collect();
        let unused: Vec<_> =
            engines.iter().filter_map(|engine| unused(engine.precision.as_ref(), engine.int8.as_ref())).collect();
        check_used(options, &checks, &unused)?;
        finish(dir, &pipeline, input, output)?;
        Ok(CompileReport { engines })
    }

    /// Compiles one component, which the bundle calls `name`, stage by stage.
    fn component(
        &mut self,
        name: Option<&str>,
        graphs: &[(String, PathBuf)],
        output: &Path,
        options: &CompileOptions,
    ) -> Result<EngineReport, ExportError> {
        let prepared = Prepared::of(name, graphs, output, options)?;
        let slotted = Slotted::of(prepared, options)?;
        let typed = Typed::of(slotted, options, self.target, self.progress)?;
        let lowered = Lowered::of(typed, options, self.target, self.progress)?;
        let mut staged = Staged::of(lowered, output, self.progress)?;
        let checks = staged.check(options, self.progress)?;
        // Another component of a bundle may use a file.
        if name.is_none() {
            let unused: Vec<_> = staged.typed.unused().into_iter().collect();
            check_used(options, &[&checks], &unused)?;
        }
        written(staged, checks, output)
    }
}

fn graphs_of(files: &ComponentFiles) -> Option<&GraphFiles> {
    match files {
        ComponentFiles::Graphs(graphs) => Some(graphs),
        ComponentFiles::Engine(_) => None,
    }
}

fn graph_files(bundle: &Path, files: &GraphFiles) -> Vec<(String, PathBuf)> {
    files.graphs.iter().map(|(graph, file)| (graph.clone(), bundle.join(file))).collect()
}

/// What of the options is for this component: adapters change transformers only.
fn options_of(options: &CompileOptions, component: &str) -> CompileOptions {
    let mut options = options.clone();
    if !is_transformer(component) {
        options.lora_rank = None;
        options.branches_only = false;
        options.precision.adapters.clear();
    }
    options
}

/// Writes what an engine directory holds beside engines, and puts it in its place.
fn finish(dir: AtomicFolder, pipeline: &PipelineConfig, input: &Path, output: &Path) -> Result<(), ExportError> {
    for tokenizer in pipeline.tokenizer.iter().chain(&pipeline.predictor_tokenizer) {
        let from = input.join(&tokenizer.file);
        let bytes = read_member(&from, MAX_TOKENIZER).map_err(ExportError::io(from))?;
        dir.write(&tokenizer.file, &bytes).map_err(ExportError::io(output.join(&tokenizer.file)))?;
    }
    let text = serde_json::to_string_pretty(pipeline).map_err(|e| ExportError::config(input, e.to_string()))?;
    dir.write(FILE_NAME, format!("{text}\n").as_bytes()).map_err(ExportError::io(output.join(FILE_NAME)))?;
    dir.commit().map_err(ExportError::io(output))
}

/// Every input that a profile names must belong to a graph.
fn check_profile_inputs(graphs: &[(String, PathBuf)], profiles: &[Profile]) -> Result<(), ExportError> {
    let mut known: Vec<String> = Vec::new();
    for (_, path) in graphs.iter().filter(|_| !profiles.is_empty()) {
        let model = read_model(path, &ReadOptions { open: &|file| open_file(path, file) })?;
        known.extend(model.graph.inputs.into_iter().map(|input| input.name));
    }
    match profiles.iter().flat_map(Profile::keys).find(|name| !known.contains(name)) {
        Some(input) => Err(ExportError::ProfileInput { input: input.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

/// Refuses files of calibration and check that no graph takes.
fn check_used(options: &CompileOptions, checks: &[&Checks], unused: &[&Unused]) -> Result<(), ExportError> {
    if let Some((path, reason)) = never_used(&options.precision.calibration, unused)? {
        return Err(ExportError::Calibration { path, reason });
    }
    options.check.as_ref().map_or(Ok(()), |check| check_inputs_used(check, checks))
}
