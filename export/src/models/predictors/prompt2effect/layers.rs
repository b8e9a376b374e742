//! Which layers of a base a network predicts for, and as what it knows them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use v2l_runtime::engine::manifest::{Slot, slots_by_name};
use v2l_runtime::predict::prompt2effect::{Group, TargetLayer};

use super::super::package::Package;
use crate::ExportError;

/// The table that a type of layers has.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct GroupOfType {
    pub(super) group: String,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
}

/// A layer of a checkpoint's own list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ListedLayer {
    pub(super) index: usize,
    pub(super) module_name: String,
    pub(super) module_type: String,
    pub(super) base_key: String,
    pub(super) in_dim: usize,
    pub(super) out_dim: usize,
}

/// The types of layers that a network knows.
pub(super) struct Types<'a> {
    pub(super) vocabulary: &'a [String],
    /// Names of types that stand for others.
    pub(super) alias: &'a BTreeMap<String, String>,
    /// The tables of each type.
    pub(super) groups: &'a BTreeMap<String, GroupOfType>,
    /// True if a layer's row is its place in the sorted list of all; else it is that of its block.
    pub(super) flat: bool,
    /// True if row 0 of the table of types is for others.
    pub(super) unknown: bool,
    /// Rows of the table of layers.
    pub(super) max_layers: usize,
}

/// Groups and layers.
type Found = (Vec<Group>, Vec<TargetLayer>);

impl Types<'_> {
    /// The row of a type.
    fn id(&self, name: &str) -> Option<usize> {
        let at = self.vocabulary.iter().position(|known| known == name)?;
        Some(at + usize::from(self.unknown))
    }

    /// The type of a layer: the longest that ends its path, or what the type is called in the models' own code, or what stands
    /// for that.
    fn of(&self, path: &str) -> Option<&str> {
        let ends = |name: &&String| {
            path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(found) = self.vocabulary.iter().filter(ends).max_by_key(|name| name.len()) {
            return Some(found);
        }
        let native = native_type(path)?;
        let known = |name: &str| self.vocabulary.iter().find(|known| *known == name);
        known(&native).or_else(|| known(self.alias.get(&native)?)).map(String::as_str)
    }

    /// The row of a layer, of which the table may have fewer: the last then stands for all that follow.
    fn row(&self, block: usize, place: usize) -> usize {
        (if self.flat { place } else { block }).min(self.max_layers - 1)
    }
}

/// What a layer of a transformer's block is called in Wan's own code.
fn native_type(path: &str) -> Option<String> {
    let (_, rest) = split_block(path)?;
    let (module, layer) = rest.split_once('.')?;
    let part = match layer {
        "to_q" => "q",
        "to_k" => "k",
        "to_v" => "v",
        "to_out.0" => "o",
        "add_k_proj" => "k_img",
        "add_v_proj" => "v_img",
        "net.0.proj" => "0",
        "net.2" => "2",
        _ => return None,
    };
    let module = match module {
        "attn1" => "self_attn",
        "attn2" => "cross_attn",
        "ffn" | "ff" => "ffn",
        _ => return None,
    };
    Some(format!("{module}.{part}"))
}

/// The number of a layer's block, and its path in the block.
fn split_block(path: &str) -> Option<(usize, &str)> {
    let mut rest = path;
    while let Some((first, behind)) = rest.split_once('.') {
        if let Ok(block) = first.parse() {
            return Some((block, behind));
        }
        rest = behind;
    }
    None
}

/// The layers of a base whose types the network knows, in the order of their names as strings.
pub(super) fn of_base(package: &Package, slots: &[Slot], types: &Types<'_>) -> Result<Found, ExportError> {
    let mut candidates: Vec<(&Slot, usize, &str)> =
        slots.iter().filter_map(|slot| Some((slot, split_block(&slot.name)?.0, types.of(&slot.name)?))).collect();
    candidates.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let known: BTreeSet<&str> = candidates.iter().map(|(_, _, name)| *name).collect();
    if let Some(missing) = types.vocabulary.iter().find(|name| !known.contains(name.as_str())) {
        return Err(package.misfit(format!(
            "no layer of the base is of the type `{missing}`, which the predictor knows; it is for another base"
        )));
    }
    let (mut groups, mut layers) = (Vec::new(), Vec::new());
    for (place, (slot, block, name)) in candidates.into_iter().enumerate() {
        let GroupOfType { group, d_in, d_out } = types
            .groups
            .get(name)
            .ok_or_else(|| package.misfit(format!("`enc_groups` has no tables for the type `{name}`")))?;
        check_size(package, slot, *d_out, *d_in)?;
        layers.push(TargetLayer {
            slot: slot.name.clone(),
            group: group_index(&mut groups, group, *d_out, *d_in),
            layer: types.row(block, place),
            module: types.id(name).unwrap_or_default(),
            block,
        });
    }
    Ok((groups, layers))
}

