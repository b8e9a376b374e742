//! Parameters besides linear layers, by the names that adapters' files use for them.

use std::borrow::Cow;

use indexmap::IndexMap;

use super::keys::KeyPart;
use super::wan;
use crate::engine::manifest::Slot;
use crate::io::wrappers::unwrapped;

/// Parameters by name.
pub(super) struct ParameterNames<'a> {
    dotted: IndexMap<String, &'a Slot>,
    /// With underscores for dots; `None` where several share a name.
    underscored: IndexMap<String, Option<&'a Slot>>,
}

impl<'a> ParameterNames<'a> {
    /// `wrappers` are paths that a file may leave out; `is_wan` says that Wan's own names stand for those of diffusers.
    pub(super) fn new(parameters: &'a [Slot], wrappers: &[String], is_wan: bool) -> Self {
        let mut dotted: IndexMap<String, &Slot> = IndexMap::new();
        for parameter in parameters {
            dotted.insert(parameter.name.clone(), parameter);
        }
        for parameter in parameters {
            for inner in wrappers.iter().filter_map(|wrapper| parameter.name.strip_prefix(&wrapper[..])) {
                dotted.entry(inner.to_owned()).or_insert(parameter);
            }
        }
        let plain = |(name, &slot): (&String, &&'a Slot)| match unwrapped(name) {
            Cow::Owned(plain) => Some((plain, slot)),
            Cow::Borrowed(_) => None,
        };
        for (name, parameter) in dotted.iter().filter_map(plain).collect::<Vec<_>>() {
            dotted.entry(name).or_insert(parameter);
        }
        if is_wan {
            let own: Vec<_> =
                dotted.iter().filter_map(|(name, &slot)| Some((wan::native_parameter(name)?, slot))).collect();
            for (name, parameter) in own {
                dotted.entry(name).or_insert(parameter);
            }
        }
        let mut underscored: IndexMap<String, Option<&Slot>> = IndexMap::new();
        for (name, &parameter) in &dotted {
            underscored
                .entry(name.replace('.', "_"))
                .and_modify(|other| *other = other.filter(|other| *other == parameter))
                .or_insert(Some(parameter));
        }
        Self { dotted, underscored }
    }

    /// What a part of a module stands for: its weight, its bias or its modulation table; a module may also be a parameter itself.
    pub(super) fn find(&self, underscores: bool, module: &str, part: KeyPart) -> Option<&'a Slot> {
        let ends: &[&str] = match part {
            KeyPart::Down | KeyPart::Up | KeyPart::Alpha | KeyPart::Difference => &["weight", ""],
            KeyPart::BiasDifference => &["bias"],
            KeyPart::ModulationDifference => &["modulation"],
        };
        ends.iter().find_map(|end| match (underscores, end.is_empty()) {
            (false, true) => self.dotted.get(module).copied(),
            (false, false) => self.dotted.get(&format!("{module}.{end}")).copied(),
            (true, true) => self.underscored.get(module).copied().flatten(),
            (true, false) => self.underscored.get(&format!("{module}_{end}")).copied().flatten(),
        })
    }

    /// The parameter called exactly so.
    pub(super) fn exact(&self, name: &str) -> Option<&'a Slot> {
        self.dotted.get(name).copied().filter(|parameter| parameter.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_tells_weight_bias_and_table_apart_in_every_spelling() {
        let of = |name: &str| Slot { tensor: name.to_owned(), ..Slot::linear(name, 1, 4) };
        let parameters =
            ["blocks.0.norm2.weight", "blocks.0.norm2.bias", "blocks.0.scale_shift_table", "scale_shift_table"];
        let parameters = parameters.map(of);
        let names = ParameterNames::new(&parameters, &[], true);
        let find = |underscores, module: &str, part| names.find(underscores, module, part).map(|slot| &slot.name[..]);
        for (module, part, expected) in [
            ("blocks.0.norm2", KeyPart::Difference, "blocks.0.norm2.weight"),
            ("blocks.0.norm3", KeyPart::Difference, "blocks.0.norm2.weight"),
            ("blocks.0.norm3", KeyPart::BiasDifference, "blocks.0.norm2.bias"),
            ("blocks.0.modulation", KeyPart::Difference, "blocks.0.scale_shift_table"),
            ("blocks.0", KeyPart::ModulationDifference, "blocks.0.scale_shift_table"),
            ("head", KeyPart::ModulationDifference, "scale_shift_table"),
            ("head.modulation", KeyPart::Difference, "scale_shift_table"),
        ] {
            assert_eq!(find(false, module, part), Some(expected), "{module}");
            let underscored = module.replace('.', "_");
            assert_eq!(find(true, &underscored, part), Some(expected), "{module}");
        }
        assert_eq!(find(false, "blocks.0.norm2", KeyPart::ModulationDifference), None);
        assert_eq!(find(false, "blocks.1.norm2", KeyPart::Difference), None);
    }
}
