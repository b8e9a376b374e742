//! A map's JSON.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::super::error::PredictorError;
use super::format::{MapGraph, MapSlot, PredictorMap};
use crate::lora::Strength;

pub(super) const FORMAT: &str = "v2l-predictor-map";
/// The version that this build reads.
pub(super) const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 24;
/// Most graphs that a map may name.
const MAX_GRAPHS: usize = 64;

/// Keys that maps of one graph had once, and what is written now.
const MOVED: [(&str, &str); 5] = [
    ("graph", r#"write "graphs": [{ "graph": "NAME" }]"#),
    ("down_index", r#"write "down": { "output": "NAME", "index": N }"#),
    ("up_index", r#"write "up": { "output": "NAME", "index": N }"#),
    ("down_transposed", r#"write "down": { "output": "NAME", "transposed": true }"#),
    ("up_transposed", r#"write "up": { "output": "NAME", "transposed": true }"#),
];

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "PredictorMap")]
struct MapFile {
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

impl MapFile {
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
        Ok(PredictorMap { graphs, slots: self.slots, strength })
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

    /// Format and version are looked at before the rest.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, PredictorError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: i64,
        }
        let fail = |reason: String| PredictorError::map(path, reason);
        let json = |e: serde_json::Error| {
            let error = e.to_string();
            let moved = MOVED.iter().find(|(key, _)| error.contains(&format!("unknown field `{key}`")));
            let now = moved.map_or_else(String::new, |(_, now)| format!("; {now}"));
            fail(format!("not a valid predictor map: {error}{now}"))
        };
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.format != FORMAT {
            return Err(fail(format!("`format`: expected {FORMAT:?}, found {:?}", head.format)));
        }
        if head.version != i64::from(VERSION) {
            let found = head.version;
            let reason = format!(
                "`version`: expected {VERSION}, found {found}; what was version 2 is version 1 now, with nothing else changed"
            );
            return Err(fail(reason));
        }
        let map = serde_json::from_slice::<MapFile>(bytes).map_err(json)?.into_map().map_err(fail)?;
        if map.slots.is_empty() {
            return Err(fail("`slots` is empty; expected at least one slot".to_owned()));
        }
        Ok(map)
    }
}
