//! T5 tokenizer folders to the bytes of a `tokenizer.json`.
//!
//! `spiece.model`, where there is one, is converted so that the ids are those of the sentencepiece library; it comes
//! before a `tokenizer.json` beside it, which transformers derives from it with small differences.
//!
//! Text that spells a special token (`</s>`, `<extra_id_0>`) is ordinary text, as in sentencepiece; transformers reads
//! the token. The tokenizers library looks for every added token in every text, so a converted file has none: `</s>` is
//! named in its post-processor and `<pad>` in its padding, and the sentinels `<extra_id_N>`, which no text then
//! reaches, are left out. A copied `tokenizer.json` keeps its own added tokens.
//!
//! Known differences from sentencepiece: the library normalizes whole grapheme clusters, so that a mark after a
//! character that the character map replaces (`½` + U+0301) gets lost; and it normalizes user-defined symbols like
//! other text.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use v2l_runtime::io::map::read_file;
use v2l_runtime::pipeline::tokenizer::MAX_FILE;

use crate::ExportError;

const SENTENCEPIECE: &str = "spiece.model";
const TOKENIZER: &str = "tokenizer.json";

/// A tokenizer in the format of the tokenizers library.
#[derive(Debug)]
pub(crate) struct ConvertedTokenizer {
    /// The bytes of `tokenizer.json`; the same for the same input.
    pub(crate) json: Vec<u8>,
    /// What fills a prompt up to its length.
    pub(crate) pad_id: u32,
}

/// Converts `spiece.model` of a `tokenizer` folder or, without one, copies `tokenizer.json` after a check.
///
/// `None` if there is no such folder.
///
/// # Errors
/// [`ExportError::Io`] if the system refuses, [`ExportError::Tokenizer`] if the folder has neither file, or if the file
/// is damaged, above 64 MiB or of a kind that is not supported.
pub(crate) fn convert(folder: &Path) -> Result<Option<ConvertedTokenizer>, ExportError> {
    if !folder.try_exists().map_err(ExportError::io(folder))? {
        return Ok(None);
    }
    for name in [SENTENCEPIECE, TOKENIZER] {
        let path = folder.join(name);
        let Some(bytes) = read(&path)? else { continue };
        let converted = if name == SENTENCEPIECE { from_sentencepiece(&bytes) } else { from_json(bytes) };
        return converted.map(Some).map_err(|reason| ExportError::Tokenizer { path, reason });
    }
    let reason = format!("holds neither {SENTENCEPIECE} nor {TOKENIZER}; expected the tokenizer of a T5 text encoder");
    Err(ExportError::Tokenizer { path: folder.to_owned(), reason })
}

/// Converts a SentencePiece model that lies in a checkpoint at `path`.
///
/// # Errors
/// As [`convert`].
pub(crate) fn convert_embedded(path: &Path, model: &[u8]) -> Result<ConvertedTokenizer, ExportError> {
    from_sentencepiece(model).map_err(|reason| ExportError::Tokenizer { path: path.to_owned(), reason })
}

/// The bytes of a file, `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    match read_file(path, MAX_FILE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ExportError::io(path)(e)),
    }
}

// tokenizer.json

#[derive(Deserialize)]
struct TokenizerFile {
    version: String,
    #[serde(default)]
    padding: Option<Padding>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    post_processor: Option<IgnoredAny>,
    #[serde(rename = "model")]
    _model: Vocabulary,
}

#[derive(Deserialize)]
struct Padding {
    pad_id: u32,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Vocabulary {
    #[serde(rename = "vocab")]
    _vocab: IgnoredAny,
}

fn from_json(json: Vec<u8>) -> Result<ConvertedTokenizer, String> {
    let file: TokenizerFile = serde_json::from_slice(&json).map_err(|e| format!("not a tokenizer: {e}"))?;
    if file.version != "1.0" {
        return Err(format!("version {:?}, expected \"1.0\"", file.version));
    }
    if file.post_processor.is_none() {
        return Err("has no post_processor; expected one that ends every prompt with `</s>`".to_owned());
    }
    let pad = file.added_tokens.iter().find(|token| token.content == "<pad>").map(|token| token.id);
    let pad_id = file.padding.map(|padding| padding.pad_id).or(pad).ok_or("has no padding and no token `<pad>`")?;
    Ok(ConvertedTokenizer { json, pad_id })
}

// spiece.model

/// `sentencepiece_model.proto`, as far as it matters here.
#[derive(Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(enumeration = "Kind", optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    treat_whitespace_as_suffix: bool,
    #[prost(bool, tag = "35")]
    byte_fallback: bool,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pad_piece: Option<String>,
}

#[derive(Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

