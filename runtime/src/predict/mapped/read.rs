//! A map's JSON, of either version.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::super::error::PredictorError;
use super::first::FirstMap;
use super::format::{MapGraph, MapSlot, PredictorMap, Version};
use crate::lora::Strength;

pub(super) const FORMAT: &str = "v2l-predictor-map";
/// Largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 24;
/// Most graphs that a map may name.
const MAX_GRAPHS: usize = 64;

/// A map of version 2.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SecondMap {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    graphs: Option<Vec<MapGraph>>,
    slots: Vec<MapSlot>,
    strength: Option<Strengths>,
}

/// Strengths of the two branches of guidance.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Strengths {
    cond: f32,
    uncond: f32,
}

impl SecondMap {
    fn into_map(self) -> Result<PredictorMap, String> {
        let graphs = self.graphs.unwrap_or_else(|| vec![MapGraph::default()]);
        if !(1..=MAX_GRAPHS).contains(&graphs.len()) {
            return Err(format!("`graphs`: expected 1 to {MAX_GRAPHS} graphs, found {}", graphs.len()));
        }
        let strength =
            self.strength.map_or_else(Strength::default, |Strengths { cond, uncond }| Strength { cond, uncond });
        if !strength.cond.is_finite() || !strength.uncond.is_finite() {
            return Err("`strength` is not a finite number of 32 bits".to_owned());
        }
        Ok(PredictorMap { version: Version::Two, graphs, slots: self.slots, strength })
    }
}

impl PredictorMap {
    /// Reads a map from a JSON file of at most 16 MiB; unknown keys are refused.
    ///
    /// # Errors
    /// [`PredictorError::MapFile`], [`PredictorError::Map`].
    pub fn read(path: &Path) -> Result<Self, PredictorError> {
        let io = |source| PredictorError::MapFile { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            let reason = format!("expected a predictor map of at most {MAX_FILE} bytes, found more");
            return Err(PredictorError::map(path, reason));
        }
        Self::parse(path, &bytes)
    }

    /// Format and version are looked at before the rest, which each version writes otherwise.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, PredictorError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let fail = |reason: String| PredictorError::map(path, reason);
        let json = |e: serde_json::Error| fail(format!("not a valid predictor map: {e}"));
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.format != FORMAT {
            return Err(fail(format!("`format`: expected {FORMAT:?}, found {:?}", head.format)));
        }
        let map = match head.version {
            1 => serde_json::from_slice::<FirstMap>(bytes).map_err(json)?.into_map(),
            2 => serde_json::from_slice::<SecondMap>(bytes).map_err(json)?.into_map().map_err(fail)?,
            found => {
                let reason = format!("`version`: expected 1 or 2, found {found}; use the v2l that it was made for");
                return Err(fail(reason));
            }
        };
        if map.slots.is_empty() {
            return Err(fail("`slots` is empty; expected at least one slot".to_owned()));
        }
        Ok(map)
    }
}
