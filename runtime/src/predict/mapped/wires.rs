//! Where the inputs of a map's graphs come from, decided and checked before anything runs.

use std::collections::HashMap;
use std::path::Path;

use super::super::error::PredictorError;
use super::super::key::KeyParts;
use super::constants::{Constant, Folder};
use super::format::MapSlot;
use super::ports::{carries, fit, joins, literal};
use super::source::Origin;
use super::stages::{At, Stage, find_output};
use crate::engine::inputs::describe;
use crate::engine::manifest::Slot;
use crate::engine::session::Port;
use crate::tensor::{Dtype, Tensor};
use crate::wording::BASE_ENGINE;

/// Where an input comes from.
pub(super) enum Wire {
    /// A tensor of the request.
    Request(String),
    /// An output of an earlier stage.
    Output(At),
    /// A tensor of a file, and the extents that the graph takes it with.
    Constant(Constant, Vec<usize>),
    /// Numbers of the map.
    Literal(Tensor),
    /// The base's pristine weight of a slot, and its extents.
    Base(Box<Slot>, Vec<usize>),
}

/// A run of a stage.
pub(super) struct Run {
    pub(super) stage: usize,
    /// Every input with what it is given; `None`: exactly the tensors of the request.
    pub(super) wires: Option<Vec<(String, Wire)>>,
}

impl Run {
    /// The wires that are known.
    pub(super) fn wires(&self) -> impl Iterator<Item = &(String, Wire)> {
        self.wires.iter().flatten()
    }

    /// Adds what the run is to the parts of a key: of a constant its name, of the base which weight it is.
    pub(super) fn add_to(&self, parts: &mut KeyParts) {
        parts.add(format!("run {}", self.stage));
        for (input, wire) in self.wires() {
            parts.add(input);
            match wire {
                Wire::Request(name) => parts.add(format!("request {name}")),
                Wire::Output((stage, name)) => parts.add(format!("output {stage} {name}")),
                Wire::Constant(constant, extents) => parts.add(format!("constant {constant:?} {extents:?}")),
                Wire::Literal(tensor) => {
                    parts.add(format!("literal {} {:?}", tensor.dtype(), tensor.shape()));
                    parts.add_elements(tensor);
                }
                Wire::Base(slot, extents) => parts.add(format!("base {} {extents:?}", slot.name)),
            }
        }
    }
}

/// What wires are made of.
pub(super) struct Wiring<'a> {
    pub(super) path: &'a Path,
    pub(super) stages: &'a [Stage],
    /// The base's slots by their names; `None` without a base.
    pub(super) slots: Option<HashMap<&'a str, &'a Slot>>,
    pub(super) folder: Folder<'a>,
}

impl<'a> Wiring<'a> {
    /// The run of a stage, for a slot of the map if it is a run for each.
    ///
    /// # Errors
    /// [`PredictorError::Map`] that names the graph and the input; as [`Folder::tensor`].
    pub(super) fn run(&mut self, stage: usize, slot: Option<&MapSlot>) -> Result<Run, PredictorError> {
        let stages = self.stages;
        let inputs = &stages[stage].inputs;
        let wires = inputs.iter().map(|port| Ok((port.name.clone(), self.wire(stage, port, slot)?)));
        let wires = wires.collect::<Result<Vec<_>, PredictorError>>()?;
        Ok(Run { stage, wires: Some(wires) })
    }

    fn wire(&mut self, at: usize, port: &Port, slot: Option<&MapSlot>) -> Result<Wire, PredictorError> {
        let (path, stage) = (self.path, &self.stages[at]);
        let fail = |reason: String| {
            let slot = slot.map_or_else(String::new, |slot| format!(", slot `{}`", slot.slot));
            PredictorError::map(path, format!("graph `{}`: input `{}`{slot}: {reason}", stage.name, port.name))
        };
        let Some(given) = stage.given.get(&port.name) else { return self.by_name(at, port).map_err(fail) };
        match given.0.origin().map_err(fail)? {
            Origin::Input(name) => Ok(Wire::Request(name.to_owned())),
            Origin::Output(name, graph) => self.output(at, port, name, graph).map_err(fail),
            Origin::Value(value) => literal(value, port).map(Wire::Literal).map_err(fail),
            Origin::PerSlot(name) => {
                let slot = slot.ok_or_else(|| fail(not_for_each("per_slot")))?;
                let value = slot.values.get(name);
                let value = value.ok_or_else(|| fail(format!("the slot's `values` have no `{name}`")))?;
                literal(value, port).map(Wire::Literal).map_err(fail)
            }
            Origin::Base(named) => {
                let own = slot.map(|slot| &slot.slot[..]);
                let name = named.or(own).ok_or_else(|| fail(not_for_each("base")))?;
                self.base(port, name).map_err(fail)
            }
            Origin::Tensor(label) => {
                let constant = self.folder.tensor(label)?;
                if !carries(constant.dtype, port.dtype) {
                    return Err(fail(format!("expected {}, found {constant:?}", describe(port))));
                }
                let extents = fit(&constant.shape, port).map_err(fail)?;
                Ok(Wire::Constant(constant, extents))
            }
        }
    }

    /// An input of which the map says nothing: an output of the name, or else a tensor of the request.
    fn by_name(&self, at: usize, port: &Port) -> Result<Wire, String> {
        let name = &port.name;
        let gives = |stage: &Stage| stage.outputs.iter().any(|output| output.name == *name);
        if self.stages[..at].iter().any(gives) {
            return self.output(at, port, name, None);
        }
        match self.stages[at + 1..].iter().find(|stage| gives(stage)) {
            None => Ok(Wire::Request(name.clone())),
            Some(later) => Err(format!(
                "it is an output of graph `{}`, which comes later; list that earlier, or write {{\"input\": \"{name}\"}} for a tensor \
                 of the request",
                later.name
            )),
        }
    }

    fn output(&self, at: usize, port: &Port, name: &str, graph: Option<&str>) -> Result<Wire, String> {
        let (from, name) = find_output(self.stages, at, name, graph)?;
        let (stage, of) = (&self.stages[at], &self.stages[from]);
        if of.each_slot && !stage.each_slot {
            return Err(format!(
                "graph `{}`, which gives `{name}`, runs for each slot, and this one once; give it \"each_slot\": true",
                of.name
            ));
        }
        if let Some(output) = of.outputs.iter().find(|output| output.name == name) {
            joins(output, port)?;
        }
        Ok(Wire::Output((from, name)))
    }

    fn base(&self, port: &Port, name: &str) -> Result<Wire, String> {
        let slots = self.slots.as_ref();
        let slots = slots.ok_or_else(|| format!("it takes the base's weights; give the base with `{BASE_ENGINE}`"))?;
        let slot = *slots.get(name).ok_or_else(|| no_slot(name))?;
        if port.dtype != Dtype::F32 {
            return Err(format!("expected an input of f32 for the base's weights, found {}", describe(port)));
        }
        let extents = fit(&[slot.out_features, slot.in_features], port)?;
        Ok(Wire::Base(Box::new(slot.clone()), extents))
    }
}

/// The base has no slot of this name.
pub(super) fn no_slot(name: &str) -> String {
    format!("the model has no slot `{name}`; `v2l-inspect ENGINE` lists those that it has")
}

fn not_for_each(key: &str) -> String {
    format!("`{key}` is of the slot that a graph runs for, and this one runs once; give it \"each_slot\": true")
}
