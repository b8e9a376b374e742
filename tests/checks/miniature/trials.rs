//! What the miniatures are judged on: references and first frames that were held out of their training.

use std::path::Path;

use anyhow::{Context, ensure};
use indexmap::IndexMap;
use serde::Deserialize;
use v2l_runtime::media::video::{Frames, read_frames};

/// A reference of one effect, and the first frame of another scene with its caption.
#[derive(Clone)]
pub(crate) struct Trial {
    pub(crate) effect: String,
    /// The first frame itself, for a model that reads no reference.
    pub(crate) reference: Frames,
    pub(crate) image: Frames,
    pub(crate) caption: String,
}

/// `trials/trials.json`.
#[derive(Deserialize)]
pub(crate) struct Index {
    /// Side of a frame, in pixels.
    size: usize,
    /// Family → effects.
    pub(crate) families: IndexMap<String, Vec<String>>,
    /// Effects that the hypernetwork never saw.
    #[serde(default)]
    pub(crate) zero_shot: Vec<String>,
    /// Effect → caption of each trial.
    captions: IndexMap<String, Vec<String>>,
}

impl Index {
    /// Reads the index of a model folder.
    pub(crate) fn read(model: &Path) -> anyhow::Result<Self> {
        let path = model.join("trials/trials.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The effects of all families, in order.
    pub(crate) fn effects(&self) -> impl Iterator<Item = &String> {
        self.families.values().flatten()
    }

    /// The first `count` trials of one effect.
    ///
    /// `trials/<effect>.png` has one row for each: the first frame to animate, then the frames of the reference, where there is one.
    pub(crate) fn trials(&self, model: &Path, effect: &str, count: usize) -> anyhow::Result<Vec<Trial>> {
        let path = model.join("trials").join(format!("{effect}.png"));
        let sheet = read_frames(&path, None)?;
        let captions = self.captions.get(effect).with_context(|| format!("{effect}: no captions"))?;
        let columns = sheet.width() / self.size;
        ensure!(
            columns != 2
                && columns >= 1
                && sheet.width() == columns * self.size
                && sheet.height() == captions.len() * self.size,
            "{}: expected rows of frames of {} pixels, one row for each caption",
            path.display(),
            self.size
        );
        ensure!(count <= captions.len(), "{effect}: {count} trials asked for, there are {}", captions.len());
        let cell = |row: usize, column: usize| {
            let line = |y: usize| {
                let start = ((row * self.size + y) * sheet.width() + column * self.size) * 3;
                &sheet.data()[start..start + self.size * 3]
            };
            (0..self.size).flat_map(line).copied().collect::<Vec<u8>>()
        };
        let frames = |data: Vec<u8>| Frames::new(self.size, self.size, data, None);
        let rows = captions.iter().take(count).enumerate();
        rows.map(|(row, caption)| {
            Ok(Trial {
                effect: effect.to_owned(),
                reference: frames((1.min(columns - 1)..columns).flat_map(|column| cell(row, column)).collect())?,
                image: frames(cell(row, 0))?,
                caption: caption.clone(),
            })
        })
        .collect()
    }
}