fn from_sentencepiece(bytes: &[u8]) -> Result<ConvertedTokenizer, String> {
    let model = ModelProto::decode(bytes).map_err(|e| format!("not a SentencePiece model: {e}"))?;
    let (Some(trainer), Some(normalizer)) = (&model.trainer, &model.normalizer) else {
        return Err("not a whole SentencePiece model: its settings are missing".to_owned());
    };
    let unk_id = check_unigram(&model, trainer, normalizer)?;
    let vocabulary = vocabulary(&model.pieces)?;
    let eos = trainer.eos_piece.as_deref().unwrap_or("</s>");
    let pad = trainer.pad_piece.as_deref().unwrap_or("<pad>");
    let (eos_id, pad_id) = (control_id(&model.pieces, eos)?, control_id(&model.pieces, pad)?);
    // Whole texts, since a piece may hold `▁` anywhere; but the tokenizers library would find a byte piece in text that
    // spells it, so such text is cut.
    let pre_tokenizer = trainer.byte_fallback.then(|| {
        json!({
            "type": "Split",
            "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"},
            "behavior": "MergedWithPrevious",
            "invert": false,
        })
    });
    let prepend_scheme = if normalizer.add_dummy_prefix == Some(false) { "never" } else { "always" };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": null,
            "pad_id": pad_id,
            "pad_type_id": 0,
            "pad_token": pad,
        },
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers(normalizer)?},
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": eos, "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": eos, "type_id": 0}},
            ],
            "special_tokens": {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": true},
        "model": {
            "type": "Unigram",
            "unk_id": unk_id,
            "vocab": vocabulary,
            "byte_fallback": trainer.byte_fallback,
        },
    });
    Ok(ConvertedTokenizer { json: json.to_string().into_bytes(), pad_id })
}

/// Refuses settings that T5 does not have; the id of the piece for the unknown.
fn check_unigram(model: &ModelProto, trainer: &TrainerSpec, normalizer: &NormalizerSpec) -> Result<usize, String> {
    match trainer.model_type.unwrap_or(1) {
        1 => (),
        2 => return Err("a BPE model; expected unigram, as T5 has".to_owned()),
        other => return Err(format!("model type {other}; expected 1, unigram, as T5 has")),
    }
    if trainer.treat_whitespace_as_suffix || normalizer.escape_whitespaces == Some(false) {
        return Err("white space is a suffix or not escaped; expected `▁` before each word, as T5 has".to_owned());
    }
    let unknown: Vec<usize> = ids_of(&model.pieces, Kind::Unknown).collect();
    let &[unk_id] = unknown.as_slice() else {
        return Err(format!("{} pieces stand for the unknown, expected 1", unknown.len()));
    };
    let byte_pieces = ids_of(&model.pieces, Kind::Byte).count();
    if byte_pieces != if trainer.byte_fallback { 256 } else { 0 } {
        return Err(format!("{byte_pieces} byte pieces with byte fallback {}", trainer.byte_fallback));
    }
    Ok(unk_id)
}

fn ids_of(pieces: &[Piece], kind: Kind) -> impl Iterator<Item = usize> {
    pieces.iter().enumerate().filter(move |(_, piece)| piece.kind() == kind).map(|(id, _)| id)
}

fn control_id(pieces: &[Piece], name: &str) -> Result<u32, String> {
    let id = ids_of(pieces, Kind::Control).find(|&id| pieces[id].piece == name);
    let id = id.ok_or_else(|| format!("has no control piece `{name}`; expected a T5 tokenizer"))?;
    u32::try_from(id).map_err(|e| e.to_string())
}

/// Pieces for the tokenizers library: it finds all of them in text, and derives the unknown's score from the lowest.
///
/// A piece that sentencepiece does not look for gets a space before its name, which no normalized text has, and a score
/// that does not count.
fn vocabulary(pieces: &[Piece]) -> Result<Vec<(String, f64)>, String> {
    let mut names = HashSet::new();
    for Piece { piece, score, .. } in pieces {
        if piece.is_empty() || !score.is_finite() || !names.insert(piece) {
            return Err(format!("piece `{piece}` is empty, has no finite score or is there twice"));
        }
    }
    let scores = ids_of(pieces, Kind::Normal).map(|id| f64::from(pieces[id].score));
    let (lowest, highest) = scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), s| (l.min(s), h.max(s)));
    if lowest > highest {
        return Err("has no pieces of text".to_owned());
    }
    Ok(pieces
        .iter()
        .map(|piece| match piece.kind() {
            Kind::Normal => (piece.piece.clone(), f64::from(piece.score)),
            Kind::UserDefined => (piece.piece.clone(), lowest.max(piece.piece.len() as f64 * highest - 0.1)),
            Kind::Byte => (piece.piece.clone(), highest),
            Kind::Unknown | Kind::Control | Kind::Unused => (format!(" {}", piece.piece), highest),
        })
        .collect())
}

