//! Slots by the names that adapters' files use for them.

use std::borrow::Cow;
use std::collections::HashMap;

use indexmap::IndexMap;

use super::keys::KeyPart;
use super::keys::{processorless, readings};
use super::parameters::ParameterNames;
use super::{AdapterFormat, Outcome, wan};
use crate::engine::Engine;
use crate::engine::manifest::{Absent, How, Manifest, RowRange, Slot, Why};
use crate::io::wrappers::unwrapped_module;

/// The layers that an adapter may name.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// What it may change.
    pub slots: &'a [Slot],
    /// What it may name and not change.
    pub absent: &'a [Absent],
    /// What it may change besides linear layers, by full differences.
    pub parameters: &'a [Slot],
}

impl<'a> From<&'a Engine> for Layers<'a> {
    fn from(engine: &'a Engine) -> Self {
        let Manifest { slots, absent, .. } = engine.manifest();
        Self { slots, absent, parameters: engine.parameters() }
    }
}

impl<'a> From<&'a Manifest> for Layers<'a> {
    fn from(manifest: &'a Manifest) -> Self {
        Self { slots: &manifest.slots, absent: &manifest.absent, parameters: &[] }
    }
}

impl<'a> From<&'a [Slot]> for Layers<'a> {
    fn from(slots: &'a [Slot]) -> Self {
        Self { slots, absent: &[], parameters: &[] }
    }
}

impl<'a> From<&'a Vec<Slot>> for Layers<'a> {
    fn from(slots: &'a Vec<Slot>) -> Self {
        Self::from(&slots[..])
    }
}

impl<'a, const N: usize> From<&'a [Slot; N]> for Layers<'a> {
    fn from(slots: &'a [Slot; N]) -> Self {
        Self::from(&slots[..])
    }
}

/// The transformers of a model, by their layers; of two, that of high noise first.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A model with one transformer.
    One(Layers<'a>),
    /// A model with two.
    Two([Layers<'a>; 2]),
}

impl<'a, L: Into<Layers<'a>>> From<L> for Targets<'a> {
    fn from(layers: L) -> Self {
        Self::One(layers.into())
    }
}

impl<'a> From<[Layers<'a>; 2]> for Targets<'a> {
    fn from(layers: [Layers<'a>; 2]) -> Self {
        Self::Two(layers)
    }
}

impl<'a> Targets<'a> {
    /// The transformer of an engine directory, and the second where there is one.
    pub fn of(first: &'a Engine, second: Option<&'a Engine>) -> Self {
        match second {
            Some(second) => Self::Two([first.into(), second.into()]),
            None => Self::One(first.into()),
        }
    }

    /// What the first may be changed in.
    pub fn slots(self) -> &'a [Slot] {
        let (Self::One(layers) | Self::Two([layers, _])) = self;
        layers.slots
    }
}

/// Layers that models fuse, output features one after the other: the fused layer's names, and the names of its parts.
const FUSED: [(&[&str], &[&[&str]]); 3] = [
    (&["to_qkv", "qkv", "qkv_proj"], &[&["to_q", "to_k", "to_v"], &["q", "k", "v"], &["q_proj", "k_proj", "v_proj"]]),
    (&["to_kv", "kv", "kv_proj"], &[&["to_k", "to_v"], &["k", "v"], &["k_proj", "v_proj"]]),
    (&["to_added_qkv"], &[&["add_q_proj", "add_k_proj", "add_v_proj"]]),
];

/// Starts of modules that belong to other components, and these.
const ELSEWHERE: [(&str, &str); 5] = [
    ("text_encoder", "a text encoder"),
    ("lora_te", "a text encoder"),
    ("transformer_2.", "the second transformer"),
    ("dit2.", "the second transformer"),
    ("vace.", "a VACE branch"),
];

