//! Prompts to token ids, through a `tokenizer.json`.

use tokenizers::Tokenizer;

use self::growth::{Growth, MAX_TEXT};

use crate::error::{Classified, ErrorClass};

mod growth;

/// Largest `tokenizer.json` or `spiece.model` that is read, in bytes; vocabularies of 256 000 pieces take 35 MB and 5 MB.
pub const MAX_FILE: u64 = 64 << 20;

/// Why a prompt has no ids.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file cannot be used.
    #[error("tokenizer.json: {0}")]
    File(String),
    /// The text cannot be encoded.
    #[error("tokenizing {text:?}: {message}")]
    Encode {
        /// The text.
        text: String,
        /// The tokenizer's words.
        message: String,
    },
    /// The text, or what the tokenizer's steps might make of it, has no end in sight.
    #[error("a text of {0} bytes may take more than {MAX_TEXT} bytes in the tokenizer; give a shorter one")]
    TooLong(usize),
    /// No room for a token and the end marker.
    #[error("max_length is {0}, expected 2 to 65536")]
    MaxLength(usize),
}

impl Classified for TokenizerError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::File(_) => ErrorClass::BadModel,
            _ => ErrorClass::Usage,
        }
    }
}

/// The ids of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Exactly `max_length` ids.
    pub ids: Vec<i64>,
    /// How many of them are the text's, the end marker included; the others are padding.
    pub used: usize,
    /// How many tokens of the text did not fit, if any.
    pub truncated: Option<usize>,
    /// False if all of the text is unknown to the tokenizer, or spaces to it.
    pub known: bool,
}

/// A tokenizer that pads and truncates as `T5Tokenizer` does with `padding="max_length", truncation=True`.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    growth: Growth,
    max_length: usize,
    pad_id: u32,
    /// The id of what the vocabulary lacks.
    unknown_id: Option<u32>,
}

/// A character that no vocabulary has, of a private plane.
const NOWHERE: &str = "\u{10FFFD}";

/// The id that a tokenizer gives to [`NOWHERE`]. It has no name that is the same in all files.
/// `None` if the tokenizer spells such a character byte by byte.
fn unknown_id(tokenizer: &Tokenizer) -> Option<u32> {
    match tokenizer.encode_fast(NOWHERE, false).ok()?.get_ids() {
        // Behind the mark of a word's beginning, if the tokenizer writes one.
        &[id] | &[_, id] => Some(id),
        _ => None,
    }
}

