//! Running the graphs of a map.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::PredictorError;
use super::super::pristine::Pristine;
use super::factors::{Floats, floats};
use super::links::At;
use super::resolved::ResolvedMap;
use super::wires::{Run, Wire};
use crate::backends::OpenEngine;
use crate::engine::Engine;
use crate::engine::manifest::Slot;
use crate::engine::session::Session;
use crate::tensor::{NamedTensors, Tensor};

/// Outputs that are needed still: those of a slot make way for those of the next.
#[derive(Default)]
pub(super) struct Made {
    pub(super) factors: Floats,
    passed: HashMap<At, Tensor>,
}

/// The sessions of a map's links. A graph is loaded when it is first run: a kept prediction does not need it.
pub(super) struct Chain {
    engines: Vec<OpenEngine>,
    /// By the numbers of their links.
    sessions: HashMap<usize, Box<dyn Session>>,
    /// Whose weights graphs read.
    base: Option<Arc<Engine>>,
}

impl Chain {
    pub(super) fn new(engines: Vec<OpenEngine>, base: Option<Arc<Engine>>) -> Self {
        Self { engines, sessions: HashMap::new(), base }
    }

    /// Does a run, and keeps of its outputs what is used.
    ///
    /// # Errors
    /// [`PredictorError::Graph`], [`PredictorError::Open`],
    /// [`PredictorError::Shape`], and as [`Pristine::open`].
    pub(super) fn run(
        &mut self,
        resolved: &ResolvedMap,
        run: &Run,
        request: &NamedTensors,
        made: &mut Made,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), PredictorError> {
        let link = &resolved.links[run.link];
        let fresh: Vec<Option<Tensor>> = run.wires().map(|wire| self.fresh(wire)).collect::<Result<_, _>>()?;
        let mut inputs = Vec::with_capacity(link.inputs.len());
        for ((port, wire), fresh) in link.inputs.iter().zip(run.wires()).zip(&fresh) {
            let held = match wire {
                Wire::Request(name) => request.get(name),
                Wire::Output(at) => made.passed.get(at),
                Wire::Literal(literal) => Some(&literal.tensor),
                Wire::Constant(..) | Wire::Base(..) => fresh.as_ref(),
            };
            inputs.push((&port.name[..], held.ok_or_else(|| lost(&port.name))?));
        }
        let ran = self.session(resolved, run.link)?.run_unless(&inputs, cancelled);
        let outputs = ran.map_err(|source| PredictorError::Graph { graph: link.name.clone(), source })?;
        for (name, tensor) in outputs {
            let at = (run.link, name);
            match (resolved.factors.contains(&at), resolved.passed.contains(&at)) {
                (true, passed) => {
                    if passed {
                        made.passed.insert(at.clone(), tensor.clone());
                    }
                    let values = floats(tensor, &at.1)?;
                    made.factors.insert(at, values);
                }
                (false, true) => {
                    made.passed.insert(at, tensor);
                }
                (false, false) => {}
            }
        }
        Ok(())
    }

    /// A tensor that is made for one run: a copy of a constant, or of a weight.
    fn fresh(&self, wire: &Wire) -> Result<Option<Tensor>, PredictorError> {
        match wire {
            Wire::Constant(constant, extents) => Ok(constant.tensor(extents)),
            Wire::Base(slot, extents) => self.weight(slot, extents).map(Some),
            Wire::Request(_) | Wire::Output(_) | Wire::Literal(_) => Ok(None),
        }
    }

    /// The pristine weight of a slot in f32, `[out, in]` in these extents.
    fn weight(&self, slot: &Slot, extents: &[usize]) -> Result<Tensor, PredictorError> {
        let base = self.base.as_ref().ok_or_else(|| lost(&slot.name))?;
        let weight = Pristine::open(base, slot)?;
        let (values, _) = weight.row_panel(0, weight.rows()).into_raw_vec_and_offset();
        Tensor::from_f32(extents, values).ok_or_else(|| lost(&slot.name))
    }

    /// The session of a link, opened now if it was not.
    fn session(&mut self, resolved: &ResolvedMap, link: usize) -> Result<&mut Box<dyn Session>, PredictorError> {
        if !self.sessions.contains_key(&link) {
            let at = &resolved.links[link];
            let engine = self.engines.get_mut(at.engine).ok_or_else(|| lost(&at.name))?;
            self.sessions.insert(link, engine.session(&at.graph)?);
        }
        self.sessions.get_mut(&link).ok_or_else(|| lost(&resolved.links[link].name))
    }
}

/// Something that the resolved map promised is not there.
fn lost(name: &str) -> PredictorError {
    let what = format!("`{name}` of the predictor's graphs");
    PredictorError::Shape {
        what,
        expected: "a tensor or graph that the map was checked for".to_owned(),
        found: "none".to_owned(),
    }
}

#[cfg(test)]
impl Chain {
    /// A chain whose links have these sessions.
    pub(super) fn of(sessions: Vec<Box<dyn Session>>) -> Self {
        Self { engines: Vec::new(), sessions: sessions.into_iter().enumerate().collect(), base: None }
    }
}
