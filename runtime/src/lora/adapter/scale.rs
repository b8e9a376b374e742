//! What a PEFT configuration says of a layer's rank and `alpha`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::AdapterError;
use crate::io::wrappers::unwrapped_module;

/// A PEFT configuration, as far as it changes what is computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScaleConfig {
    rank: Option<usize>,
    /// `None` if a pattern is no module's name.
    rank_pattern: Option<Patterns<usize>>,
    alpha: f32,
    alpha_pattern: Patterns<f32>,
    /// Alpha is divided by the root of the rank.
    pub(super) rslora: bool,
}

/// `lora_alpha` where a configuration leaves it out, as in PEFT's `LoraConfig`.
const DEFAULT_ALPHA: f32 = 8.0;
/// Each that is not a whole name is compared with every module.
const MAX_PATTERNS: usize = 4096;

/// Entries that change what an adapter computes if they are true, or there at all.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("use_dora", "DoRA"),
    ("fan_in_fan_out", "transposed factors"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("kasa_config", "KaSA"),
    ("arrow_config", "Arrow routing"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("layer_replication", "replicated layers"),
    ("trainable_token_indices", "trained tokens"),
];

/// Starts of `init_lora_weights` that change the base weights: the factors then belong to other weights than the model's.
const CHANGED_BASES: [&str; 5] = ["pissa", "corda", "olora", "loftq", "lora_ga"];

impl ScaleConfig {
    /// Reads the object that is `adapter_config.json`, or that the header's `lora_adapter_metadata` holds once the
    /// component's prefix is gone.
    pub(super) fn new(path: &Path, config: &Map<String, Value>) -> Result<Self, AdapterError> {
        let fail = |reason: String| AdapterError::Config { path: path.to_owned(), reason };
        if let Some(kind) = config.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
            return Err(fail(format!("expected peft_type LORA, found {kind}; v2l applies plain LoRA only")));
        }
        for (key, kind) in UNSUPPORTED {
            if config.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false))) {
                return Err(fail(format!("`{key}` is set: v2l does not apply {kind}")));
            }
        }
        let init = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        if CHANGED_BASES.iter().any(|start| init.starts_with(start)) {
            return Err(fail(format!(
                "init_lora_weights is `{init}`, which changes the base weights too; save the adapter with \
                 `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it"
            )));
        }
        let patterns = |key: &str| config.get(key).and_then(Value::as_object).into_iter().flatten();
        let rank_pattern = patterns("rank_pattern")
            .map(|(pattern, value)| {
                let rank =
                    whole(value).ok_or_else(|| fail(format!("rank_pattern `{pattern}`: {value} is not a rank")))?;
                Ok(Pattern::new(pattern).map(|pattern| (pattern, rank)))
            })
            .collect::<Result<Option<Vec<_>>, AdapterError>>()?
            .map(Patterns::new);
        let mut alpha_pattern = Vec::new();
        for (pattern, value) in patterns("alpha_pattern") {
            let value =
                number(value).ok_or_else(|| fail(format!("alpha_pattern `{pattern}`: {value} is not a number")))?;
            let pattern = Pattern::new(pattern).ok_or_else(|| {
                fail(format!("alpha_pattern `{pattern}` is a regular expression; write module names"))
            })?;
            alpha_pattern.push((pattern, value));
        }
        let alpha_pattern = Patterns::new(alpha_pattern);
        let alpha = match config.get("lora_alpha") {
            // PEFT's own default.
            None => DEFAULT_ALPHA,
            Some(value) => number(value).ok_or_else(|| fail(format!("lora_alpha: {value} is not a number")))?,
        };
        let rank_ends = rank_pattern.as_ref().map_or(0, |patterns: &Patterns<usize>| patterns.ends.len());
        if alpha_pattern.ends.len().max(rank_ends) > MAX_PATTERNS {
            return Err(fail(format!("more than {MAX_PATTERNS} patterns; write fewer, each for several modules")));
        }
        let rank = match config.get("r") {
            None | Some(Value::Null) => None,
            Some(value) => Some(whole(value).ok_or_else(|| fail(format!("r: {value} is not a rank")))?),
        };
        Ok(Self {
            rank,
            rank_pattern,
            alpha,
            alpha_pattern,
            rslora: config.get("use_rslora").and_then(Value::as_bool) == Some(true),
        })
    }

    /// The rank that a module's factors must have; `None` if the configuration does not say, or in patterns that are not read.
    pub(super) fn rank(&self, module: &str) -> Option<usize> {
        self.rank_pattern.as_ref()?.get(module).or(self.rank)
    }

    /// `alpha` of a module, such that its scale is `alpha / rank`.
    pub(super) fn alpha(&self, module: &str, rank: usize) -> f32 {
        let alpha = self.alpha_pattern.get(module).unwrap_or(self.alpha);
        // Rank-stabilised LoRA scales by alpha / √rank.
        if self.rslora { alpha * (rank as f32).sqrt() } else { alpha }
    }
}

