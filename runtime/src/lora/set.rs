//! Sets of adapters: what changes which copy of a model's weights.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Strength;
use super::adapter::{Adapter, by_expert, of_second};
use crate::components::{TRANSFORMER, TRANSFORMER_2};

/// The predictions that read a copy of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// All of them or, where the negative prompt has a copy of its own, the others.
    #[default]
    All,
    /// The prediction for the negative prompt alone.
    Negative,
}

/// A copy of a component's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// The component: [`TRANSFORMER`] or [`TRANSFORMER_2`].
    pub component: &'static str,
    /// Who reads it.
    pub branch: Branch,
}

/// An adapter, and what its update is multiplied by. Copies share the adapter.
pub type Weighted = (Arc<Adapter>, f32);

/// Adapters that are applied together, for each copy of the weights under the names of its own slots. None is the base model.
///
/// ```
/// use v2l_runtime::Adapter;
/// use v2l_runtime::lora::AdapterSet;
///
/// let (effect, style) = (Adapter::default(), Adapter::default());
/// let set = AdapterSet::from([(&effect, 1.0), (&style, 0.5)]);
/// assert_eq!(set.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterSet {
    variants: BTreeMap<Variant, Vec<Weighted>>,
    /// True if the negative prompt sees other adapters, or other strengths.
    guided: bool,
    /// Adapters that were given.
    len: usize,
}

impl AdapterSet {
    /// The adapters for a copy of the weights, each with its strength.
    pub fn of(&self, component: &str, branch: Branch) -> &[Weighted] {
        let branch = if self.guided { branch } else { Branch::All };
        let found =
            self.variants.iter().find(|(variant, _)| variant.component == component && variant.branch == branch);
        found.map_or(&[], |(_, adapters)| adapters)
    }

    /// The copies of the weights that something is for, with that.
    pub fn variants(&self) -> impl Iterator<Item = (Variant, &[Weighted])> {
        self.variants.iter().map(|(variant, adapters)| (*variant, &adapters[..]))
    }

    /// True if the negative prompt sees other adapters, or other strengths, and so has a copy of the weights.
    pub fn is_guided(&self) -> bool {
        self.guided
    }

    /// How many adapters it was made of.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it was made of none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if nothing is changed anywhere: no adapter is for any copy of the weights.
    pub fn changes_nothing(&self) -> bool {
        self.variants.values().all(Vec::is_empty)
    }

    /// The one of two transformers that it changes, if it changes one alone.
    pub fn only_component(&self) -> Option<&'static str> {
        let mut components =
            self.variants.iter().filter(|(_, adapters)| !adapters.is_empty()).map(|(v, _)| v.component);
        let first = components.next()?;
        components.all(|component| component == first).then_some(first)
    }

    /// Names of the layers that it changes, those of the second transformer with its name before them.
    pub fn layers(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for (variant, adapters) in &self.variants {
            let layers = adapters.iter().flat_map(|(adapter, _)| adapter.layers.keys());
            names.extend(layers.map(|name| match variant.component {
                TRANSFORMER_2 => of_second(name),
                _ => name.clone(),
            }));
        }
        names
    }

    /// The set in two: the layers of which `first` is true, and the others. Updates are shared, not copied.
    pub fn partition(&self, first: impl Fn(&str, &str) -> bool) -> (Self, Self) {
        let empty = || Self { variants: BTreeMap::new(), guided: self.guided, len: self.len };
        let (mut chosen, mut rest) = (empty(), empty());
        for (variant, adapters) in &self.variants {
            for (adapter, strength) in adapters {
                let is_first = |name: &&String| first(variant.component, name);
                if adapter.layers.keys().all(|name| !is_first(&name)) {
                    rest.push(*variant, (Arc::clone(adapter), *strength));
                    continue;
                }
                let part = |of_first: bool| {
                    let layers = adapter.layers.iter().filter(|(name, _)| is_first(name) == of_first);
                    let layers = layers.map(|(name, update)| (name.clone(), Arc::clone(update))).collect();
                    Arc::new(Adapter { name: adapter.name.clone(), layers })
                };
                chosen.push(*variant, (part(true), *strength));
                rest.push(*variant, (part(false), *strength));
            }
        }
        (chosen, rest)
    }

    fn push(&mut self, variant: Variant, (adapter, strength): Weighted) {
        if !adapter.layers.is_empty() {
            self.variants.entry(variant).or_default().push((adapter, strength));
        }
    }
}

impl<S: Into<Strength>> FromIterator<(Arc<Adapter>, S)> for AdapterSet {
    fn from_iter<I: IntoIterator<Item = (Arc<Adapter>, S)>>(adapters: I) -> Self {
        let adapters: Vec<(Arc<Adapter>, Strength)> =
            adapters.into_iter().map(|(adapter, strength)| (adapter, strength.into())).collect();
        let guided = adapters.iter().any(|(_, strength)| !strength.is_even());
        let mut set = Self { variants: BTreeMap::new(), guided, len: adapters.len() };
        for (adapter, Strength { cond, uncond }) in adapters {
            for (component, part) in [TRANSFORMER, TRANSFORMER_2].into_iter().zip(by_expert(&adapter)) {
                let Some(part) = part else { continue };
                if !guided {
                    set.push(Variant { component, branch: Branch::All }, (part, cond));
                    continue;
                }
                // Of two copies each has what it sees, and nothing else.
                for (branch, strength) in [(Branch::All, cond), (Branch::Negative, uncond)] {
                    if strength != 0.0 {
                        set.push(Variant { component, branch }, (Arc::clone(&part), strength));
                    }
                }
            }
        }
        set
    }
}