/// What a module of a file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// A slot.
    Whole(&'a Slot),
    /// Slots whose output features, one after the other, are the fused layer that the file names.
    Split(Vec<&'a Slot>),
    /// Some output features of a slot that is a fused layer; the file names a part of it.
    Rows(&'a Slot, RowRange),
}

/// What a module of a file changes in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) slot: &'a Slot,
    /// First output feature of the file's module.
    pub(super) from: usize,
    /// First output feature of the slot.
    pub(super) to: usize,
    /// Output features.
    pub(super) rows: usize,
}

impl<'a> Target<'a> {
    /// The pieces, in the order of the module's output features; at least one.
    pub(super) fn pieces(&self) -> Vec<Piece<'a>> {
        match self {
            Self::Whole(slot) => vec![Piece { slot, from: 0, to: 0, rows: slot.out_features }],
            Self::Rows(slot, rows) => vec![Piece { slot, from: 0, to: rows.start, rows: rows.end - rows.start }],
            Self::Split(slots) => {
                let mut from = 0;
                let piece = |&slot: &&'a Slot| {
                    let piece = Piece { slot, from, to: 0, rows: slot.out_features };
                    from += piece.rows;
                    piece
                };
                slots.iter().map(piece).collect()
            }
        }
    }

    /// In words: the slot or slots, with the rows if not all.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Whole(slot) => slot.name.clone(),
            Self::Split(slots) => slots.iter().map(|slot| &slot.name[..]).collect::<Vec<_>>().join(", "),
            Self::Rows(slot, rows) => format!("{}, rows {}..{}", slot.name, rows.start, rows.end),
        }
    }
}

/// Slots by the names that files use.
pub(super) struct SlotNames<'a> {
    dotted: IndexMap<String, Target<'a>>,
    /// With underscores for dots; `None` where several slots share a name.
    underscored: IndexMap<String, Option<Target<'a>>>,
    /// Layers that are no slots, by their own names.
    absent: HashMap<&'a str, &'a Absent>,
    slots: &'a [Slot],
    parameters: ParameterNames<'a>,
}

impl<'a> SlotNames<'a> {
    pub(super) fn new(layers: Layers<'a>) -> Self {
        let Layers { slots, absent, parameters } = layers;
        let all = || slots.iter().chain(absent.iter().map(|a| &a.layer));
        let own = all().flat_map(|s| std::iter::once(&s.name).chain(&s.aliases).map(move |name| (name.clone(), s)));
        let mut layers: IndexMap<String, &Slot> = IndexMap::new();
        for (name, slot) in own {
            layers.entry(name).or_insert(slot);
        }
        // A model that was exported inside a wrapper has the wrapper's path before every name.
        let wrappers = wrappers(layers.keys());
        for start in &wrappers {
            let inner = |(name, slot): (&String, &&'a Slot)| Some((name.strip_prefix(&start[..])?.to_owned(), *slot));
            for (name, slot) in layers.iter().filter_map(inner).collect::<Vec<_>>() {
                layers.entry(name).or_insert(slot);
            }
        }
        // So has one that was exported inside PyTorch's wrappers their words in between.
        for (name, slot) in unwrapped_names(&layers) {
            layers.entry(name).or_insert(slot);
        }
        let is_wan = wan::is_wan(layers.keys().map(String::as_str));
        if is_wan {
            let native = |(name, slot): (&String, &&'a Slot)| Some((wan::native(name)?, *slot));
            for (name, slot) in layers.iter().filter_map(native).collect::<Vec<_>>() {
                layers.entry(name).or_insert(slot);
            }
        }
        let known = |a: &&Absent| slots.iter().all(|slot| slot.name != a.layer.name);
        let absent = absent.iter().filter(known).map(|a| (&a.layer.name[..], a)).collect();
        let parameters = ParameterNames::new(parameters, &wrappers, is_wan);
        let mut names = Self { dotted: IndexMap::new(), underscored: IndexMap::new(), absent, slots, parameters };
        for (name, slot) in &layers {
            share(&mut names.underscored, name, Target::Whole(slot));
            names.dotted.insert(name.clone(), Target::Whole(slot));
        }
        // A layer of that very name comes before a fused layer or a part of one.
        let mut derived = IndexMap::new();
        for (name, target) in fused(&layers).into_iter().chain(cut(&layers)) {
            share(&mut derived, &name, target.clone());
            names.dotted.entry(name).or_insert(target);
        }
        for (name, target) in derived {
            names.underscored.entry(name).or_insert(target);
        }
        names
    }

    /// What a part of a file's module stands for, or why there is nothing.
    pub(super) fn find(&self, format: AdapterFormat, module: &str, part: KeyPart) -> Result<Target<'a>, String> {
        let layer = match (part.is_of_weight(), format.underscores()) {
            (true, true) => self.underscored.get(module).cloned(),
            (true, false) => self.dotted.get(module).cloned().map(Some),
            (false, _) => None,
        };
        match layer {
            Some(Some(target)) => return Ok(target),
            Some(None) => return Err(format!("`{module}` may be one of several slots")),
            None => {}
        }
        let parameter = self.parameters.find(format.underscores(), module, part);
        parameter.map(Target::Whole).ok_or_else(|| match part {
            KeyPart::BiasDifference => format!("the model has no bias of `{module}` that adapters may change"),
            KeyPart::ModulationDifference => {
                format!("the model has no modulation table of `{module}` that adapters may change")
            }
            _ => format!("no slot `{module}`"),
        })
    }

    /// What a file's key stands for, `stem` being all before its part and `module` what its form makes of that; with the form
    /// and the module that were found.
    pub(super) fn resolve<'s>(
        &self,
        (format, module): (AdapterFormat, &Cow<'s, str>),
        stem: &'s str,
        part: KeyPart,
    ) -> Result<(AdapterFormat, Cow<'s, str>, Target<'a>), String> {
        let first = self.find(format, module, part);
        let reason = match first {
            Ok(target) => return Ok((format, module.clone(), target)),
            Err(reason) => reason,
        };
        let readings = readings(stem);
        for &(format, path) in &readings {
            for path in [Cow::Borrowed(path), processorless(path, false)] {
                if let Ok(target) = self.find(format, &path, part) {
                    return Ok((format, path, target));
                }
            }
        }
        let elsewhere = |(start, _): &&(&str, &str)| readings.iter().any(|(_, path)| path.starts_with(start));
        match ELSEWHERE.iter().find(elsewhere) {
            Some((_, component)) => Err(format!("{reason}; it is for {component}")),
            None => Err(reason),
        }
    }

    /// The slot, layer or parameter called exactly so.
    pub(super) fn exact(&self, name: &str) -> Option<Target<'a>> {
        let layer = self.dotted.get(name).filter(|target| matches!(target, Target::Whole(slot) if slot.name == name));
        layer.cloned().or_else(|| self.parameters.exact(name).map(Target::Whole))
    }

