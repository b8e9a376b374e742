//! Adapters of models with two transformers, of which one makes the first steps, of high noise, and the other those of low noise.
//!
//! In memory, layers of the second transformer are called `transformer_2.<slot>`, those of the first `<slot>`.

use std::borrow::Cow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Serialize;

use super::Adapter;
use crate::components::{TRANSFORMER, TRANSFORMER_2};
use crate::io::wrappers::unwrapped;

/// What stands before layers and keys of the second transformer.
const SECOND: &str = "transformer_2.";
/// What diffusers puts before keys of the first.
const FIRST: &str = "transformer.";

/// The transformers that an adapter changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Experts {
    /// `transformer`, which makes the first steps.
    High,
    /// `transformer_2`, which makes the last.
    Low,
    /// Both.
    Both,
}

impl Experts {
    /// True if the component is one of them.
    pub fn include(self, component: &str) -> bool {
        match self {
            Self::High => component == TRANSFORMER,
            Self::Low => component == TRANSFORMER_2,
            Self::Both => component == TRANSFORMER || component == TRANSFORMER_2,
        }
    }

    /// The components, in words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::High => "transformer (high noise)",
            Self::Low => "transformer_2 (low noise)",
            Self::Both => "transformer and transformer_2",
        }
    }
}

impl FromStr for Experts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "high" => Ok(Self::High),
            "low" => Ok(Self::Low),
            "both" => Ok(Self::Both),
            _ => Err(format!("expected high, low or both, found `{text}`")),
        }
    }
}

/// Which transformers a file was read for, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// The transformers.
    pub experts: Experts,
    /// Why these, in words.
    pub reason: String,
}

/// What a file's name says of the transformers that it is for: the words `high noise`, however they are joined (`high_noise`,
/// `HighNoise`, `highnoise`), `HIGH` or a `high` at the end. Parts of other words (`flow_noise`, `thighs`) say nothing. A file that is
/// called as every other has its folder's name.
pub fn experts_by_name(path: &Path) -> Option<Experts> {
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    let common = ["adapter_model", "pytorch_lora_weights", "diffusion_pytorch_model", "model", "lora"];
    let stem = match path.parent().and_then(Path::file_name) {
        Some(folder) if common.contains(&&stem[..]) => folder.to_string_lossy().into_owned(),
        _ => stem,
    };
    let words = words(&stem);
    let says = |word: &str| {
        let joined = format!("{word}noise");
        let noise =
            words.windows(2).any(|pair| pair[0].eq_ignore_ascii_case(word) && pair[1].eq_ignore_ascii_case("noise"));
        noise
            || words.iter().any(|found| found.eq_ignore_ascii_case(&joined) || *found == word.to_uppercase())
            || words.last().is_some_and(|last| last.eq_ignore_ascii_case(word))
    };
    match (says("high"), says("low")) {
        (true, false) => Some(Experts::High),
        (false, true) => Some(Experts::Low),
        _ => None,
    }
}

/// The words of a name. One ends at what is neither a letter nor a digit, where letters follow digits or digits letters, and where a
/// capital follows a small letter.
fn words(name: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for part in name.split(|c: char| !c.is_alphanumeric()) {
        let (mut before, mut at) = (None::<char>, 0);
        for (index, c) in part.char_indices() {
            let ends = before
                .is_some_and(|b| b.is_ascii_digit() != c.is_ascii_digit() || b.is_lowercase() && c.is_uppercase());
            if ends {
                words.push(&part[at..index]);
                at = index;
            }
            before = Some(c);
        }
        words.extend(Some(&part[at..]).filter(|rest| !rest.is_empty()));
    }
    words
}

/// What of an adapter is for the first and for the second transformer, each under the names of that transformer's slots. Updates are
/// shared; an adapter for the first alone is shared whole.
pub(crate) fn by_expert(adapter: &Arc<Adapter>) -> [Option<Arc<Adapter>>; 2] {
    if !adapter.layers.keys().any(|name| is_second(name)) {
        return [Some(Arc::clone(adapter)), None];
    }
    let mut layers = [IndexMap::new(), IndexMap::new()];
    for (name, update) in &adapter.layers {
        match name.strip_prefix(SECOND) {
            Some(slot) => layers[1].insert(slot.to_owned(), Arc::clone(update)),
            None => layers[0].insert(name.clone(), Arc::clone(update)),
        };
    }
    let part = |layers| Arc::new(Adapter { name: adapter.name.clone(), layers });
    layers.map(|layers: IndexMap<_, _>| (!layers.is_empty()).then(|| part(layers)))
}

/// The name that a slot of the second transformer has among those of both.
pub(crate) fn of_second(slot: &str) -> String {
    format!("{SECOND}{slot}")
}

/// The name of a layer among the slots of its own transformer.
pub(super) fn slot_of(layer: &str) -> &str {
    layer.strip_prefix(SECOND).unwrap_or(layer)
}

