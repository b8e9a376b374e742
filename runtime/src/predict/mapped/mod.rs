//! Predictors that v2l does not know by name: graphs, and a file that says where which layer's factors come from.
//!
//! The graphs of a map form a chain, which may read the base's pristine weights and run for each slot. Factors are outputs of graphs,
//! or tensors of files. `links` finds the graphs, `wires` decides where each input comes from, `resolved` has what all of it comes to,
//! `chain` runs it, and `targets` makes updates of factors.

use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;

use super::error::PredictorError;
use super::inputs::{Input, Inputs};
use super::key::{Key, KeyParts};
use super::kind::{Predicted, Predictor};
use crate::backends::OpenEngine;
use crate::engine::Engine;
use crate::engine::manifest::{Slot, slots_by_name};
use crate::error::Error;
use crate::events::{Observer, Phase, PhaseProgress};
use crate::lora::Strength;
use crate::lora::adapter::Adapter;
use crate::options::OpenOptions;
use crate::tensor::{NamedTensors, Tensor};

mod chain;
mod constants;
mod factors;
mod format;
mod links;
mod ports;
mod read;
mod resolved;
mod source;
mod targets;
#[cfg(test)]
mod tests;
mod wires;

use chain::{Chain, Made};
use constants::Folder;
pub use format::PredictorMap;
use resolved::ResolvedMap;
use targets::Target;

/// What the kind is called in messages; engines do not name it.
pub const KIND: &str = "mapped";

/// Graphs whose outputs are low-rank factors, ready to run.
pub struct MappedPredictor {
    resolved: ResolvedMap,
    /// What is left to multiply updates with: one number for both branches of guidance is in the factors.
    strength: Strength,
    unused: Vec<String>,
    engines: Vec<Arc<Engine>>,
    base: Option<Arc<Engine>>,
    chain: Chain,
}

impl MappedPredictor {
    /// Opens the graphs that `map` names, for the model `base`; `path` is the map's, for messages and for what lies beside it. No graph
    /// is loaded before it is first run. Without a base nothing is known of the model: layers are named as the map names them, and
    /// factors need only fit each other.
    ///
    /// # Errors
    /// [`PredictorError::Map`] if the map names a graph, an output or a slot that is not there, or in the wrong order, or needs a base;
    /// [`PredictorError::Shape`] if a constant does not fit its slot; [`PredictorError::MapFile`], [`PredictorError::Engine`],
    /// [`PredictorError::Directory`] for what lies beside the map; [`PredictorError::Open`].
    pub fn open(
        engine: Arc<Engine>,
        path: &Path,
        map: PredictorMap,
        base: Option<&Arc<Engine>>,
        options: &OpenOptions,
    ) -> Result<Self, PredictorError> {
        let PredictorMap { graphs, slots, strength } = map;
        let (links, engines) = links::open(path, graphs, engine, &Folder::of(path))?;
        let known = base.map(|base| &base.manifest().slots[..]);
        let (within, strength) =
            if strength.is_even() { (strength.cond, Strength::default()) } else { (1.0, strength) };
        let resolved = ResolvedMap::new(path, &slots, within, links, known)?;
        let options = OpenOptions { record: None, ..options.clone() };
        let open = engines.iter().map(|engine| OpenEngine::open(Arc::clone(engine), &options));
        let chain = Chain::new(open.collect::<Result<_, _>>()?, base.cloned());
        Ok(Self { unused: resolved.unused(), resolved, strength, engines, base: base.cloned(), chain })
    }

    /// Outputs that no slot and no later graph uses.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// What predicted updates are to be multiplied with. The map's own strength, if it is uneven; 1 otherwise, since an even one is in the
    /// factors.
    pub const fn strength(&self) -> Strength {
        self.strength
    }

    /// Its engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engines[0]
    }

    /// The engines of all graphs, its own first.
    pub fn engines(&self) -> &[Arc<Engine>] {
        &self.engines
    }

    /// Runs the graphs; gives the adapter that their outputs and the constants are.
    ///
    /// Private memory: the outputs that are used, of those for each slot one slot's, and the factors.
    fn run(&mut self, request: &NamedTensors, observer: &mut dyn Observer) -> Result<Adapter, PredictorError> {
        adapter(&self.resolved, &mut self.chain, request, observer)
    }
}

/// The adapter that a resolved map gives.
///
/// # Errors
/// [`PredictorError::Inputs`] if the inputs do not fit, [`PredictorError::Shape`] if an output does not fit
/// its slot, [`PredictorError::NotFinite`]; as [`Chain::run`].
fn adapter(
    resolved: &ResolvedMap,
    chain: &mut Chain,
    request: &NamedTensors,
    observer: &mut dyn Observer,
) -> Result<Adapter, PredictorError> {
    resolved.check_request(request)?;
    let mut made = Made::default();
    for run in &resolved.shared {
        chain.run(resolved, run, request, &mut made, &|| observer.cancelled())?;
    }
    let slots = resolved.targets.len();
    let each = resolved.targets.iter().any(|target| !target.runs.is_empty());
    let mut progress = each.then(|| PhaseProgress::start(observer, Phase::Predict, slots));
    let mut layers = IndexMap::with_capacity(slots);
    for target in &resolved.targets {
        for run in &target.runs {
            let cancelled = || progress.as_ref().is_some_and(PhaseProgress::is_cancelled);
            chain.run(resolved, run, request, &mut made, &cancelled)?;
        }
        layers.insert(target.name.clone(), target.update(&made.factors)?.into());
        if let Some(progress) = &mut progress {
            progress.step();
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    Ok(Adapter { name: "predicted".to_owned(), layers })
}

impl Predictor for MappedPredictor {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reads(&self) -> &'static [Input] {
        &[Input::Tensors]
    }

    fn check_backbone(&self, slots: &[Slot]) -> Result<(), Error> {
        let known = slots_by_name(slots);
        for Target { name, features, .. } in &self.resolved.targets {
            let found = known.get(&name[..]).map(|slot| [slot.in_features, slot.out_features]);
            if found.is_none() || features.is_some_and(|features| found != Some(features)) {
                let sizes = |[inner, out]: [usize; 2]| format!(" {inner} → {out}");
                let expected = format!("a linear layer{}", features.map_or_else(String::new, sizes));
                let found = found.map_or_else(|| "none".to_owned(), |found| sizes(found).trim_start().to_owned());
                return Err(PredictorError::Backbone { slot: name.clone(), expected, found }.into());
            }
        }
        Ok(())
    }

    fn key(&self, inputs: &mut Inputs<'_>) -> Result<Key, Error> {
        let mut parts = KeyParts::new("v2l mapped prediction 1");
        let mut tensors: Vec<(&String, &Tensor)> = inputs.tensors()?.iter().collect();
        tensors.sort_by_key(|(name, _)| *name);
        for (name, tensor) in tensors {
            parts.add(name);
            parts.add(format!("{} {:?}", tensor.dtype(), tensor.shape()));
            parts.add_elements(tensor);
        }
        self.resolved.add_to(&mut parts);
        if let Some(base) = self.base.as_ref().filter(|_| self.resolved.reads_base()) {
            parts.add(base.fingerprint().as_bytes());
        }
        let engines: Vec<&Engine> = self.engines.iter().map(|engine| &**engine).collect();
        parts.add_engines(&engines, inputs.options());
        Ok(parts.key())
    }

    fn predict(&mut self, inputs: &mut Inputs<'_>) -> Result<Predicted, Error> {
        let tensors = inputs.tensors()?;
        Ok(Predicted { adapter: self.run(tensors, inputs.observer())?, tokens: None })
    }
}