    /// Why a layer is no slot, if it is none.
    pub(super) fn absent(&self, layer: &Slot) -> Option<&'a Absent> {
        self.absent.get(&layer.name[..]).copied()
    }

    /// What becomes of a key that stands for these layers: it needs one that is a slot, and none that cannot be one.
    pub(super) fn outcome(&self, target: &Target<'a>) -> Outcome {
        let pieces = target.pieces();
        let absent: Vec<&Absent> = pieces.iter().filter_map(|piece| self.absent(piece.slot)).collect();
        let reason = |a: &Absent| format!("layer `{}` {}", a.layer.name, a.reason);
        match absent.iter().find(|a| a.why != Why::Pruned) {
            Some(a) => Outcome::Error { reason: reason(a) },
            None if absent.len() == pieces.len() => Outcome::Ignored { reason: reason(absent[0]) },
            None => Outcome::Applied { slot: target.describe() },
        }
    }

    /// What may be the matter with modules that were not found, and the way out.
    pub(super) fn hint(&self, unknown: &[String]) -> Option<String> {
        let first = unknown.iter().find(|module| module.contains('.'))?;
        let without = |start: &str| {
            let inner = |module: &&String| module.strip_prefix(start).is_some_and(|m| self.dotted.contains_key(m));
            unknown.iter().filter(inner).count()
        };
        let starts = first.match_indices('.').take(MAX_PREFIX).map(|(at, _)| &first[..=at]);
        let (found, start) = starts.map(|start| (without(start), start)).max_by_key(|(found, _)| *found)?;
        if found > 0 {
            let of = unknown.len();
            return Some(format!(
                "{found} of {of} layers match without `{start}`: if that names this model, rename the keys"
            ));
        }
        let end = format!(".{first}");
        let longer = self.slots.iter().find(|slot| slot.name.ends_with(&end)).map(|slot| &slot.name);
        let by = |slot: &Slot, how: &[How]| how.contains(&slot.found.how);
        let exported = self.slots.iter().any(|slot| by(slot, &[How::Initializer, How::Bias, How::Scope]));
        match (longer, exported) {
            (Some(slot), _) => Some(format!(
                "the model has `{slot}` for `{first}`; compile it with `v2l-compile --weights CHECKPOINT`, which gives layers the \
                 checkpoint's names"
            )),
            (None, true) => Some(format!(
                "the model's layers have the names that its exporter left, such as `{}`; compile it with \
                 `v2l-compile --weights CHECKPOINT`, which gives them the checkpoint's",
                self.slots.iter().find(|slot| by(slot, &[How::Initializer, How::Bias, How::Scope]))?.name
            )),
            _ => None,
        }
    }
}

