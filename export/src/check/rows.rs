//! Runs that timestep rows must stand: timesteps that are different, equal, several and one, known and new, one run
//! after the other in the same session.

use std::collections::HashSet;

use indexmap::IndexMap;
use v2l_graphs::Dim;
use v2l_runtime::engine::Engine;
use v2l_runtime::engine::manifest::BRANCH_SUFFIX;
use v2l_runtime::engine::session::{self, Session};
use v2l_runtime::io::raw::{tensor_bytes, tensor_from_bytes};
use v2l_runtime::tensor::{NamedTensors, Tensor};

use super::inputs::InputSet;
use super::made::{Runs, made_run};
use super::reference::{Reference, run};

/// Rows of the made inputs that have several.
const SEVERAL: usize = 3;

/// Seeds to try until no two timesteps are equal.
const SEEDS: u64 = 8;

/// What a graph keeps by timestep.
pub(super) struct RowInputs<'a> {
    reference: &'a Reference,
    /// Inputs with a row for each timestep.
    names: Vec<&'a str>,
    /// What made inputs call their extent, unless the engine fixes it.
    extent: Option<String>,
}

impl<'a> RowInputs<'a> {
    /// Those of the engine's graph `name`, which `reference` computes, too; `None` if it has no timestep rows.
    pub(super) fn of(reference: &'a Reference, engine: &'a Engine, name: &str) -> Option<Self> {
        let graphs = [name.to_owned(), format!("{name}{BRANCH_SUFFIX}")];
        let timestep_rows = graphs.iter().find_map(|name| {
            let graph = engine.manifest().graph(name)?;
            graph.precomputed.as_ref()?.timestep_rows.as_ref()
        })?;
        let inputs = &reference.model.graph.inputs;
        let names: Vec<&str> = timestep_rows
            .rows
            .iter()
            .map(String::as_str)
            .filter(|row| inputs.iter().any(|input| input.name == *row))
            .collect();
        let port = timestep_rows.graph.inputs.iter().find(|port| names.contains(&&port.name[..]))?;
        let extent = match &port.shape[..] {
            [session::Dim::Fixed(_)] => None,
            _ => inputs.iter().find(|input| input.name == port.name).map(|input| {
                let dims = input.ty.as_ref().and_then(|ty| ty.shape.as_deref()).unwrap_or_default();
                match dims {
                    [Dim::Symbol(name)] if !name.is_empty() => name.clone(),
                    _ => format!("{}.0", input.name),
                }
            }),
        };
        Some(Self { reference, names, extent })
    }

    /// Adds runs to `runs`: on the same inputs but for the timesteps, which are equal or in another order, and, where
    /// no size in `sizes` says how many there are, on made inputs with several of them and with one that is then known.
    ///
    /// # Errors
    /// Why there is no run on several different timesteps, though the graph takes them.
    pub(super) fn add(
        &self,
        runs: &mut Runs,
        session: &mut dyn Session,
        sizes: &[IndexMap<String, usize>],
        seed: u64,
    ) -> Result<(), String> {
        let mut bases: Vec<InputSet> = runs.iter().map(|(set, _)| set.clone()).collect();
        let free = self.extent.as_ref().filter(|name| sizes.iter().all(|size| !size.contains_key(&name[..])));
        let mut reason = "the inputs that are given have one only".to_owned();
        let mut known = None;
        if let (Some(name), Some(size)) = (free, sizes.first()) {
            match self.several(session, name, size, seed) {
                Ok(run) => {
                    bases.push(run.0.clone());
                    known = Some(run.0.tensors.clone());
                    runs.push(run);
                    let one = IndexMap::from([(name.clone(), 1)]);
                    let one = size.clone().into_iter().chain(one).collect();
                    if let Ok((set, _)) = made_run(self.reference, session, &one, &HashSet::new(), seed) {
                        let set = known.as_ref().and_then(|known| self.taking(&set, known, &[1], "one known timestep"));
                        self.push(runs, session, set)?;
                    }
                }
                Err(error) => reason = error,
            }
        }
        let mut different = known.is_some();
        for base in &bases {
            let count = self.count(&base.tensors);
            if count < 2 {
                continue;
            }
            different |= self.is_different(&base.tensors);
            let turned: Vec<usize> = (1..count).chain([0]).collect();
            for (rows, what) in [(vec![0; count], "equal timesteps"), (turned, "timesteps in another order")] {
                let set = self.taking(base, &base.tensors, &rows, what);
                self.push(runs, session, set)?;
            }
        }
        match different || free.is_none() {
            true => Ok(()),
            false => Err(format!("no run has several different timesteps: {reason}")),
        }
    }

    /// Made inputs with several timesteps, no two of them equal if that can be.
    fn several(
        &self,
        session: &mut dyn Session,
        extent: &str,
        size: &IndexMap<String, usize>,
        seed: u64,
    ) -> Result<(InputSet, NamedTensors), String> {
        let mut size = size.clone();
        size.insert(extent.to_owned(), SEVERAL);
        let mut made = made_run(self.reference, session, &size, &HashSet::new(), seed)?;
        for other in 1..SEEDS {
            if self.is_different(&made.0.tensors) {
                break;
            }
            made = made_run(self.reference, session, &size, &HashSet::new(), seed.wrapping_add(other))?;
        }
        made.0.label += ", several timesteps";
        Ok(made)
    }

    /// Runs the reference on a set, if there is one.
    fn push(&self, runs: &mut Runs, session: &mut dyn Session, set: Option<InputSet>) -> Result<(), String> {
        if let Some(set) = set {
            let outputs = run(session, &set.tensors).map_err(|e| format!("{}: {e}", set.label))?;
            runs.push((set, outputs));
        }
        Ok(())
    }

    /// `set` with the timesteps that `from` has at `rows`.
    fn taking(&self, set: &InputSet, from: &NamedTensors, rows: &[usize], what: &str) -> Option<InputSet> {
        let mut tensors = set.tensors.clone();
        for name in &self.names {
            let tensor = from.get(*name)?;
            let (size, bytes) = (tensor.dtype().size(), tensor_bytes(tensor));
            let mut chosen = Vec::with_capacity(rows.len() * size);
            for row in rows {
                chosen.extend_from_slice(bytes.get(row * size..(row + 1) * size)?);
            }
            tensors.insert((*name).to_owned(), tensor_from_bytes(tensor.dtype(), &[rows.len()], &chosen)?);
        }
        Some(InputSet { label: format!("{}, {what}", set.label), tensors })
    }

    fn count(&self, tensors: &NamedTensors) -> usize {
        self.names.first().and_then(|name| tensors.get(*name)).map_or(0, Tensor::len)
    }

    /// True if no two rows are equal.
    fn is_different(&self, tensors: &NamedTensors) -> bool {
        let rows: HashSet<Vec<u8>> = (0..self.count(tensors))
            .map(|row| {
                let element = |name: &&str| {
                    let tensor = tensors.get(*name)?;
                    let size = tensor.dtype().size();
                    tensor_bytes(tensor).get(row * size..(row + 1) * size).map(<[u8]>::to_vec)
                };
                self.names.iter().filter_map(element).flatten().collect()
            })
            .collect();
        rows.len() > 1 && rows.len() == self.count(tensors)
    }
}

#[cfg(test)]
mod tests;
