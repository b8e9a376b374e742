//! What a map comes to, held against graphs and slots: the runs, in order, and what becomes of their outputs.

use std::collections::HashSet;
use std::path::Path;

use indexmap::IndexMap;

use super::super::error::PredictorError;
use super::super::key::KeyParts;
use super::constants::Constant;
use super::factors::{Factor, Form, Held};
use super::format::MapSlot;
use super::links::{At, Link, find_output};
use super::source::{FactorSource, Origin, ScaleSource};
use super::targets::{Factors, Target};
use super::wires::{Run, Wire, Wiring, no_slot};
use crate::engine::manifest::Slot;
use crate::tensor::NamedTensors;

/// Every run and every slot of a map.
pub(super) struct ResolvedMap {
    pub(super) links: Vec<Link>,
    /// Runs that are done once, the first first.
    pub(super) shared: Vec<Run>,
    pub(super) targets: Vec<Target>,
    /// Outputs that slots use.
    pub(super) factors: HashSet<At>,
    /// Outputs that later graphs use.
    pub(super) passed: HashSet<At>,
}

impl ResolvedMap {
    /// Holds a map against its graphs and the base's slots; `path` is the map's.
    ///
    /// # Errors
    /// [`PredictorError::Map`] if the map names what is not there, or in the wrong order; [`PredictorError::Shape`] if a constant does
    /// not fit its slot; as [`Wiring::run`].
    pub(super) fn new(
        path: &Path,
        slots_of_map: &[MapSlot],
        strength: f32,
        links: Vec<Link>,
        slots: Option<&[Slot]>,
    ) -> Result<Self, PredictorError> {
        let mut wiring = Wiring::new(path, &links, slots);
        let once = (0..links.len()).filter(|&at| !links[at].each_slot);
        let shared = once.map(|at| wiring.run(at, None)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        let mut targets = Vec::with_capacity(slots_of_map.len());
        for map in slots_of_map {
            let (name, features) = match &wiring.slots {
                None => (map.slot.clone(), None),
                Some(known) => match known.get(&map.slot[..]) {
                    Some(slot) => (slot.name.clone(), Some([slot.in_features, slot.out_features])),
                    None => return Err(PredictorError::map(path, no_slot(&map.slot))),
                },
            };
            if !seen.insert(name.clone()) {
                let reason = format!("slot `{name}` comes twice; remove one of its entries");
                return Err(PredictorError::map(path, reason));
            }
            let factors = factors(&mut wiring, map, strength)?;
            let runs = runs_of(&mut wiring, map, &factors)?;
            let target = Target { name, called: map.slot.clone(), features, runs, factors };
            target.check_constants()?;
            targets.push(target);
        }
        check_values(path, slots_of_map, &links)?;
        let runs = || shared.iter().chain(targets.iter().flat_map(|target| &target.runs));
        let passed = runs().flat_map(Run::wires).filter_map(|wire| match wire {
            Wire::Output(at) => Some(at.clone()),
            _ => None,
        });
        let passed = passed.collect();
        let used = targets.iter().flat_map(|target| target.factors.all()).filter_map(|(factor, _)| factor.output());
        let factors = used.cloned().collect();
        Ok(Self { links, shared, targets, factors, passed })
    }

    /// Every run, of those for each slot the ones of every slot.
    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.shared.iter().chain(self.targets.iter().flat_map(|target| &target.runs))
    }

    /// Outputs that no slot and no later graph uses; of several graphs with the graph's name before the output's.
    pub(super) fn unused(&self) -> Vec<String> {
        let mut unused = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            for port in &link.outputs {
                let key = (at, port.name.clone());
                if !self.factors.contains(&key) && !self.passed.contains(&key) {
                    let alone = self.links.len() == 1;
                    unused.push(if alone { key.1 } else { format!("{}.{}", link.name, key.1) });
                }
            }
        }
        unused
    }

    /// Every constant, once.
    pub(super) fn constants(&self) -> IndexMap<&str, &Constant> {
        let factors = self.targets.iter().flat_map(|target| target.factors.all());
        let factors = factors.filter_map(|(factor, _)| match &factor.held {
            Held::Constant(constant) => Some(constant),
            Held::Output(_) => None,
        });
        let inputs = self.runs().flat_map(Run::wires).filter_map(|wire| match wire {
            Wire::Constant(constant, _) => Some(constant),
            _ => None,
        });
        factors.chain(inputs).map(|constant| (&constant.label[..], constant)).collect()
    }

    /// True if a graph reads weights of the base.
    pub(super) fn reads_base(&self) -> bool {
        self.runs().flat_map(Run::wires).any(|wire| matches!(wire, Wire::Base(..)))
    }

    /// Checks that the tensors of a request are exactly those that the graphs read.
    ///
    /// # Errors
    /// [`PredictorError::Inputs`].
    pub(super) fn check_request(&self, request: &NamedTensors) -> Result<(), PredictorError> {
        let mut read: IndexMap<&str, usize> = IndexMap::new();
        for run in self.runs() {
            for wire in run.wires() {
                if let Wire::Request(name) = wire {
                    read.entry(name).or_insert(run.link);
                }
            }
        }
        let expected = || match read.len() {
            0 => "expected none".to_owned(),
            _ => format!("expected exactly {}", read.keys().copied().collect::<Vec<_>>().join(", ")),
        };
        let missing = read.iter().find(|(name, _)| !request.contains_key(**name));
        if let Some((name, &link)) = missing {
            let reason = format!("`{name}` is missing, which graph `{}` reads; {}", self.links[link].name, expected());
            return Err(PredictorError::Inputs { reason });
        }
        let Some(surplus) = request.keys().find(|name| !read.contains_key(&name[..])) else { return Ok(()) };
        let gives = self.links.iter().find(|link| link.outputs.iter().any(|port| port.name == *surplus));
        let twice = gives.map_or_else(String::new, |link| format!(", which graph `{}` gives", link.name));
        let reason = format!("no graph reads `{surplus}`{twice}; {}", expected());
        Err(PredictorError::Inputs { reason })
    }

    /// Adds all that the map says to the parts of a key, and the constants' elements.
    pub(super) fn add_to(&self, parts: &mut KeyParts) {
        for link in &self.links {
            parts.add(format!("{} {} {}", link.engine, link.graph, link.each_slot));
        }
        self.shared.iter().for_each(|run| run.add_to(parts));
        for Target { name, called: _, features, runs, factors } in &self.targets {
            parts.add(name);
            parts.add(format!("{features:?} {factors:?}"));
            runs.iter().for_each(|run| run.add_to(parts));
        }
        for (label, constant) in self.constants() {
            parts.add(label);
            parts.add(constant.bytes());
        }
    }
}

