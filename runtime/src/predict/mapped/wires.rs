//! Where the inputs of a map's graphs come from, decided and checked before anything runs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::error::PredictorError;
use super::super::key::KeyParts;
use super::constants::{Constant, Folder};
use super::format::MapSlot;
use super::links::{At, Link, find_output};
use super::ports::{carries, fit, joins, literal};
use super::source::Origin;
use crate::engine::inputs::describe;
use crate::engine::manifest::{Slot, slots_by_name};
use crate::engine::session::Port;
use crate::io::raw;
use crate::tensor::{Dtype, Tensor};
use crate::wording::BASE_ENGINE;

/// Where an input comes from.
pub(super) enum Wire {
    /// A tensor of the request.
    Request(String),
    /// An output of an earlier link.
    Output(At),
    /// A tensor of a file, and the extents that the graph takes it with.
    Constant(Constant, Vec<usize>),
    /// Numbers of the map.
    Literal(Literal),
    /// The base's pristine weight of a slot, and its extents.
    Base(Slot, Vec<usize>),
}

/// Numbers of a map, with their hash.
pub(super) struct Literal {
    pub(super) tensor: Tensor,
    hash: blake3::Hash,
}

/// A run of a link.
pub(super) struct Run {
    pub(super) link: usize,
    /// What each input of the link is given, in the order of its graph.
    pub(super) wires: Vec<Arc<Wire>>,
}

impl Run {
    /// The wires, in the order of the graph's inputs.
    pub(super) fn wires(&self) -> impl Iterator<Item = &Wire> {
        self.wires.iter().map(|wire| &**wire)
    }

    /// Adds what the run is to the parts of a key: of a constant its name, of the base which weight it is.
    pub(super) fn add_to(&self, parts: &mut KeyParts) {
        parts.add(format!("run {}", self.link));
        for wire in self.wires() {
            match wire {
                Wire::Request(name) => parts.add(format!("request {name}")),
                Wire::Output((link, name)) => parts.add(format!("output {link} {name}")),
                Wire::Constant(constant, extents) => parts.add(format!("constant {constant:?} {extents:?}")),
                Wire::Literal(Literal { tensor, hash }) => {
                    parts.add(format!("literal {} {:?} {hash}", tensor.dtype(), tensor.shape()));
                }
                Wire::Base(slot, extents) => parts.add(format!("base {} {extents:?}", slot.name)),
            }
        }
    }
}

/// What wires are made of.
pub(super) struct Wiring<'a> {
    pub(super) path: &'a Path,
    pub(super) links: &'a [Link],
    /// The base's slots by their names; `None` without a base.
    pub(super) slots: Option<HashMap<&'a str, &'a Slot>>,
    pub(super) folder: Folder<'a>,
    /// Wires that are the same for every slot, by the numbers of link and input: slots share them.
    common: HashMap<(usize, usize), Arc<Wire>>,
}

impl<'a> Wiring<'a> {
    /// For the map at `path`, and the slots of the base, if there is one.
    pub(super) fn new(path: &'a Path, links: &'a [Link], slots: Option<&'a [Slot]>) -> Self {
        let (slots, folder) = (slots.map(slots_by_name), Folder::of(path));
        Self { path, links, slots, folder, common: HashMap::new() }
    }

    /// The run of a link, for a slot of the map if it is a run for each.
    ///
    /// # Errors
    /// [`PredictorError::Map`] that names the graph and the input; as [`Folder::tensor`].
    pub(super) fn run(&mut self, link: usize, slot: Option<&MapSlot>) -> Result<Run, PredictorError> {
        let inputs = 0..self.links[link].inputs.len();
        let wires = inputs.map(|number| self.wire(link, number, slot)).collect::<Result<_, _>>()?;
        Ok(Run { link, wires })
    }

