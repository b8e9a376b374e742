//! Slots by the names that adapters' files use for them.

use indexmap::IndexMap;

use super::{AdapterFormat, wan};
use crate::engine::manifest::{RowRange, Slot};

/// Layers that models fuse, output features one after the other: the fused layer's names, and the names of its parts.
const FUSED: [(&[&str], &[&[&str]]); 3] = [
    (&["to_qkv", "qkv", "qkv_proj"], &[&["to_q", "to_k", "to_v"], &["q", "k", "v"], &["q_proj", "k_proj", "v_proj"]]),
    (&["to_kv", "kv", "kv_proj"], &[&["to_k", "to_v"], &["k", "v"], &["k_proj", "v_proj"]]),
    (&["to_added_qkv"], &[&["add_q_proj", "add_k_proj", "add_v_proj"]]),
];

/// Starts of modules that belong to other components, and these.
const ELSEWHERE: [(&str, &str); 3] =
    [("text_encoder", "a text encoder"), ("lora_te", "a text encoder"), ("transformer_2.", "the second transformer")];

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
}

impl<'a> SlotNames<'a> {
    pub(super) fn new(slots: &'a [Slot]) -> Self {
        let own = || slots.iter().flat_map(|s| std::iter::once(&s.name).chain(&s.aliases).map(move |name| (name, s)));
        let wan = wan::is_wan(own().map(|(name, _)| &name[..]));
        let native = own().filter(|_| wan).filter_map(|(name, slot)| Some((wan::native(name)?, slot)));
        let mut layers: IndexMap<String, &Slot> = IndexMap::new();
        for (name, slot) in own().map(|(name, slot)| (name.clone(), slot)).chain(native) {
            layers.entry(name).or_insert(slot);
        }
        let mut names = Self { dotted: IndexMap::new(), underscored: IndexMap::new() };
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

    /// What a file's module stands for, or why there is nothing.
    pub(super) fn find(&self, format: AdapterFormat, module: &str) -> Result<Target<'a>, String> {
        let found = if format.underscores() {
            self.underscored.get(module).cloned()
        } else {
            self.dotted.get(module).cloned().map(Some)
        };
        match found {
            Some(Some(target)) => Ok(target),
            Some(None) => Err(format!("`{module}` may be one of several slots")),
            None => Err(match ELSEWHERE.iter().find(|(start, _)| module.starts_with(start)) {
                Some((_, component)) => format!("no slot `{module}`; it is for {component}"),
                None => format!("no slot `{module}`"),
            }),
        }
    }
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