/// A module's prefix is looked for in so many of its first segments.
const MAX_PREFIX: usize = 8;

/// Paths that every name with a dot begins with, shortest first; none of a single name.
fn wrappers<'n>(names: impl Iterator<Item = &'n String>) -> Vec<String> {
    let mut paths = names.filter_map(|name| Some(name.rsplit_once('.')?.0));
    let Some(first) = paths.next() else { return Vec::new() };
    let mut common: Vec<&str> = first.split('.').collect();
    let mut several = false;
    for path in paths {
        several = true;
        let same = path.split('.').zip(&common).take_while(|(a, b)| a == *b).count();
        common.truncate(same);
    }
    let starts = (1..=common.len()).filter(|_| several).map(|n| format!("{}.", common[..n].join(".")));
    starts.collect()
}

/// Layers by their names without the words of wrappers, where one alone gets that name.
fn unwrapped_names<'a>(layers: &IndexMap<String, &'a Slot>) -> Vec<(String, &'a Slot)> {
    let mut found: IndexMap<String, Option<&'a Slot>> = IndexMap::new();
    for (name, &slot) in layers {
        if let Cow::Owned(plain) = unwrapped_module(name) {
            found.entry(plain).and_modify(|other| *other = other.filter(|other| *other == slot)).or_insert(Some(slot));
        }
    }
    found.into_iter().filter_map(|(name, slot)| Some((name, slot?))).collect()
}

/// Enters a target under its name with underscores, which several may have.
fn share<'a>(names: &mut IndexMap<String, Option<Target<'a>>>, name: &str, target: Target<'a>) {
    names
        .entry(name.replace('.', "_"))
        .and_modify(|other| *other = other.take().filter(|other| *other == target))
        .or_insert(Some(target));
}

/// Fused layers that slots are the parts of, and parts of slots that are fused layers, by name.
fn fused<'a>(layers: &IndexMap<String, &'a Slot>) -> Vec<(String, Target<'a>)> {
    let mut found = Vec::new();
    for (name, &slot) in layers {
        let (prefix, leaf) = name.split_at(name.rfind('.').map_or(0, |dot| dot + 1));
        for (wholes, families) in FUSED {
            for family in families {
                let parts = || family.iter().map(|part| layers.get(&format!("{prefix}{part}")).copied());
                if family.first() == Some(&leaf)
                    && let Some(parts) = parts().collect::<Option<Vec<_>>>()
                    && parts.iter().all(|part| part.in_features == slot.in_features)
                {
                    let target = |whole| (format!("{prefix}{whole}"), Target::Split(parts.clone()));
                    found.extend(wholes.iter().map(target));
                }
                let rows = slot.out_features / family.len();
                if wholes.contains(&leaf) && rows * family.len() == slot.out_features {
                    let range = |i| RowRange { start: i * rows, end: (i + 1) * rows };
                    let target = |(i, part)| (format!("{prefix}{part}"), Target::Rows(slot, range(i)));
                    found.extend(family.iter().enumerate().map(target));
                }
            }
        }
    }
    found
}

/// Layers of which each slot is some output features, called `<layer>[<first>..<end>]`, where together they are all of them.
fn cut<'a>(layers: &IndexMap<String, &'a Slot>) -> Vec<(String, Target<'a>)> {
    let mut parts: IndexMap<&str, Vec<(usize, usize, &Slot)>> = IndexMap::new();
    for (name, &slot) in layers {
        if let Some((layer, rows)) = name.strip_suffix(']').and_then(|name| name.rsplit_once('['))
            && let Some((start, end)) = rows.split_once("..")
            && let (Ok(start), Ok(end)) = (start.parse(), end.parse())
        {
            parts.entry(layer).or_default().push((start, end, slot));
        }
    }
    let mut found = Vec::new();
    for (layer, mut parts) in parts {
        parts.sort_by_key(|(start, ..)| *start);
        let mut next = 0;
        let follows = |(start, end, slot): &(usize, usize, &Slot)| {
            let fits = *start == next && end.checked_sub(*start) == Some(slot.out_features);
            next = *end;
            fits && slot.in_features == parts[0].2.in_features
        };
        if parts.iter().all(follows) {
            found.push((layer.to_owned(), Target::Split(parts.into_iter().map(|(.., slot)| slot).collect())));
        }
    }
    found
}