    fn wire(&mut self, at: usize, number: usize, slot: Option<&MapSlot>) -> Result<Arc<Wire>, PredictorError> {
        if let Some(wire) = self.common.get(&(at, number)) {
            return Ok(Arc::clone(wire));
        }
        let (path, link) = (self.path, &self.links[at]);
        let port = &link.inputs[number];
        let fail_of = |of: String| {
            move |reason: String| {
                let (graph, input) = (&link.name, &port.name);
                PredictorError::map(path, format!("graph `{graph}`: input `{input}`{of}: {reason}"))
            }
        };
        let fail = fail_of(String::new());
        let origin = link.given.get(&port.name).map(|given| given.0.origin()).transpose().map_err(&fail)?;
        let own = |make: &dyn Fn(&MapSlot) -> Result<Wire, String>| {
            let slot = slot.ok_or_else(|| fail(NOT_FOR_EACH.to_owned()))?;
            make(slot).map(Arc::new).map_err(fail_of(format!(", slot `{}`", slot.slot)))
        };
        let wire = match origin {
            Some(Origin::PerSlot(name)) => {
                return own(&|slot| {
                    let value = slot.values.get(name);
                    numbers(value.ok_or_else(|| format!("the slot's `values` have no `{name}`"))?, port)
                });
            }
            Some(Origin::Base(None)) => return own(&|slot| self.base(port, &slot.slot)),
            None => self.by_name(at, port).map_err(fail)?,
            Some(Origin::Input(name)) => Wire::Request(name.to_owned()),
            Some(Origin::Output(name, graph)) => self.output(at, port, name, graph).map_err(fail)?,
            Some(Origin::Value(value)) => numbers(value, port).map_err(fail)?,
            Some(Origin::Base(Some(slot))) => self.base(port, slot).map_err(fail)?,
            Some(Origin::Tensor(label)) => constant(self.folder.tensor(label)?, port).map_err(fail)?,
        };
        let wire = Arc::new(wire);
        self.common.insert((at, number), Arc::clone(&wire));
        Ok(wire)
    }

    /// An input of which the map says nothing: an output of the name, or else a tensor of the request.
    fn by_name(&self, at: usize, port: &Port) -> Result<Wire, String> {
        let name = &port.name;
        let gives = |link: &Link| link.outputs.iter().any(|output| output.name == *name);
        if self.links[..at].iter().any(gives) {
            return self.output(at, port, name, None);
        }
        match self.links[at + 1..].iter().find(|link| gives(link)) {
            None => Ok(Wire::Request(name.clone())),
            Some(later) => Err(format!(
                "it is an output of graph `{}`, which comes later; list that earlier, or write {{\"input\": \"{name}\"}} for a tensor \
                 of the request",
                later.name
            )),
        }
    }

    fn output(&self, at: usize, port: &Port, name: &str, graph: Option<&str>) -> Result<Wire, String> {
        let (from, name) = find_output(self.links, at, name, graph)?;
        let (link, of) = (&self.links[at], &self.links[from]);
        if of.each_slot && !link.each_slot {
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
        Ok(Wire::Base(slot.clone(), extents))
    }
}

/// The base has no slot of this name.
pub(super) fn no_slot(name: &str) -> String {
    format!("the model has no slot `{name}`; `v2l-inspect ENGINE` lists those that it has")
}

const NOT_FOR_EACH: &str = "`per_slot` and `base: true` are of the slot that a graph runs for, and this one runs once; give it \"each_slot\": true";

fn numbers(value: &Json, port: &Port) -> Result<Wire, String> {
    let tensor = literal(value, port)?;
    let hash = blake3::hash(&raw::tensor_bytes(&tensor));
    Ok(Wire::Literal(Literal { tensor, hash }))
}

fn constant(constant: Constant, port: &Port) -> Result<Wire, String> {
    if !carries(constant.dtype, port.dtype) {
        return Err(format!("expected {}, found {constant:?}", describe(port)));
    }
    let extents = fit(&constant.shape, port)?;
    Ok(Wire::Constant(constant, extents))
}
