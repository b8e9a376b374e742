//! The fifth stage: the engine is written beside its place, and compared with its source there.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use indexmap::IndexMap;
use v2l_graphs::DataType;
use v2l_runtime::engine::manifest::{FORMAT_VERSION, Manifest};
use v2l_runtime::tensor::Dtype;

use super::explain::GraphReport;
use super::lowered::Lowered;
use super::options::CompileOptions;
use super::report::TrtPlanReport;
use super::typed::Typed;
use super::weights::Streamed;
use crate::check::{Checks, Source, check_engine};
use crate::engine_writer::{EngineWeight, StagedEngine, stage_engine};
use crate::types::from_runtime;
use crate::{ExportError, Progress};

/// An engine that is written, but not in its place. Dropped, it leaves nothing.
pub(crate) struct Staged {
    pub(crate) engine: StagedEngine,
    pub(crate) typed: Typed,
    pub(crate) storage: Dtype,
    pub(crate) plans: Vec<TrtPlanReport>,
    pub(crate) passes: Vec<GraphReport>,
    /// In which types the weights are stored.
    types: HashMap<String, DataType>,
}

impl Staged {
    /// Writes the engine that will be `output`.
    pub(crate) fn of(
        lowered: Lowered,
        output: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, ExportError> {
        let Lowered { mut typed, graphs, blobs, weights, storage, plans, passes } = lowered;
        let prepared = &mut typed.slotted.prepared;
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            component: prepared.component.clone(),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            made_from: std::mem::take(&mut prepared.made_from),
            storage,
            graphs,
            slots: typed.int8.slots(typed.slotted.slots.clone()),
            absent: typed.slotted.absent.clone(),
            attributes: prepared.attributes.take(),
            tensors: IndexMap::new(),
        };
        let total = weights.values().map(|w| w.data.len() as u64).sum();
        progress(Progress::Component { name: &prepared.component, bytes: total });
        let types = weights.iter().map(|(name, w)| (name.clone(), from_runtime(w.dtype))).collect();
        let layers: HashSet<&str> = manifest.slots.iter().map(|slot| slot.tensor.as_str()).collect();
        let weights: Vec<EngineWeight<'_>> = weights
            .into_iter()
            .map(|(name, w)| {
                let finite = layers.contains(name.as_str()).then_some(from_runtime(w.dtype));
                EngineWeight {
                    name,
                    dtype: w.dtype,
                    shape: w.shape,
                    source: Box::new(Streamed { data: w.data, finite }),
                }
            })
            .collect();
        let mut written = |bytes| progress(Progress::Written { bytes });
        let engine = stage_engine(output, manifest, &weights, &blobs, &mut written)?;
        Ok(Self { engine, typed, storage, plans, passes, types })
    }

    /// Compares the engine with its source, if that is asked for.
    pub(crate) fn check(
        &mut self,
        options: &CompileOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Checks, ExportError> {
        let Some(check) = &options.check else { return Ok(Checks::default()) };
        let prepared = &mut self.typed.slotted.prepared;
        progress(Progress::Checking { name: &prepared.component });
        self.typed.int8.restore(&mut prepared.models);
        let (slots, int8, passes) = (&self.typed.slotted.slots, self.typed.int8.is_used(), &options.passes);
        let pairs = prepared.models.iter().zip(&prepared.sources);
        let sources: Vec<Source<'_>> = pairs
            .map(|((graph, model), source)| Source {
                graph,
                path: &source.path,
                read: &source.read,
                prepared: model,
                passes,
                slots,
                int8,
            })
            .collect();
        let stored = |name: &str| self.types.get(name).copied().unwrap_or(DataType::Float);
        check_engine(self.engine.path(), &prepared.component, &sources, &stored, check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::testing::{Recorder, Small};

    #[test]
    fn staged_is_an_engine_that_leaves_nothing_when_it_is_dropped() {
        let small = Small::new();
        let lowered = small.lowered(&CompileOptions::default(), &Recorder::default());
        let mut told = Vec::new();
        let staged = Staged::of(lowered, &small.output(), &mut |progress| told.push(format!("{progress:?}"))).unwrap();
        let engine = v2l_runtime::engine::Engine::open(staged.engine.path()).unwrap();
        assert_eq!(engine.manifest().component, "small");
        assert!(told[0].starts_with("Component") && told[0].contains("bytes: 128"), "{told:?}");
        drop((engine, staged));
        let left: Vec<_> = small.folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["small.onnx"]);
    }
}