impl TextTokenizer {
    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// Its own truncation and padding are replaced by `max_length` (tokens, the end marker included) and `pad_id`; with
    /// `None` the file's padding id is used, else that of `<pad>`, else 0. Added and special tokens keep their meaning.
    ///
    /// # Errors
    /// [`TokenizerError::File`] if the bytes are no tokenizer, [`TokenizerError::MaxLength`] for a length below 2 or
    /// above 65 536.
    pub fn from_bytes(bytes: &[u8], max_length: usize, pad_id: Option<u32>) -> Result<Self, TokenizerError> {
        if !(2..=65_536).contains(&max_length) {
            return Err(TokenizerError::MaxLength(max_length));
        }
        let growth = Growth::read(bytes).map_err(TokenizerError::File)?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::File(e.to_string()))?;
        let pad_id = pad_id
            .or_else(|| tokenizer.get_padding().map(|p| p.pad_id))
            .or_else(|| tokenizer.token_to_id("<pad>"))
            .unwrap_or(0);
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| TokenizerError::File(e.to_string()))?;
        // A hostile file makes gigabytes even of one character.
        let unknown_id = growth.bears(NOWHERE).then(|| unknown_id(&tokenizer)).flatten();
        Ok(Self { tokenizer, growth, max_length, pad_id, unknown_id })
    }

    /// Number of ids per prompt.
    pub const fn max_length(&self) -> usize {
        self.max_length
    }

    /// The ids of `text`: special tokens added, cut before the end marker, padded at the end.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`] for megabytes of text, [`TokenizerError::Encode`] if the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Tokens, TokenizerError> {
        if !self.growth.bears(text) {
            return Err(TokenizerError::TooLong(text.len()));
        }
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|e| TokenizerError::Encode { text: text.to_owned(), message: e.to_string() })?;
        let mut tokens = encoding.get_ids().iter().zip(encoding.get_special_tokens_mask());
        // The encoding itself holds no texts: `encode_fast` leaves them out.
        let known = tokens.any(|(id, special)| {
            let has_text =
                |token: String| !token.trim_matches(|c: char| c == '\u{2581}' || c.is_whitespace()).is_empty();
            *special == 0 && Some(*id) != self.unknown_id && self.tokenizer.id_to_token(*id).is_some_and(has_text)
        });
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let surplus = ids.len().saturating_sub(self.max_length);
        if surplus > 0 {
            // The last id is the end marker: it stays, what precedes it goes.
            let end = ids.len() - 1;
            ids.drain(end - surplus..end);
        }
        let used = ids.len();
        ids.resize(self.max_length, i64::from(self.pad_id));
        Ok(Tokens { ids, used, truncated: (surplus > 0).then_some(surplus), known })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizer");

    fn tokenizer(max_length: usize) -> TextTokenizer {
        let bytes = std::fs::read(format!("{DIRECTORY}/tokenizer.json")).unwrap();
        TextTokenizer::from_bytes(&bytes, max_length, None).unwrap()
    }

    #[test]
    fn golden_texts_give_the_ids_of_transformers() {
        let tokenizer = tokenizer(2048);
        let cases: Value =
            serde_json::from_str(&std::fs::read_to_string(format!("{DIRECTORY}/cases.json")).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let expected = case.get("hf_ids").unwrap_or(&case["ids"]).as_array().unwrap();
            let expected: Vec<i64> = expected.iter().map(|id| id.as_i64().unwrap()).collect();
            let found = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
            assert_eq!(found.ids[..expected.len()], expected, "{}", case["text"]);
            assert!(found.ids[expected.len()..].iter().all(|&id| id == 0));
            assert_eq!((found.ids.len(), found.truncated), (2048, None));
        }
    }

    #[test]
    fn text_is_known_if_the_vocabulary_has_any_of_it() {
        let tokenizer = tokenizer(100);
        for (text, known) in [("a cat", true), ("a \u{1F525}", true), ("\u{10FFFC}\u{10FFFC}", false), ("  ", false)] {
            assert_eq!(tokenizer.encode(text).unwrap().known, known, "{text:?}");
        }
    }

    #[test]
    fn long_prompt_keeps_its_end_marker() {
        let text = "a cat runs on the beach";
        let whole = tokenizer(100).encode(text).unwrap();
        let length = whole.ids.iter().filter(|&&id| id != 0).count();
        let cut = tokenizer(4).encode(text).unwrap();
        assert_eq!(cut.ids[..3], whole.ids[..3]);
        assert_eq!((cut.ids[3], cut.truncated), (1, Some(length - 4)));
    }

    /// The fixture with one part replaced, and some more tokens.
    fn changed(key: &str, value: Value) -> Result<TextTokenizer, TokenizerError> {
        let bytes = std::fs::read(format!("{DIRECTORY}/tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&bytes).unwrap();
        json[key] = value;
        TextTokenizer::from_bytes(json.to_string().as_bytes(), 64, None)
    }

    fn sequence(key: &str, steps: &[Value]) -> Value {
        serde_json::json!({ "type": "Sequence", key: steps })
    }

    /// A few hundred bytes each, gigabytes of memory without a bound.
    #[test]
    fn steps_that_repeat_a_text_without_end_are_refused() {
        use serde_json::json;
        let double = |pattern: Value| json!({ "type": "Replace", "pattern": pattern, "content": "aa" });
        let prepend = json!({ "type": "Prepend", "prepend": "a" });
        for step in
            [double(json!({ "String": "a" })), double(json!({ "Regex": "" })), double(json!({ "Regex": "a|(?=a)" }))]
        {
            let steps = [vec![prepend.clone()], vec![step; 40]].concat();
            let tokenizer = changed("normalizer", sequence("normalizers", &steps)).unwrap();
            assert!(matches!(tokenizer.encode("a cat"), Err(TokenizerError::TooLong(5))));
            let nested = sequence("normalizers", &[sequence("normalizers", &steps)]);
            let token = json!([{ "id": 0, "content": "a", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": false }]);
            let bytes = std::fs::read(format!("{DIRECTORY}/tokenizer.json")).unwrap();
            let mut whole: Value = serde_json::from_slice(&bytes).unwrap();
            (whole["normalizer"], whole["added_tokens"]) = (nested, token);
            let error = TextTokenizer::from_bytes(whole.to_string().as_bytes(), 64, None).err().unwrap().to_string();
            assert!(error.contains("added tokens"), "{error}");
        }
        let level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        let error = changed("pre_tokenizer", sequence("pretokenizers", &vec![level; 30])).err().unwrap().to_string();
        assert!(error.contains("pre_tokenizer repeats a text"), "{error}");
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let twice =
            json!({ "type": "TemplateProcessing", "single": [text, text], "pair": [text], "special_tokens": {} });
        let error = changed("post_processor", sequence("processors", &vec![twice; 30])).err().unwrap().to_string();
        assert!(error.contains("post_processor repeats a text"), "{error}");
    }

    #[test]
    fn ordinary_steps_bear_long_texts() {
        let text = "a cat runs on the beach ".repeat(4000);
        assert!(tokenizer(64).encode(&text).unwrap().truncated.is_some());
        let long = "a".repeat(5 << 20);
        assert!(matches!(tokenizer(64).encode(&long), Err(TokenizerError::TooLong(_))));
    }

    #[test]
    fn bad_files_and_lengths_are_refused() {
        assert!(matches!(TextTokenizer::from_bytes(b"{}", 8, None), Err(TokenizerError::File(_))));
        assert!(matches!(TextTokenizer::from_bytes(b"{}", 1, None), Err(TokenizerError::MaxLength(1))));
    }
}