/// The layers that a checkpoint lists.
pub(super) fn listed(
    package: &Package,
    slots: &[Slot],
    listed: &[ListedLayer],
    types: &Types<'_>,
) -> Result<Found, ExportError> {
    let known = slots_by_name(slots);
    let (mut groups, mut layers) = (Vec::new(), Vec::new());
    for (place, layer) in listed.iter().enumerate() {
        let ListedLayer { index, module_name, module_type, base_key, in_dim, out_dim } = layer;
        if (types.flat && *index != place) || base_key.strip_suffix(".weight") != Some(module_name) {
            let reason = format!(
                "layer {place} is `{module_name}` with index {index} and base_key `{base_key}`; expected \
                 index {place} and the module's own weight"
            );
            return Err(package.misfit(reason));
        }
        if types.flat && place > 0 && listed[place - 1].module_name >= *module_name {
            let reason = format!(
                "layer {place} is `{module_name}` behind `{}`; expected the order of names as strings, in \
                 which a checkpoint numbers its layers",
                listed[place - 1].module_name
            );
            return Err(package.misfit(reason));
        }
        let slot = known.get(&module_name[..]).ok_or_else(|| {
            package.misfit(format!("the base has no linear layer `{module_name}`; the predictor is for another base"))
        })?;
        check_size(package, slot, *out_dim, *in_dim)?;
        let module = types.id(module_type).or(types.unknown.then_some(0)).ok_or_else(|| {
            let names = types.vocabulary.join(", ");
            package.misfit(format!("`{module_name}` is of the type `{module_type}`, expected one of {names}"))
        })?;
        let group = format!("out{out_dim}_in{in_dim}");
        let block = split_block(module_name).map_or(0, |(block, _)| block);
        layers.push(TargetLayer {
            slot: slot.name.clone(),
            group: group_index(&mut groups, &group, *out_dim, *in_dim),
            layer: types.row(*index, place),
            module,
            block,
        });
    }
    if types.flat && types.max_layers != usize::MAX && types.max_layers != layers.len() {
        let reason =
            format!("{} layers are listed, and the table of layers has {} rows", layers.len(), types.max_layers);
        return Err(package.misfit(reason));
    }
    Ok((groups, layers))
}

/// The groups of these layers, each once, by name and size.
fn group_index(groups: &mut Vec<Group>, name: &str, d_out: usize, d_in: usize) -> usize {
    let group = Group { name: name.to_owned(), d_out, d_in };
    groups.iter().position(|known| *known == group).unwrap_or_else(|| {
        groups.push(group);
        groups.len() - 1
    })
}

fn check_size(package: &Package, slot: &Slot, d_out: usize, d_in: usize) -> Result<(), ExportError> {
    if (slot.out_features, slot.in_features) == (d_out, d_in) {
        return Ok(());
    }
    Err(package.misfit(format!(
        "the base's layer `{}` is {} → {}, the predictor reads {d_in} → {d_out}; it is for another base",
        slot.name, slot.in_features, slot.out_features
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_the_end_of_a_path_or_by_wans_own_names() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (vocabulary, groups) = (names(&["cross_attn.k", "self_attn.q"]), BTreeMap::new());
        let alias = BTreeMap::from([("cross_attn.k_img".to_owned(), "cross_attn.k".to_owned())]);
        let types = Types {
            vocabulary: &vocabulary,
            alias: &alias,
            groups: &groups,
            flat: false,
            unknown: true,
            max_layers: 4,
        };
        assert_eq!(types.of("blocks.7.attn1.to_q"), Some("self_attn.q"));
        assert_eq!(types.of("blocks.7.attn2.add_k_proj"), Some("cross_attn.k"), "the alias");
        assert_eq!(types.of("blocks.7.attn2.add_v_proj"), None);
        assert_eq!(types.of("blocks.7.attn1.to_v"), None);
        assert_eq!((types.id("cross_attn.k"), types.id("self_attn.q"), types.id("ffn.0")), (Some(1), Some(2), None));
        assert_eq!(
            (types.row(2, 9), types.row(3, 9), types.row(9, 0)),
            (2, 3, 3),
            "the last row stands for all that follow"
        );
        let vocabulary = names(&["to_q", "attn2.to_q"]);
        let types = Types { vocabulary: &vocabulary, ..types };
        assert_eq!(types.of("transformer_blocks.0.attn1.to_q"), Some("to_q"));
        assert_eq!(types.of("transformer_blocks.0.attn2.to_q"), Some("attn2.to_q"), "the longest");
        assert_eq!(types.of("transformer_blocks.0.attn2.not_to_q"), None);
    }
}
