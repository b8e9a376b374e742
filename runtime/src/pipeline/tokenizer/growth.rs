//! How long a tokenizer may make a text: a few bytes of `tokenizer.json` can describe steps that double it dozens of times.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// Bytes that a text may take in the tokenizer; 65 536 tokens are the most that are used of it.
pub(super) const MAX_TEXT: usize = 4 << 20;
/// How often its steps before and after the model may repeat a text.
const MAX_REPEATS: usize = 16;
/// The most that a step of Unicode's makes of a byte: U+FDFA becomes 18 characters.
const UNICODE: usize = 12;

/// The part of a `tokenizer.json` that can make texts longer.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Option<NormalizerWrapper>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    post_processor: Option<PostProcessorWrapper>,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    normalized: bool,
}

/// What bounds the growth of texts in a tokenizer.
pub(super) struct Growth {
    steps: Vec<Step>,
    /// Texts that are cut out of others, which are then normalized in parts.
    added: Vec<String>,
}

struct Step {
    normalizer: NormalizerWrapper,
    /// Bytes of the result for each byte.
    factor: usize,
    /// Bytes put before each part.
    prefix: usize,
}

impl Growth {
    /// Reads what matters of a `tokenizer.json`, before the tokenizer itself is made of it.
    ///
    /// # Errors
    /// What is wrong, in words: no such file, or steps that may make a text too long.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let parts: Parts = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let mut steps = Vec::new();
        if let Some(normalizer) = parts.normalizer {
            flatten(normalizer, &mut steps)?;
        }
        let repeats = |value: Result<Value, serde_json::Error>, count: fn(&Value) -> usize, what: &str| {
            let value = value.map_err(|e| e.to_string())?;
            match count(&value) {
                0..=MAX_REPEATS => Ok(()),
                _ => Err(format!("its {what} repeats a text more than {MAX_REPEATS} times; {WAY_OUT}")),
            }
        };
        if let Some(step) = &parts.pre_tokenizer {
            repeats(serde_json::to_value(step), before_model, "pre_tokenizer")?;
        }
        if let Some(step) = &parts.post_processor {
            repeats(serde_json::to_value(step), after_model, "post_processor")?;
        }
        let growth = Self { steps, added: parts.added_tokens.iter().map(|token| token.content.clone()).collect() };
        let mut total = 0;
        for token in parts.added_tokens.iter().filter(|token| token.normalized) {
            let length = growth.after(&token.content, 1);
            total = length.and_then(|length| length.checked_add(total)).filter(|total| *total <= MAX_TEXT).ok_or_else(
                || format!("its normalizer makes more than {MAX_TEXT} bytes of its added tokens; {WAY_OUT}"),
            )?;
        }
        Ok(growth)
    }

    /// True if the tokenizer makes at most [`MAX_TEXT`] bytes of `text`; looked at step by step, so that no step is taken that might
    /// make more.
    pub(super) fn bears(&self, text: &str) -> bool {
        let cuts = self.added.iter().filter(|token| !token.is_empty()).map(|token| text.matches(&token[..]).count());
        self.after(text, cuts.fold(1, usize::saturating_add)).is_some()
    }

    /// The bytes that the normalizer makes of a text in so many parts; `None` beyond [`MAX_TEXT`].
    fn after(&self, text: &str, parts: usize) -> Option<usize> {
        let mut text = text.to_owned();
        let mut length = text.len();
        for step in &self.steps {
            length = text.len().checked_mul(step.factor)?.checked_add(step.prefix.checked_mul(parts)?)?;
            if length > MAX_TEXT {
                return None;
            }
            let mut normalized = NormalizedString::from(text);
            // What fails here fails in the tokenizer, too, and is reported there.
            let _ = step.normalizer.normalize(&mut normalized);
            text = normalized.get().to_owned();
        }
        (length.max(text.len()) <= MAX_TEXT).then_some(text.len())
    }
}

const WAY_OUT: &str = "export the model again, or take the tokenizer.json of its authors";

/// The steps of a normalizer, one after the other.
fn flatten(normalizer: NormalizerWrapper, steps: &mut Vec<Step>) -> Result<(), String> {
    let (factor, prefix) = match &normalizer {
        NormalizerWrapper::Sequence(sequence) => {
            return sequence.as_ref().iter().try_for_each(|step| flatten(step.clone(), steps));
        }
        NormalizerWrapper::StripNormalizer(_) | NormalizerWrapper::StripAccents(_) | NormalizerWrapper::Nmt(_) => {
            (1, 0)
        }
        NormalizerWrapper::Replace(step) => (step.content.len() + 1, step.content.len()),
        NormalizerWrapper::Prepend(step) => (1, step.prepend.len()),
        NormalizerWrapper::ByteLevel(_) => (2, 0),
        NormalizerWrapper::Lowercase(_) => (3, 0),
        NormalizerWrapper::Precompiled(step) => {
            let value = serde_json::to_value(step).map_err(|e| e.to_string())?;
            (longest_replacement(value["precompiled_charsmap"].as_str().unwrap_or_default())?, 0)
        }
        NormalizerWrapper::BertNormalizer(_)
        | NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_) => (UNICODE, 0),
    };
    steps.push(Step { normalizer, factor, prefix });
    Ok(())
}

/// Bytes of the longest text that a map of sentencepiece has for a character; at least 1.
///
/// The map is the length of a trie (u32), the trie, and the texts, each with a NUL at its end.
fn longest_replacement(charsmap: &str) -> Result<usize, String> {
    let bytes = STANDARD.decode(charsmap).map_err(|e| format!("precompiled_charsmap: {e}"))?;
    let damaged = || "precompiled_charsmap is too short".to_owned();
    let (length, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
    let texts = rest.get(u32::from_le_bytes(*length) as usize..).ok_or_else(damaged)?;
    Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// How often the steps before the model repeat a text, at most.
fn before_model(step: &Value) -> usize {
    let nested = step["pretokenizers"].as_array().into_iter().flatten().map(before_model);
    let own = match step["type"].as_str() {
        // Two bytes for one that is not ASCII; a character of three for a space.
        Some("ByteLevel") => 2,
        Some("Metaspace") => 3,
        _ => 1,
    };
    nested.fold(own, usize::saturating_mul)
}

/// How often the steps after the model repeat a text.
fn after_model(step: &Value) -> usize {
    let nested = step["processors"].as_array().into_iter().flatten().map(after_model);
    let pieces = step["single"].as_array().into_iter().flatten();
    let own = pieces.filter(|piece| piece.get("Sequence").is_some()).count().max(1);
    nested.fold(own, usize::saturating_mul)
}
