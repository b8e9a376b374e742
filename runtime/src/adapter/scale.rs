//! Where a layer's `alpha` comes from: its own key, a PEFT configuration, or nowhere.

use std::path::Path;

use serde_json::{Map, Value};

use super::AdapterError;

/// A PEFT configuration, as far as it changes what is computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScaleConfig {
    alpha: Option<f32>,
    alpha_pattern: Vec<(String, f32)>,
    rslora: bool,
}

impl ScaleConfig {
    /// Reads the object that is `adapter_config.json`, or that the header's `lora_adapter_metadata` holds once the
    /// component's prefix is gone.
    pub(super) fn new(path: &Path, config: &Map<String, Value>) -> Result<Self, AdapterError> {
        let fail = |reason: String| AdapterError::Config { path: path.to_owned(), reason };
        if let Some(kind) = config.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
            return Err(fail(format!("expected peft_type LORA, found {kind}; v2l applies plain LoRA only")));
        }
        for (key, kind) in
            [("use_dora", "DoRA"), ("fan_in_fan_out", "transposed factors"), ("lora_bias", "bias updates")]
        {
            if config.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(fail(format!("`{key}` is true: v2l does not apply {kind}")));
            }
        }
        let mut alpha_pattern = Vec::new();
        if let Some(patterns) = config.get("alpha_pattern").and_then(Value::as_object) {
            for (pattern, value) in patterns {
                let value =
                    number(value).ok_or_else(|| fail(format!("alpha_pattern `{pattern}`: {value} is no number")))?;
                let literal = literal(pattern).ok_or_else(|| {
                    fail(format!("alpha_pattern `{pattern}` is a regular expression; write module names"))
                })?;
                alpha_pattern.push((literal, value));
            }
        }
        Ok(Self {
            alpha: config.get("lora_alpha").and_then(number),
            alpha_pattern,
            rslora: config.get("use_rslora").and_then(Value::as_bool) == Some(true),
        })
    }

    /// `alpha` of a module, such that its scale is `alpha / rank`; `None` if the configuration does not say.
    pub(super) fn alpha(&self, module: &str, rank: usize) -> Option<f32> {
        let pattern = self.alpha_pattern.iter().find(|(pattern, _)| names(pattern, module));
        let alpha = pattern.map(|&(_, alpha)| alpha).or(self.alpha)?;
        // Rank-stabilised LoRA scales by alpha / √rank.
        Some(if self.rslora { alpha * (rank as f32).sqrt() } else { alpha })
    }
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
}

/// A pattern that only spells a module name, without its escapes; a leading `^` stays. `None` for other expressions.
fn literal(pattern: &str) -> Option<String> {
    let text = pattern.strip_suffix('$').unwrap_or(pattern).replace("\\.", ".");
    let name = text.strip_prefix('^').unwrap_or(&text);
    name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')).then_some(text)
}

/// PEFT's rule: the pattern is the module's name or the end of it, from a dot on.
fn names(pattern: &str, module: &str) -> bool {
    match pattern.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
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
            config(&json!({"lora_alpha": 8, "alpha_pattern": {"to_q": 2, "^a.to_k": 3, "b\\.to_v": 5}})).unwrap();
        let alpha = |module| config.alpha(module, 4).unwrap();
        assert_eq!([alpha("a.to_q"), alpha("a.not_to_q"), alpha("a.to_k"), alpha("b.a.to_k")], [2.0, 8.0, 3.0, 8.0]);
        assert_eq!(alpha("b.to_v"), 5.0);
    }

    #[test]
    fn scale_config_with_rslora_divides_by_the_root_of_the_rank() {
        let config = config(&json!({"lora_alpha": 8, "use_rslora": true})).unwrap();
        assert_eq!(config.alpha("a", 16).unwrap() / 16.0, 8.0 / 4.0);
    }

    #[test]
    fn scale_config_refuses_what_would_change_the_result() {
        for (value, word) in [
            (json!({"use_dora": true}), "DoRA"),
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"alpha_pattern": {"to_[qk]": 2}}), "regular expression"),
        ] {
            let error = config(&value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
