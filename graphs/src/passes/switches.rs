//! Which passes run.

use std::collections::BTreeSet;
use std::str::FromStr;

/// A pass that can be switched off. All of them keep what a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Pass {
    /// [`fold_weight_layout`](super::fold_weight_layout).
    WeightLayout,
    /// [`fold_shapes`](super::fold_shapes).
    Shapes,
    /// [`fold_constants`](super::fold_constants).
    Constants,
    /// [`merge_duplicates`](super::merge_duplicates).
    Duplicates,
    /// Rotations of pairs as one operator, in [`lower_for_ort`](super::lower_for_ort).
    Rotary,
    /// Attention as one operator, in [`lower_for_ort`](super::lower_for_ort).
    Attention,
    /// Scale and shift behind a layer norm as the norm's own, in [`lower_for_ort`](super::lower_for_ort).
    ModulatedNorm,
    /// What stays the same over the steps of one generation, in a graph of its own: [`precompute`](super::precompute).
    Precompute,
    /// What depends on the timestep only, in a graph of its own: [`precompute`](super::precompute).
    TimestepRows,
}

impl Pass {
    /// All passes, in the order in which they run.
    pub const ALL: [Self; 9] = [
        Self::WeightLayout,
        Self::Shapes,
        Self::Constants,
        Self::Duplicates,
        Self::Rotary,
        Self::Attention,
        Self::ModulatedNorm,
        Self::Precompute,
        Self::TimestepRows,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WeightLayout => "weight-layout",
            Self::Shapes => "shapes",
            Self::Constants => "constants",
            Self::Duplicates => "duplicates",
            Self::Rotary => "rotary",
            Self::Attention => "attention",
            Self::ModulatedNorm => "modulated-norm",
            Self::Precompute => "prologue",
            Self::TimestepRows => "timestep-tables",
        }
    }
}

impl FromStr for Pass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|pass| pass.name() == text)
            .ok_or_else(|| format!("expected one of {}, found `{text}`", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A choice of passes; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    off: BTreeSet<Pass>,
}

impl Passes {
    /// All passes but these.
    pub fn without(off: impl IntoIterator<Item = Pass>) -> Self {
        Self { off: off.into_iter().collect() }
    }

    /// True if `pass` runs.
    pub fn has(&self, pass: Pass) -> bool {
        !self.off.contains(&pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_names_are_distinct_and_read_back() {
        for pass in Pass::ALL {
            assert_eq!(pass.name().parse(), Ok(pass));
        }
        let error = "atention".parse::<Pass>().unwrap_err();
        assert!(error.contains("attention") && error.contains("`atention`"), "{error}");
    }

    #[test]
    fn passes_without_one_have_the_others() {
        let passes = Passes::without([Pass::Rotary]);
        assert!(!passes.has(Pass::Rotary) && passes.has(Pass::Attention) && Passes::default().has(Pass::Rotary));
    }
}