/// Where the factors of a slot are.
fn factors(wiring: &mut Wiring<'_>, map: &MapSlot, strength: f32) -> Result<Factors, PredictorError> {
    let path = wiring.path;
    let mut find = |key: &str, source: &FactorSource, form| factor(wiring, map, key, source, form);
    let down = find("down", &map.down.0, Form::Matrix)?;
    let up = find("up", &map.up.0, Form::Matrix)?;
    let mid = map.mid.as_ref().map(|mid| find("mid", &mid.0, Form::Middle)).transpose()?;
    let finite = |number: f32, key: &str| {
        let reason = || format!("slot `{}`: `{key}` is not a finite number of 32 bits", map.slot);
        if number.is_finite() { Ok(number) } else { Err(PredictorError::map(path, reason())) }
    };
    let (scale, times) = match map.scale.as_ref().map(|scale| &scale.0) {
        None => (None, strength),
        Some(ScaleSource::Number(number)) => (None, finite(*number as f32 * strength, "scale")?),
        Some(ScaleSource::At(source)) => (Some(find("scale", source, Form::Number)?), strength),
    };
    let alpha = map.alpha.map(|alpha| finite(alpha, "alpha")).transpose()?;
    Ok(Factors { down, up, mid, scale, times, alpha })
}

fn factor(
    wiring: &mut Wiring<'_>,
    map: &MapSlot,
    key: &str,
    source: &FactorSource,
    form: Form,
) -> Result<Factor, PredictorError> {
    let (path, slot) = (wiring.path, &map.slot);
    let fail = |reason: String| PredictorError::map(path, format!("slot `{slot}`: `{key}`: {reason}"));
    if source.transposed && form == Form::Number {
        return Err(fail("`transposed` is for matrices; leave it out".to_owned()));
    }
    let held = match source.origin().map_err(fail)? {
        Origin::Tensor(label) => Held::Constant(wiring.folder.tensor(label)?),
        Origin::Output(name, graph) => {
            let found = find_output(wiring.links, wiring.links.len(), name, graph);
            Held::Output(found.map_err(|reason| PredictorError::map(path, format!("slot `{slot}`: {reason}")))?)
        }
        _ => return Err(fail("expected an output or a tensor".to_owned())),
    };
    let factor = Factor { held, index: source.index, transposed: source.transposed };
    if let Some((at, name)) = factor.output()
        && let Some(port) = wiring.links[*at].outputs.iter().find(|port| port.name == *name)
    {
        factor.check_declared(port, form, slot)?;
    }
    Ok(factor)
}

/// The runs that a slot needs for itself, the first first.
fn runs_of(wiring: &mut Wiring<'_>, map: &MapSlot, factors: &Factors) -> Result<Vec<Run>, PredictorError> {
    let mut needed: HashSet<usize> =
        factors.all().filter_map(|(factor, _)| factor.output()).map(|(link, _)| *link).collect();
    let mut runs = Vec::new();
    for link in (0..wiring.links.len()).rev() {
        if !wiring.links[link].each_slot || !needed.contains(&link) {
            continue;
        }
        let run = wiring.run(link, Some(map))?;
        needed.extend(run.wires().filter_map(|wire| match wire {
            Wire::Output((before, _)) => Some(*before),
            _ => None,
        }));
        runs.push(run);
    }
    runs.reverse();
    Ok(runs)
}

/// Refuses values that no graph reads.
fn check_values(path: &Path, slots: &[MapSlot], links: &[Link]) -> Result<(), PredictorError> {
    let read: HashSet<&str> =
        links.iter().flat_map(|link| link.given.values()).filter_map(|given| given.0.per_slot()).collect();
    for slot in slots {
        if let Some(name) = slot.values.keys().find(|name| !read.contains(&name[..])) {
            let reason = format!("slot `{}`: no graph reads `{name}` of its `values`; leave it out", slot.slot);
            return Err(PredictorError::map(path, reason));
        }
    }
    Ok(())
}