impl<S: Into<Strength> + Copy> From<&[(&Adapter, S)]> for AdapterSet {
    /// Copies names; the updates are shared.
    fn from(adapters: &[(&Adapter, S)]) -> Self {
        adapters.iter().map(|(adapter, strength)| (Arc::new((*adapter).clone()), *strength)).collect()
    }
}

impl<S: Into<Strength> + Copy, const N: usize> From<[(&Adapter, S); N]> for AdapterSet {
    fn from(adapters: [(&Adapter, S); N]) -> Self {
        Self::from(&adapters[..])
    }
}

/// Adapters as what fuses takes them.
pub fn borrowed(adapters: &[Weighted]) -> Vec<(&Adapter, f32)> {
    adapters.iter().map(|(adapter, strength)| (&**adapter, *strength)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::adapter::LowRank;

    fn adapter(name: &str, layers: &[&str]) -> Arc<Adapter> {
        let update = || LowRank { down: ndarray::array![[1.0]], up: ndarray::array![[2.0]], alpha: 1.0 }.into();
        let layers = layers.iter().map(|layer| ((*layer).to_owned(), update())).collect();
        Arc::new(Adapter { name: name.to_owned(), layers })
    }

    fn names(adapters: &[Weighted]) -> Vec<(&str, Vec<&str>, f32)> {
        let of = adapters.iter().map(|(adapter, strength)| {
            (&adapter.name[..], adapter.layers.keys().map(String::as_str).collect(), *strength)
        });
        of.collect()
    }

    #[test]
    fn set_gives_each_transformer_its_layers_and_shares_the_updates() {
        let both = adapter("both", &["a", "transformer_2.b"]);
        let first = adapter("first", &["a"]);
        let set: AdapterSet = [(Arc::clone(&both), 0.5), (Arc::clone(&first), 2.0)].into_iter().collect();
        assert_eq!(names(set.of(TRANSFORMER, Branch::All)), [("both", vec!["a"], 0.5), ("first", vec!["a"], 2.0)]);
        assert_eq!(names(set.of(TRANSFORMER_2, Branch::Negative)), [("both", vec!["b"], 0.5)]);
        assert_eq!((set.len(), set.is_guided(), set.only_component()), (2, false, None));
        assert!(Arc::ptr_eq(&set.of(TRANSFORMER_2, Branch::All)[0].0.layers["b"], &both.layers["transformer_2.b"]));
        assert!(
            Arc::ptr_eq(&set.of(TRANSFORMER, Branch::All)[1].0, &first),
            "an adapter of one transformer is shared whole"
        );
        assert_eq!(set.layers(), ["a", "transformer_2.b"].map(str::to_owned).into());
    }

    #[test]
    fn negative_prompt_sees_what_has_a_strength_there() {
        let strength = |cond, uncond| Strength { cond, uncond };
        let [a, b, c] = ["a", "b", "c"].map(|name| adapter(name, &["q"]));
        let set: AdapterSet =
            [(a, strength(1.0, 0.0)), (b, strength(0.5, 0.5)), (c, strength(0.0, 2.0))].into_iter().collect();
        assert!(set.is_guided());
        assert_eq!(names(set.of(TRANSFORMER, Branch::All)), [("a", vec!["q"], 1.0), ("b", vec!["q"], 0.5)]);
        assert_eq!(names(set.of(TRANSFORMER, Branch::Negative)), [("b", vec!["q"], 0.5), ("c", vec!["q"], 2.0)]);
        assert_eq!((set.len(), set.only_component()), (3, Some(TRANSFORMER)));
    }

    #[test]
    fn partition_parts_layers_and_keeps_what_is_whole() {
        let (mixed, linear) = (adapter("mixed", &["q", "bias"]), adapter("linear", &["q"]));
        let set: AdapterSet = [(mixed, 1.0), (Arc::clone(&linear), 1.0)].into_iter().collect();
        let (parameters, layers) = set.partition(|_, name| name == "bias");
        assert_eq!(names(parameters.of(TRANSFORMER, Branch::All)), [("mixed", vec!["bias"], 1.0)]);
        assert_eq!(names(layers.of(TRANSFORMER, Branch::All)), [("mixed", vec!["q"], 1.0), ("linear", vec!["q"], 1.0)]);
        assert!(Arc::ptr_eq(&layers.of(TRANSFORMER, Branch::All)[1].0, &linear));
        assert!(set.partition(|_, _| false).0.changes_nothing());
        assert!(AdapterSet::default().is_empty());
    }
}
