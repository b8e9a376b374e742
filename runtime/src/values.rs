//! Checks of the values of a `pipeline.json`.

use std::fmt;

use crate::error::{Classified, ErrorClass};

/// A value of `pipeline.json` makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("pipeline.json: `{key}` is {found}, expected {expected}")]
pub struct WrongValue {
    /// Dotted key.
    pub key: String,
    /// Value found.
    pub found: String,
    /// What is allowed.
    pub expected: String,
}

impl WrongValue {
    pub(crate) fn new(key: &str, found: &dyn fmt::Display, expected: &str) -> Self {
        Self { key: key.to_owned(), found: format!("{found}"), expected: expected.to_owned() }
    }
}

impl Classified for WrongValue {
    fn class(&self) -> ErrorClass {
        ErrorClass::BadModel
    }
}

pub(crate) fn between(key: &str, found: usize, low: usize, high: usize) -> Result<(), WrongValue> {
    if (low..=high).contains(&found) { Ok(()) } else { Err(WrongValue::new(key, &found, &format!("{low} to {high}"))) }
}

pub(crate) fn real(key: &str, found: f64, good: bool, expected: &str) -> Result<(), WrongValue> {
    if good && found.is_finite() { Ok(()) } else { Err(WrongValue::new(key, &found, expected)) }
}