/// True for the name of a layer of the second transformer.
pub(super) fn is_second(layer: &str) -> bool {
    layer.starts_with(SECOND)
}

/// How a file's keys are read for one transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    second: bool,
    /// The file's keys say which transformer each is for.
    by_key: bool,
}

impl Route {
    /// A model with one transformer.
    pub(super) const ONLY: Self = Self { second: false, by_key: false };

    /// A key as if the file were for this transformer alone, or why it is not for it.
    pub(super) fn spelled<'k>(self, key: &'k str) -> Result<Cow<'k, str>, &'static str> {
        let plain = unwrapped(key);
        let second = key.strip_prefix(SECOND).or_else(|| plain.strip_prefix(SECOND));
        match (self.by_key, second) {
            (true, Some(rest)) if self.second => Ok(Cow::Owned(format!("{FIRST}{rest}"))),
            (true, Some(_)) => Err("it is for `transformer_2`"),
            (true, None) if self.second => Err("it is for `transformer`"),
            _ => Ok(Cow::Borrowed(key)),
        }
    }

    /// What stands before the component's entries of diffusers' metadata.
    pub(super) const fn metadata(self) -> &'static [&'static str] {
        if self.second && self.by_key { &[SECOND] } else { &[FIRST, "unet."] }
    }
}

/// Which transformers a file is for, with these keys and at this path: those that are asked for; else those that its keys name, where
/// some begin with `transformer_2.`; else that which its name says; else `transformer` where its keys begin with that, as diffusers has
/// it; else both. Also how its keys are read for each.
pub(super) fn place(path: &Path, keys: &[String], asked: Option<Experts>) -> (Placed, Vec<Route>) {
    let by_key = keys.iter().any(|key| is_second(&unwrapped(key)));
    let (experts, reason) = match (asked, experts_by_name(path)) {
        (Some(experts), _) => (experts, "asked for"),
        (None, _) if by_key => {
            let all = keys.iter().all(|key| is_second(&unwrapped(key)));
            (if all { Experts::Low } else { Experts::Both }, "its keys say so")
        }
        (None, Some(experts)) => (experts, "its name says so"),
        (None, None) if keys.iter().any(|key| unwrapped(key).starts_with(FIRST)) => {
            (Experts::High, "its keys begin with `transformer.`; FILE@both or FILE@low says otherwise")
        }
        (None, None) => (Experts::Both, "neither its name nor its keys say which"),
    };
    let included = [TRANSFORMER, TRANSFORMER_2].into_iter().filter(|component| experts.include(component));
    let routes = included.map(|component| Route { second: component == TRANSFORMER_2, by_key }).collect();
    (Placed { experts, reason: reason.to_owned() }, routes)
}

impl Route {
    /// Which of the two transformers it is for, from 0.
    pub(super) fn index(self) -> usize {
        usize::from(self.second)
    }

    /// The name that a slot has among those of all transformers.
    pub(super) fn name(self, slot: String) -> String {
        if self.second { of_second(&slot) } else { slot }
    }

    /// The name of a slot among those of this transformer.
    pub(super) fn own(self, name: String) -> String {
        match name.strip_prefix(SECOND) {
            Some(slot) if self.second => slot.to_owned(),
            _ => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_says_the_expert_only_where_it_says_one() {
        let by = |name: &str| experts_by_name(Path::new(name));
        for name in [
            "effect_HighNoise.safetensors",
            "a/high_noise_model.safetensors",
            "Wan2.2-high-noise-v1.safetensors",
            "wan22-14b-HIGH-r64.safetensors",
            "effect_high.safetensors",
            "high_noise/adapter_model.safetensors",
            "Wan22HighNoise_r64.safetensors",
            "WAN22-HIGHNOISE-4.safetensors",
            "HIGH_flow_noise.safetensors",
        ] {
            assert_eq!(by(name), Some(Experts::High), "{name}");
        }
        for name in
            ["wan2.2_i2v_lownoise_4steps.safetensors", "effect_low.safetensors", "a/Wan22 low noise.safetensors"]
        {
            assert_eq!(by(name), Some(Experts::Low), "{name}");
        }
        for name in [
            "high_quality.safetensors",
            "slow.safetensors",
            "high_noise_and_low_noise.safetensors",
            "b.safetensors",
            // Parts of words.
            "flow_noise.safetensors",
            "FlowNoise.safetensors",
            "flownoise_14b.safetensors",
            "glow-noise-v2.safetensors",
            "yellow_noise.safetensors",
            "slow_noise/adapter_model.safetensors",
            "thigh_noise.safetensors",
            "lowland_noise.safetensors",
            "low_noisy_film.safetensors",
            "highnoises.safetensors",
            "SHALLOW_water.safetensors",
            "HIGHWAY_drive.safetensors",
            "thigh.safetensors",
            "overflow.safetensors",
        ] {
            assert_eq!(by(name), None, "{name}");
        }
    }
}
