//! Shares of clips that showed what they should.

use indexmap::IndexMap;

/// For each effect, which of its clips did.
pub(crate) struct Score {
    hits: IndexMap<String, Vec<bool>>,
}

impl Score {
    /// Of clips, each with the effect that it belongs to.
    pub(crate) fn new<'a>(clips: impl Iterator<Item = (&'a String, bool)>) -> Self {
        let mut hits: IndexMap<String, Vec<bool>> = IndexMap::new();
        for (effect, hit) in clips {
            hits.entry(effect.clone()).or_default().push(hit);
        }
        Self { hits }
    }

    /// Over all clips of these effects, of those that there are.
    pub(crate) fn share(&self, effects: &[String]) -> f64 {
        let hits: Vec<bool> = effects.iter().filter_map(|e| self.hits.get(e)).flatten().copied().collect();
        hits.iter().filter(|hit| **hit).count() as f64 / hits.len() as f64
    }

    /// For each family.
    pub(crate) fn families<'a>(&self, families: &'a IndexMap<String, Vec<String>>) -> IndexMap<&'a String, f64> {
        families.iter().map(|(family, effects)| (family, self.share(effects))).collect()
    }

    /// For each effect.
    pub(crate) fn effects<'a>(&self, effects: &'a [String]) -> IndexMap<&'a String, f64> {
        effects.iter().map(|effect| (effect, self.share(std::slice::from_ref(effect)))).collect()
    }
}

/// Shares as text.
pub(crate) fn listed(shares: &IndexMap<&String, f64>) -> String {
    shares.iter().map(|(name, share)| format!("{name} {share:.2}")).collect::<Vec<_>>().join(", ")
}