/// A rank; Python writes some as `16.0`.
fn whole(value: &Value) -> Option<usize> {
    let rounded = || value.as_f64().filter(|v| v.fract() == 0.0 && (0.0..1e9).contains(v)).map(|v| v as u64);
    value.as_u64().or_else(rounded).and_then(|rank| usize::try_from(rank).ok())
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// A pattern that only spells a module name, or the end of one.
#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    name: String,
    /// The name is the whole module's.
    whole: bool,
}

impl Pattern {
    /// `None` for other expressions. A dot stands for itself, escaped or not.
    fn new(text: &str) -> Option<Self> {
        let anchored = text.strip_prefix('^');
        let (mut name, mut escaped) = (String::new(), false);
        let text = anchored.unwrap_or(text);
        for (at, c) in text.char_indices() {
            match c {
                _ if escaped => {
                    // A letter or digit behind it would be a class or a reference.
                    if c.is_alphanumeric() {
                        return None;
                    }
                    name.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '$' if at + 1 == text.len() => {}
                '[' | ']' | '(' | ')' | '{' | '}' | '*' | '+' | '?' | '|' | '^' | '$' => return None,
                _ => name.push(c),
            }
        }
        (!escaped).then_some(Self { name, whole: anchored.is_some() })
    }

    /// PEFT's rule: the pattern is the module's name or the end of it, from a dot on.
    fn names(&self, module: &str) -> bool {
        match self.whole {
            true => module == self.name,
            false => module.strip_suffix(&self.name[..]).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        }
    }
}

/// The pattern that names this module and no other.
pub(super) fn pattern_of(module: &str) -> String {
    let mut text = String::from("^");
    for c in module.chars() {
        if !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// Patterns with what they say, those of whole names found at once.
#[derive(Clone, Debug, PartialEq)]
struct Patterns<T> {
    whole: HashMap<String, (usize, T)>,
    ends: Vec<(usize, Pattern, T)>,
}

impl<T: Copy> Patterns<T> {
    fn new(patterns: Vec<(Pattern, T)>) -> Self {
        let (mut whole, mut ends) = (HashMap::new(), Vec::new());
        for (at, (pattern, value)) in patterns.into_iter().enumerate() {
            // Modules are asked for without the words of wrappers, too.
            let plain = unwrapped_module(&pattern.name).into_owned();
            let plain = (plain != pattern.name).then_some(Pattern { name: plain, whole: pattern.whole });
            for pattern in [Some(pattern), plain].into_iter().flatten() {
                if pattern.whole {
                    whole.entry(pattern.name).or_insert((at, value));
                } else {
                    ends.push((at, pattern, value));
                }
            }
        }
        Self { whole, ends }
    }

    /// What the first pattern that names `module` says.
    fn get(&self, module: &str) -> Option<T> {
        let whole = self.whole.get(module).copied();
        let end = self.ends.iter().find(|(_, pattern, _)| pattern.names(module)).map(|&(at, _, value)| (at, value));
        whole.into_iter().chain(end).min_by_key(|(at, _)| *at).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: &Value) -> Result<ScaleConfig, AdapterError> {
        ScaleConfig::new(Path::new("adapter_config.json"), value.as_object().unwrap())
    }

    #[test]
    fn scale_config_prefers_a_pattern_that_ends_the_module_name() {
        let config =
            self::config(&json!({"lora_alpha": 8, "alpha_pattern": {"to_q": 2, "^a.to_k": 3, "b\\.to_v": 5}})).unwrap();
        let alpha = |module| config.alpha(module, 4);
        assert_eq!([alpha("a.to_q"), alpha("a.not_to_q"), alpha("a.to_k"), alpha("b.a.to_k")], [2.0, 8.0, 3.0, 8.0]);
        assert_eq!(alpha("b.to_v"), 5.0);
        let wrapped = self::config(&json!({"alpha_pattern": {"^a._orig_mod.to_k": 3, "module.b.to_v": 5}})).unwrap();
        let alpha = |module| wrapped.alpha(module, 4);
        assert_eq!(
            [alpha("a.to_k"), alpha("a._orig_mod.to_k"), alpha("c.b.to_v"), alpha("to_k")],
            [3.0, 3.0, 5.0, 8.0]
        );
    }

    #[test]
    fn pattern_of_a_module_names_it_and_nothing_else_whatever_its_characters() {
        for module in ["a.b", "qkv[8..16]", "a (1)+?", "^a$", "a\\b", "\u{e4}.{x|y}*"] {
            let pattern = Pattern::new(&pattern_of(module)).unwrap_or_else(|| panic!("{module}"));
            assert!(pattern.names(module) && !pattern.names(&format!("c.{module}")), "{module}");
        }
        for expression in ["a[8..16]", "\\d", "a\\", "a|b", "a$b"] {
            assert_eq!(Pattern::new(expression), None, "{expression}");
        }
    }

    #[test]
    fn scale_config_says_the_rank_unless_a_pattern_is_an_expression() {
        let plain =
            config(&json!({"r": 4, "rank_pattern": {"to_v": 1}, "use_dora": false, "kasa_config": null})).unwrap();
        assert_eq!((plain.rank("a.to_v"), plain.rank("a.to_q")), (Some(1), Some(4)));
        let expression = config(&json!({"r": 4, "rank_pattern": {"to_[vk]": 1}})).unwrap();
        assert_eq!(expression.rank("a.to_q"), None);
    }

    #[test]
    fn scale_config_with_rslora_divides_by_the_root_of_the_rank() {
        let config = config(&json!({"lora_alpha": 8, "use_rslora": true})).unwrap();
        assert_eq!(config.alpha("a", 16) / 16.0, 8.0 / 4.0);
    }

    #[test]
    fn scale_config_without_alpha_has_the_default_of_peft() {
        assert_eq!(config(&json!({"r": 4})).unwrap().alpha("a", 4), 8.0);
    }

    #[test]
    fn scale_config_refuses_what_would_change_the_result() {
        for (value, word) in [
            (json!({"use_dora": true}), "DoRA"),
            (json!({"layer_replication": [[0, 4]]}), "replicated layers"),
            (json!({"init_lora_weights": "pissa_niter_16"}), "changes the base weights"),
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"alpha_pattern": {"to_[qk]": 2}}), "regular expression"),
            (json!({"lora_alpha": "16"}), "not a number"),
            (json!({"lora_alpha": "NaN"}), "lora_alpha: \"NaN\" is not a number"),
            (json!({"r": "Infinity"}), "r: \"Infinity\" is not a rank"),
            (json!({"rank_pattern": {"to_q": "NaN"}}), "rank_pattern `to_q`"),
        ] {
            let error = config(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
