//! JSON as Python writes it: with `NaN`, `Infinity` and `-Infinity`, which are no JSON and which Python's own reader takes.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What Python writes for numbers that are not finite.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// Most options that are looked through for the one that is to blame; each costs a copy of the whole.
const MOST: usize = 16;

/// Why a JSON could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is damaged, or not what was expected.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// An option that has to be finite is not.
    #[error("`{option}` is {value}; expected a finite number")]
    NotFinite {
        /// The option, with what it lies in: `latents_mean[3]`.
        option: String,
        /// One of the three words.
        value: String,
    },
}

/// Reads JSON in which numbers may be `NaN`, `Infinity` or `-Infinity`. In a [`Value`] they are strings of that spelling.
///
/// # Errors
/// [`JsonError::NotFinite`] names an option that has such a value and needs another.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let error = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match quoted(text) {
        Some(text) => typed(&serde_json::from_slice(&text)?),
        None => Err(error.into()),
    }
}

/// What a value that [`read`] gave is as `T`.
///
/// # Errors
/// As [`read`].
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, JsonError> {
    let reads = |value: &Value| T::deserialize(value).is_ok();
    T::deserialize(value).map_err(|error| not_finite(value, reads).unwrap_or(JsonError::Syntax(error)))
}

/// The option whose value is not finite and keeps `reads` from taking `value`; `None` if something else does.
pub fn not_finite(value: &Value, reads: impl Fn(&Value) -> bool) -> Option<JsonError> {
    let mut found = Vec::new();
    places(value, String::new(), String::new(), &mut found);
    let finite = |left: Option<&str>| {
        let mut copy = value.clone();
        for (pointer, _) in found.iter().filter(|(pointer, _)| Some(&pointer[..]) != left) {
            if let Some(place) = copy.pointer_mut(pointer) {
                *place = 1.into();
            }
        }
        copy
    };
    if found.is_empty() || found.len() > MOST || !reads(&finite(None)) {
        return None;
    }
    let (pointer, option) = found.iter().find(|(pointer, _)| !reads(&finite(Some(pointer))))?;
    let value = value.pointer(pointer)?.as_str()?.to_owned();
    Some(JsonError::NotFinite { option: option.clone(), value })
}

/// Places of numbers that are not finite: as JSON pointers, and in words.
fn places(value: &Value, pointer: String, words: String, found: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) if WORDS.contains(&&text[..]) => found.push((pointer, words)),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                places(item, format!("{pointer}/{at}"), format!("{words}[{at}]"), found);
            }
        }
        Value::Object(items) => {
            for (key, item) in items {
                let inner = if words.is_empty() { key.clone() } else { format!("{words}.{key}") };
                let escaped = key.replace('~', "~0").replace('/', "~1");
                places(item, format!("{pointer}/{escaped}"), inner, found);
            }
        }
        _ => {}
    }
}

/// The text with the three words as strings; `None` if it has none of them as a value.
fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let (mut at, mut in_string, mut any) = (0, false, false);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        let alone = |word: &str| {
            let ends =
                |byte: Option<&u8>| byte.is_none_or(|b| matches!(b, b',' | b']' | b'}') || b.is_ascii_whitespace());
            rest.starts_with(word.as_bytes()) && ends(rest.get(word.len()))
        };
        match byte {
            b'\\' if in_string => {
                out.extend(&rest[..rest.len().min(2)]);
                at += 2;
                continue;
            }
            b'"' => in_string = !in_string,
            b'-' | b'I' | b'N' if !in_string => {
                if let Some(word) = WORDS.into_iter().find(|word| alone(word)) {
                    out.extend(format!("\"{word}\"").bytes());
                    at += word.len();
                    any = true;
                    continue;
                }
            }
            _ => {}
        }
        out.push(byte);
        at += 1;
    }
    any.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default)]
    struct Config {
        eps: f32,
        means: Vec<f64>,
        heads: usize,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { eps: 1e-6, means: Vec::new(), heads: 2 }
        }
    }

    #[test]
    fn read_takes_the_words_of_python_as_values_and_leaves_strings_alone() {
        let text = br#"{"a": -Infinity, "b": [NaN,Infinity], "c": "NaN, -Infinity", "d\\": "\"", "e": -1}"#;
        let value: Value = read(text).unwrap();
        let expected = json!({
            "a": "-Infinity", "b": ["NaN", "Infinity"], "c": "NaN, -Infinity", "d\\": "\"", "e": -1
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn read_of_an_option_that_nobody_reads_succeeds_and_of_another_names_it() {
        let config: Config = read(br#"{"lambda_min_clipped": -Infinity, "heads": 4}"#).unwrap();
        assert_eq!(config, Config { heads: 4, ..Config::default() });
        for (text, expected) in [
            (&br#"{"eps": NaN, "other": Infinity}"#[..], "`eps` is NaN; expected a finite number"),
            (br#"{"means": [0.5, 1, -Infinity]}"#, "`means[2]` is -Infinity; expected a finite number"),
            (br#"{"other": NaN, "heads": Infinity}"#, "`heads` is Infinity; expected a finite number"),
        ] {
            assert_eq!(read::<Config>(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn read_of_what_python_does_not_write_is_an_error_of_json() {
        for text in [
            "{\"a\": nan}",
            "{\"a\": -NaN}",
            "{\"a\": NaNs}",
            "{NaN: 1}",
            "{\"a\": NaN",
            "{\"eps\": \"x\", \"b\": NaN}",
        ] {
            assert!(matches!(read::<Config>(text.as_bytes()), Err(JsonError::Syntax(_))), "{text}");
        }
    }
}