fn normalizers(spec: &NormalizerSpec) -> Result<Vec<Value>, String> {
    let replace = |pattern, content| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut steps = Vec::new();
    if !spec.precompiled_charsmap.is_empty() {
        check_charsmap(&spec.precompiled_charsmap).ok_or("the character map of its normalization is damaged")?;
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(&spec.precompiled_charsmap)}));
    }
    if spec.remove_extra_whitespaces != Some(false) {
        steps.push(replace(json!({"Regex": r"\A +"}), ""));
        steps.push(replace(json!({"Regex": " {2,}"}), " "));
        steps.push(replace(json!({"Regex": r"[ ▁]+\z"}), ""));
    }
    if spec.add_dummy_prefix != Some(false) {
        steps.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    steps.push(replace(json!({"String": " "}), "▁"));
    Ok(steps)
}

/// Whether no lookup leaves the map: the tokenizers library indexes it without a check.
///
/// The size of a Darts double array in bytes, its units, then replacements that end with NUL.
fn check_charsmap(charsmap: &[u8]) -> Option<()> {
    let (size, rest) = charsmap.split_first_chunk()?;
    let (units, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    let (units, []) = units.as_chunks() else { return None };
    let units: Vec<usize> = units.iter().map(|&unit| u32::from_le_bytes(unit) as usize).collect();
    let texts = std::str::from_utf8(texts).ok()?;
    let safe = |(at, &unit): (usize, &usize)| {
        let (is_value, has_value) = (unit >> 31 == 1, unit >> 8 & 1 == 1);
        let children = at ^ ((unit >> 10) << ((unit & 0x200) >> 6));
        is_value
            || (children | 0xFF) < units.len() && (!has_value || texts.is_char_boundary(units[children] & 0x7FFF_FFFF))
    };
    (!units.is_empty() && units.iter().enumerate().all(safe)).then_some(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokenizers::Tokenizer;

    use super::*;

    /// The mark after `½`, `ﬁ` and `▁` gets lost; see the module's documentation.
    const KNOWN_DIFFERENCES: [&str; 1] = ["½\u{301} ﬁ\u{301}re ▁\u{301}t"];

    fn fixture(variant: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer").join(variant)
    }

    fn model(variant: &str) -> ModelProto {
        ModelProto::decode(std::fs::read(fixture(variant).join(SENTENCEPIECE)).unwrap().as_slice()).unwrap()
    }

    fn ids(converted: &ConvertedTokenizer, text: &str) -> Vec<u32> {
        Tokenizer::from_bytes(&converted.json).unwrap().encode_fast(text, true).unwrap().get_ids().to_vec()
    }

    fn refusal(change: impl FnOnce(&mut ModelProto)) -> String {
        let mut model = model("");
        change(&mut model);
        from_sentencepiece(&model.encode_to_vec()).unwrap_err()
    }

    #[test]
    fn golden_texts_give_the_ids_of_sentencepiece() {
        for (variant, known) in [("", &KNOWN_DIFFERENCES[..]), ("byte_fallback", &[]), ("verbatim", &[])] {
            let converted = convert(&fixture(variant)).unwrap().unwrap();
            assert_eq!(converted.pad_id, 0);
            let tokenizer = Tokenizer::from_bytes(&converted.json).unwrap();
            let cases = std::fs::read(fixture(variant).join("cases.json")).unwrap();
            let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
            let mut different = Vec::new();
            for case in &cases {
                let text = case["text"].as_str().unwrap();
                if json!(tokenizer.encode_fast(text, true).unwrap().get_ids()) != case["ids"] {
                    different.push(text);
                }
            }
            assert!(cases.len() > 70);
            assert_eq!(different, known, "{variant}");
        }
    }

    #[test]
    fn conversion_is_deterministic_and_names_the_special_tokens() {
        let converted = convert(&fixture("")).unwrap().unwrap();
        assert_eq!(converted.json, convert(&fixture("")).unwrap().unwrap().json);
        let tokenizer = Tokenizer::from_bytes(&converted.json).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap().get_tokens(), ["▁a", "</s>"]);
        let padding = tokenizer.get_padding().unwrap();
        assert_eq!((padding.pad_id, padding.pad_token.as_str()), (0, "<pad>"));
        assert_eq!(tokenizer.decode(&[8, 216, 15], true).unwrap(), "a cat");
    }

    /// Ids from the sentencepiece library.
    #[test]
    fn text_cannot_spell_pieces_that_are_not_text() {
        let whole = convert(&fixture("")).unwrap().unwrap();
        assert_eq!(ids(&whole, "＜/s＞"), [3, 2, 253, 6, 2, 1]);
        let bytes = convert(&fixture("byte_fallback")).unwrap().unwrap();
        assert_eq!(ids(&bytes, "a<0x41><0x0A>"), [264, 63, 457, 425, 458, 470, 65, 63, 457, 425, 457, 284, 65, 1]);

        let mut unused = model("");
        unused.pieces[0].score = -50.0;
        unused.pieces[216].kind = Some(Kind::Unused.into());
        let unused = from_sentencepiece(&unused.encode_to_vec()).unwrap();
        assert_eq!(ids(&unused, "a cat ☃"), [8, 78, 111, 3, 2, 1]);
    }

    #[test]
    fn copies_a_json_that_can_be_used() {
        let json = std::fs::read(fixture("").join(TOKENIZER)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(TOKENIZER), &json).unwrap();
        let copy = convert(folder.path()).unwrap().unwrap();
        assert_eq!((copy.json, copy.pad_id), (json.clone(), 0));

        let whole: Value = serde_json::from_slice(&json).unwrap();
        for (key, value, reason) in [
            ("post_processor", Value::Null, "has no post_processor; expected one that ends every prompt with `</s>`"),
            ("version", json!("2.0"), "version \"2.0\", expected \"1.0\""),
            ("added_tokens", json!([]), "has no padding and no token `<pad>`"),
            ("model", json!({}), "not a tokenizer: missing field `vocab`"),
        ] {
            let mut changed = whole.clone();
            changed[key] = value;
            assert!(from_json(changed.to_string().into_bytes()).unwrap_err().starts_with(reason), "{key}");
        }
        assert!(from_json(json[..json.len() / 2].to_vec()).is_err());
    }

    #[test]
    fn damaged_models_are_refused() {
        let bytes = std::fs::read(fixture("verbatim").join(SENTENCEPIECE)).unwrap();
        for length in 0..bytes.len() {
            assert!(from_sentencepiece(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(from_sentencepiece(&[0xFF; 100]).unwrap_err().starts_with("not a SentencePiece model"));
        assert!(from_sentencepiece(b"version https://git-lfs.github.com/spec/v1").is_err());

        let map = |model: &mut ModelProto| model.normalizer.take().unwrap().precompiled_charsmap;
        let whole = map(&mut model(""));
        assert!(check_charsmap(&whole).is_some());
        for damaged in [&[], &whole[..3], &whole[..100], &[0; 4][..], &[4, 0, 0, 0, 0, 1, 0, 0], &[0xFF; 3000]] {
            assert!(check_charsmap(damaged).is_none());
        }
        let reason = refusal(|model| model.normalizer.as_mut().unwrap().precompiled_charsmap.truncate(9));
        assert_eq!(reason, "the character map of its normalization is damaged");
    }

    #[test]
    fn unusable_models_are_refused_by_name() {
        assert!(refusal(|model| model.trainer.as_mut().unwrap().model_type = Some(2)).contains("BPE"));
        assert!(refusal(|model| model.trainer.as_mut().unwrap().model_type = Some(3)).contains("model type 3"));
        assert!(refusal(|model| model.trainer.as_mut().unwrap().byte_fallback = true).contains("0 byte pieces"));
        assert!(refusal(|model| model.normalizer.as_mut().unwrap().escape_whitespaces = Some(false)).contains("`▁`"));
        assert!(refusal(|model| model.pieces[0].piece = "<p>".to_owned()).contains("no control piece `<pad>`"));
        assert!(refusal(|model| model.pieces[2].kind = None).contains("0 pieces stand for the unknown"));
        assert!(refusal(|model| model.pieces[9].piece = model.pieces[8].piece.clone()).contains("there twice"));
        assert!(refusal(|model| model.pieces[9].score = f32::NAN).contains("no finite score"));
        assert!(refusal(|model| model.pieces.truncate(3)).contains("no pieces of text"));
    }

    #[test]
    fn folders_without_a_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        assert!(convert(&folder.path().join("tokenizer")).unwrap().is_none());
        let error = convert(folder.path()).unwrap_err().to_string();
        assert!(error.contains("neither spiece.model nor tokenizer.json"), "{error}");
        std::fs::File::create(folder.path().join(SENTENCEPIECE)).unwrap().set_len(MAX_FILE + 1).unwrap();
        let error = convert(folder.path()).unwrap_err().to_string();
        assert!(error.contains("spiece.model: more than 67108864 bytes"), "{error}");
    }
}
