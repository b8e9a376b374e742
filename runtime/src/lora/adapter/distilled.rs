//! What the name of a distillation's file may consist of.
//!
//! Such files are called by model, size, kind, rank, type and version. A name of which every part is one of these, and one is a
//! distillation's, says a recipe. An effect's name has a word of its own, and says none.

use std::collections::BTreeSet;

/// The words of a name, all of them words that files of distillations have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    words: Vec<&'static str>,
    /// The number that stands with `steps`, 1 to 99.
    pub(super) steps: Option<usize>,
    /// True if a number is a date: year, month, and day, two digits each.
    pub(super) dated: bool,
}

/// All words, in lower case. Longer ones stand before those that they begin with.
const WORDS: &[&str] = &[
    // Distillations.
    "lightning",
    "lightx2v",
    "stepdistill",
    "cfgdistill",
    "distill",
    "cfg",
    "steps",
    "step",
    "seko",
    "moe",
    "dyno",
    "fastwan",
    "fullattn",
    "full",
    "attn",
    "fusionix",
    "fusionx",
    "causvid",
    "bidirectional",
    "bidirect",
    "autoregressive",
    "self",
    "forcing",
    "dmd2",
    "dmd",
    // Models and their kinds.
    "wan",
    "flf2v",
    "ti2v",
    "t2v",
    "i2v",
    "s2v",
    "v2v",
    "vace",
    "fun",
    "inp",
    "phantom",
    "a14b",
    "preview",
    "official",
    // Experts.
    "high",
    "low",
    "noise",
    // Forms.
    "loras",
    "lora",
    "rank",
    "resized",
    "dynamic",
    "avg",
    "adapter",
    "model",
    "weights",
    "diffusion",
    "diffusers",
    "pytorch",
    "comfyui",
    "comfy",
    "kijai",
    "native",
    "extracted",
    "adaptive",
    "quantile",
    "fixed",
    "first",
    "block",
    "no",
    // Types.
    "fp16",
    "fp32",
    "bf16",
    "fp8",
    "e4m3fn",
    "e5m2",
    "scaled",
    "f16",
    "bit",
];

/// A part of a word of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    Word(&'static str),
    Number(&'a str),
    /// What stands with a number: `14b`, `480p`, `v2`, `s2`.
    Unit,
}

impl Name {
    /// `None` if it has anything else.
    pub(super) fn of(name: &str) -> Option<Self> {
        let lower = name.to_lowercase();
        let (mut words, mut steps, mut dated) = (Vec::new(), None, false);
        let mut before = None;
        for text in lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|text| !text.is_empty()) {
            let mut parts = Vec::new();
            if !taken_apart(text, &mut parts, &mut BTreeSet::new()) {
                return None;
            }
            for (at, part) in parts.iter().enumerate() {
                // `4steps` and `4step` are a number of steps; so is `4_steps`, but `2_step_distill` is of a version 2.
                if let (Some(number), Part::Word(word @ ("step" | "steps"))) = (before, part) {
                    let joined = at > 0 && parts[at - 1] == Part::Number(number);
                    if joined || *word == "steps" {
                        steps = steps.or_else(|| number.parse().ok().filter(|steps| (1..100).contains(steps)));
                    }
                }
                before = if let Part::Number(number) = part { Some(*number) } else { None };
                dated |= before.is_some_and(is_date);
                words.extend(if let Part::Word(word) = part { Some(*word) } else { None });
            }
        }
        // A step without a number before it is one of training, but in "step distillation".
        let trained = words.iter().enumerate().any(|(at, word)| {
            matches!(*word, "step" | "steps") && steps.is_none() && words.get(at + 1) != Some(&"distill")
        });
        (!trained).then_some(Self { words, steps, dated })
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.words.contains(&word) || (word == "distill" && self.words.contains(&"stepdistill"))
    }

    pub(super) fn follow(&self, one: &str, other: &str) -> bool {
        self.words.windows(2).any(|pair| pair == [one, other])
            || self.words.iter().any(|word| *word == [one, other].concat())
    }
}

/// True for six digits that are a year, a month and a day.
fn is_date(number: &str) -> bool {
    let two = |at: usize| number.get(at..at + 2).and_then(|digits| digits.parse::<u8>().ok());
    number.len() == 6
        && two(2).is_some_and(|month| (1..=12).contains(&month))
        && two(4).is_some_and(|day| (1..=31).contains(&day))
}

/// Takes a word apart into known words and numbers; false if something is left. `failed` has the lengths of ends that cannot be taken
/// apart: each is tried once, so that a name that is made for it takes no longer than another.
fn taken_apart<'a>(text: &'a str, parts: &mut Vec<Part<'a>>, failed: &mut BTreeSet<usize>) -> bool {
    if text.is_empty() {
        return true;
    }
    if failed.contains(&text.len()) || !begun(text, parts, failed) {
        failed.insert(text.len());
        return false;
    }
    true
}

/// [`taken_apart`] of a text that is not empty, from its first word on.
fn begun<'a>(text: &'a str, parts: &mut Vec<Part<'a>>, failed: &mut BTreeSet<usize>) -> bool {
    let kept = parts.len();
    for word in WORDS {
        if let Some(rest) = text.strip_prefix(word) {
            parts.push(Part::Word(word));
            if taken_apart(rest, parts, failed) {
                return true;
            }
            parts.truncate(kept);
        }
    }
    let versions = text.strip_prefix(['v', 'r']).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if let Some(rest) = versions {
        parts.push(Part::Unit);
        if taken_apart(rest, parts, failed) {
            return true;
        }
        parts.truncate(kept);
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = text.split_at(digits);
    // Trainers number their files with zeros in front; versions, ranks, sizes and dates have none.
    if digits == 0 || digits > 8 || digits > 1 && number.starts_with('0') {
        return false;
    }
    parts.push(Part::Number(number));
    for unit in ["b", "p", ""] {
        let Some(rest) = rest.strip_prefix(unit) else { continue };
        let with = parts.len();
        parts.extend((!unit.is_empty()).then_some(Part::Unit));
        if taken_apart(rest, parts, failed) {
            return true;
        }
        parts.truncate(with);
    }
    parts.truncate(kept);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_could_be_taken_apart_in_many_ways_takes_no_time() {
        for part in ["dmd2", "fullattn", "stepdistill", "loras2v2", "steps2v2"] {
            let name = part.repeat(250 / part.len());
            assert!(Name::of(&format!("{name}x")).is_none(), "{part}");
        }
        assert!(Name::of(&"dmd2".repeat(60)).is_some());
        assert!(Name::of("").is_some_and(|name| !name.has("lightx2v")));
    }
}
